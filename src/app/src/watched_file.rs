//! A file that is run while it is edited: every new text that is saved into it.
//!
//! Editors and config mounts replace a file by renaming another over it, so the *folder* is watched, and a look at the
//! file now and then covers what sends no events (network file systems, a folder that was itself replaced). Only a
//! text that differs from the last one counts, and only once it stays the same for a moment: a file is often empty
//! between its truncation and its writing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecursiveMode, Watcher};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Largest file that is read: what `sharded-etcd-crd` parses at most, and one byte to see that it is more.
const FILE_BYTES_MAX: u64 = (3 << 20) + 1;
/// How long a text must stay the same before it counts.
const QUIET: Duration = Duration::from_millis(50);
/// Looks at the file even without an event.
const LOOK: Duration = Duration::from_secs(1);

/// Something new about the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It has another text now.
    Text(String),
    /// It cannot be read any more; why.
    Unreadable(String),
}

/// A file and the text that was last seen in it.
#[derive(Debug, Clone)]
pub struct WatchedFile {
    path: PathBuf,
    last: Change,
}

impl WatchedFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> io::Result<(Self, String)> {
        let text = read(path)?;
        Ok((Self { path: path.to_owned(), last: Change::Text(text.clone()) }, text))
    }

    /// Looks at the file: what is new since the last look, if anything.
    pub fn look(&mut self) -> Option<Change> {
        let now = self.current();
        let is_new = now != self.last;
        if is_new {
            self.last = now.clone();
        }
        is_new.then_some(now)
    }

    /// What is in the file, without noting it.
    fn current(&self) -> Change {
        read(&self.path).map_or_else(|error| Change::Unreadable(error.to_string()), Change::Text)
    }

    fn is_changed(&self) -> bool {
        self.current() != self.last
    }
}

/// The text of a file of bounded size.
fn read(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

/// Watches a file until `shutdown`; each item is something new about it. At most one item waits to be taken: when
/// several texts were saved meanwhile, the reader gets the first and the newest.
pub fn watch(mut file: WatchedFile, shutdown: CancellationToken) -> mpsc::Receiver<Change> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let woken = std::sync::Arc::new(Notify::new());
        // Kept alive while this task runs. Without it the looks remain.
        let _watcher = watch_folder(&file.path, std::sync::Arc::clone(&woken));
        loop {
            let event = timeout_at(Instant::now() + LOOK, woken.notified());
            tokio::select! {
                _ = event => {}
                () = shutdown.cancelled() => return,
            }
            if !file.is_changed() {
                continue;
            }
            settle(&file).await;
            let Some(change) = file.look() else { continue };
            tokio::select! {
                sent = sender.send(change) => if sent.is_err() { return },
                () = shutdown.cancelled() => return,
            }
        }
    });
    receiver
}

/// Waits until the file stays the same for a moment, but not for ever.
async fn settle(file: &WatchedFile) {
    let mut before = file.current();
    for _ in 0..20 {
        sleep(QUIET).await;
        let now = file.current();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Opening and reading a file is an event too, also our own: it would wake the next look, for ever.
fn wakes(event: &notify::Result<notify::Event>) -> bool {
    !matches!(event, Ok(event) if event.kind.is_access())
}

fn watch_folder(path: &Path, woken: std::sync::Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let on_event = move |event: notify::Result<notify::Event>| {
        if wakes(&event) {
            woken.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::debug!(%error, folder = %folder.display(), "no change events; looking at the file every second");
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(text: &str) -> Change {
        Change::Text(text.to_owned())
    }

    #[test]
    fn reading_does_not_wake_a_look() {
        use notify::{Event, EventKind, event::*};
        let wakes = |kind| wakes(&Ok(Event::new(kind)));
        assert!(!wakes(EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(!wakes(EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(wakes(EventKind::Modify(ModifyKind::Data(DataChange::Any))));
        assert!(wakes(EventKind::Modify(ModifyKind::Name(RenameMode::To))));
        assert!(wakes(EventKind::Create(CreateKind::File)));
    }

    #[test]
    fn only_another_text_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.yaml");
        fs::write(&path, "a").unwrap();
        let (mut file, first) = WatchedFile::read(&path).unwrap();
        assert_eq!(first, "a");
        fs::write(&path, "a").unwrap();
        assert_eq!(file.look(), None, "saved again, nothing changed");
        fs::write(&path, "b").unwrap();
        assert_eq!(file.look(), Some(text("b")));
        assert_eq!(file.look(), None);
    }

    #[test]
    fn a_missing_file_is_told_once_and_its_return_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.yaml");
        assert!(WatchedFile::read(&path).is_err());
        fs::write(&path, "a").unwrap();
        let (mut file, _) = WatchedFile::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(file.look(), Some(Change::Unreadable(_))));
        assert_eq!(file.look(), None);
        fs::write(&path, "a").unwrap();
        assert_eq!(file.look(), Some(text("a")));
        fs::write(&path, b"\xff\xfe").unwrap();
        assert!(matches!(file.look(), Some(Change::Unreadable(why)) if why.contains("UTF-8")));
    }

    #[tokio::test]
    async fn a_rename_over_the_file_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.yaml");
        fs::write(&path, "a").unwrap();
        let (file, _) = WatchedFile::read(&path).unwrap();
        let mut changes = watch(file, CancellationToken::new());
        for round in ["b", "c"] {
            let other = folder.path().join(".f.yaml.swp");
            fs::write(&other, round).unwrap();
            fs::rename(&other, &path).unwrap();
            assert_eq!(changes.recv().await, Some(text(round)));
        }
        fs::write(&path, "d").unwrap();
        assert_eq!(changes.recv().await, Some(text("d")), "written in place");
    }

    /// A ConfigMap is a link through a link; an update swaps the inner one (Kubernetes: pkg/volume/util/atomic_writer.go).
    #[tokio::test]
    async fn a_config_map_that_is_updated_is_seen() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let update = |version: &str, text: &str| {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("routing.json"), text).unwrap();
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        update("..1", "a");
        symlink("..data/routing.json", at("routing.json")).unwrap();
        let (file, first) = WatchedFile::read(&at("routing.json")).unwrap();
        assert_eq!(first, "a");
        let mut changes = watch(file, CancellationToken::new());
        for (version, before, round) in [("..2", "..1", "b"), ("..3", "..2", "c")] {
            update(version, round);
            fs::remove_dir_all(at(before)).unwrap();
            assert_eq!(changes.recv().await, Some(text(round)));
        }
    }
}
