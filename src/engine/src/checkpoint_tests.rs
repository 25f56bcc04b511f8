//! Checkpoints under damage.
#![allow(clippy::unwrap_used)]

use std::fs;

use crate::{
    checkpoint::{load, write},
    disk::Disk,
    mvcc::Store,
    wal::WalError,
};

fn store(keys: usize) -> Store {
    let mut store = Store::default();
    for n in 0..keys {
        let mut write = store.write();
        write.put(format!("key-{n:06}").as_bytes(), &[7; 500], 0);
        write.end();
    }
    store
}

#[test]
fn any_flipped_byte_is_noticed_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = write(&Disk::Real, dir.path(), 1, 5, &store(2000)).unwrap().bytes as usize;
    let path = dir.path().join("checkpoint-0000000000000005.db");
    let good = fs::read(&path).unwrap();
    assert_eq!(good.len(), bytes);
    for at in (0..bytes).step_by(997).chain(0..40).chain(bytes - 20..bytes) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        match load(&Disk::Real, dir.path(), 1) {
            Err(WalError::Corrupt { path: named, .. } | WalError::Newer { path: named, .. }) => {
                assert_eq!(named, path);
            }
            other => panic!("byte {at}: {:?}", other.map(|loaded| loaded.last.sequence)),
        }
    }
    for len in [0, 10, 32, 100, bytes / 2, bytes - 1] {
        fs::write(&path, &good[..len]).unwrap();
        assert!(matches!(load(&Disk::Real, dir.path(), 1), Err(WalError::Corrupt { .. })), "cut to {len}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(load(&Disk::Real, dir.path(), 1).unwrap().store.revision(), 2001);
    assert!(matches!(load(&Disk::Real, dir.path(), 2), Err(WalError::Foreign { found: 1, expected: 2, .. })));
}

#[test]
fn a_newer_checkpoint_replaces_the_older_and_a_half_written_one_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    write(&Disk::Real, dir.path(), 1, 5, &store(3)).unwrap();
    write(&Disk::Real, dir.path(), 1, 9, &store(4)).unwrap();
    fs::write(dir.path().join("checkpoint.tmp"), b"half").unwrap();
    let loaded = load(&Disk::Real, dir.path(), 1).unwrap();
    assert_eq!((loaded.last.sequence, loaded.store.revision()), (9, 5));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["checkpoint-0000000000000009.db"]);
}

#[test]
fn a_long_history_is_stored_over_several_blocks() {
    let mut store = Store::default();
    for n in 0..3000 {
        let mut write = store.write();
        write.put(b"hot", &[n as u8; 1000], 0);
        write.put(format!("cold-{n}").as_bytes(), b"", 0);
        write.end();
    }
    let dir = tempfile::tempdir().unwrap();
    write(&Disk::Real, dir.path(), 1, 1, &store).unwrap();
    let loaded = load(&Disk::Real, dir.path(), 1).unwrap();
    let chain = |store: &Store| {
        let mut versions = Vec::new();
        let mut next = store.get(b"hot").cloned();
        while let Some(version) = next {
            versions.push((version.mod_revision, version.version, version.value().unwrap()));
            next = version.previous();
        }
        versions
    };
    assert_eq!(chain(&loaded.store).len(), 3000);
    assert_eq!(chain(&loaded.store), chain(&store));
    assert_eq!(loaded.log.last_revision(), 3001);
}
