//! History in revision order, for watchers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::VersionRef;

/// The revision of the first write: an empty store is at revision 1.
pub const FIRST_EVENT_REVISION: i64 = 2;

/// What one revision changed, in the order of the changes.
#[derive(Debug, Clone)]
pub enum Changes {
    /// The common case, without a second allocation.
    One(VersionRef),
    /// Any other number; none for a revision whose changes were all superseded before a restart.
    Many(Arc<[VersionRef]>),
}

impl Changes {
    /// The changes as a slice.
    pub fn as_slice(&self) -> &[VersionRef] {
        match self {
            Changes::One(version) => std::slice::from_ref(version),
            Changes::Many(versions) => versions,
        }
    }
}

impl From<Vec<VersionRef>> for Changes {
    fn from(mut versions: Vec<VersionRef>) -> Self {
        match (versions.len(), versions.pop()) {
            (1, Some(only)) => Changes::One(only),
            (_, last) => {
                versions.extend(last);
                Changes::Many(versions.into())
            }
        }
    }
}

/// The changes of every revision from [`EventLog::first_revision`] to the newest published one.
#[derive(Debug)]
pub struct EventLog {
    first_revision: i64,
    /// None for a revision that is in `others`: most have one change, and a place for each.
    entries: VecDeque<Option<VersionRef>>,
    others: BTreeMap<i64, Arc<[VersionRef]>>,
}

impl EventLog {
    /// An empty log whose next entry is `first_revision`.
    pub fn new(first_revision: i64) -> Self {
        Self { first_revision, entries: VecDeque::new(), others: BTreeMap::new() }
    }

    /// The oldest revision here; the next one to come when the log is empty.
    pub fn first_revision(&self) -> i64 {
        self.first_revision
    }

    /// The newest revision here; one less than [`Self::first_revision`] when the log is empty.
    pub fn last_revision(&self) -> i64 {
        self.first_revision + self.entries.len() as i64 - 1
    }

    /// Appends the changes of the next revision.
    pub fn push(&mut self, changes: Changes) {
        match changes {
            Changes::One(version) => self.entries.push_back(Some(version)),
            Changes::Many(versions) => {
                self.entries.push_back(None);
                if !versions.is_empty() {
                    self.others.insert(self.last_revision(), versions);
                }
            }
        }
    }

    /// The changes of one revision in their order, if the log has it.
    pub fn get(&self, revision: i64) -> Option<&[VersionRef]> {
        let index = usize::try_from(revision.checked_sub(self.first_revision)?).ok()?;
        Some(match self.entries.get(index)? {
            Some(version) => std::slice::from_ref(version),
            None => self.others.get(&revision).map_or(&[], |versions| versions),
        })
    }

    /// Takes at most `limit` entries with revisions below `revision` off the front.
    pub fn trim(&mut self, revision: i64, limit: usize) -> Vec<Changes> {
        let below = usize::try_from(revision.saturating_sub(self.first_revision)).unwrap_or(0);
        let count = below.min(limit).min(self.entries.len());
        let first = self.first_revision;
        self.first_revision += count as i64;
        let others = &mut self.others;
        let trimmed = (first..).zip(self.entries.drain(..count)).map(|(revision, entry)| match entry {
            Some(version) => Changes::One(version),
            None => Changes::Many(others.remove(&revision).unwrap_or_default()),
        });
        let trimmed = trimmed.collect();
        // A burst of history must not pin its slots for ever.
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        trimmed
    }
}
