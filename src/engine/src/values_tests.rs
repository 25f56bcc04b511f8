//! Reading values from files.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::{collections::VecDeque, fs, sync::Arc};

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_testkit::Dice;
use tokio::sync::oneshot;

use crate::{
    committer::Command,
    crash_tests,
    disk::{Disk, sim::SimDisk},
    mvcc::{Key, RangeScan, Step, Version, VersionRef},
    values::{IN_MEMORY_BYTES_MAX, Place, Recent, Value, ValueError, ValueFile, read_all, window},
};

fn version(value: impl Into<Value>) -> VersionRef {
    VersionRef::new(Version::put(Key::from(b"key".as_slice()), value, 0, (2, 0), None, None))
}

/// A file with values at these offsets, and versions that refer to them.
fn stored(dir: &tempfile::TempDir, name: &str, values: &[(u64, Bytes)]) -> (Arc<ValueFile>, Vec<VersionRef>) {
    let path = dir.path().join(name);
    let mut bytes = Vec::new();
    for (offset, value) in values {
        let end = *offset as usize + value.len();
        bytes.resize(bytes.len().max(end), 0xee);
        bytes[*offset as usize..end].copy_from_slice(value);
    }
    fs::write(&path, bytes).unwrap();
    let file = ValueFile::open(&Disk::Real, &path).unwrap();
    let versions =
        values.iter().map(|(offset, value)| version(Value::stored(value, &file, *offset))).collect();
    (file, versions)
}

fn refs(versions: &[VersionRef]) -> impl ExactSizeIterator<Item = &Version> {
    versions.iter().map(|version| &**version)
}

#[test]
fn a_reference_is_small() {
    assert_eq!(size_of::<Place>(), 16);
    // With its count it fills one of the allocator's sizes.
    assert!(size_of::<Version>() <= 88, "{}", size_of::<Version>());
}

#[test]
fn values_from_anywhere_come_in_the_order_asked_for() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut dice = Dice::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut expected, mut versions) = (Vec::new(), Vec::new());
    for file in 0..3 {
        let mut values = Vec::new();
        let mut offset = dice.below(9000);
        for _ in 0..300 {
            let len = match dice.below(20) {
                0 => dice.below(200_000),
                1 => IN_MEMORY_BYTES_MAX as u64 + dice.below(2),
                _ => dice.below(2000),
            };
            values.push((offset, Bytes::from(vec![dice.below(256) as u8; len as usize])));
            // Right behind, near, and too far to be read at once.
            offset += len + [0, dice.below(100), 4095 + dice.below(3), 100_000][dice.below(4) as usize];
        }
        let (_, found) = stored(&dir, &file.to_string(), &values);
        for ((_, value), version) in values.into_iter().zip(found) {
            assert_eq!(version.is_in_memory(), value.len() <= IN_MEMORY_BYTES_MAX);
            expected.push(value);
            versions.push(version);
        }
    }
    for _ in 0..20 {
        let mut picks: Vec<usize> = (0..versions.len()).collect();
        if dice.one_in(2) {
            picks = (0..dice.below(2000)).map(|_| dice.below(versions.len() as u64) as usize).collect();
        }
        let asked: Vec<_> = picks.iter().map(|at| VersionRef::clone(&versions[*at])).collect();
        let found = read_all(refs(&asked)).unwrap();
        assert!(found.iter().eq(picks.iter().map(|at| &expected[*at])));
        let mut rest = asked.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(window(rest));
            assert!(!now.is_empty());
            rest = later;
        }
    }
    for (version, value) in versions.iter().zip(&expected) {
        assert_eq!(version.value().unwrap(), value);
        assert_eq!(version.value_len(), value.len());
    }
}

#[test]
fn what_was_damaged_is_named_and_never_given_out() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<_> = (0..20u64).map(|n| (50 + n * 150, Bytes::from(vec![n as u8; 100]))).collect();
    let (file, versions) = stored(&dir, "some", &values);
    let good = fs::read(file.path()).unwrap();
    let is_named = |error: ValueError, at: usize| match error {
        ValueError::Damaged { path, offset } => {
            assert_eq!((path.as_path(), offset), (file.path(), values[at].0))
        }
        error => panic!("{error:?}"),
    };
    for (at, (offset, value)) in values.iter().enumerate() {
        for bit in 0..value.len() * 8 {
            let mut bad = good.clone();
            bad[*offset as usize + bit / 8] ^= 1 << (bit % 8);
            fs::write(file.path(), &bad).unwrap();
            is_named(versions[at].value().unwrap_err(), at);
            if bit % 97 == 0 {
                is_named(read_all(refs(&versions)).unwrap_err(), at);
            }
        }
    }
    fs::write(file.path(), &good[..good.len() - 1]).unwrap();
    is_named(versions[19].value().unwrap_err(), 19);
    assert_eq!(read_all(refs(&versions[..19])).unwrap().len(), 19);
    fs::write(file.path(), &good).unwrap();
    assert_eq!(read_all(refs(&versions)).unwrap()[19], values[19].1);
}

#[test]
fn the_newest_values_stay_in_memory_and_older_ones_leave_it() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<_> = (0..100u64).map(|n| (n * 1000, Bytes::from(vec![n as u8; 1000]))).collect();
    let (file, _) = stored(&dir, "log", &values);
    let mut recent = Recent::new(20_000);
    let versions: Vec<_> = values.iter().map(|(_, value)| version(value.clone())).collect();
    for (version, (offset, _)) in versions.iter().zip(&values) {
        recent.add(VersionRef::clone(version), &file, *offset);
        assert!(version.is_in_memory());
    }
    let kept = versions.iter().filter(|version| version.is_in_memory()).count();
    assert!((10..=20).contains(&kept), "{kept}");
    assert!(versions[100 - kept..].iter().all(|version| version.is_in_memory()));

    // A checkpoint becomes the place of some; what is said of the log later changes nothing.
    let (checkpoint, _) = stored(&dir, "checkpoint", &values);
    for (version, (offset, _)) in versions.iter().zip(&values).take(95) {
        version.move_to(&checkpoint, *offset);
    }
    recent.forget_moved();
    fs::remove_file(file.path()).unwrap();
    drop(recent);
    assert!(Arc::into_inner(file).is_some(), "the log is referred to although nothing is read from it");
    for (at, (version, (offset, value))) in versions.iter().zip(&values).enumerate() {
        version.settle(&checkpoint, *offset);
        assert!(!version.is_in_memory() || at >= 100);
        assert_eq!(version.value().unwrap(), value);
    }
}

/// A simulated disk has no page cache.
#[test]
fn a_range_does_not_wait_for_the_disk_unless_it_is_told_to() {
    let disk = SimDisk::new(1);
    disk.set(0, u64::MAX);
    let mut committer = crash_tests::open(&disk).unwrap();
    let put = |n: u8| {
        let value = Bytes::from(vec![n; 5000]);
        let (reply, _) = oneshot::channel();
        Command::Put(pb::PutRequest { key: vec![n].into(), value, ..Default::default() }, reply)
    };
    committer.work(&mut (0..10).map(put).collect::<VecDeque<_>>());
    let store = committer.published();
    let all = |keys_only| {
        let (key, range_end) = (vec![0].into(), vec![0].into());
        let request = pb::RangeRequest { key, range_end, keys_only, ..Default::default() };
        RangeScan::new(&store, request, store.revision()).unwrap()
    };
    let mut scan = all(false);
    let mut steps = 0;
    loop {
        steps += 1;
        assert_eq!(scan.step_cached(&store, 3).unwrap(), Step::OnDisk);
        assert_eq!(scan.step_cached(&store, 3).unwrap(), Step::OnDisk, "it is not passed over");
        if scan.read_on().unwrap() {
            break;
        }
    }
    assert_eq!(steps, 4);
    let kvs = scan.finish().kvs;
    assert_eq!(kvs.len(), 10);
    assert!((0..10).zip(&kvs).all(|(n, kv)| kv.key == vec![n] && kv.value == vec![n; 5000]));

    let mut scan = all(true);
    assert_eq!(scan.step_cached(&store, 100).unwrap(), Step::Done);
    let mut scan = all(false);
    assert!(scan.step(&store, 100).unwrap());
    assert_eq!(scan.finish().kvs, kvs);
}
