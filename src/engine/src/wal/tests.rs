//! The log under damage: what is torn is dropped, what is damaged is named.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::disk::Disk;

use super::{AppendError, IoHook, IoStep, Wal, WalError, recover, segment};

const CLUSTER: u64 = 77;
const SEGMENT_BYTES: u64 = 16 * 1024;

fn read(dir: &Path, after: u64) -> Result<(Vec<Vec<u8>>, super::Recovered), WalError> {
    let mut records = Vec::new();
    let recovered = recover(&Disk::Real, dir, CLUSTER, after.into(), |record, _, _| {
        records.push(record.to_vec());
        Ok::<_, WalError>(())
    })?;
    Ok((records, recovered))
}

fn open(dir: &Path, hook: Option<IoHook>) -> Wal {
    let (_, recovered) = read(dir, 0).unwrap();
    Wal::open(&Disk::Real, dir, CLUSTER, SEGMENT_BYTES, recovered, hook).unwrap()
}

fn append(wal: &mut Wal, payload: &[u8]) -> Result<u64, AppendError> {
    let mut buffer = Vec::new();
    Wal::begin(&mut buffer);
    buffer.extend_from_slice(payload);
    wal.append(&mut buffer).map(|appended| appended.bytes)
}

fn record(n: usize) -> Vec<u8> {
    vec![n as u8; 100 + n]
}

/// A log of `count` records, written over several segments.
fn written(dir: &Path, count: usize) -> Vec<Vec<u8>> {
    let mut wal = open(dir, None);
    let records: Vec<Vec<u8>> = (0..count).map(record).collect();
    for record in &records {
        append(&mut wal, record).unwrap();
    }
    records
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(&Disk::Real, dir).unwrap().into_iter().map(|(_, path)| path).collect()
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Where each frame of a segment starts, and where the last one ends.
fn frames(path: &Path) -> Vec<usize> {
    let file = fs::read(path).unwrap();
    let salt = segment::Header::decode(&file, path).unwrap().salt;
    let mut offsets = vec![segment::HEADER_BYTES];
    while let Some(frame) = super::frame::read(&file, offsets[offsets.len() - 1], salt) {
        offsets.push(frame.end);
    }
    offsets
}

#[test]
fn records_come_back_in_order_over_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..4 {
        let mut wal = open(dir.path(), None);
        for n in 0..60 {
            let record = record(n + round);
            append(&mut wal, &record).unwrap();
            expected.push(record);
        }
    }
    assert!(segments(dir.path()).len() > 2);
    let (records, recovered) = read(dir.path(), 0).unwrap();
    assert_eq!(records, expected);
    // Each start but the first found records without a seal behind them.
    assert_eq!(recovered.last.sequence, 240 + 3);
    let (records, _) = read(dir.path(), 203).unwrap();
    assert_eq!(records, expected[200..]);
}

#[test]
fn a_record_larger_than_a_segment_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = open(dir.path(), None);
    let large = vec![5; 3 * SEGMENT_BYTES as usize];
    append(&mut wal, b"before").unwrap();
    append(&mut wal, &large).unwrap();
    append(&mut wal, b"after").unwrap();
    drop(wal);
    let (records, _) = read(dir.path(), 0).unwrap();
    assert_eq!(records, [b"before".to_vec(), large, b"after".to_vec()]);
}

#[test]
fn a_record_torn_at_any_byte_is_dropped_and_the_log_goes_on() {
    let source = tempfile::tempdir().unwrap();
    let records = written(source.path(), 4);
    let path = &segments(source.path())[0];
    let offsets = frames(path);
    let (start, end) = (offsets[3], offsets[4]);
    let whole = fs::read(path).unwrap();
    // The last bytes of the frame may be padding: without them it is still whole.
    let payload_end = start + super::frame::HEADER_BYTES + records[3].len();
    for cut in start..payload_end {
        let dir = tempfile::tempdir().unwrap();
        let mut torn = whole.clone();
        torn[cut..end].fill(0);
        fs::write(dir.path().join(path.file_name().unwrap()), torn).unwrap();
        let (read_back, _) = read(dir.path(), 0).unwrap();
        assert_eq!(read_back, records[..3], "cut at {cut}");
        append(&mut open(dir.path(), None), b"next").unwrap();
        let (read_back, _) = read(dir.path(), 0).unwrap();
        assert_eq!(read_back[3], b"next");
    }
}

#[test]
fn a_segment_that_lost_its_end_is_named() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 4);
    let path = segments(dir.path())[0].clone();
    for len in [frames(&path)[3] as u64 + 30, SEGMENT_BYTES - 1] {
        fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        match read(dir.path(), 0) {
            Err(WalError::Corrupt { path: named, offset, .. }) => {
                assert_eq!((named, offset), (path.clone(), len))
            }
            other => panic!("{other:?}"),
        }
        fs::File::options().write(true).open(&path).unwrap().set_len(SEGMENT_BYTES).unwrap();
    }
}

#[test]
fn damage_to_the_last_record_before_a_seal_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let records = written(dir.path(), 4);
    let path = segments(dir.path())[0].clone();
    let last = frames(&path)[3];
    let flipped = last + super::frame::HEADER_BYTES + 5;
    // The next start seals what it finds.
    drop(open(dir.path(), None));
    assert_eq!(read(dir.path(), 0).unwrap().0, records);
    flip(&path, flipped);
    assert!(matches!(read(dir.path(), 0), Err(WalError::Corrupt { offset, .. }) if offset == last as u64));
    flip(&path, flipped);
    // Starts without writes in between add nothing.
    let end = *frames(&path).last().unwrap();
    drop(open(dir.path(), None));
    assert_eq!(*frames(&path).last().unwrap(), end);
}

#[test]
fn damage_to_a_last_record_that_left_no_room_for_a_seal_is_named() {
    // One that is larger than the segment, and one that fills it to the last byte but the mark's.
    let header = super::frame::HEADER_BYTES;
    for len in [2 * SEGMENT_BYTES as usize, SEGMENT_BYTES as usize - segment::HEADER_BYTES - 2 * header] {
        let dir = tempfile::tempdir().unwrap();
        append(&mut open(dir.path(), None), &vec![7; len]).unwrap();
        drop(open(dir.path(), None));
        assert_eq!(read(dir.path(), 0).unwrap().0, [vec![7; len]]);
        let path = segments(dir.path())[0].clone();
        flip(&path, segment::HEADER_BYTES + header + len - 1);
        match read(dir.path(), 0) {
            Err(WalError::Corrupt { path: named, offset, .. }) => {
                assert_eq!((named, offset), (path, segment::HEADER_BYTES as u64));
            }
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_before_intact_records_is_named() {
    let source = tempfile::tempdir().unwrap();
    written(source.path(), 6);
    let path = segments(source.path())[0].clone();
    let offsets = frames(&path);
    // In the magic, the length, the sequence number, the checksum and the payload of the third record.
    for at in [0, 5, 9, 17, 40] {
        let offset = offsets[2] + at;
        flip(&path, offset);
        match read(source.path(), 0) {
            Err(WalError::Corrupt { path: named, offset: at, .. }) => {
                assert_eq!(named, path);
                assert_eq!(at, offsets[2] as u64);
            }
            other => panic!("flipped {offset}: {other:?}"),
        }
        flip(&path, offset);
    }
    assert!(read(source.path(), 0).is_ok());
}

#[test]
fn damage_at_the_end_of_a_segment_that_is_not_the_last_is_named() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 150);
    let first = segments(dir.path())[0].clone();
    let offsets = frames(&first);
    // The last frame is the mark that the log goes on, and nothing rests on it as long as it does.
    let mark = offsets[offsets.len() - 2];
    flip(&first, mark + 10);
    assert!(read(dir.path(), 0).is_ok());
    flip(&first, offsets[offsets.len() - 3] + 30);
    assert!(matches!(read(dir.path(), 0), Err(WalError::Corrupt { path, .. }) if path == first));
}

#[test]
fn a_missing_segment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 250);
    let all = segments(dir.path());
    assert!(all.len() > 3);
    fs::remove_file(&all[1]).unwrap();
    assert!(matches!(read(dir.path(), 0), Err(WalError::Corrupt { path, .. }) if path == all[0]));
    fs::remove_file(&all[0]).unwrap();
    assert!(matches!(read(dir.path(), 0), Err(WalError::Corrupt { path, .. }) if path == all[2]));
}

#[test]
fn headers_of_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 1);
    let path = segments(dir.path())[0].clone();
    let good = fs::read(&path).unwrap();

    assert!(matches!(
        recover(&Disk::Real, dir.path(), CLUSTER + 1, 0.into(), |_, _, _| Ok::<_, WalError>(())),
        Err(WalError::Foreign { found: CLUSTER, .. })
    ));
    let mut newer = good.clone();
    newer[8] = 9;
    fs::write(&path, newer).unwrap();
    assert!(matches!(read(dir.path(), 0), Err(WalError::Newer { found: 9, .. })));
    let mut damaged = good.clone();
    damaged[21] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert!(matches!(read(dir.path(), 0), Err(WalError::Corrupt { offset: 0, .. })));
    fs::write(&path, b"something else").unwrap();
    assert!(matches!(read(dir.path(), 0), Err(WalError::Corrupt { offset: 0, .. })));
    fs::write(&path, good).unwrap();
    fs::rename(&path, dir.path().join("wal-0000000000000009.log")).unwrap();
    assert!(matches!(read(dir.path(), 8), Err(WalError::Corrupt { offset: 0, .. })));
}

#[test]
fn released_segments_are_used_again_and_their_old_records_never_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = open(dir.path(), None);
    for n in 0..1000 {
        append(&mut wal, &record(n % 50)).unwrap();
        if n % 100 == 99 {
            wal.release(wal.last_sequence());
        }
    }
    let last = wal.last_sequence();
    append(&mut wal, b"tail").unwrap();
    drop(wal);
    // The files do not pile up: the current segment, and spares that the next start removes.
    assert!(segments(dir.path()).len() <= 2);
    assert_eq!(read(dir.path(), last).unwrap().0, [b"tail".to_vec()]);
}

#[test]
fn segments_that_cannot_be_removed_are_removed_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = open(dir.path(), None);
    for n in 0..300 {
        append(&mut wal, &record(n % 50)).unwrap();
    }
    let before = segments(dir.path());
    assert!(before.len() > 3);
    // A folder is not removed as a file is.
    fs::remove_file(&before[1]).unwrap();
    fs::create_dir(&before[1]).unwrap();
    wal.release(wal.last_sequence());
    // Waits for the time before.
    wal.release(0);
    assert_eq!(segments(dir.path()), before[1..]);
    fs::remove_dir(&before[1]).unwrap();
    fs::write(&before[1], "").unwrap();
    wal.release(wal.last_sequence());
    append(&mut wal, b"tail").unwrap();
    let last = wal.last_sequence() - 1;
    drop(wal);
    assert_eq!(segments(dir.path()), before[before.len() - 1..]);
    assert_eq!(read(dir.path(), last).unwrap().0, [b"tail".to_vec()]);
}

#[test]
fn records_before_the_first_segment_are_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = open(dir.path(), None);
    for n in 0..300 {
        append(&mut wal, &record(n % 50)).unwrap();
    }
    wal.release(250);
    drop(wal);
    assert!(read(dir.path(), 250).is_ok());
    assert!(matches!(read(dir.path(), 3), Err(WalError::Corrupt { .. })));
}

/// Fails the n-th time a step comes.
fn failing(step: IoStep, nth: usize, kind: std::io::ErrorKind) -> IoHook {
    let count = AtomicUsize::new(0);
    Arc::new(move |at| {
        if at == step && count.fetch_add(1, Ordering::Relaxed) + 1 == nth { Err(kind.into()) } else { Ok(()) }
    })
}

#[test]
fn a_failed_write_or_sync_is_unknown_and_no_space_for_a_segment_is_not() {
    use std::io::ErrorKind;
    for step in [IoStep::Write, IoStep::Sync] {
        let dir = tempfile::tempdir().unwrap();
        let mut wal = open(dir.path(), Some(failing(step, 2, ErrorKind::Other)));
        append(&mut wal, b"one").unwrap();
        assert!(matches!(append(&mut wal, b"two"), Err(AppendError::Unknown(WalError::Io { .. }))));
    }
    let dir = tempfile::tempdir().unwrap();
    // The first roll is the first segment.
    let mut wal = open(dir.path(), Some(failing(IoStep::Roll, 2, ErrorKind::StorageFull)));
    let mut failed = 0;
    let mut kept = Vec::new();
    for n in 0..200 {
        match append(&mut wal, &record(n)) {
            Ok(_) => kept.push(record(n)),
            Err(AppendError::Untouched(_)) => failed += 1,
            Err(AppendError::Unknown(error)) => panic!("{error}"),
        }
    }
    drop(wal);
    assert_eq!(failed, 1);
    assert_eq!(read(dir.path(), 0).unwrap().0, kept);
}

/// A start that fails halfway, a second one on what it left in the caches, and then the power is lost.
#[test]
fn what_a_failed_start_left_in_the_caches_is_durable_before_it_is_written_to() {
    use crate::disk::sim::SimDisk;
    let path = Path::new("/sim");
    for seed in 0..40 {
        // Every step of making and taking into use the first segment is the last one once.
        for steps in 1..12 {
            let sim = SimDisk::new(seed);
            let disk = Disk::Sim(Arc::clone(&sim));
            let open = || {
                let recovered = recover(&disk, path, CLUSTER, 0.into(), |_, _, _| Ok::<_, WalError>(()))?;
                Wal::open(&disk, path, CLUSTER, SEGMENT_BYTES, recovered, None)
            };
            sim.set(0, steps);
            let _ = open();
            sim.set(0, u64::MAX);
            append(&mut open().unwrap(), b"acknowledged").unwrap();
            sim.lose_power();
            let mut records = Vec::new();
            recover(&disk, path, CLUSTER, 0.into(), |record, _, _| {
                records.push(record.to_vec());
                Ok::<_, WalError>(())
            })
            .unwrap();
            assert_eq!(records, [b"acknowledged"], "seed {seed}, the process died in step {steps}");
        }
    }
}
