//! Brings into the line what was written and never told.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use rand::Rng;
use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_etcd_api::messages as pb;
use tokio_util::sync::CancellationToken;

use crate::{Line, Shards};

/// Asks each shard now and then, once in the line's `unseen_max` at least, what its newest revision is; runs until `shutdown`.
///
/// A write whose answer was lost with the proxy that sent it is seen by nobody, if no watch is open on the shard. Without
/// this it would come into the line with the next write there, be that days later.
pub async fn follow_up(line: Arc<Line>, shards: Arc<Shards>, shutdown: CancellationToken) {
    loop {
        let pause = line.options().unseen_max.mul_f64(crate::random::rng().random_range(0.5..1.0));
        let round = async {
            tokio::time::sleep(pause).await;
            let present: Vec<ShardIx> = line.with_fold(|fold| {
                let all = fold.shards().iter().zip(0..);
                all.filter(|(shard, _)| !shard.left).map(|(_, ix)| ShardIx(ix)).collect()
            });
            join_all(present.into_iter().map(|ix| look(&line, &shards, ix))).await;
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = round => {}
        }
    }
}

/// One that cannot be reached is asked again the next time.
async fn look(line: &Line, shards: &Shards, ix: ShardIx) {
    let Ok(shard) = shards.get(ix).await else { return };
    let get = pb::RangeRequest { key: Bytes::from_static(b"\0"), count_only: true, ..Default::default() };
    if let Ok(pb::RangeResponse { header: Some(header), .. }) = shard.range(get).await {
        line.observe(ix, header.revision);
    }
}
