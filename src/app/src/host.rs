//! What this machine is called.

/// The host's name, for the names of proxies and shard managers.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
