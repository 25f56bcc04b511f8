//! Ports that no other test, in whatever process, is about to use.

use std::{
    fs::{File, TryLockError},
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

use anyhow::{Context, Result, bail};

/// Ports given out: below Linux's range for outgoing connections (32768 and up), so that no client socket of a process
/// that runs at the same time can take one between our look and the server's bind.
const FIRST: u16 = 15_000;
const COUNT: u16 = 17_000;

/// What this process has taken: the locks, and where to go on looking.
struct Taken {
    locks: Vec<File>,
    next: u16,
}

static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

/// A loopback port that nothing listens on and that is given out once while this process lives.
///
/// Test processes on one machine keep out of each other's way with a locked file for each port.
///
/// # Errors
///
/// When the lock files cannot be made, or no port is left.
pub fn free_port() -> Result<u16> {
    let mut taken = TAKEN.lock().expect("no code panics while it holds this lock");
    // Processes start at different places, so that they rarely meet.
    let taken = taken
        .get_or_insert_with(|| Taken { locks: Vec::new(), next: (std::process::id() % 340) as u16 * 50 });
    // One folder a user, as nobody can lock the files of another.
    let user = rustix::process::getuid().as_raw();
    let directory = std::env::temp_dir().join(format!("sharded-etcd-test-ports-{user}"));
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for _ in 0..COUNT {
        let port = FIRST + taken.next;
        taken.next = (taken.next + 1) % COUNT;
        let path = directory.join(port.to_string());
        let lock = File::options().create(true).append(true).open(&path).with_context(|| {
            format!("cannot open {}, which keeps tests from sharing a port", path.display())
        })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.locks.push(lock);
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn gives_no_port_twice_and_none_in_use() {
        let first = free_port().unwrap();
        let occupied = (first + 1..FIRST + COUNT)
            .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .unwrap();
        let ports: BTreeSet<_> = (0..100).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 100);
        assert!(!ports.contains(&first));
        assert!(!ports.contains(&occupied.local_addr().unwrap().port()));
    }
}
