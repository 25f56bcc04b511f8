//! `v3lockpb.Lock`, which clients without a lock of their own use.

use bytes::Bytes;
use sharded_etcd_etcd_api::v3lockpb as lock;
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};

use crate::{
    Suite,
    check::{Check, Ctx, Stop, needed, revision},
};

const NAME: &str = "b/lock";

impl Ctx {
    async fn try_lock(&self, lease: i64) -> Result<lock::LockResponse, Status> {
        let request = lock::LockRequest { name: self.key(NAME), lease };
        self.api.lock.clone().lock(request).await.map(Response::into_inner)
    }

    async fn lock(&self, lease: i64) -> Check<lock::LockResponse> {
        needed("Lock", self.try_lock(lease).await)
    }

    async fn unlock(&self, key: Bytes) -> Check<lock::UnlockResponse> {
        let answer = self.api.lock.clone().unlock(lock::UnlockRequest { key }).await;
        needed("Unlock", answer.map(Response::into_inner))
    }

    /// The key of who waits or holds with that lease.
    fn lock_key(&self, lease: i64) -> String {
        format!("{NAME}/{lease:x}")
    }

    /// Begins to wait with a lease, and returns once the server has it as a waiter and waits with it.
    async fn waiter(&self, lease: i64) -> Check<JoinHandle<Result<lock::LockResponse, Status>>> {
        let c = self.clone();
        let waiter = tokio::spawn(async move { c.try_lock(lease).await });
        let key = self.lock_key(lease);
        self.until("the waiter is known", || async { Ok(self.kv(&key).await?.map(|_| ())) }).await?;
        // What is written later is answered later: then the server knows of its own answer and waits.
        for _ in 0..5 {
            self.put("b/later", "").await?;
        }
        Ok(waiter)
    }
}

async fn ended<T>(task: JoinHandle<T>) -> Check<T> {
    task.await.map_err(|error| Stop(format!("a waiter: {error}")))
}

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "lock/free",
        "a free lock is held at once: its key is the name, a slash and the lease in hexadecimal, and ends with the lease",
        |c| async move {
            let lease = c.grant(0, 600).await?;
            let held = c.lock(lease).await?;
            let kv = c.there(&c.lock_key(lease)).await?;
            c.same("key", &held.key, &kv.key);
            c.same("value and lease", (kv.value.len(), kv.lease), (0, lease));
            c.same("revision", revision(&held.header), kv.mod_revision);
            let again = c.lock(lease).await?;
            c.same("key for the same lease", again.key, kv.key);
            c.same("version", c.there(&c.lock_key(lease)).await?.version, 1);
            c.revoke(lease).await?;
            c.same("key after the lease", c.kv(&c.lock_key(lease)).await?, None);
            Ok(())
        },
    );
    suite.case(
        "lock/waits",
        "who comes later holds the lock once it is unlocked, not before",
        |c| async move {
            let (first, second) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
            let held = c.lock(first).await?;
            let waiter = c.waiter(second).await?;
            c.holds("the second waits", !waiter.is_finished());
            let unlocked = c.unlock(held.key).await?;
            let then = needed("Lock", ended(waiter).await?)?;
            c.holds(
                "the lock is given after the unlock",
                revision(&then.header) >= revision(&unlocked.header),
            );
            c.same("key", c.name(&then.key), c.lock_key(second));
            Ok(())
        },
    );
    suite.case("lock/lease-ends", "the end of the holder's lease passes the lock on", |c| async move {
        let (first, second) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
        c.lock(first).await?;
        let waiter = c.waiter(second).await?;
        c.revoke(first).await?;
        let then = needed("Lock", ended(waiter).await?)?;
        c.same("key", c.name(&then.key), c.lock_key(second));
        Ok(())
    });
    suite.case("lock/order", "waiters have their turns in the order in which they came", |c| async move {
        let mut waiters = Vec::new();
        let first = c.lock(c.grant(0, 600).await?).await?;
        for n in 1..4 {
            waiters.push(c.waiter(c.grant(n, 600).await?).await?);
        }
        let mut key = first.key;
        for waiter in waiters {
            c.holds("the next waits", !waiter.is_finished());
            c.unlock(key).await?;
            key = needed("Lock", ended(waiter).await?)?.key;
        }
        Ok(())
    });
    suite.case(
        "lock/client-gone",
        "a client that goes while it waits leaves nothing behind",
        |c| async move {
            let (first, second) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
            c.lock(first).await?;
            c.waiter(second).await?.abort();
            let key = c.lock_key(second);
            let gone = || async { Ok(c.kv(&key).await?.is_none().then_some(())) };
            c.until("the waiter's key is gone", gone).await?;
            c.there(&c.lock_key(first)).await?;
            Ok(())
        },
    );
    suite.case("lock/waiter-expired", "a waiter whose lease has ended is told so", |c| async move {
        let (first, second) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
        let held = c.lock(first).await?;
        let waiter = c.waiter(second).await?;
        c.revoke(second).await?;
        c.unlock(held.key).await?;
        c.refused(ended(waiter).await?, Code::Unknown, "mutex: session is expired");
        Ok(())
    });
    suite.case("lock/no-lease", "without a lease the lock is held by a new one of 60 s", |c| async move {
        let held = c.lock(0).await?;
        let kv = c.there(&c.name(&held.key)).await?;
        c.same("key", c.name(&kv.key), c.lock_key(kv.lease));
        c.same("TTL", c.lease(kv.lease).await?.granted_ttl, 60);
        c.revoke(kv.lease).await?;
        Ok(())
    });
    suite.case("lock/unknown-lease", "a lease that is not there is refused", |c| async move {
        let refused = c.try_lock(c.lease_id(9)).await;
        c.refused(refused, Code::Unknown, "etcdserver: requested lease not found");
        c.same("keys", c.names(&c.range(c.dir("b/")).await?.kvs), String::new());
        Ok(())
    });
    suite.case("lock/unlock-missing", "to unlock what is not locked is fine", |c| async move {
        let at = c.put("a", "1").await?;
        let answer = c.unlock(c.key("b/lock/1")).await?;
        c.holds("the header has a revision", revision(&answer.header) >= at);
        Ok(())
    });
}
