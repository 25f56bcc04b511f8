//! Files of bbolt, the database below etcd: as far as an etcd's snapshot needs it.
//!
//! A file is a row of pages of one size. Pages 0 and 1 are meta pages: either of them, checked by a sum, says where the
//! root is. A bucket is a B+ tree of branch and leaf pages; the root is a bucket whose values are the other buckets. What
//! does not fit into a page goes on in the pages behind it, which have no header. All numbers are little-endian.
//!
//! Facts from bbolt 1.4 (internal/common/{page,meta,bucket,inode}.go).

mod read;
mod write;

pub use read::BoltError;
pub(crate) use read::Reader;
pub(crate) use write::{Bucket, Layout, Pairs, SmallPairs};

/// Page number, kind, number of elements, and how many pages behind it belong to it.
const HEADER_BYTES: usize = 8 + 2 + 2 + 4;
/// Flags, place of the key, lengths of key and value; or place and length of the key, and a page number.
const ELEMENT_BYTES: usize = 16;
/// The first page of a bucket's tree, and a counter.
const BUCKET_BYTES: usize = 8 + 8;
/// Magic, version, page size, flags, the root bucket, the freelist's page, the number of pages, the transaction.
const META_BYTES: usize = 4 * 4 + BUCKET_BYTES + 3 * 8;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;
/// Flag of an element whose value is a bucket.
const IS_BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

#[cfg(test)]
mod tests;
