//! `etcdserverpb.Auth`: authentication is off, and cannot be switched on.

use futures::future::BoxFuture;
use sharded_etcd_etcd_api::{etcdserverpb::auth_server::Auth, messages as pb};
use tonic::{Code, Request, Response, Status};

use super::Service;

/// Revision of an auth store that was never changed (etcd: server/auth/store.go).
const AUTH_REVISION: u64 = 1;

fn not_here() -> Status {
    Status::unimplemented(
        "authentication, users and roles are not available on an embedded engine: listen on a loopback address instead",
    )
}

macro_rules! not_here {
    ($($method:ident($request:ident) -> $response:ident;)*) => {$(
        fn $method<'life0, 'async_trait>(
            &'life0 self,
            _: Request<pb::$request>,
        ) -> BoxFuture<'async_trait, Result<Response<pb::$response>, Status>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(not_here()) })
        }
    )*};
}

#[tonic::async_trait]
impl Auth for Service {
    async fn auth_status(
        &self,
        _: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let header = Some(self.engine.shared.current_header());
        let (enabled, auth_revision) = (false, AUTH_REVISION);
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    /// Switching off what is off changes nothing, as on etcd.
    async fn auth_disable(
        &self,
        _: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let header = Some(self.engine.shared.current_header());
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    /// etcd's `ErrAuthNotEnabled`: clientv3 then goes on without a token.
    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        Err(Status::new(Code::FailedPrecondition, "etcdserver: authentication is not enabled"))
    }

    not_here! {
        auth_enable(AuthEnableRequest) -> AuthEnableResponse;
        user_add(AuthUserAddRequest) -> AuthUserAddResponse;
        user_get(AuthUserGetRequest) -> AuthUserGetResponse;
        user_list(AuthUserListRequest) -> AuthUserListResponse;
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
        user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
        user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
        role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
        role_list(AuthRoleListRequest) -> AuthRoleListResponse;
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
        role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
        role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
    }
}
