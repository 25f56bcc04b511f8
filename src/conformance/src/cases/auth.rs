//! Authentication, which is off.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::FailedPrecondition;

use crate::{Need, Suite, check::needed};

pub(super) fn add(suite: &mut Suite) {
    suite.case("auth/status", "authentication is off", |c| async move {
        let answer = needed("AuthStatus", c.api.auth.clone().auth_status(pb::AuthStatusRequest {}).await)?;
        c.same("answer", (answer.get_ref().enabled, answer.get_ref().auth_revision), (false, 1));
        c.holds("there is a header", answer.get_ref().header.is_some());
        Ok(())
    });
    suite.case(
        "auth/authenticate",
        "nobody can log in while authentication is off; clients then go on without a token",
        |c| async move {
            let request = pb::AuthenticateRequest { name: "root".into(), password: "secret".into() };
            let answer = c.api.auth.clone().authenticate(request).await;
            c.refused(answer, FailedPrecondition, "etcdserver: authentication is not enabled");
            Ok(())
        },
    );
    suite.case("auth/disable", "switching off what is off is no error", |c| async move {
        needed("AuthDisable", c.api.auth.clone().auth_disable(pb::AuthDisableRequest {}).await)?;
        Ok(())
    });
    suite
        .case(
            "auth/enable-without-root",
            "authentication cannot be switched on without the user root",
            |c| async move {
                let answer = c.api.auth.clone().auth_enable(pb::AuthEnableRequest {}).await;
                c.refused(answer, FailedPrecondition, "etcdserver: root user does not exist");
                Ok(())
            },
        )
        .needs(Need::Users);
    suite
        .case("auth/user-list", "users can be listed", |c| async move {
            let answer = needed("UserList", c.api.auth.clone().user_list(pb::AuthUserListRequest {}).await)?;
            c.same("users", answer.get_ref().users.len(), 0);
            Ok(())
        })
        .needs(Need::Users);
}
