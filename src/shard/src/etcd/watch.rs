//! One watcher on one gRPC stream.

use futures::stream::{self, StreamExt};
use sharded_etcd_etcd_api::messages as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming, metadata::MetadataValue};

use super::{EtcdShard, failure};
use crate::{Result, ShardError, WatchStream};

/// Opens a watcher that etcd ends when its member loses the leader (`WithRequireLeader` of clientv3), so that it does not
/// stand still unnoticed behind a partition.
pub(super) async fn open(shard: &EtcdShard, create: pb::WatchCreateRequest) -> Result<WatchStream> {
    let (requests, outgoing) = mpsc::channel(1);
    let create = pb::WatchRequest { request_union: Some(pb::RequestUnion::CreateRequest(create)) };
    requests.try_send(create).expect("a new channel has room for its first message");
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let mut client = shard.watch_client();
    let answers = shard.bounded(client.watch(request)).await?.into_inner();
    Ok(stream::unfold(Some(Watcher { answers, requests }), next).boxed())
}

/// The reading end of a watcher. `requests` keeps the sending half of the stream open; dropping it is what tells etcd to
/// end the watcher, as dropping the receiving half alone leaves the stream half open.
struct Watcher {
    answers: Streaming<pb::WatchResponse>,
    requests: mpsc::Sender<pb::WatchRequest>,
}

/// The next item, and the watcher unless that was the last.
async fn next(watcher: Option<Watcher>) -> Option<(Result<pb::WatchResponse>, Option<Watcher>)> {
    let Watcher { mut answers, requests } = watcher?;
    match answers.message().await {
        Ok(Some(answer)) if answer.canceled => Some((Ok(answer), None)),
        Ok(Some(answer)) => Some((Ok(answer), Some(Watcher { answers, requests }))),
        Ok(None) => {
            Some((Err(ShardError::ambiguous(Code::Unavailable, "etcd ended the watch stream")), None))
        }
        Err(status) => Some((Err(failure::shard_error(&status)), None)),
    }
}
