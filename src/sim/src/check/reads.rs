//! Invariants of reads and compactions.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code;

use super::{Asked, History, writes::NoAnswer};
use crate::{state::answer, truth::Truth};

impl History {
    /// A Range was answered.
    ///
    /// # Errors
    /// If the answer is not what the line says.
    pub fn read(
        &self,
        truth: &Truth,
        asked: Asked,
        request: &pb::RangeRequest,
        response: &pb::RangeResponse,
    ) -> Result<(), String> {
        let header = response.header.as_ref();
        let what = || format!("{request:?} was answered {response:?}");
        let newest = if request.serializable {
            let revision = header.map_or(0, |h| h.revision);
            self.tell(truth, revision)?;
            revision
        } else {
            self.header(truth, asked, header).map_err(|e| format!("{}: {e}", what()))?
        };
        let at = if request.revision > 0 { request.revision } else { newest };
        if at > newest {
            return Err(format!("{}: its header is older than what it shows", what()));
        }
        // A serializable read may be of a time before.
        if !request.serializable && at < asked.compacted {
            return Err(format!("{}, but {} had been compacted", what(), asked.compacted));
        }
        let expected = answer(&truth.keys, request, at);
        if (&expected.kvs, expected.count, expected.more) != (&response.kvs, response.count, response.more) {
            return Err(format!("{}, but at revision {at} it is {expected:?}", what()));
        }
        Ok(())
    }

    /// A Range was not answered.
    ///
    /// # Errors
    /// If the reason is not true.
    pub fn not_read(
        &self,
        truth: &Truth,
        asked: Asked,
        request: &pb::RangeRequest,
        why: &NoAnswer,
    ) -> Result<(), String> {
        self.state.lock().checks += 1;
        let NoAnswer::Status(status) = why else { return Ok(()) };
        if status.code() == Code::OutOfRange {
            let compacted = status.message() == sharded_etcd_shard::ERR_COMPACTED;
            if compacted && request.revision >= truth.compacted {
                return Err(format!("{request:?} was told compacted, but that is {}", truth.compacted));
            }
            if !compacted && request.revision <= asked.floor {
                return Err(format!("{request:?} was told {status:?}, but {} was known", asked.floor));
            }
        } else if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
            return Err(format!("{request:?} was told {status:?}"));
        }
        Ok(())
    }

    /// A compaction was refused.
    ///
    /// # Errors
    /// If the reason is not true.
    pub fn not_compacted(
        &self,
        truth: &Truth,
        asked: Asked,
        revision: i64,
        why: &NoAnswer,
    ) -> Result<(), String> {
        let NoAnswer::Status(status) = why else { return Ok(()) };
        if status.code() == Code::OutOfRange {
            let compacted = status.message() == sharded_etcd_shard::ERR_COMPACTED;
            if (compacted && revision > truth.compacted) || (!compacted && revision <= asked.floor) {
                return Err(format!("Compact({revision}) was told {status:?}"));
            }
        }
        Ok(())
    }
}
