//! gRPC calls by method and code, as go-grpc-prometheus counts them for etcd.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tonic::{Code, Status};

use super::Count;
use crate::shared::Shared;

/// Codes are small numbers.
const CODES: usize = 17;

macro_rules! methods {
    ($($service:literal { $($method:ident $kind:literal,)* })*) => {
        /// A method of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Method { $($($method,)*)* }

        /// Service, name and kind of each, in the order of [`Method`].
        pub(super) const METHODS: &[(&str, &str, &str)] = &[$($(($service, stringify!($method), $kind),)*)*];
    };
}

methods! {
    "etcdserverpb.KV" {
        Range "unary", RangeStream "server_stream", Put "unary", DeleteRange "unary", Txn "unary", Compact "unary",
    }
    "etcdserverpb.Watch" { Watch "bidi_stream", }
    "etcdserverpb.Lease" {
        LeaseGrant "unary", LeaseRevoke "unary", LeaseKeepAlive "bidi_stream", LeaseTimeToLive "unary",
        LeaseLeases "unary",
    }
    "etcdserverpb.Maintenance" {
        Alarm "unary", Status "unary", Defragment "unary", Hash "unary", HashKV "unary", Snapshot "server_stream",
        MoveLeader "unary", Downgrade "unary",
    }
    "etcdserverpb.Cluster" {
        MemberAdd "unary", MemberRemove "unary", MemberUpdate "unary", MemberList "unary", MemberPromote "unary",
    }
}

const METHODS_COUNT: usize = METHODS.len();

/// Calls that ended, by method and code.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Code OK, which is nearly all of them.
    fine: [Count; METHODS_COUNT],
    others: [[AtomicU64; CODES]; METHODS_COUNT],
    started: [Count; METHODS_COUNT],
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            fine: std::array::from_fn(|_| Count::default()),
            others: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            started: std::array::from_fn(|_| Count::default()),
        }
    }
}

impl Calls {
    /// Counts a call that has ended.
    pub(crate) fn ended(&self, method: Method, code: Code) {
        match code {
            Code::Ok => self.fine[method as usize].up(),
            code => {
                self.others[method as usize][code as usize % CODES].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Counts a call of one request and one answer, and passes the answer on.
    pub(crate) fn count<T>(&self, method: Method, answer: Result<T, Status>) -> Result<T, Status> {
        self.ended(method, answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
        answer
    }

    /// Calls of one method by code, those that were.
    pub(super) fn by_code(&self, method: usize) -> impl Iterator<Item = (Code, u64)> {
        let others = self.others[method].iter().enumerate();
        let others = others.map(|(code, count)| (Code::from(code as i32), count.load(Ordering::Relaxed)));
        std::iter::once((Code::Ok, self.fine[method].get())).chain(others).filter(|(_, count)| *count > 0)
    }

    /// Streams of one method that have not ended.
    pub(super) fn started(&self, method: usize) -> u64 {
        let is_unary = METHODS[method].2 == "unary";
        if is_unary { self.by_code(method).map(|(_, count)| count).sum() } else { self.started[method].get() }
    }
}

/// A stream that is open; it is counted when it ends.
#[derive(Debug)]
pub(crate) struct InFlight {
    shared: Arc<Shared>,
    method: Method,
    code: Code,
}

impl InFlight {
    pub(crate) fn new(shared: &Arc<Shared>, method: Method) -> Self {
        shared.metrics.calls.started[method as usize].up();
        Self { shared: Arc::clone(shared), method, code: Code::Ok }
    }

    /// Notes an error that ends the stream, and passes what there is on.
    pub(crate) fn see<T>(&mut self, item: Result<T, Status>) -> Result<T, Status> {
        if let Err(status) = &item {
            self.code = status.code();
        }
        item
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.metrics.calls.ended(self.method, self.code);
    }
}

/// The name of a code as Go has it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
