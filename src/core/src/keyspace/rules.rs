//! Where the boundary between two ranges may lie.

use bytes::Bytes;

use super::prefix_end;

/// The rules that keep the keys of one directory together, so that a transaction over them has one shard.
///
/// A key's *directory* is its prefix up to and including the last delimiter. A boundary is legal at the start or the
/// end of a directory, anywhere inside a splittable prefix, and between keys that have no delimiter at all. The
/// direct keys of an ancestor directory may be parted by a boundary of a directory below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What ends a directory's name, `/` by default. Empty: no directories, every boundary is legal.
    pub delimiter: Bytes,
    /// Prefixes inside which every boundary is legal.
    pub splittable: Vec<Bytes>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { delimiter: Bytes::from_static(b"/"), splittable: Vec::new() }
    }
}

impl Rules {
    /// The directory of `key`; `None` if the key has no delimiter, so belongs to none.
    pub fn directory<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        let delimiter = self.delimiter.as_ref();
        if delimiter.is_empty() || key.len() < delimiter.len() {
            return None;
        }
        (0..=key.len() - delimiter.len())
            .rev()
            .find(|&at| &key[at..at + delimiter.len()] == delimiter)
            .map(|at| &key[..at + delimiter.len()])
    }

    /// True if a range may start (and its neighbour end) at `at`.
    pub fn is_legal_boundary(&self, at: &[u8]) -> bool {
        if at.is_empty() || self.delimiter.is_empty() || self.in_splittable(at) {
            return true;
        }
        match self.directory(at) {
            // The start of a directory, or inside one: `/a/b/` is legal, `/a/b/c` parts the keys of `/a/b/`.
            // `/a/b0` is legal too, as the end of `/a/b/`.
            Some(directory) => directory == at || self.ends_directory(at),
            None => true,
        }
    }

    /// A legal boundary `b` with `left < b <= right`, for `left < right`; `None` if both must stay together.
    ///
    /// The boundary depends on both keys only, so it is the same whoever asks.
    pub fn boundary_between(&self, left: &[u8], right: &[u8]) -> Option<Bytes> {
        debug_assert!(left < right);
        if self.delimiter.is_empty() || self.in_splittable(right) {
            return Some(Bytes::copy_from_slice(right));
        }
        let (of_left, of_right) = (self.directory(left), self.directory(right));
        match (of_left, of_right) {
            (_, None) => Some(Bytes::copy_from_slice(right)),
            (l, Some(r)) if l != Some(r) => {
                if left < r {
                    // Start of the outermost directory that holds `right` and not `left`: the fewest keys are parted.
                    return Some(Bytes::copy_from_slice(self.outermost_apart(r, left)));
                }
                // `right` is a direct key of an ancestor of `left`: end of the child directory that `left` is in.
                let child = self.outermost_apart(l?, right);
                Some(prefix_end(child))
            }
            _ => None,
        }
    }

    fn in_splittable(&self, key: &[u8]) -> bool {
        self.splittable.iter().any(|prefix| key.starts_with(prefix))
    }

    /// The shortest directory on the path of `directory` that is not a prefix of `other`.
    fn outermost_apart<'a>(&self, directory: &'a [u8], other: &[u8]) -> &'a [u8] {
        let step = self.delimiter.len();
        (step..=directory.len())
            .filter(|&end| directory[..end].ends_with(&self.delimiter))
            .map(|end| &directory[..end])
            .find(|path| !other.starts_with(path))
            .unwrap_or(directory)
    }

    /// True if `at` is the end of a directory: its last byte, one less, ends with the delimiter.
    fn ends_directory(&self, at: &[u8]) -> bool {
        let Some((last, head)) = at.split_last() else { return false };
        let Some(before) = last.checked_sub(1) else { return false };
        let mut directory = head.to_vec();
        directory.push(before);
        directory.ends_with(&self.delimiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules { splittable: vec![Bytes::from_static(b"/registry/pods/")], ..Rules::default() }
    }

    #[test]
    fn directories() {
        assert_eq!(rules().directory(b"/a/b/c"), Some(b"/a/b/".as_ref()));
        assert_eq!(rules().directory(b"/a/b/"), Some(b"/a/b/".as_ref()));
        assert_eq!(rules().directory(b"abc"), None);
    }

    #[test]
    fn legal_boundaries() {
        for legal in ["", "/", "/a/", "/a/b/", "/a/b0", "abc", "/registry/pods/x", "/registry/pods/ns/x"] {
            assert!(rules().is_legal_boundary(legal.as_bytes()), "{legal}");
        }
        for illegal in ["/a", "/a/b", "/registry/podsx", "/registry/services/ns/x"] {
            assert!(!rules().is_legal_boundary(illegal.as_bytes()), "{illegal}");
        }
    }

    #[test]
    fn boundaries_between_keys() {
        let between = |l: &str, r: &str| {
            let b = rules().boundary_between(l.as_bytes(), r.as_bytes());
            if let Some(b) = &b {
                assert!(l.as_bytes() < b.as_ref() && b.as_ref() <= r.as_bytes(), "{l} {b:?} {r}");
                assert!(rules().is_legal_boundary(b), "{b:?}");
            }
            b.map(|b| String::from_utf8_lossy(&b).into_owned())
        };
        assert_eq!(between("/a/x", "/a/y"), None);
        assert_eq!(between("/a/x", "/b/y").as_deref(), Some("/b/"));
        assert_eq!(between("/a/x", "/b/c/y").as_deref(), Some("/b/"));
        assert_eq!(between("/a/b/z", "/a/c").as_deref(), Some("/a/b0"));
        assert_eq!(between("/a/b/c/z", "/a/d").as_deref(), Some("/a/b0"));
        assert_eq!(between("/a/a", "/a/b/c").as_deref(), Some("/a/b/"));
        assert_eq!(between("k1", "k2").as_deref(), Some("k2"));
        assert_eq!(between("/a/x", "k").as_deref(), Some("k"));
        assert_eq!(between("/registry/pods/a", "/registry/pods/b").as_deref(), Some("/registry/pods/b"));
        assert_eq!(between("a", "b/c").as_deref(), Some("b/"));
    }
}
