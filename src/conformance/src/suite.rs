//! Cases, what they need, and targets.

use std::{fmt, future::Future};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use crate::check::{Check, Ctx};

/// Something that not every kind of server does. A case that needs it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// A DeleteRange, or the end of a lease, over keys on several shards takes one revision.
    OneRevisionOverShards,
    /// A Txn that writes to keys on several shards.
    TxnOverShards,
    /// Consecutive writes have consecutive revisions.
    ConsecutiveRevisions,
    /// The Hash and HashKV calls.
    Hashes,
    /// The Snapshot call.
    Snapshot,
    /// Users, roles, and switching authentication on.
    Users,
    /// Alarms can be raised by a client.
    RaiseAlarms,
    /// One member answers all requests.
    OneMember,
    /// Members are those of one raft group.
    RaftMembers,
    /// Members have peer URLs.
    Peers,
    /// Keys at and above `FF FF FF FF`.
    HighestKeys,
    /// A Txn with a delete of everything from a key on, and a put at or above that key.
    UnboundedDeleteBesidePut,
    /// The lease id 2^63 - 1.
    HighestLeaseId,
}

type Checking = Box<dyn Fn(Ctx) -> BoxFuture<'static, Check> + Send + Sync>;

/// One requirement and how it is checked.
pub struct Case {
    /// `call/what`, unique.
    pub name: String,
    /// What is required, in one sentence.
    pub requires: String,
    /// What a server must do beyond the basics for the case to make sense.
    pub needs: Option<Need>,
    /// Whether nothing else may run at the same time: it compacts, or counts revisions.
    pub is_alone: bool,
    pub(crate) check: Checking,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Case {
    /// Says what the case needs.
    pub fn needs(&mut self, need: Need) -> &mut Self {
        self.needs = Some(need);
        self
    }

    /// Lets the case run while nothing else does.
    pub fn alone(&mut self) -> &mut Self {
        self.is_alone = true;
        self
    }
}

/// The cases, in order. A case's place decides its keys.
#[derive(Debug, Default)]
pub struct Suite {
    cases: Vec<Case>,
}

impl Suite {
    /// Adds a case.
    ///
    /// # Panics
    /// If there is one of that name already.
    pub fn case<F, Checked>(
        &mut self,
        name: impl Into<String>,
        requires: impl Into<String>,
        check: F,
    ) -> &mut Case
    where
        F: Fn(Ctx) -> Checked + Send + Sync + 'static,
        Checked: Future<Output = Check> + Send + 'static,
    {
        let (name, requires) = (name.into(), requires.into());
        assert!(self.cases.iter().all(|case| case.name != name), "two cases are called {name}");
        let check: Checking = Box::new(move |ctx| check(ctx).boxed());
        self.cases.push(Case { name, requires, needs: None, is_alone: false, check });
        let last = self.cases.len() - 1;
        &mut self.cases[last]
    }

    /// All cases.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// The prefix of the keys of the case at that place.
    pub(crate) fn prefix(place: usize) -> String {
        format!("/c{place:04}/")
    }

    /// Keys, in ascending order, at which ranges have to begin so that the directories of each case are on different
    /// shards when the ranges are dealt out in turn.
    pub fn boundaries(&self) -> Vec<Bytes> {
        (0..self.cases.len())
            .flat_map(|place| ["b/", "c/"].map(|dir| Bytes::from(Self::prefix(place) + dir)))
            .collect()
    }
}

/// Something that a kind of server does not do.
#[derive(Debug, Clone)]
pub struct Lack {
    /// What it is.
    pub need: Need,
    /// Why not, for the document.
    pub reason: &'static str,
    /// Whether it happens to do it at times, so that a case that needs it may pass.
    pub is_fickle: bool,
}

/// A kind of server.
#[derive(Debug, Clone)]
pub struct Target {
    /// As the document calls it.
    pub name: &'static str,
    /// What it does not do.
    pub lacks: Vec<Lack>,
}

impl Target {
    /// What the target does not do that the case needs, if the case is skipped.
    pub fn skips(&self, case: &Case) -> Option<&Lack> {
        let need = case.needs?;
        self.lacks.iter().find(|lack| lack.need == need)
    }
}
