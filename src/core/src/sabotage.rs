//! Breaking the protocol on purpose, to see that the simulation's invariants notice.
//!
//! Nothing of this is in a program that is built without debug assertions, as releases are. In others it is off on every
//! thread that does not [`set`] it.

/// One way to break it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Writes are answered before a cut covers them.
    SkipCutWait,
    /// Events of different revisions change places.
    ReorderMerge,
    /// Writes do not compare fences.
    DropFence,
    /// The first shard is read at its newest revision, not at the cut's.
    ReadLater,
    /// Keep-alives are answered and renew nothing.
    EarlyExpiry,
    /// Segments that live keys need are dropped.
    CondenseTooMuch,
    /// Watch events come without what was there before.
    ForgetPrev,
    /// Requests for progress are not answered.
    LoseProgress,
    /// The log is cut off where there is no checkpoint of it.
    CutLogTooFar,
    /// The first part of a watch answer that is parted is not sent.
    LoseFragment,
    /// Transactions inside transactions do not compare.
    ForgetNested,
    /// A drained shard leaves while its history can still be asked for.
    LeaveWithHistory,
    /// A shard joins at revision 1, which no read can ask for.
    JoinAtStart,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::SkipCutWait,
        Self::ReorderMerge,
        Self::DropFence,
        Self::ReadLater,
        Self::EarlyExpiry,
        Self::CondenseTooMuch,
        Self::ForgetPrev,
        Self::LoseProgress,
        Self::CutLogTooFar,
        Self::LoseFragment,
        Self::ForgetNested,
        Self::LeaveWithHistory,
        Self::JoinAtStart,
    ];

    /// True if this thread is to break the protocol so; never in a release.
    #[inline]
    pub fn is_on(self) -> bool {
        #[cfg(debug_assertions)]
        {
            ON.get() == Some(self)
        }
        #[cfg(not(debug_assertions))]
        {
            false
        }
    }
}

#[cfg(debug_assertions)]
thread_local! {
    static ON: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Lets this thread break the protocol so from now on, or keep it again.
#[cfg(debug_assertions)]
pub fn set(sabotage: Option<Sabotage>) {
    ON.set(sabotage);
}
