//! Files that are replaced as a whole: a reader, or a start after a crash, sees the old text or the new one.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A file that could not be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}{}", path.display(), remedy(source))]
pub struct FileError {
    /// `read`, `write`, `create`, …
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: what was done to which file.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => ": the disk is full, free some space and start again",
        io::ErrorKind::QuotaExceeded => ": the disk quota is used up, free some space and start again",
        io::ErrorKind::ReadOnlyFilesystem => ": the file system is read-only, choose another folder",
        io::ErrorKind::PermissionDenied => ": give this user access to it, or choose another place",
        _ => "",
    }
}

/// Replaces the text of a file as a whole: written beside it, synced, renamed over it, and the folder synced.
///
/// # Errors
/// If any step fails; the old text is still there then.
pub fn replace(path: &Path, text: &[u8]) -> Result<(), FileError> {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".tmp");
    let beside = path.with_file_name(name);
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // Do not keep half a file on a disk that may be full.
        let _ = fs::remove_file(&beside);
        return Err(FileError::of("write", path)(error));
    }
    fs::rename(&beside, path).map_err(FileError::of("replace", path))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes created, renamed and removed names in a folder durable.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(FileError::of("sync", folder))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = replace(&folder.path().join("no/f.json"), b"x").unwrap_err();
        assert!(
            error.to_string().starts_with("cannot write ") && error.to_string().ends_with("no/f.json"),
            "{error}"
        );
    }
}
