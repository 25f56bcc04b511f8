//! The recent events of one shard, in memory.

use std::{collections::VecDeque, sync::Arc};

use super::event::Revision;

/// The recent revisions of one shard that have events for clients, and up to where the shard has been read.
#[derive(Debug)]
pub(crate) struct Window {
    /// All revisions with events from this local revision on are here.
    pub(crate) floor: i64,
    /// The shard's base stream has been read and translated up to this local revision.
    pub(crate) ready: i64,
    revisions: VecDeque<Arc<Revision>>,
    bytes: usize,
}

impl Window {
    /// An empty window of a shard that is read from behind `ready`.
    pub(crate) fn starting_behind(ready: i64) -> Self {
        Self { floor: ready + 1, ready, revisions: VecDeque::new(), bytes: 0 }
    }

    /// Appends what was read; `upto` is the last local revision read, with events for clients or without.
    pub(crate) fn push(&mut self, revisions: Vec<Arc<Revision>>, upto: i64) {
        for revision in revisions {
            debug_assert!(revision.local > self.ready && revision.local <= upto);
            self.bytes += revision.bytes;
            self.revisions.push_back(revision);
        }
        self.ready = self.ready.max(upto);
    }

    /// The revisions with numbers in `(after, upto]`.
    pub(crate) fn between(&self, after: i64, upto: i64) -> impl Iterator<Item = &Arc<Revision>> {
        let first = self.revisions.partition_point(|r| r.global <= after);
        self.revisions.range(first..).take_while(move |r| r.global <= upto)
    }

    /// Number of the oldest revision here.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.revisions.front().map(|r| r.global)
    }

    /// Forgets the oldest revision.
    pub(crate) fn forget_oldest(&mut self) {
        if let Some(revision) = self.revisions.pop_front() {
            self.floor = revision.local + 1;
            self.bytes -= revision.bytes;
        }
    }

    /// Memory used by events, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many revisions are here.
    pub(crate) fn len(&self) -> usize {
        self.revisions.len()
    }
}
