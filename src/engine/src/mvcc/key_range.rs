//! etcd's three forms of a key range.

use std::ops::Bound;

use bytes::Bytes;

/// A set of keys as a request names it with `key` and `range_end`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyRange {
    /// `range_end` empty: one key.
    One(Bytes),
    /// `range_end` is one zero byte: every key from this one on.
    From(Bytes),
    /// Keys in `[start, end)`; empty when `end` is not behind `start`.
    Span(Bytes, Bytes),
}

impl KeyRange {
    /// Reads the two fields of a request.
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => KeyRange::One(key),
            [0] => KeyRange::From(key),
            _ => KeyRange::Span(key, range_end),
        }
    }

    /// Whether `key` belongs to the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => one.as_ref() == key,
            KeyRange::From(start) => start.as_ref() <= key,
            KeyRange::Span(start, end) => start.as_ref() <= key && key < end.as_ref(),
        }
    }

    /// True for a span whose end is not behind its start.
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Span(start, end) if end <= start)
    }
}

/// Two ends, as an ordered map takes them.
pub(super) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The bounds of `key` and `range_end` for a search in an ordered map, or `None` for an empty span.
pub(super) fn bounds<'a>(key: &'a [u8], range_end: &'a [u8]) -> Option<Bounds<'a>> {
    match range_end {
        [] => Some((Bound::Included(key), Bound::Included(key))),
        [0] => Some((Bound::Included(key), Bound::Unbounded)),
        end if end <= key => None,
        end => Some((Bound::Included(key), Bound::Excluded(end))),
    }
}
