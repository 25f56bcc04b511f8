//! Writes a database in one go, from its first byte to its last.
//!
//! All lengths are known beforehand, so a first pass over them lays the pages out, and a second one makes them one after
//! the other. The layout needs 16 bytes a page; beyond that one page, with what belongs to it, is in memory at a time.

use sharded_etcd_core::hash::fnv1a;

use super::{
    BRANCH, BUCKET_BYTES, ELEMENT_BYTES, FREELIST, HEADER_BYTES, IS_BUCKET, LEAF, MAGIC, META, META_BYTES,
    VERSION,
};
use crate::values::ValueError;

/// The page size of the file, that of most systems.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Elements on a page at most: their number has 16 bits.
const ELEMENTS_MAX: usize = 0xfffe;
/// The freelist, which is empty.
const FREELIST_PAGE: u64 = 2;
/// The root, which names the buckets.
const ROOT_PAGE: u64 = 3;
/// The first page of a bucket.
const FIRST_PAGE: u64 = 4;

/// The pairs of a bucket, by ascending keys, none of which is empty.
pub(crate) trait Pairs: Send {
    /// How many.
    fn count(&self) -> usize;
    /// The lengths of a key and its value in bytes.
    fn lens(&self, at: usize) -> (usize, usize);
    /// Appends a key.
    fn key(&self, at: usize, out: &mut Vec<u8>);
    /// Appends a value.
    fn value(&self, at: usize, out: &mut Vec<u8>) -> Result<(), ValueError>;
}

/// A few pairs in memory.
#[derive(Debug, Default)]
pub(crate) struct SmallPairs(Vec<(Vec<u8>, Vec<u8>)>);

impl SmallPairs {
    /// Brings the pairs into order.
    pub(crate) fn new(mut pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        pairs.sort_unstable();
        Self(pairs)
    }
}

impl Pairs for SmallPairs {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn lens(&self, at: usize) -> (usize, usize) {
        (self.0[at].0.len(), self.0[at].1.len())
    }

    fn key(&self, at: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0[at].0);
    }

    fn value(&self, at: usize, out: &mut Vec<u8>) -> Result<(), ValueError> {
        out.extend_from_slice(&self.0[at].1);
        Ok(())
    }
}

/// A bucket with its name.
pub(crate) struct Bucket {
    pub(crate) name: &'static str,
    pub(crate) pairs: Box<dyn Pairs>,
}

/// Where a page is, and which of the elements below it is its first: a pair for a leaf, a page for a branch.
#[derive(Debug, Clone, Copy)]
struct Place {
    page: u64,
    first: usize,
}

/// The pages of one bucket: its leaves, then one level of branches after the other, the last one a single page.
struct Tree {
    levels: Vec<Vec<Place>>,
}

impl Tree {
    fn root(&self) -> u64 {
        self.levels.last().and_then(|level| level.first()).map_or(0, |place| place.page)
    }

    /// Lays a bucket out from page `next` on.
    fn new(pairs: &dyn Pairs, next: &mut u64) -> Self {
        let sizes = (0..pairs.count()).map(|at| {
            let (key, value) = pairs.lens(at);
            ELEMENT_BYTES + key + value
        });
        let mut levels = vec![level(sizes, next)];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            // A page says the first key below it.
            let sizes = (0..below.len()).map(|at| ELEMENT_BYTES + pairs.lens(first_pair(&levels, at)).0);
            let above = level(sizes, next);
            levels.push(above);
        }
        Self { levels }
    }
}

/// The first pair below a page of the highest level so far.
fn first_pair(levels: &[Vec<Place>], at: usize) -> usize {
    levels.iter().rev().fold(at, |at, level| level[at].first)
}

/// Puts elements on pages, as many as fit; a larger one has pages of its own.
fn level(sizes: impl Iterator<Item = usize>, next: &mut u64) -> Vec<Place> {
    let mut places = vec![Place { page: *next, first: 0 }];
    let (mut bytes, mut count) = (HEADER_BYTES, 0);
    for (at, size) in sizes.enumerate() {
        if count > 0 && (bytes + size > PAGE_BYTES || count == ELEMENTS_MAX) {
            *next += bytes.div_ceil(PAGE_BYTES) as u64;
            places.push(Place { page: *next, first: at });
            (bytes, count) = (HEADER_BYTES, 0);
        }
        bytes += size;
        count += 1;
    }
    *next += bytes.div_ceil(PAGE_BYTES) as u64;
    places
}

/// A database whose pages are laid out.
pub(crate) struct Layout {
    buckets: Vec<(Bucket, Tree)>,
    pages: u64,
}

impl Layout {
    /// Lays the pages out. The buckets' names together have to fit on one page.
    pub(crate) fn new(mut buckets: Vec<Bucket>) -> Self {
        buckets.sort_unstable_by_key(|bucket| bucket.name);
        let mut pages = FIRST_PAGE;
        let buckets = buckets
            .into_iter()
            .map(|bucket| {
                let tree = Tree::new(bucket.pairs.as_ref(), &mut pages);
                (bucket, tree)
            })
            .collect();
        Self { buckets, pages }
    }

    /// The size of the file in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// The buckets in the order of their names.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.iter().map(|(bucket, _)| bucket)
    }

    /// Hands out the file from its begin to its end, a page or several that belong together at a time, until `each`
    /// fails, or a value cannot be read.
    pub(crate) fn write<E: From<ValueError>>(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Either meta page would do; bbolt takes the one with the later transaction.
        each(&self.meta(0, 2))?;
        each(&self.meta(1, 1))?;
        each(&page(FREELIST_PAGE, FREELIST, 0, Vec::new()))?;
        each(&self.root())?;
        for (bucket, tree) in &self.buckets {
            let pairs = bucket.pairs.as_ref();
            for (height, level) in tree.levels.iter().enumerate() {
                let below = height.checked_sub(1).map(|height| tree.levels[height].as_slice());
                for (at, place) in level.iter().enumerate() {
                    let count = below.map_or(pairs.count(), <[Place]>::len);
                    let end = level.get(at + 1).map_or(count, |next| next.first);
                    let made = match below {
                        None => leaf(place.page, pairs, place.first..end)?,
                        Some(below) => {
                            let key = |at, out: &mut Vec<u8>| {
                                pairs.key(first_pair(&tree.levels[..height], at), out);
                            };
                            branch(place.page, below, place.first..end, key)
                        }
                    };
                    each(&made)?;
                }
            }
        }
        Ok(())
    }

    fn meta(&self, id: u64, transaction: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(META_BYTES + 8);
        for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        for number in [ROOT_PAGE, 0, FREELIST_PAGE, self.pages, transaction] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        let sum = fnv1a(&body);
        body.extend_from_slice(&sum.to_le_bytes());
        page(id, META, 0, body)
    }

    fn root(&self) -> Vec<u8> {
        let mut elements = Elements::new(self.buckets.len());
        for (bucket, tree) in &self.buckets {
            let mut value = [0; BUCKET_BYTES];
            value[..8].copy_from_slice(&tree.root().to_le_bytes());
            elements.leaf(IS_BUCKET, bucket.name.len(), value.len());
            elements.data.extend_from_slice(bucket.name.as_bytes());
            elements.data.extend_from_slice(&value);
        }
        elements.page(ROOT_PAGE, LEAF)
    }
}

fn leaf(id: u64, pairs: &dyn Pairs, range: std::ops::Range<usize>) -> Result<Vec<u8>, ValueError> {
    let mut elements = Elements::new(range.len());
    for at in range {
        let (key, value) = pairs.lens(at);
        elements.leaf(0, key, value);
        pairs.key(at, &mut elements.data);
        pairs.value(at, &mut elements.data)?;
    }
    Ok(elements.page(id, LEAF))
}

fn branch(
    id: u64,
    below: &[Place],
    range: std::ops::Range<usize>,
    key: impl Fn(usize, &mut Vec<u8>),
) -> Vec<u8> {
    let mut elements = Elements::new(range.len());
    for at in range {
        let place = elements.place();
        let begin = elements.data.len();
        key(at, &mut elements.data);
        let key_bytes = elements.data.len() - begin;
        elements.heads.extend_from_slice(&place.to_le_bytes());
        elements.heads.extend_from_slice(&(key_bytes as u32).to_le_bytes());
        elements.heads.extend_from_slice(&below[at].page.to_le_bytes());
    }
    elements.page(id, BRANCH)
}

/// The elements of a page, and their keys and values, which lie behind all of them.
struct Elements {
    count: usize,
    heads: Vec<u8>,
    data: Vec<u8>,
}

impl Elements {
    fn new(count: usize) -> Self {
        Self { count, heads: Vec::with_capacity(count * ELEMENT_BYTES), data: Vec::new() }
    }

    /// From the next element to where its key will be.
    fn place(&self) -> u32 {
        (self.count * ELEMENT_BYTES - self.heads.len() + self.data.len()) as u32
    }

    fn leaf(&mut self, flags: u32, key_bytes: usize, value_bytes: usize) {
        for number in [flags, self.place(), key_bytes as u32, value_bytes as u32] {
            self.heads.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn page(self, id: u64, kind: u16) -> Vec<u8> {
        let Self { count, mut heads, data } = self;
        heads.extend_from_slice(&data);
        page(id, kind, count as u16, heads)
    }
}

/// A page, and the pages behind it if the body does not fit.
fn page(id: u64, kind: u16, count: u16, body: Vec<u8>) -> Vec<u8> {
    let pages = (HEADER_BYTES + body.len()).div_ceil(PAGE_BYTES);
    let mut page = Vec::with_capacity(pages * PAGE_BYTES);
    page.extend_from_slice(&id.to_le_bytes());
    page.extend_from_slice(&kind.to_le_bytes());
    page.extend_from_slice(&count.to_le_bytes());
    page.extend_from_slice(&(pages as u32 - 1).to_le_bytes());
    page.extend_from_slice(&body);
    page.resize(pages * PAGE_BYTES, 0);
    page
}
