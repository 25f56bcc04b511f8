//! etcd's `Auth` service: authentication is off, and cannot be switched on yet.

use std::sync::Arc;

use sharded_etcd_etcd_api::{etcdserverpb::auth_server::Auth, messages as pb};
use tonic::{Code, Request, Response, Status};

use crate::context::Context;

/// Revision of an auth store that was never changed (etcd: server/auth/store.go).
const AUTH_REVISION: u64 = 1;

/// etcd's `Auth` service.
pub struct AuthService {
    ctx: Arc<Context>,
}

impl AuthService {
    /// The service.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.ctx.header(self.ctx.line.cut().revision))
    }
}

fn not_yet() -> Status {
    Status::unimplemented(
        "authentication, users and roles are not available yet: restrict who can reach the endpoint instead, for \
         example with a NetworkPolicy or a local address",
    )
}

macro_rules! not_yet {
    ($($method:ident($request:ident) -> $response:ident;)*) => {$(
        fn $method<'life0, 'async_trait>(
            &'life0 self,
            _: Request<pb::$request>,
        ) -> futures::future::BoxFuture<'async_trait, Result<Response<pb::$response>, Status>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(not_yet()) })
        }
    )*};
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_status(
        &self,
        _: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let (header, auth_revision) = (self.header(), AUTH_REVISION);
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision }))
    }

    /// Switching off what is off changes nothing, as on etcd.
    async fn auth_disable(
        &self,
        _: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        Ok(Response::new(pb::AuthDisableResponse { header: self.header() }))
    }

    /// etcd's `ErrAuthNotEnabled`: clientv3 then goes on without a token.
    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        Err(Status::new(Code::FailedPrecondition, "etcdserver: authentication is not enabled"))
    }

    not_yet! {
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
