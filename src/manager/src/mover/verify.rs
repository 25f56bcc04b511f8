//! Comparing the copy with its source, as clients know both.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use sharded_etcd_core::{keyspace::Printable, records::MoveRecord};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::ShardError;

use super::{
    Interrupt, Mover,
    copy::history_gone,
    read::{KeyReader, read_keys, too_large},
};

/// Keys that are compared with one read of each side.
const KEYS_A_READ: usize = 500;

impl Mover<'_> {
    /// Compares the source at `source_at` with the destination at `destination_at`, key by key; the first difference.
    pub(crate) async fn compare_all(
        &self,
        record: &MoveRecord,
        source_at: i64,
        destination_at: i64,
    ) -> Result<Option<String>, Interrupt> {
        let (source, destination) = (self.shard(record.from).await?, self.shard(record.to).await?);
        let line = || self.context.line.clone();
        let imported = self.source_was_imported(record);
        let mut a =
            Side::new(KeyReader::new(line(), source, record.from, &record.range, source_at, imported));
        let mut b =
            Side::new(KeyReader::new(line(), destination, record.to, &record.range, destination_at, true));
        loop {
            let (left, right) = tokio::join!(a.next(), b.next());
            match (
                left.map_err(|e| history_gone(e, source_at))?,
                right.map_err(|e| history_gone(e, destination_at))?,
            ) {
                (None, None) => return Ok(None),
                (left, right) if left == right => {}
                (left, right) => return Ok(Some(difference(left.as_ref(), right.as_ref()))),
            }
        }
    }

    /// Compares these keys only; the first difference.
    pub(crate) async fn compare_keys(
        &self,
        record: &MoveRecord,
        source_at: i64,
        destination_at: i64,
        keys: &HashSet<Bytes>,
    ) -> Result<Option<String>, Interrupt> {
        let (source, destination) = (self.shard(record.from).await?, self.shard(record.to).await?);
        let line = &self.context.line;
        let keys: Vec<Bytes> = keys.iter().cloned().collect();
        let mut rest = keys.as_slice();
        let mut most = KEYS_A_READ;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(most));
            let both = tokio::try_join!(
                read_keys(line, source.as_ref(), record.from, now, source_at),
                read_keys(line, destination.as_ref(), record.to, now, destination_at),
            );
            let (left, right) = match both {
                Err(error) if too_large(&error) && most > 1 => {
                    most /= 4;
                    most = most.max(1);
                    continue;
                }
                both => both.map_err(|e| history_gone(e, source_at))?,
            };
            if left != right {
                let differs = left.iter().zip(&right).find(|(l, r)| l != r);
                return Ok(Some(match differs {
                    Some((l, r)) => difference(Some(l), Some(r)),
                    None => difference(left.get(right.len()), right.get(left.len())),
                }));
            }
            rest = later;
        }
        Ok(None)
    }
}

/// One side of a comparison, key by key.
struct Side {
    reader: KeyReader,
    page: VecDeque<pb::KeyValue>,
}

impl Side {
    fn new(reader: KeyReader) -> Self {
        Self { reader, page: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Option<pb::KeyValue>, ShardError> {
        if self.page.is_empty()
            && let Some(page) = self.reader.page().await?
        {
            self.page = page.into();
        }
        Ok(self.page.pop_front())
    }
}

fn difference(source: Option<&pb::KeyValue>, destination: Option<&pb::KeyValue>) -> String {
    let show = |kv: &pb::KeyValue| {
        format!(
            "create {}, mod {}, version {}, lease {:x}, {} bytes (fnv {:08x})",
            kv.create_revision,
            kv.mod_revision,
            kv.version,
            kv.lease,
            kv.value.len(),
            fingerprint(&kv.value)
        )
    };
    match (source, destination) {
        (Some(a), Some(b)) if a.key == b.key => {
            format!(
                "key {} is {} on the source and {} on the destination",
                Printable(&a.key),
                show(a),
                show(b)
            )
        }
        (Some(a), Some(b)) if a.key > b.key => {
            format!("key {} is on the destination only", Printable(&b.key))
        }
        (Some(a), _) => format!("key {} is on the source only", Printable(&a.key)),
        (None, Some(b)) => format!("key {} is on the destination only", Printable(&b.key)),
        (None, None) => "no difference".to_owned(),
    }
}

/// Tells values of one length apart in a message.
fn fingerprint(value: &[u8]) -> u32 {
    value.iter().fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
