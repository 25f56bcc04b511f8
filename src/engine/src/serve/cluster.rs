//! `etcdserverpb.Cluster`, as far as one member without raft has it: what etcd would refuse to its only member is
//! refused as etcd does, and so is what needs a second one, with a reason of our own.

use sharded_etcd_etcd_api::{etcdserverpb::cluster_server::Cluster, messages as pb};
use tonic::{Request, Response, Status};

use super::{Service, not_here};
use crate::metrics::Method;

impl Service {
    /// Why something is not done with a member: this one's reason, or that there is no such member.
    fn known(&self, id: u64, reason: Status) -> Status {
        if id == self.engine.member_id() { reason } else { Status::not_found("etcdserver: member not found") }
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let urls = request.into_inner().peer_ur_ls;
        let is_sound = !urls.is_empty() && urls.iter().all(|url| is_peer_url(url));
        let invalid = || Status::invalid_argument("etcdserver: given member URLs are invalid");
        self.answer(Method::MemberAdd, Err(if is_sound { not_here("MemberAdd") } else { invalid() }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let reason = "etcdserver: re-configuration failed due to not enough started members";
        // The code that etcd answers: it has no other for this.
        let refused = self.known(request.into_inner().id, Status::unknown(reason));
        self.answer(Method::MemberRemove, Err(refused))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let refused = self.known(request.into_inner().id, not_here("MemberUpdate"));
        self.answer(Method::MemberUpdate, Err(refused))
    }

    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let member = pb::Member {
            id: self.engine.member_id(),
            name: self.engine.name().to_owned(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.client_urls.to_vec(),
            is_learner: false,
        };
        // Without a revision, as in etcd.
        let header = Some(self.engine.shared.header(0));
        self.answer(Method::MemberList, Ok(pb::MemberListResponse { header, members: vec![member] }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let reason = "etcdserver: can only promote a learner member";
        let refused = self.known(request.into_inner().id, Status::failed_precondition(reason));
        self.answer(Method::MemberPromote, Err(refused))
    }
}

/// Whether etcd would take it: `http://HOST:PORT` and no more.
fn is_peer_url(url: &str) -> bool {
    let url = url.trim();
    if url.starts_with("unix://") || url.starts_with("unixs://") {
        return true;
    }
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    rest.and_then(|rest| rest.rsplit_once(':'))
        .is_some_and(|(host, port)| !host.contains('/') && port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::is_peer_url;

    #[test]
    fn peer_urls() {
        for url in ["http://a:1", "https://[::1]:2380", " http://10.0.0.1:2380 ", "unix://x"] {
            assert!(is_peer_url(url), "{url}");
        }
        for url in ["", "a:1", "http://a", "ftp://a:1", "http://a:1/path", "http://a:b"] {
            assert!(!is_peer_url(url), "{url}");
        }
    }
}
