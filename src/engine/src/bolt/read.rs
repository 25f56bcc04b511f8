//! Reads a database that anybody may have written: whatever is in the file, it is read or refused, and never read twice.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sharded_etcd_core::hash::fnv1a;

use super::{
    BRANCH, BUCKET_BYTES, ELEMENT_BYTES, HEADER_BYTES, IS_BUCKET, LEAF, MAGIC, META, META_BYTES, VERSION,
};

/// Page sizes that occur.
const PAGE_BYTES_MIN: u64 = 1024;
const PAGE_BYTES_MAX: u64 = 64 << 10;
/// Levels of a tree at most: with two keys a page this is more than any file has pages.
const LEVELS_MAX: usize = 64;

/// Why a database cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The file is no database.
    #[error("{} is no etcd database or snapshot: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The file is a damaged database.
    #[error("{} is damaged at page {page}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The page.
        page: u64,
        /// What is wrong there.
        reason: &'static str,
    },
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    page_bytes: u64,
    /// Pages that the file has, in use or not.
    pages: u64,
    root: u64,
    /// A bit for each page that was read.
    seen: Vec<u64>,
}

/// What a meta page says.
struct Meta {
    page_bytes: u64,
    root: u64,
    pages: u64,
    transaction: u64,
}

/// A bucket's tree.
enum Tree {
    /// Its first page.
    Page(u64),
    /// It is small and lies on a page of its parent, that one.
    Inline(u64, Vec<u8>),
}

/// A bucket as the root names it.
pub(crate) struct Found {
    /// Its name.
    pub(crate) name: Vec<u8>,
    tree: Tree,
}

impl Reader {
    /// Opens the first `bytes` of a file as a database.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self, BoltError> {
        let io = |source| BoltError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let meta = Self::meta(&file, bytes).map_err(io)?;
        let meta = meta.map_err(|reason| BoltError::Foreign { path: path.to_owned(), reason })?;
        let pages = meta.pages;
        if pages > bytes / meta.page_bytes {
            let page = bytes / meta.page_bytes;
            return Err(BoltError::Corrupt {
                path: path.to_owned(),
                page,
                reason: "the file ends before it",
            });
        }
        let words = usize::try_from(pages / 64 + 1).unwrap_or(usize::MAX);
        Ok(Self {
            path: path.to_owned(),
            file,
            page_bytes: meta.page_bytes,
            pages,
            root: meta.root,
            seen: vec![0; words],
        })
    }

    /// The later one of the meta pages that are intact.
    fn meta(file: &File, bytes: u64) -> io::Result<Result<Meta, &'static str>> {
        let first = Self::meta_at(file, bytes, 0)?;
        let second = match &first {
            Ok(meta) => Self::meta_at(file, bytes, meta.page_bytes)?,
            // Where the second one is, only the first one says: all places are tried.
            Err(reason) => {
                let mut found = Err(*reason);
                let mut at = PAGE_BYTES_MIN;
                while found.is_err() && at <= PAGE_BYTES_MAX {
                    found = Self::meta_at(file, bytes, at)?.and_then(|meta| {
                        if meta.page_bytes == at { Ok(meta) } else { Err("its page size is wrong") }
                    });
                    at *= 2;
                }
                found.map_err(|_| *reason)
            }
        };
        Ok(match (first, second) {
            (Ok(first), Ok(second)) if second.transaction > first.transaction => Ok(second),
            (Ok(first), _) => Ok(first),
            (Err(_), second) => second,
        })
    }

    fn meta_at(file: &File, bytes: u64, offset: u64) -> io::Result<Result<Meta, &'static str>> {
        let mut page = [0; HEADER_BYTES + META_BYTES + 8];
        if offset + page.len() as u64 > bytes {
            return Ok(Err("it is too short"));
        }
        file.read_exact_at(&mut page, offset)?;
        let body = &page[HEADER_BYTES..];
        if u16_at(&page, 8) != META || u32_at(body, 0) != MAGIC {
            return Ok(Err("the first bytes are others"));
        }
        if u32_at(body, 4) != VERSION {
            return Ok(Err("it has another version"));
        }
        if u64_at(body, META_BYTES) != fnv1a(&body[..META_BYTES]) {
            return Ok(Err("the sums of its meta pages are wrong"));
        }
        let page_bytes = u64::from(u32_at(body, 8));
        if !page_bytes.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes) {
            return Ok(Err("its page size is impossible"));
        }
        let meta = Meta {
            page_bytes,
            root: u64_at(body, 16),
            pages: u64_at(body, 40),
            transaction: u64_at(body, 48),
        };
        Ok(Ok(meta))
    }

    /// Says that something on a page is wrong.
    pub(crate) fn corrupt(&self, page: u64, reason: &'static str) -> BoltError {
        BoltError::Corrupt { path: self.path.clone(), page, reason }
    }

    /// The buckets, by name. They are to be read once each.
    pub(crate) fn buckets(&mut self) -> Result<Vec<Found>, BoltError> {
        let mut found = Vec::new();
        self.walk(&Tree::Page(self.root), &mut |reader, page, flags, name, value| {
            if flags != IS_BUCKET || value.len() < BUCKET_BYTES {
                return Err(reader.corrupt(page, "something beside the buckets is no bucket"));
            }
            let tree = match u64_at(value, 0) {
                0 => Tree::Inline(page, value[BUCKET_BYTES..].to_vec()),
                root => Tree::Page(root),
            };
            found.push(Found { name: name.to_vec(), tree });
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls `each` for every pair of a bucket in the order of the keys, with the page that it is on. `each` says what
    /// is wrong with a pair.
    pub(crate) fn pairs(
        &mut self,
        bucket: &Found,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), &'static str>,
    ) -> Result<(), BoltError> {
        self.walk(&bucket.tree, &mut |reader, page, flags, key, value| {
            if flags != 0 {
                return Err(reader.corrupt(page, "there is a bucket inside of a bucket"));
            }
            each(key, value).map_err(|reason| reader.corrupt(page, reason))
        })
    }

    fn walk(&mut self, tree: &Tree, each: &mut Each<'_>) -> Result<(), BoltError> {
        let mut last = Vec::new();
        match tree {
            Tree::Page(root) => self.walk_page(*root, 0, &mut last, each),
            Tree::Inline(page, bytes) => self.leaf(*page, bytes, &mut last, each),
        }
    }

    fn walk_page(
        &mut self,
        page: u64,
        level: usize,
        last: &mut Vec<u8>,
        each: &mut Each<'_>,
    ) -> Result<(), BoltError> {
        if level == LEVELS_MAX {
            return Err(self.corrupt(page, "the tree is too deep"));
        }
        let bytes = self.page(page)?;
        if u16_at(&bytes, 8) == LEAF {
            return self.leaf(page, &bytes, last, each);
        }
        if u16_at(&bytes, 8) != BRANCH {
            return Err(self.corrupt(page, "it is neither a branch nor a leaf"));
        }
        let count = usize::from(u16_at(&bytes, 10));
        if count == 0 {
            return Err(self.corrupt(page, "a branch has nothing below it"));
        }
        for at in 0..count {
            let head = HEADER_BYTES + at * ELEMENT_BYTES;
            let below = bytes.get(head..head + ELEMENT_BYTES).map(|head| u64_at(head, 8));
            let below = below.ok_or_else(|| self.corrupt(page, "its elements do not fit"))?;
            self.walk_page(below, level + 1, last, each)?;
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        page: u64,
        bytes: &[u8],
        last: &mut Vec<u8>,
        each: &mut Each<'_>,
    ) -> Result<(), BoltError> {
        if bytes.len() < HEADER_BYTES || u16_at(bytes, 8) != LEAF {
            return Err(self.corrupt(page, "a small bucket on it is no leaf"));
        }
        for at in 0..usize::from(u16_at(bytes, 10)) {
            let (flags, key, value) =
                element(bytes, at).ok_or_else(|| self.corrupt(page, "its elements do not fit"))?;
            if key.is_empty() || key <= last.as_slice() {
                return Err(self.corrupt(page, "its keys are not in order"));
            }
            last.clear();
            last.extend_from_slice(key);
            each(self, page, flags, key, value)?;
        }
        Ok(())
    }

    /// A page with those that belong to it.
    fn page(&mut self, page: u64) -> Result<Vec<u8>, BoltError> {
        if page < 2 || page >= self.pages {
            return Err(self.corrupt(page, "it is named, but cannot be a page of a bucket"));
        }
        let mut header = [0; HEADER_BYTES];
        self.read(&mut header, page)?;
        if u64_at(&header, 0) != page {
            return Err(self.corrupt(page, "it says that it is another page"));
        }
        let end = page + 1 + u64::from(u32_at(&header, 12));
        if end > self.pages {
            return Err(self.corrupt(page, "it goes on behind the end of the file"));
        }
        for page in page..end {
            // The number of pages fits into the memory of the set, so a word's index does.
            let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
            if self.seen[word] & bit != 0 {
                return Err(self.corrupt(page, "it is used twice"));
            }
            self.seen[word] |= bit;
        }
        let bytes = usize::try_from((end - page) * self.page_bytes)
            .map_err(|_| self.corrupt(page, "it is too large"))?;
        let mut whole = vec![0; bytes];
        self.read(&mut whole, page)?;
        Ok(whole)
    }

    fn read(&self, buffer: &mut [u8], page: u64) -> Result<(), BoltError> {
        self.file
            .read_exact_at(buffer, page * self.page_bytes)
            .map_err(|source| BoltError::Io { path: self.path.clone(), source })
    }
}

/// What is called for each element of a leaf: the page, the element's flags, key and value.
type Each<'a> = dyn FnMut(&Reader, u64, u32, &[u8], &[u8]) -> Result<(), BoltError> + 'a;

/// Flags, key and value of an element of a leaf, if they are on the page.
fn element(bytes: &[u8], at: usize) -> Option<(u32, &[u8], &[u8])> {
    let from = HEADER_BYTES + at * ELEMENT_BYTES;
    let head = bytes.get(from..from + ELEMENT_BYTES)?;
    let number = |at| usize::try_from(u32_at(head, at)).ok();
    let key_from = from.checked_add(number(4)?)?;
    let value_from = key_from.checked_add(number(8)?)?;
    let end = value_from.checked_add(number(12)?)?;
    Some((u32_at(head, 0), bytes.get(key_from..value_from)?, bytes.get(value_from..end)?))
}

/// The bytes of a number; the callers looked that they are there.
fn at<const N: usize>(bytes: &[u8], from: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[from..from + N]);
    number
}

fn u16_at(bytes: &[u8], from: usize) -> u16 {
    u16::from_le_bytes(at(bytes, from))
}

fn u32_at(bytes: &[u8], from: usize) -> u32 {
    u32::from_le_bytes(at(bytes, from))
}

fn u64_at(bytes: &[u8], from: usize) -> u64 {
    u64::from_le_bytes(at(bytes, from))
}
