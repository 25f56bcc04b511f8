#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use proptest::prelude::*;

use super::{write::PAGE_BYTES, *};

type Pair = (Vec<u8>, Vec<u8>);
type Contents = Vec<(String, Vec<Pair>)>;

fn layout(buckets: &[(&'static str, Vec<Pair>)]) -> Layout {
    let bucket = |(name, pairs): &(&'static str, Vec<_>)| Bucket {
        name,
        pairs: Box::new(SmallPairs::new(pairs.clone())),
    };
    Layout::new(buckets.iter().map(bucket).collect())
}

fn bytes(layout: &Layout) -> Vec<u8> {
    let mut file = Vec::new();
    layout
        .write(|pages| {
            assert_eq!(pages.len() % PAGE_BYTES, 0);
            // Each page knows its place.
            assert_eq!(pages[..8], (file.len() as u64 / PAGE_BYTES as u64).to_le_bytes());
            file.extend_from_slice(pages);
            Ok::<_, crate::values::ValueError>(())
        })
        .unwrap();
    assert_eq!(file.len() as u64, layout.bytes());
    file
}

struct Scratch {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("db"), _dir: dir }
    }

    fn read(&self, file: &[u8]) -> Result<Contents, BoltError> {
        std::fs::write(&self.path, file).unwrap();
        let mut reader = Reader::open(&self.path, file.len() as u64)?;
        let mut contents = Vec::new();
        for bucket in reader.buckets()? {
            let mut pairs = Vec::new();
            reader.pairs(&bucket, |key, value| {
                pairs.push((key.to_vec(), value.to_vec()));
                Ok(())
            })?;
            contents.push((String::from_utf8(bucket.name).unwrap(), pairs));
        }
        Ok(contents)
    }
}

fn numbered(count: u32, value_bytes: usize) -> Vec<Pair> {
    (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; value_bytes])).collect()
}

#[test]
fn what_is_written_is_read() {
    let scratch = Scratch::new();
    // None, one page, several levels of branches, values of many pages, a value that just fits and one that does not.
    let fits = PAGE_BYTES - HEADER_BYTES - ELEMENT_BYTES - 4;
    for pairs in [
        numbered(0, 0),
        numbered(1, 0),
        numbered(100, 10),
        numbered(100_000, 30),
        numbered(7, 100_000),
        numbered(3, fits),
        numbered(3, fits + 1),
    ] {
        let buckets = [("b", pairs.clone()), ("a", numbered(3, 3)), ("c", Vec::new())];
        let contents = scratch.read(&bytes(&layout(&buckets))).unwrap();
        let names: Vec<_> = contents.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(contents[1].1 == pairs && contents[2].1.is_empty());
    }
}

proptest! {
    #[test]
    fn any_pairs_are_read_as_they_were_written(
        pairs in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 1..300),
            prop::collection::vec(any::<u8>(), 0..6000),
            0..200,
        ),
    ) {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let contents = Scratch::new().read(&bytes(&layout(&[("key", pairs.clone())]))).unwrap();
        prop_assert_eq!(contents, [("key".to_owned(), pairs)]);
    }

    /// Nothing that is changed makes it panic or read for ever; what it reads is bounded by the file.
    #[test]
    fn damage_is_refused_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in prop::option::of(any::<prop::sample::Index>()),
        at_heads in any::<bool>(),
    ) {
        let mut file = bytes(&layout(&[("key", numbered(2000, 20)), ("meta", numbered(3, 3))]));
        for (at, value) in changes {
            // Half of them where pages and elements begin, where it hurts most.
            let at = if at_heads {
                at.index(file.len() / PAGE_BYTES) * PAGE_BYTES + usize::from(value) % 64
            } else {
                at.index(file.len())
            };
            file[at] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        match Scratch::new().read(&file) {
            Ok(contents) => {
                let read: usize = contents.iter().map(|(_, pairs)| pairs.len()).sum();
                prop_assert!(read <= file.len() / ELEMENT_BYTES);
            }
            Err(error) => prop_assert!(!matches!(error, BoltError::Io { .. }), "{:?}", error),
        }
    }
}

#[test]
fn damage_is_named_with_its_page() {
    let scratch = Scratch::new();
    let good = bytes(&layout(&[("key", numbered(2000, 20))]));
    let pages = good.len() / PAGE_BYTES;
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = good.clone();
        change(&mut file);
        scratch.read(&file).unwrap_err().to_string()
    };
    let last = pages - 1;
    // The last page is the branch above all leaves; its first element names page 4.
    let below = last * PAGE_BYTES + HEADER_BYTES + 8;
    for (text, expected) in [
        (refused(&|file| file.truncate(5 * PAGE_BYTES)), "damaged at page 5: the file ends before it"),
        (refused(&|file| file[4 * PAGE_BYTES] = 9), "damaged at page 4: it says that it is another page"),
        (refused(&|file| file[3 * PAGE_BYTES + 8] = 0x10), "damaged at page 3: it is neither a branch"),
        (refused(&|file| file[below] = 5), "damaged at page 5: it is used twice"),
        (refused(&|file| file[below] = last as u8), "it is used twice"),
        (refused(&|file| file[below + 4] = 1), "cannot be a page of a bucket"),
        (refused(&|file| file[4 * PAGE_BYTES + 12] = 0xff), "damaged at page 4: it goes on behind the end"),
        (refused(&|file| file[4 * PAGE_BYTES + 11] = 0xff), "damaged at page 4: its "),
        (
            refused(&|file| file[3 * PAGE_BYTES + HEADER_BYTES] = 0),
            "damaged at page 3: something beside the buckets",
        ),
        (refused(&|file| file.truncate(79)), "is no etcd database or snapshot: it is too short"),
    ] {
        assert!(text.contains(expected), "{text} instead of {expected}");
    }
    assert!(scratch.read(b"").is_err());
}

#[test]
fn one_damaged_meta_page_does_not_matter_two_do() {
    let scratch = Scratch::new();
    let good = bytes(&layout(&[("key", numbered(10, 20))]));
    let damage = |pages: &[usize]| {
        let mut file = good.clone();
        pages.iter().for_each(|page| file[page * PAGE_BYTES + 30] ^= 1);
        scratch.read(&file)
    };
    assert_eq!(damage(&[0]).unwrap(), damage(&[1]).unwrap());
    let error = damage(&[0, 1]).unwrap_err().to_string();
    assert!(error.contains("the sums of its meta pages are wrong"), "{error}");
}
