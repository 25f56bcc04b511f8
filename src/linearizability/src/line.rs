//! The revisions of all answers, against real time: what one client was told, every later request of anybody builds on.

/// What an answer says about the line of revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// When the request was sent.
    pub begin: u64,
    /// When the answer came.
    pub end: u64,
    /// The header's revision.
    pub revision: i64,
    /// Whether it wrote something, which then has this revision for itself.
    pub wrote: bool,
}

/// Two answers that contradict each other; positions in what was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contradiction {
    /// The second began after the first had ended, and is not above it: not below it for a read, above it for a write.
    Back {
        /// What had ended.
        first: usize,
        /// What began after that.
        second: usize,
    },
    /// Two writes have one revision.
    Shared {
        /// One.
        first: usize,
        /// The other.
        second: usize,
    },
}

/// Finds the first contradiction in real time, in O(n log n).
pub fn contradiction(stamps: &[Stamp]) -> Option<Contradiction> {
    let mut writes: Vec<_> = (0..stamps.len()).filter(|&at| stamps[at].wrote).collect();
    writes.sort_by_key(|&at| stamps[at].revision);
    let shared = writes.windows(2).find(|pair| stamps[pair[0]].revision == stamps[pair[1]].revision);
    if let Some(&[first, second]) = shared {
        return Some(Contradiction::Shared { first, second });
    }
    let (mut by_begin, mut by_end): (Vec<_>, Vec<_>) = (0..stamps.len()).map(|at| (at, at)).unzip();
    by_begin.sort_by_key(|&at| stamps[at].begin);
    by_end.sort_by_key(|&at| stamps[at].end);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<usize> = None;
    for second in by_begin {
        while let Some(first) = ended.next_if(|&first| stamps[first].end < stamps[second].begin) {
            if newest.is_none_or(|newest| stamps[newest].revision < stamps[first].revision) {
                newest = Some(first);
            }
        }
        if let Some(first) = newest {
            let (before, after) = (stamps[first].revision, stamps[second].revision);
            if after < before || (stamps[second].wrote && after == before) {
                return Some(Contradiction::Back { first, second });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(begin: u64, end: u64, revision: i64) -> Stamp {
        Stamp { begin, end, revision, wrote: false }
    }

    fn write(begin: u64, end: u64, revision: i64) -> Stamp {
        Stamp { wrote: true, ..read(begin, end, revision) }
    }

    #[test]
    fn what_grows_in_real_time_is_fine() {
        let stamps = [write(0, 9, 5), read(2, 3, 4), read(1, 8, 5), write(10, 12, 6), read(11, 13, 5)];
        assert_eq!(contradiction(&stamps), None);
        assert_eq!(contradiction(&[]), None);
    }

    #[test]
    fn a_header_that_goes_back_is_found_over_any_distance() {
        let stamps = [write(0, 1, 9), write(20, 30, 10), read(2, 3, 9), read(4, 19, 8)];
        assert_eq!(contradiction(&stamps), Some(Contradiction::Back { first: 0, second: 3 }));
    }

    #[test]
    fn a_write_has_a_revision_above_all_that_was_told_before() {
        let told = [read(0, 1, 7), write(2, 3, 7)];
        assert_eq!(contradiction(&told), Some(Contradiction::Back { first: 0, second: 1 }));
        assert_eq!(contradiction(&[read(0, 1, 7), write(2, 3, 8)]), None);
        // A read may be at the revision of the write before it.
        assert_eq!(contradiction(&[write(0, 1, 7), read(2, 3, 7)]), None);
    }

    #[test]
    fn two_writes_never_share_a_revision() {
        let both = [write(0, 9, 7), write(1, 8, 7)];
        assert_eq!(contradiction(&both), Some(Contradiction::Shared { first: 0, second: 1 }));
    }

    #[test]
    fn what_touches_in_one_moment_is_concurrent() {
        assert_eq!(contradiction(&[write(0, 5, 9), read(5, 6, 8)]), None);
    }
}
