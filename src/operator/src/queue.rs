//! The resources that something happened to, each once.

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use futures::{Stream, stream};
use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use sharded_etcd_crd::ShardedEtcd;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Namespace and name of a resource.
pub(crate) type Key = (String, String);

/// Bounded by the number of names that there are: a resource that is in it already is not put into it again.
#[derive(Default)]
pub(crate) struct Queue {
    dirty: Mutex<HashSet<Key>>,
    pushed: Notify,
}

impl Queue {
    /// Something happened to the resource.
    pub(crate) fn push(&self, key: Key) {
        if self.dirty.lock().insert(key) {
            self.pushed.notify_one();
        }
    }

    /// What is in it, until `stop`; for one reader.
    pub(crate) fn requests(
        self: Arc<Self>,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<ObjectRef<ShardedEtcd>, Infallible>> {
        let ready = VecDeque::<Key>::new();
        stream::unfold((self, ready, stop), |(queue, mut ready, stop)| async move {
            loop {
                if stop.is_cancelled() {
                    return None;
                }
                if ready.is_empty() {
                    ready.extend(queue.dirty.lock().drain());
                }
                if let Some((namespace, name)) = ready.pop_front() {
                    let reference = ObjectRef::new(&name).within(&namespace);
                    return Some((Ok(reference), (queue, ready, stop)));
                }
                tokio::select! {
                    () = queue.pushed.notified() => {}
                    () = stop.cancelled() => {}
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn what_is_pushed_twice_comes_once() {
        let queue = Arc::new(Queue::default());
        let stop = CancellationToken::new();
        let key = |name: &str| ("ns".to_owned(), name.to_owned());
        queue.push(key("a"));
        queue.push(key("a"));
        queue.push(key("b"));
        let mut requests = Box::pin(Arc::clone(&queue).requests(stop.clone()));
        let mut names = Vec::new();
        for _ in 0..2 {
            names.push(requests.next().await.expect("not stopped").expect("infallible").name);
        }
        names.sort();
        assert_eq!(names, ["a", "b"]);
        queue.push(key("c"));
        assert_eq!(requests.next().await.expect("not stopped").expect("infallible").name, "c");
        stop.cancel();
        assert!(requests.next().await.is_none());
    }
}
