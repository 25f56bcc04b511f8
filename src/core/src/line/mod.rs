//! The revision line: a log of cuts, and the fold that turns it into one number line over all shards.
//!
//! The log is the history of one key in meta. Everybody who folds the same entries in the same order computes the same
//! revision ↔ (shard, local revision), the same range map and the same compaction revision.

mod entry;
mod fold;
mod segments;
mod vigil;

pub use entry::{Entry, Flip, Init, Join, Merge, Split};
pub use fold::{Fold, FoldError, Joined, Piece};
pub use segments::{Segment, Segments};
pub use vigil::{Due, Seen, Vigil};
