//! What this program is.

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, or "unknown".
pub const COMMIT: &str = env!("SHARDED_ETCD_BUILD_COMMIT");
/// Version of the etcd API that is served, as in etcd's own `/version`.
pub const ETCD_API: &str = "3.7";
/// All of it on one line, without the program's name.
pub const LONG: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("SHARDED_ETCD_BUILD_COMMIT"), ", etcd API 3.7)");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_version_says_all_of_it() {
        assert_eq!(LONG, format!("{VERSION} (commit {COMMIT}, etcd API {ETCD_API})"));
    }
}
