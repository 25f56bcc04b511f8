//! Data directories that were damaged while nobody had them open: everything is there all the same, or the start is
//! refused and the file named; nothing damaged is read as data. [`verify`](crate::verify()) says the same.
//!
//! `ENGINE_DAMAGE_SEED` chooses the bits that are flipped.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
};

use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_testkit::Dice;
use tokio::sync::{mpsc, oneshot};

use crate::{
    EngineConfig, EngineError,
    committer::{Command, Committer, Limits},
    crash_tests::Model,
    disk::{Disk, sim::SimDisk},
    engine::Opened,
    verify::verify_on,
    wal::WalError,
};

const DIR: &str = "/sim";
const FLIPS: usize = 1500;

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Holds the outcome of a start to what there was: the same, or refused with one of these files named.
pub fn harmless_or_named<T: PartialEq + Debug>(
    opened: Result<T, EngineError>,
    expected: &T,
    damaged: &[&Path],
    what: &str,
) {
    match opened {
        Ok(found) => {
            assert!(found == *expected, "{what} was read as data: {found:?} instead of {expected:?}")
        }
        Err(error) => {
            let named = named(&error).unwrap_or_else(|| panic!("{what}: {error:?}"));
            assert!(damaged.contains(&named), "{what}: {} is named", named.display());
        }
    }
}

/// The file that an error says is damaged.
fn named(error: &EngineError) -> Option<&Path> {
    match error {
        EngineError::Files(
            WalError::Corrupt { path, .. } | WalError::Newer { path, .. } | WalError::Foreign { path, .. },
        )
        | EngineError::Identity { path, .. } => Some(path),
        _ => None,
    }
}

fn opened(disk: &Arc<SimDisk>, cluster_id: Option<u64>) -> Result<Opened, EngineError> {
    let mut config = EngineConfig::new(DIR, "sim");
    config.disk = Disk::Sim(Arc::clone(disk));
    config.segment_bytes = 16 * 1024;
    config.cluster_id = cluster_id;
    Opened::open(&config)
}

/// A running engine on a simulated disk that never fails.
struct Life {
    disk: Arc<SimDisk>,
    committer: Committer,
}

impl Life {
    fn begin(files: Files, cluster_id: Option<u64>) -> Self {
        let disk = SimDisk::with_files(0, files);
        let Opened { shared, wal, wal_bytes, checkpoint_bytes, .. } = opened(&disk, cluster_id).unwrap();
        let limits = Limits {
            disk: Disk::Sim(Arc::clone(&disk)),
            dir: PathBuf::from(DIR),
            quota_bytes: 1 << 30,
            lease_ttl_seconds_min: 1,
            checkpoint_wal_bytes: u64::MAX,
            recent_bytes: 0,
        };
        let (_, commands) = mpsc::channel(1);
        Self { disk, committer: Committer::new(limits, shared, commands, wal, wal_bytes, checkpoint_bytes) }
    }

    fn put(&mut self, n: usize) {
        let (reply, _answer) = oneshot::channel();
        let request = pb::PutRequest {
            key: format!("k{}", n % 50).into(),
            value: vec![n as u8; 40 + n * 7 % 400].into(),
            ..Default::default()
        };
        self.committer.work(&mut VecDeque::from([Command::Put(request, reply)]));
    }

    fn checkpoint(&mut self) {
        let (reply, _answer) = oneshot::channel();
        self.committer.work(&mut VecDeque::from([Command::Defragment(reply)]));
        self.committer.work(&mut VecDeque::from([Command::Tick]));
    }

    fn model(&self) -> Model {
        Model::of(&self.committer.published())
    }

    /// Ends it cleanly.
    fn end(self) -> Files {
        self.committer.run();
        self.disk.files()
    }
}

/// A directory with a checkpoint, segments that it holds in part, and segments after it.
fn written(cluster_id: Option<u64>) -> (Files, Model) {
    let mut life = Life::begin(Files::new(), cluster_id);
    (0..150).for_each(|n| life.put(n));
    life.checkpoint();
    (0..160).for_each(|n| life.put(n));
    let model = life.model();
    let files = life.end();
    let count = |suffix: &str| files.keys().filter(|path| path.to_str().unwrap().ends_with(suffix)).count();
    assert!(count(".db") == 1 && count(".log") >= 4, "{:?}", files.keys());
    (files, model)
}

fn logs(files: &Files) -> Vec<PathBuf> {
    files
        .keys()
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .cloned()
        .collect()
}

fn one(files: &Files, part: &str) -> PathBuf {
    files.keys().find(|path| path.to_str().unwrap().contains(part)).unwrap().clone()
}

/// Starts on these files; the same is asked of the check, which must say the same.
fn start(files: &Files) -> Result<Model, EngineError> {
    let outcome = opened(&SimDisk::with_files(0, files.clone()), None)
        .map(|opened| Model::of(&opened.shared.published.load()));
    let checked = verify_on(&Disk::Sim(SimDisk::with_files(0, files.clone())), Path::new(DIR));
    match (&outcome, checked) {
        (Ok(model), Ok(contents)) => assert_eq!(model.revision, contents.revision),
        (Err(error), Err(trouble)) => {
            if let Some(file) = named(error) {
                let text = trouble.join("\n");
                assert!(text.contains(file.to_str().unwrap()), "{text:?} does not name {}", file.display());
            }
        }
        (outcome, checked) => panic!("the start says {outcome:?}, the check {checked:?}"),
    }
    outcome
}

/// A start that must be refused, and name this file at this offset.
fn refused(files: &Files, file: &Path, offset: Option<u64>, what: &str) {
    match start(files) {
        Ok(_) => panic!("{what}: it was not noticed"),
        Err(error) => {
            assert_eq!(named(&error), Some(file), "{what}: {error:?}");
            if let (Some(offset), EngineError::Files(WalError::Corrupt { offset: found, .. })) =
                (offset, &error)
            {
                assert_eq!(*found, offset, "{what}: {error:?}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_harmless_or_named() {
    let seed: u64 =
        std::env::var("ENGINE_DAMAGE_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    eprintln!("ENGINE_DAMAGE_SEED={seed}");
    let mut dice = Dice::new(seed);
    let (files, expected) = written(None);
    assert_eq!(start(&files).unwrap(), expected);
    let mut refusals = 0;
    for n in 0..FLIPS {
        let nth = if n < files.len() { n } else { dice.below(files.len() as u64) as usize };
        let (path, bytes) = files.iter().nth(nth).unwrap();
        // Headers are small and matter most.
        let span = if dice.one_in(3) { bytes.len().min(80) } else { bytes.len() };
        let at = dice.below(span as u64) as usize;
        let mut damaged = files.clone();
        damaged.get_mut(path).unwrap()[at] ^= 1 << dice.below(8);
        let opened = start(&damaged);
        refusals += usize::from(opened.is_err());
        harmless_or_named(opened, &expected, &[path], &format!("byte {at} of {path:?}"));
    }
    assert!(refusals > FLIPS / 4, "only {refusals} were refused");
}

#[test]
fn a_file_that_lost_its_end_is_named() {
    let (files, _) = written(None);
    for (path, bytes) in &files {
        for len in [0, 1, 20, 70, 4095, 4096, 4200, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = files.clone();
            damaged.get_mut(path).unwrap().truncate(len);
            if len < bytes.len() {
                refused(&damaged, path, None, &format!("{path:?} cut to {len} bytes"));
            }
        }
    }
}

#[test]
fn a_missing_file_is_noticed() {
    let (files, _) = written(None);
    let logs = logs(&files);
    let without = |path: &Path| {
        let mut damaged = files.clone();
        damaged.remove(path).unwrap();
        damaged
    };
    let identity = one(&files, "identity.json");
    refused(&without(&identity), &identity, None, "no identity");
    refused(&without(&one(&files, "checkpoint-")), &logs[0], Some(0), "no checkpoint");
    // Of each missing segment the neighbour that misses it is named.
    refused(&without(&logs[0]), &logs[1], Some(0), "no first segment");
    for pair in logs.windows(2) {
        if pair[1] != logs[1] {
            let what = format!("without {:?}", pair[1]);
            refused(&without(&pair[1]), &pair[0], None, &what);
        }
    }
    let mut empty = files.clone();
    empty.retain(|path, _| !logs.contains(path));
    assert!(matches!(start(&empty), Err(EngineError::LogMissing { .. })));
}

#[test]
fn a_newer_format_is_named() {
    let (files, _) = written(None);
    for path in [one(&files, "checkpoint-"), logs(&files).pop().unwrap()] {
        let mut newer = files.clone();
        newer.get_mut(&path).unwrap()[8] = 9;
        assert!(
            matches!(start(&newer), Err(EngineError::Files(WalError::Newer { found: 9, path: named })) if named == path)
        );
    }
}

/// The same files as a program of format 1 would have written their headers.
fn as_format_1(files: &Files) -> Files {
    let bare = |bytes: &[u8], checked: usize| {
        let mut header = bytes[..checked].to_vec();
        header[8..12].copy_from_slice(&1u32.to_le_bytes());
        let crc = crc32fast::hash(&header);
        header.extend(crc.to_le_bytes());
        header
    };
    files
        .iter()
        .map(|(path, bytes)| {
            let old = match path.extension().and_then(|extension| extension.to_str()) {
                Some("log") => {
                    let mut header = bare(bytes, 36);
                    header.resize(4096, 0);
                    [&header, &bytes[4096..]].concat()
                }
                Some("db") => [&bare(bytes, 28), &bytes[40..]].concat(),
                _ => {
                    let mut identity: serde_json::Value = serde_json::from_slice(bytes).unwrap();
                    identity["format"] = 1.into();
                    identity.as_object_mut().unwrap().remove("checksum").unwrap();
                    serde_json::to_vec(&identity).unwrap()
                }
            };
            (path.clone(), old)
        })
        .collect()
}

#[test]
fn files_of_format_1_are_read_and_written_on() {
    let (files, expected) = written(None);
    let old = as_format_1(&files);
    assert_eq!(start(&old).unwrap(), expected);
    let mut life = Life::begin(old, None);
    (0..100).for_each(|n| life.put(n));
    life.checkpoint();
    let later = life.model();
    assert_eq!(start(&life.end()).unwrap(), later);
}

#[test]
fn files_of_two_engines_do_not_mix() {
    // Also not if both were told to have the same cluster id.
    for ids in [(None, None), (Some(7), Some(7))] {
        let (files, _) = written(ids.0);
        let (others, _) = written(ids.1);
        for (path, bytes) in &others {
            let is_identity = path.ends_with("identity.json");
            // Both were written alike, so that the names are the same.
            assert!(files.contains_key(path));
            if is_identity && ids.0.is_some() {
                continue;
            }
            let mut mixed = files.clone();
            mixed.insert(path.clone(), bytes.clone());
            let error = start(&mixed).expect_err(&format!("{path:?} is another engine's"));
            let named = named(&error).unwrap_or_else(|| panic!("{path:?}: {error:?}"));
            // Which of two files that disagree is the wrong one cannot be known.
            assert!(files.contains_key(named), "{path:?}: {named:?}");
        }
    }
}

#[test]
fn a_checkpoint_that_the_log_does_not_reach_is_refused() {
    let (files, _) = written(None);
    let mut life = Life::begin(files.clone(), None);
    (0..300).for_each(|n| life.put(n));
    life.checkpoint();
    let later = life.end();
    let mut mixed = files.clone();
    mixed.remove(&one(&files, "checkpoint-"));
    let checkpoint = one(&later, "checkpoint-");
    mixed.insert(checkpoint.clone(), later[&checkpoint].clone());
    refused(&mixed, logs(&files).last().unwrap(), None, "a checkpoint of later");
}

#[test]
fn what_is_half_done_when_the_power_fails_is_no_damage() {
    let (files, expected) = written(None);
    let mut half = files.clone();
    let checkpoint = files[&one(&files, "checkpoint-")].clone();
    half.insert(Path::new(DIR).join("checkpoint.tmp"), checkpoint[..checkpoint.len() / 2].to_vec());
    half.insert(Path::new(DIR).join("identity.tmp"), b"{".to_vec());
    half.insert(Path::new(DIR).join("spare-3.tmp"), vec![7; 5000]);
    assert_eq!(start(&half).unwrap(), expected);

    // A write after the last start, cut off at any byte.
    let mut life = Life::begin(files.clone(), None);
    let before = life.disk.files();
    life.put(1);
    let after = life.disk.files();
    let path = logs(&after).pop().unwrap();
    let (old, new) = (&before[&path], &after[&path]);
    let changed: Vec<usize> = (0..new.len()).filter(|at| old.get(*at) != Some(&new[*at])).collect();
    let (first, last) = (changed[0], changed[changed.len() - 1]);
    for at in first..last {
        let mut torn = after.clone();
        torn.get_mut(&path).unwrap()[at..=last].copy_from_slice(&old[at..=last]);
        assert_eq!(start(&torn).unwrap(), expected, "cut at {at}");
    }
}
