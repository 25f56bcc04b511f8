//! Texts of etcd's errors (api/v3rpc/rpctypes/error.go).

pub(super) const NO_KEY: &str = "etcdserver: key is not provided";
pub(super) const KEY_NOT_FOUND: &str = "etcdserver: key not found";
pub(super) const VALUE_PROVIDED: &str = "etcdserver: value is provided";
pub(super) const LEASE_PROVIDED: &str = "etcdserver: lease is provided";
pub(super) const SORT_OPTION: &str = "etcdserver: invalid sort option";
pub(super) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
pub(super) const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
pub(super) const DUPLICATE_KEY: &str = "etcdserver: duplicate key given in txn request";
pub(super) const TOO_MANY_OPS: &str = "etcdserver: too many operations in txn request";
pub(super) const TOO_LARGE: &str = "etcdserver: request is too large";
pub(super) const NO_LEASE: &str = "etcdserver: requested lease not found";
pub(super) const LEASE_EXISTS: &str = "etcdserver: lease already exists";
pub(super) const TTL_TOO_LARGE: &str = "etcdserver: too large lease TTL";
pub(super) const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
pub(super) const CORRUPT: &str = "etcdserver: corrupt cluster";

/// A lease id that nobody grants.
pub(super) const UNKNOWN_LEASE: i64 = 0x0BAD_1EA5E;
/// Further into the future than any case writes.
pub(super) const FAR: i64 = 1 << 40;
