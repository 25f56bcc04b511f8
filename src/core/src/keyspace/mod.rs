//! Keys, ranges of keys, where a boundary may lie, and which shard owns what.

mod map;
mod rules;

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use map::{MapError, RangeEntry, RangeMap, Rid, ShardIx};
pub use rules::Rules;

/// First byte string of the hidden space: keys at or above it belong to the topology, never to a client.
pub const RESERVED: &[u8] = &[0xff, 0xff, 0xff, 0xff];

/// A half-open interval of keys `[start, end)`. An empty `end` means: no upper bound.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key.
    #[serde(with = "hex")]
    pub start: Bytes,
    /// The first key after the interval; empty for none.
    #[serde(with = "hex")]
    pub end: Bytes,
}

impl KeyRange {
    /// The interval `[start, end)`; an empty `end` for no upper bound.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: end.into() }
    }

    /// Every key there is.
    pub fn whole() -> Self {
        Self::new(Bytes::new(), Bytes::new())
    }

    /// Just one key.
    pub fn key(key: &[u8]) -> Self {
        Self::new(Bytes::copy_from_slice(key), successor(key))
    }

    /// All keys that start with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self::new(Bytes::copy_from_slice(prefix), prefix_end(prefix))
    }

    /// The interval that a request of the etcd API names with `key` and `range_end`, clamped below the hidden
    /// space (etcd: an empty `range_end` is one key, `"\0"` is everything from `key`).
    pub fn of_request(key: &Bytes, range_end: &Bytes) -> Self {
        let range = if range_end.is_empty() {
            Self::key(key)
        } else if range_end.as_ref() == [0] {
            Self::new(key.clone(), Bytes::new())
        } else {
            Self::new(key.clone(), range_end.clone())
        };
        range.clamped()
    }

    /// The part below the hidden space. May be empty; see [`KeyRange::is_empty`].
    pub fn clamped(&self) -> Self {
        if self.end.is_empty() || self.end.as_ref() > RESERVED {
            Self { start: self.start.clone(), end: Bytes::from_static(RESERVED) }
        } else {
            self.clone()
        }
    }

    /// True if no key lies inside.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// True if `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_ref() <= key && (self.end.is_empty() || key < self.end.as_ref())
    }

    /// True if all keys of `other` lie inside.
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty()
            || (self.start <= other.start
                && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end)))
    }

    /// True if at least one key could lie in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The keys in both; possibly empty.
    pub fn intersect(&self, other: &Self) -> Self {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        if !end.is_empty() && start >= end { Self { start: end.clone(), end } } else { Self { start, end } }
    }

    /// `range_end` for a request of the etcd API that means this interval (`"\0"` when there is no upper bound).
    pub fn request_end(&self) -> Bytes {
        if self.end.is_empty() { Bytes::from_static(&[0]) } else { self.end.clone() }
    }

    /// `key` for a request of the etcd API that means this interval: etcd refuses an empty key, and no key sorts
    /// before `"\0"`.
    pub fn request_key(&self) -> Bytes {
        if self.start.is_empty() { Bytes::from_static(&[0]) } else { self.start.clone() }
    }
}

impl AsRef<KeyRange> for KeyRange {
    fn as_ref(&self) -> &KeyRange {
        self
    }
}

impl AsRef<KeyRange> for RangeEntry {
    fn as_ref(&self) -> &KeyRange {
        &self.range
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", Printable(&self.start))?;
        if self.end.is_empty() { f.write_str("end)") } else { write!(f, "{})", Printable(&self.end)) }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Shows a key to a person: printable ASCII as it is, everything else as `\xNN`.
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// The smallest key above `key`.
pub fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The first key after all keys that start with `prefix`; empty if there is none (only 0xff bytes, or no prefix).
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::new()
}

/// Serde for keys in JSON records: hexadecimal, as keys are bytes and not text.
pub mod hex {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the bytes as lower-case hexadecimal.
    ///
    /// # Errors
    /// Only what the serializer itself fails with.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let text: String = bytes
            .iter()
            .flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char])
            .collect();
        serializer.serialize_str(&text)
    }

    /// Reads what [`serialize`] wrote.
    ///
    /// # Errors
    /// If the text is not an even number of hexadecimal digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return Err(D::Error::custom("odd number of hexadecimal digits"));
        }
        let digit = |d: u8| (d as char).to_digit(16).map(|v| v as u8);
        digits
            .chunks_exact(2)
            .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
            .collect::<Option<Vec<u8>>>()
            .map(Bytes::from)
            .ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_forms() {
        let b = |s: &'static str| Bytes::from_static(s.as_bytes());
        assert_eq!(KeyRange::of_request(&b("a"), &b("")), KeyRange::new("a", "a\0"));
        assert_eq!(KeyRange::of_request(&b("a"), &b("\0")), KeyRange::new("a", Bytes::from_static(RESERVED)));
        assert_eq!(KeyRange::of_request(&b("a"), &b("c")), KeyRange::new("a", "c"));
        assert!(KeyRange::of_request(&b("c"), &b("a")).is_empty());
        assert!(KeyRange::of_request(&Bytes::from_static(b"\xff\xff\xff\xffx"), &b("")).is_empty());
    }

    #[test]
    fn intersections() {
        let r = |a: &'static str, b: &'static str| KeyRange::new(a, b);
        assert_eq!(r("a", "c").intersect(&r("b", "")), r("b", "c"));
        assert!(!r("a", "b").overlaps(&r("b", "c")));
        assert!(r("a", "").covers(&r("b", "c")));
        assert!(!r("a", "c").covers(&r("b", "")));
        assert!(r("", "").covers(&r("", "")));
    }

    #[test]
    fn prefix_ends() {
        assert_eq!(prefix_end(b"a"), Bytes::from_static(b"b"));
        assert_eq!(prefix_end(b"a\xff"), Bytes::from_static(b"b"));
        assert!(prefix_end(b"\xff").is_empty());
        assert!(prefix_end(b"").is_empty());
    }
}
