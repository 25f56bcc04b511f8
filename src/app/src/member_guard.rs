//! `member-guard`: looks at the volume of an etcd member before etcd starts on it.
//!
//! etcd is always started with `--initial-cluster-state=new`, so a member that finds no data makes a new cluster: with a
//! volume that came back empty it would come up ready, without a single key. And a data folder with a write-ahead log
//! ignores the cluster token, so the volume of a shard that left long ago would be taken for one of today.
//!
//! # What is let through
//!
//! A marker beside the data folder names the token of the cluster that the volume was first used by.
//!
//! | marker | data folder | state `new` | state `existing` |
//! | --- | --- | --- | --- |
//! | none | empty | marker written | refused: the data are gone |
//! | none | not empty | refused: of something unknown | the same |
//! | this token | no write-ahead log yet | passes: killed at its first start | refused: the data are gone |
//! | this token | write-ahead log | passes | passes |
//! | another token | anything | refused: of another cluster | the same |
//! | not readable | empty | marker written | refused: the data are gone |
//! | not readable | not empty | refused: of something unknown | the same |
//!
//! # Assumptions
//!
//! The state is `existing` only once every member has served: from then on no member may be without data.
//!
//! # Kills
//!
//! The marker is written beside, synced, renamed and the folder synced, all before etcd starts. Killed before the rename
//! the next start finds no marker and no data, and begins anew; after it, a marker without data.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sharded_etcd_core::records::Record;

use crate::{
    cli::{ClusterState, MemberGuardArgs},
    files::{self, FileError},
};

/// Name of the marker, in the folder that holds the data folder.
const MARKER: &str = "sharded-etcd-member.json";
/// Largest marker that is read.
const MARKER_BYTES_MAX: u64 = 64 << 10;

/// Which cluster a volume belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// etcd's `--initial-cluster-token`.
    token: String,
}

impl Record for Marker {
    const WHAT: &'static str = "the marker of an etcd member's volume";
}

/// Why etcd must not start on a volume.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The data folder has no folder around it.
    #[error("--data-dir {} needs a folder around it for the marker: give a folder on the volume", .0.display())]
    NoParent(PathBuf),
    /// The cluster is there, this member's data are not.
    #[error(
        "{} holds no data, but the cluster {token} exists: this member's volume is empty or was replaced; a member \
         started on it would make a new, empty cluster. Put the volume back, or restore the cluster from a backup",
        folder.display()
    )]
    Lost {
        /// The data folder.
        folder: PathBuf,
        /// The cluster's token.
        token: String,
    },
    /// The volume is another cluster's.
    #[error(
        "{} is of the cluster {found}, not {expected}: the volume was kept from an earlier one. Delete its volume claim if \
         its data are not needed any more",
        folder.display()
    )]
    OtherCluster {
        /// The data folder.
        folder: PathBuf,
        /// Token in the marker.
        found: String,
        /// Token of this cluster.
        expected: String,
    },
    /// There are data, and nothing says whose.
    #[error(
        "{} holds data, but {} {why}: it is not known which cluster they are of. Delete the volume claim if they are not \
         needed any more",
        folder.display(),
        marker.display()
    )]
    Unknown {
        /// The data folder.
        folder: PathBuf,
        /// The marker.
        marker: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Lets etcd start, or says why not: as the error, and in the container's termination log.
///
/// # Errors
/// See [`GuardError`].
pub fn run(args: &MemberGuardArgs) -> Result<(), GuardError> {
    let checked = check(&args.data_dir, &args.token, args.state);
    if let Err(error) = &checked {
        terminate(&args.termination_log, error);
    }
    checked
}

/// The termination log is there in a container only, made by the kubelet.
fn terminate(log: &Path, error: &GuardError) {
    let text = sharded_etcd_shard::with_causes(error);
    let written = OpenOptions::new().write(true).open(log).and_then(|mut log| writeln!(log, "{text}"));
    if let Err(error) = written {
        tracing::debug!(%error, log = %log.display(), "no termination log");
    }
}

/// What a data folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Nothing, or it is not there.
    Empty,
    /// Something, but nothing that etcd would go on from: it was killed at its first start.
    Begun,
    /// A write-ahead log.
    Log,
}

fn check(folder: &Path, token: &str, state: ClusterState) -> Result<(), GuardError> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.ok_or_else(|| GuardError::NoParent(folder.to_owned()))?;
    let path = parent.join(MARKER);
    let data = data(folder)?;
    let marker = marker(&path)?;
    let lost = || GuardError::Lost { folder: folder.to_owned(), token: token.to_owned() };
    let why = match marker {
        Some(Ok(marker)) if marker.token != token => {
            return Err(GuardError::OtherCluster {
                folder: folder.to_owned(),
                found: marker.token,
                expected: token.to_owned(),
            });
        }
        Some(Ok(_)) if data == Data::Log || state == ClusterState::New => return Ok(()),
        Some(Ok(_)) => return Err(lost()),
        Some(Err(why)) => why,
        None => "is not there".to_owned(),
    };
    match (data, state) {
        (Data::Empty, ClusterState::New) => {
            let marker = Marker { token: token.to_owned() };
            files::replace(&path, &marker.encode())?;
            Ok(())
        }
        (Data::Empty, ClusterState::Existing) => Err(lost()),
        _ => Err(GuardError::Unknown { folder: folder.to_owned(), marker: path, why }),
    }
}

/// The marker, or what is wrong with it.
fn marker(path: &Path) -> Result<Option<Result<Marker, String>>, FileError> {
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > MARKER_BYTES_MAX => {
            return Ok(Some(Err(format!("is larger than {MARKER_BYTES_MAX} bytes"))));
        }
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    match text {
        Ok(text) => Ok(Some(
            Marker::decode(&text).map_err(|error| format!("is not readable by this release ({error})")),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::of("read", path)(error)),
    }
}

fn data(folder: &Path) -> Result<Data, FileError> {
    if is_empty(folder)? {
        return Ok(Data::Empty);
    }
    // etcd goes on from any file of this kind, and starts anew without one (server/storage/wal: `Exist`).
    let log = folder.join("member").join("wal");
    let names = match fs::read_dir(&log) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Data::Begun),
        Err(error) => return Err(FileError::of("read", &log)(error)),
    };
    for name in names {
        let name = name.map_err(FileError::of("read", &log))?;
        if name.path().extension().is_some_and(|extension| extension == "wal") {
            return Ok(Data::Log);
        }
    }
    Ok(Data::Begun)
}

fn is_empty(folder: &Path) -> Result<bool, FileError> {
    match fs::read_dir(folder) {
        Ok(mut names) => match names.next() {
            None => Ok(true),
            Some(Ok(_)) => Ok(false),
            Some(Err(error)) => Err(FileError::of("read", folder)(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(FileError::of("read", folder)(error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ClusterState::{Existing, New};

    use super::*;

    struct Volume(tempfile::TempDir);

    impl Volume {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn data(&self) -> PathBuf {
            self.0.path().join("data")
        }

        fn marker(&self) -> PathBuf {
            self.0.path().join(MARKER)
        }

        fn check(&self, token: &str, state: ClusterState) -> Result<(), GuardError> {
            check(&self.data(), token, state)
        }

        /// As etcd leaves it after its first start.
        fn fill(&self) {
            let log = self.data().join("member/wal");
            fs::create_dir_all(&log).unwrap();
            fs::write(log.join("0000000000000000-0000000000000000.wal"), "x").unwrap();
        }
    }

    #[test]
    fn a_new_cluster_marks_an_empty_volume() {
        let volume = Volume::new();
        volume.check("t-0", New).unwrap();
        assert_eq!(fs::read_to_string(volume.marker()).unwrap(), r#"{"v":1,"token":"t-0"}"#);
        assert!(!volume.data().exists(), "etcd makes it, with the rights that it wants");
        assert_eq!(fs::read_dir(volume.0.path()).unwrap().count(), 1, "nothing is left beside");
        volume.check("t-0", New).unwrap();
        fs::create_dir_all(volume.data().join("member/snap")).unwrap();
        volume.check("t-0", New).expect("killed in the middle of its first start");
    }

    #[test]
    fn the_same_cluster_passes() {
        let volume = Volume::new();
        volume.check("t-0", New).unwrap();
        volume.fill();
        volume.check("t-0", New).unwrap();
        volume.check("t-0", Existing).unwrap();
    }

    #[test]
    fn a_member_that_lost_its_data_is_refused() {
        let volume = Volume::new();
        let lost = |volume: &Volume| {
            assert!(matches!(volume.check("t-0", Existing), Err(GuardError::Lost { .. })));
        };
        lost(&volume);
        assert!(!volume.marker().exists(), "nothing is put on it");
        fs::create_dir(volume.data()).unwrap();
        lost(&volume);
        volume.check("t-0", New).unwrap();
        lost(&volume);
        fs::create_dir_all(volume.data().join("member/wal.tmp")).unwrap();
        lost(&volume);
    }

    #[test]
    fn another_clusters_volume_is_refused() {
        for state in [New, Existing] {
            let volume = Volume::new();
            volume.check("t-0", New).unwrap();
            let refused = |volume: &Volume| {
                let error = volume.check("t-1", state).unwrap_err();
                assert!(matches!(error, GuardError::OtherCluster { .. }), "{error}");
                assert!(error.to_string().contains("of the cluster t-0, not t-1"), "{error}");
            };
            refused(&volume);
            volume.fill();
            refused(&volume);
        }
    }

    #[test]
    fn data_without_a_marker_are_refused() {
        for state in [New, Existing] {
            let volume = Volume::new();
            volume.fill();
            let error = volume.check("t-0", state).unwrap_err();
            assert!(matches!(error, GuardError::Unknown { .. }), "{error}");
            assert!(!volume.marker().exists());
        }
    }

    #[test]
    fn a_half_written_marker_counts_for_nothing() {
        for half in ["", r#"{"v":1,"tok"#] {
            let volume = Volume::new();
            fs::write(volume.marker(), half).unwrap();
            assert!(matches!(volume.check("t-0", Existing), Err(GuardError::Lost { .. })));
            volume.fill();
            let error = volume.check("t-0", New).unwrap_err();
            assert!(matches!(error, GuardError::Unknown { .. }), "{error}");
            fs::remove_dir_all(volume.data()).unwrap();
            volume.check("t-0", New).unwrap();
            volume.fill();
            volume.check("t-0", Existing).unwrap();
        }
        // What was being written when it was killed is beside, and is not looked at.
        let volume = Volume::new();
        fs::write(volume.marker().with_extension("json.tmp"), r#"{"v":1,"token":"t-9"#).unwrap();
        volume.check("t-0", New).unwrap();
        assert_eq!(fs::read_dir(volume.0.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_marker_of_a_newer_release_is_left_alone() {
        let volume = Volume::new();
        fs::write(volume.marker(), r#"{"v":9,"token":"t-0"}"#).unwrap();
        volume.fill();
        let error = volume.check("t-0", Existing).unwrap_err();
        assert!(error.to_string().contains("format version 9"), "{error}");
    }

    #[test]
    fn folders_that_cannot_be_read() {
        let volume = Volume::new();
        fs::write(volume.data(), "x").unwrap();
        let error = volume.check("t-0", New).unwrap_err();
        assert!(matches!(error, GuardError::File(_)), "{error}");
        assert!(error.to_string().starts_with("cannot read "), "{error}");
        assert!(!volume.marker().exists());

        let volume = Volume::new();
        fs::create_dir(volume.marker()).unwrap();
        assert!(matches!(volume.check("t-0", New), Err(GuardError::File(_))));
        assert!(matches!(check(Path::new("data"), "t-0", New), Err(GuardError::NoParent(_))));

        let gone = Volume::new();
        let folder = gone.0.path().join("not-mounted/data");
        let error = check(&folder, "t-0", New).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
    }

    #[test]
    fn a_refusal_is_in_the_termination_log() {
        let volume = Volume::new();
        let log = volume.0.path().join("termination-log");
        let args = |log: &Path| MemberGuardArgs {
            data_dir: volume.data(),
            token: "t-0".into(),
            state: Existing,
            termination_log: log.to_owned(),
        };
        run(&args(&log)).unwrap_err();
        assert!(!log.exists(), "only the kubelet makes it");
        fs::write(&log, "").unwrap();
        run(&args(&log)).unwrap_err();
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("holds no data, but the cluster t-0 exists"), "{text}");
    }
}
