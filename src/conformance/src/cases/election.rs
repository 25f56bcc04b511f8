//! `v3electionpb.Election`, which clients without an election of their own use.

use sharded_etcd_etcd_api::v3electionpb as election;
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status, Streaming};

use crate::{
    Suite,
    check::{Check, Ctx, Stop, needed, revision},
};

const NAME: &str = "b/vote";

impl Ctx {
    async fn try_campaign(&self, lease: i64, value: &str) -> Result<election::CampaignResponse, Status> {
        let value = value.to_owned().into();
        let request = election::CampaignRequest { name: self.key(NAME), lease, value };
        self.api.election.clone().campaign(request).await.map(Response::into_inner)
    }

    /// Wins the election.
    async fn campaign(&self, lease: i64, value: &str) -> Check<election::LeaderKey> {
        let answer = needed("Campaign", self.try_campaign(lease, value).await)?;
        answer.leader.ok_or_else(|| Stop("Campaign names no leader".to_owned()))
    }

    /// Begins to wait with a lease, and returns once the server has it as a candidate and waits with it.
    async fn candidate(
        &self,
        lease: i64,
        value: &'static str,
    ) -> Check<JoinHandle<Result<election::CampaignResponse, Status>>> {
        let c = self.clone();
        let candidate = tokio::spawn(async move { c.try_campaign(lease, value).await });
        let key = self.election_key(lease);
        self.until("the candidate is known", || async { Ok(self.kv(&key).await?.map(|_| ())) }).await?;
        // What is written later is answered later: then the server knows of its own answer and waits.
        for _ in 0..5 {
            self.put("b/later", "").await?;
        }
        Ok(candidate)
    }

    fn election_key(&self, lease: i64) -> String {
        format!("{NAME}/{lease:x}")
    }

    async fn try_leader(&self) -> Result<election::LeaderResponse, Status> {
        let request = election::LeaderRequest { name: self.key(NAME) };
        self.api.election.clone().leader(request).await.map(Response::into_inner)
    }

    async fn try_proclaim(
        &self,
        leader: Option<election::LeaderKey>,
        value: &str,
    ) -> Result<election::ProclaimResponse, Status> {
        let request = election::ProclaimRequest { leader, value: value.to_owned().into() };
        self.api.election.clone().proclaim(request).await.map(Response::into_inner)
    }

    async fn try_resign(
        &self,
        leader: Option<election::LeaderKey>,
    ) -> Result<election::ResignResponse, Status> {
        let request = election::ResignRequest { leader };
        self.api.election.clone().resign(request).await.map(Response::into_inner)
    }

    /// Opens a stream of leaders. It may begin with its first answer.
    fn observe(&self) -> JoinHandle<Result<Streaming<election::LeaderResponse>, Status>> {
        let request = election::LeaderRequest { name: self.key(NAME) };
        let mut client = self.api.election.clone();
        tokio::spawn(async move { client.observe(request).await.map(Response::into_inner) })
    }
}

/// The value that the next answer has; its key has the header's revision or an older one.
async fn told(c: &Ctx, leaders: &mut Streaming<election::LeaderResponse>) -> Check<String> {
    let answer = needed("Observe", leaders.message().await)?;
    let answer = answer.ok_or_else(|| Stop("Observe has ended".to_owned()))?;
    let kv = answer.kv.ok_or_else(|| Stop("Observe names no key".to_owned()))?;
    c.holds("the header covers the key", revision(&answer.header) >= kv.mod_revision);
    Ok(String::from_utf8_lossy(&kv.value).into_owned())
}

async fn ended<T>(task: JoinHandle<T>) -> Check<T> {
    task.await.map_err(|error| Stop(format!("a candidate: {error}")))
}

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "election/campaign",
        "who is alone wins at once; its key is the name, a slash and the lease in hexadecimal, its value what it says",
        |c| async move {
            let lease = c.grant(0, 600).await?;
            let answer = needed("Campaign", c.try_campaign(lease, "one").await)?;
            let kv = c.there(&c.election_key(lease)).await?;
            c.same("value and lease", (&kv.value[..], kv.lease), (&b"one"[..], lease));
            c.same("revision", revision(&answer.header), kv.create_revision);
            let leader =
                election::LeaderKey { name: c.key(NAME), key: kv.key.clone(), rev: kv.create_revision, lease };
            c.same("leader", answer.leader, Some(leader));
            c.same("Leader", needed("Leader", c.try_leader().await)?.kv, Some(kv));
            Ok(())
        },
    );
    suite.case("election/nobody", "without candidates there is no leader", |c| async move {
        c.refused(c.try_leader().await, Code::Unknown, "election: no leader");
        Ok(())
    });
    suite.case(
        "election/campaign/again",
        "a leader that campaigns again stays, and its new value is proclaimed",
        |c| async move {
            let lease = c.grant(0, 600).await?;
            let first = c.campaign(lease, "one").await?;
            c.same("leader", c.campaign(lease, "one").await?, first.clone());
            c.same("leader", c.campaign(lease, "two").await?, first);
            let kv = c.there(&c.election_key(lease)).await?;
            c.same("value and version", (&kv.value[..], kv.version), (&b"two"[..], 2));
            Ok(())
        },
    );
    suite.case(
        "election/campaign/waits",
        "the next candidate wins once the leader resigns",
        |c| async move {
            let first = c.campaign(c.grant(0, 600).await?, "one").await?;
            let second = c.grant(1, 600).await?;
            let candidate = c.candidate(second, "two").await?;
            c.holds("the second waits", !candidate.is_finished());
            let value = |leader: election::LeaderResponse| leader.kv.map(|kv| kv.value);
            c.same("value", value(needed("Leader", c.try_leader().await)?), Some("one".into()));
            let resigned = needed("Resign", c.try_resign(Some(first)).await)?;
            c.holds("a resignation has a revision", revision(&resigned.header) > 0);
            let won = needed("Campaign", ended(candidate).await?)?.leader;
            c.same("lease", won.map(|leader| leader.lease), Some(second));
            c.same("value", value(needed("Leader", c.try_leader().await)?), Some("two".into()));
            Ok(())
        },
    );
    suite.case(
        "election/campaign/client-gone",
        "a client that goes while it waits is no candidate any more",
        |c| async move {
            c.campaign(c.grant(0, 600).await?, "one").await?;
            let second = c.grant(1, 600).await?;
            c.candidate(second, "two").await?.abort();
            let key = c.election_key(second);
            let gone = || async { Ok(c.kv(&key).await?.is_none().then_some(())) };
            c.until("the candidate's key is gone", gone).await
        },
    );
    suite.case("election/campaign/unknown-lease", "a lease that is not there is refused", |c| async move {
        let refused = c.try_campaign(c.lease_id(9), "one").await;
        c.refused(refused, Code::Unknown, "etcdserver: requested lease not found");
        Ok(())
    });
    suite.case("election/proclaim", "a leader changes what it says, and nobody else", |c| async move {
        let lease = c.grant(0, 600).await?;
        let leader = c.campaign(lease, "one").await?;
        let answer = needed("Proclaim", c.try_proclaim(Some(leader.clone()), "two").await)?;
        let kv = c.there(&c.election_key(lease)).await?;
        c.same("value and lease", (&kv.value[..], kv.lease), (&b"two"[..], lease));
        c.same("revisions", (kv.create_revision, kv.mod_revision), (leader.rev, revision(&answer.header)));
        let other = election::LeaderKey { rev: leader.rev - 1, ..leader.clone() };
        c.refused(c.try_proclaim(Some(other.clone()), "three").await, Code::Unknown, "election: not leader");
        needed("Resign", c.try_resign(Some(other)).await)?;
        c.there(&c.election_key(lease)).await?;
        needed("Resign", c.try_resign(Some(leader.clone())).await)?;
        c.same("key", c.kv(&c.election_key(lease)).await?, None);
        c.refused(c.try_proclaim(Some(leader.clone()), "three").await, Code::Unknown, "election: not leader");
        needed("Resign", c.try_resign(Some(leader)).await)?;
        Ok(())
    });
    suite.case("election/unnamed", "Proclaim and Resign must name a leader", |c| async move {
        let text = "\"leader\" field must be provided";
        c.refused(c.try_proclaim(None, "one").await, Code::Unknown, text);
        c.refused(c.try_resign(None).await, Code::Unknown, text);
        Ok(())
    });
    suite.case(
        "election/observe",
        "who observes is told the leader, what it proclaims, and the next one, in order",
        |c| async move {
            let first = c.campaign(c.grant(0, 600).await?, "one").await?;
            let mut leaders = needed("Observe", ended(c.observe()).await?)?;
            c.same("first", told(&c, &mut leaders).await?, "one");
            needed("Proclaim", c.try_proclaim(Some(first.clone()), "more").await)?;
            c.same("proclaimed", told(&c, &mut leaders).await?, "more");
            let candidate = c.candidate(c.grant(1, 600).await?, "two").await?;
            needed("Resign", c.try_resign(Some(first)).await)?;
            c.same("next", told(&c, &mut leaders).await?, "two");
            needed("Campaign", ended(candidate).await?)?;
            Ok(())
        },
    );
    suite.case(
        "election/observe/nobody",
        "who observes before there is a leader is told the first",
        |c| async move {
            let observing = c.observe();
            let first = c.campaign(c.grant(0, 600).await?, "one").await?;
            let mut leaders = needed("Observe", ended(observing).await?)?;
            c.same("first", told(&c, &mut leaders).await?, "one");
            needed("Resign", c.try_resign(Some(first)).await)?;
            c.campaign(c.grant(1, 600).await?, "two").await?;
            c.same("next", told(&c, &mut leaders).await?, "two");
            Ok(())
        },
    );
}
