//! etcd 3.7's `RangeStream`: a range in chunks, all at one revision, whatever is written or how large it is.
//!
//! As etcd has it (server/etcdserver/v3_server.go, `rangeStream` and `adjustChunkLimit`): ten keys first, then twice or
//! half as many as the size of the chunk before suggests; header, `more` and `count` are in the last chunk only.

use prost::Message;
use sharded_etcd_etcd_api::messages as pb;

use crate::{
    keyspace::successor,
    translate::{has_revision_filters, is_default_order},
};

/// Keys of the first chunk, at most. (etcd: `initialStreamChunkLimit`.)
const FIRST_LIMIT: i64 = 10;

/// What is answered like this, etcd does not stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotStreamed {
    /// Another order than by key.
    #[error("RangeStream does not support custom sort orders")]
    Sorted,
    /// Bounds for create or mod revisions.
    #[error("RangeStream does not support revision filters")]
    Filtered,
}

/// How far a stream is.
#[derive(Debug, Clone)]
pub struct RangeStream {
    /// What is asked next.
    next: pb::RangeRequest,
    /// Keys that may still be sent; `i64::MAX` for all.
    left: i64,
    sent: i64,
    /// About how many bytes a chunk has.
    target_bytes: usize,
    /// Of the first answer: it stays the same for the whole stream.
    header: Option<pb::ResponseHeader>,
    /// The last chunk, which waits for the count of what is behind it.
    last: pb::RangeResponse,
}

/// What follows from an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Chunk {
    /// To be sent; then [`RangeStream::ask`] is to be asked again.
    Part(pb::RangeResponse),
    /// To be sent; there is no more.
    Last(pb::RangeResponse),
    /// To be asked first; its `count` is for [`RangeStream::counted`].
    Count(pb::RangeRequest),
}

impl RangeStream {
    /// Begins a stream with chunks of about `target_bytes`.
    ///
    /// # Errors
    /// What etcd does not stream.
    pub fn new(request: pb::RangeRequest, target_bytes: usize) -> Result<Self, NotStreamed> {
        if !is_default_order(&request) {
            return Err(NotStreamed::Sorted);
        }
        if has_revision_filters(&request) {
            return Err(NotStreamed::Filtered);
        }
        let left = if request.limit > 0 { request.limit } else { i64::MAX };
        // A count has no keys, and is not bounded by the limit.
        let limit = if request.count_only { request.limit } else { left.min(FIRST_LIMIT) };
        let next = pb::RangeRequest { limit, ..request };
        Ok(Self { next, left, sent: 0, target_bytes, header: None, last: pb::RangeResponse::default() })
    }

    /// Asks `range` for the next chunk: that, and the stream if there is more of it.
    ///
    /// # Errors
    /// What `range` answered.
    pub async fn next<E, F>(
        mut self,
        range: impl Fn(pb::RangeRequest) -> F,
    ) -> Result<(pb::RangeStreamResponse, Option<Self>), E>
    where
        F: Future<Output = Result<pb::RangeResponse, E>>,
    {
        let (part, rest) = match self.take(range(self.ask()).await?) {
            Chunk::Part(part) => (part, Some(self)),
            Chunk::Last(part) => (part, None),
            Chunk::Count(request) => (self.counted(range(request).await?.count), None),
        };
        Ok((pb::RangeStreamResponse { range_response: Some(part) }, rest))
    }

    /// What to ask now.
    pub fn ask(&self) -> pb::RangeRequest {
        self.next.clone()
    }

    /// Takes the answer to [`Self::ask`].
    pub fn take(&mut self, answer: pb::RangeResponse) -> Chunk {
        if self.next.count_only {
            return Chunk::Last(pb::RangeResponse { kvs: Vec::new(), more: false, ..answer });
        }
        let size = answer.encoded_len();
        let pb::RangeResponse { header, kvs, more, .. } = answer;
        let header = self.header.get_or_insert_with(|| header.unwrap_or_default());
        if self.next.revision <= 0 {
            self.next.revision = header.revision;
        }
        // The first answer was of the present where that was asked for; the rest is of that revision, wherever it is read.
        self.next.serializable = true;
        let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        self.sent += count;
        self.left -= count;
        let behind = kvs.last().filter(|_| more).map(|kv| successor(&kv.key));
        let part = pb::RangeResponse { kvs, ..Default::default() };
        let Some(behind) = behind else { return Chunk::Last(self.complete(part, 0)) };
        self.next.key = behind;
        if self.left <= 0 {
            self.last = part;
            return Chunk::Count(pb::RangeRequest { limit: 0, count_only: true, ..self.next.clone() });
        }
        self.next.limit = adjusted(self.next.limit, size, self.target_bytes).min(self.left);
        Chunk::Part(part)
    }

    /// The last chunk, if `count` keys are behind it.
    pub fn counted(&mut self, count: i64) -> pb::RangeResponse {
        let last = std::mem::take(&mut self.last);
        self.complete(last, count)
    }

    fn complete(&self, part: pb::RangeResponse, behind: i64) -> pb::RangeResponse {
        pb::RangeResponse { header: self.header, more: behind > 0, count: self.sent + behind, ..part }
    }
}

/// The next chunk's limit, after one of `size` bytes.
fn adjusted(limit: i64, size: usize, target: usize) -> i64 {
    let limit = match size {
        _ if size < target / 2 => limit.saturating_mul(2),
        _ if size > target.saturating_mul(2) => limit / 2,
        _ => limit,
    };
    limit.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: usize = 1_000;

    /// Streams `keys` keys with values of `size` bytes out of a store at revision 7, which goes on meanwhile.
    fn stream(request: pb::RangeRequest, keys: usize, size: usize) -> (Vec<pb::RangeResponse>, Vec<i64>) {
        let store: Vec<String> = (0..keys).map(|n| format!("k{n:04}")).collect();
        let (mut parts, mut limits) = (Vec::new(), Vec::new());
        let mut stream = RangeStream::new(request, TARGET).unwrap();
        for now in 7.. {
            let answer = |r: &pb::RangeRequest| {
                let held: Vec<_> = store.iter().filter(|key| key.as_bytes() >= &r.key[..]).collect();
                let count = held.len();
                let most = if r.limit > 0 { usize::try_from(r.limit).unwrap() } else { count };
                let shown = if r.count_only { 0 } else { most.min(count) };
                let kv = |key: &&String| pb::KeyValue {
                    key: key.to_string().into(),
                    value: vec![b'v'; size].into(),
                    ..Default::default()
                };
                pb::RangeResponse {
                    header: Some(pb::ResponseHeader { revision: now, ..Default::default() }),
                    kvs: held[..shown].iter().map(kv).collect(),
                    more: !r.count_only && shown < count,
                    count: i64::try_from(count).unwrap(),
                }
            };
            let ask = stream.ask();
            assert!(now == 7 || ask.count_only || (ask.revision == 7 && ask.serializable), "{ask:?}");
            limits.push(ask.limit);
            match stream.take(answer(&ask)) {
                Chunk::Part(part) => parts.push(part),
                Chunk::Last(part) => {
                    parts.push(part);
                    break;
                }
                Chunk::Count(request) => {
                    assert_eq!((request.revision, request.limit), (7, 0));
                    parts.push(stream.counted(answer(&request).count));
                    break;
                }
            }
        }
        (parts, limits)
    }

    fn all(limit: i64) -> pb::RangeRequest {
        pb::RangeRequest { key: "k".into(), range_end: "l".into(), limit, ..Default::default() }
    }

    /// Keys of each part; those of the last with its revision, count and `more`.
    fn shape(parts: &[pb::RangeResponse]) -> (Vec<usize>, i64, i64, bool) {
        let (last, others) = parts.split_last().unwrap();
        assert!(others.iter().all(|p| p.header.is_none() && !p.more && p.count == 0));
        let keys: Vec<_> = parts.iter().flat_map(|p| &p.kvs).map(|kv| kv.key.clone()).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        let sizes = parts.iter().map(|part| part.kvs.len()).collect();
        (sizes, last.header.as_ref().unwrap().revision, last.count, last.more)
    }

    #[test]
    fn small_keys_come_in_chunks_that_grow_and_large_ones_in_chunks_that_shrink() {
        assert_eq!(shape(&stream(all(0), 25, 1).0), (vec![10, 15], 7, 25, false));
        let (parts, limits) = stream(all(0), 100, 1);
        assert_eq!((limits, shape(&parts)), (vec![10, 20, 40, 80], (vec![10, 20, 40, 30], 7, 100, false)));
        let (parts, limits) = stream(all(0), 20, 500);
        assert_eq!((limits, shape(&parts)), (vec![10, 5, 2, 2, 2], (vec![10, 5, 2, 2, 1], 7, 20, false)));
        assert_eq!(shape(&stream(all(0), 3, 5_000).0), (vec![3], 7, 3, false));
    }

    #[test]
    fn a_limit_ends_the_stream_and_what_is_behind_it_is_counted() {
        assert_eq!(shape(&stream(all(5), 25, 1).0), (vec![5], 7, 25, true));
        assert_eq!(shape(&stream(all(10), 25, 1).0), (vec![10], 7, 25, true));
        assert_eq!(shape(&stream(all(12), 25, 1).0), (vec![10, 2], 7, 25, true));
        assert_eq!(shape(&stream(all(25), 25, 1).0), (vec![10, 15], 7, 25, false));
        assert_eq!(shape(&stream(all(100), 25, 1).0), (vec![10, 15], 7, 25, false));
    }

    #[test]
    fn nothing_is_one_chunk_and_a_count_too() {
        assert_eq!(shape(&stream(all(0), 0, 1).0), (vec![0], 7, 0, false));
        let count = pb::RangeRequest { count_only: true, ..all(3) };
        assert_eq!(shape(&stream(count, 25, 1).0), (vec![0], 7, 25, false));
    }

    #[test]
    fn orders_and_filters_are_refused_as_in_etcd() {
        let sorted = pb::RangeRequest { sort_target: 3, sort_order: 1, ..all(0) };
        assert_eq!(RangeStream::new(sorted, TARGET).unwrap_err(), NotStreamed::Sorted);
        let filtered = pb::RangeRequest { min_mod_revision: 3, ..all(0) };
        assert_eq!(RangeStream::new(filtered, TARGET).unwrap_err(), NotStreamed::Filtered);
    }
}
