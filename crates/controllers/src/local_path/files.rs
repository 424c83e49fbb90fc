//! Directories of volumes: made, copied, removed. Everything blocks.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

/// Deepest tree that is copied: a deeper one is somebody's mistake or attack.
const DEPTH_MAX: usize = 256;

/// Makes the directory of a volume, with the files of `source` if there is one. A copy that was cut short is
/// begun anew: the directory appears under its name when it is whole.
pub fn make(directory: &Path, source: Option<&Path>) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
    }
    let mut unfinished = directory.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    remove(unfinished)?;
    match source {
        Some(source) => copy(source, unfinished, 0)?,
        None => {
            fs::create_dir(unfinished)?;
            // Whoever runs in the pod is to write here, as in an emptyDir.
            fs::set_permissions(unfinished, fs::Permissions::from_mode(0o777))?;
        }
    }
    fs::rename(unfinished, directory)
}

/// Removes a directory with all it holds, if it is there.
pub fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Copies a tree with owners, modes and times. Where the file system can, files share their blocks.
fn copy(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("{} is nested too deeply", from.display())));
    }
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, Some(metadata.uid()), Some(metadata.gid()));
    }
    if metadata.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), depth + 1)?;
        }
    } else if metadata.is_file() {
        fs::copy(from, to)?;
    } else {
        // Sockets, pipes and devices are their owners' for as long as they run.
        return Ok(());
    }
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    // After the owner: changing that clears bits of the mode.
    fs::set_permissions(to, metadata.permissions())?;
    fs::File::open(to)?.set_times(fs::FileTimes::new().set_modified(metadata.modified()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_copied_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join("volumes").join(name);
        make(&at("a"), None).unwrap();
        assert_eq!(fs::metadata(at("a")).unwrap().mode() & 0o777, 0o777);
        fs::create_dir(at("a/sub")).unwrap();
        fs::write(at("a/sub/file"), "text").unwrap();
        fs::set_permissions(at("a/sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("sub/file", at("a/link")).unwrap();
        make(&at("a"), None).unwrap();
        assert!(at("a/sub/file").exists(), "what is there stays");
        // What an earlier try left is not part of the copy.
        fs::create_dir(root.path().join("volumes/b.new")).unwrap();
        fs::write(root.path().join("volumes/b.new/rest"), "").unwrap();
        make(&at("b"), Some(&at("a"))).unwrap();
        assert_eq!(fs::read_to_string(at("b/link")).unwrap(), "text");
        assert_eq!(fs::metadata(at("b/sub/file")).unwrap().mode() & 0o777, 0o640);
        assert!(!at("b/rest").exists());
        remove(&at("a")).unwrap();
        remove(&at("a")).unwrap();
        assert!(!at("a").exists() && at("b/sub/file").exists());
    }
}
