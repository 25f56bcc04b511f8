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
    Ok(stream::unfold(State::Open { answers, requests }, next).boxed())
}

/// The reading end of a watcher.
enum State {
    /// Answers come. `requests` keeps the sending half of the stream open; dropping it is what tells etcd to end the
    /// watcher, as dropping the receiving half alone leaves the stream half open.
    Open { answers: Streaming<pb::WatchResponse>, requests: mpsc::Sender<pb::WatchRequest> },
    /// The last item has been given.
    Ended,
}

async fn next(state: State) -> Option<(Result<pb::WatchResponse>, State)> {
    let State::Open { mut answers, requests } = state else {
        return None;
    };
    match answers.message().await {
        Ok(Some(answer)) if answer.canceled => Some((Ok(answer), State::Ended)),
        Ok(Some(answer)) => Some((Ok(answer), State::Open { answers, requests })),
        Ok(None) => {
            let error = ShardError::ambiguous(Code::Unavailable, "etcd ended the watch stream");
            Some((Err(error), State::Ended))
        }
        Err(status) => Some((Err(failure::shard_error(&status)), State::Ended)),
    }
}
