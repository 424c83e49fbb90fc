//! Directories of volumes: made, copied, removed. Everything blocks.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

/// Deepest tree that is copied: a deeper one is somebody's mistake or attack.
const DEPTH_MAX: usize = 256;
/// Disks are copied in pieces of this size; those of zeros only stay holes.
const CHUNK_BYTES: usize = 1 << 16;

/// What a volume is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A directory.
    Directory,
    /// A file of so many bytes, which pods get as a device.
    Disk(u64),
}

/// Makes the directory or file of a volume, with what is in `source` if there is one. A copy that was cut short is
/// begun anew: the volume appears under its name when it is whole. `prepare` sees an empty directory first.
pub fn make(
    path: &Path,
    form: Form,
    source: Option<&Path>,
    prepare: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    remove(unfinished)?;
    match form {
        Form::Directory => {
            fs::create_dir(unfinished)?;
            // Whoever runs in the pod is to write here, as in an emptyDir.
            fs::set_permissions(unfinished, fs::Permissions::from_mode(0o777))?;
            prepare(unfinished)?;
            if let Some(source) = source {
                copy_content(source, unfinished, 0)?;
            }
        }
        Form::Disk(bytes) => {
            match source {
                Some(source) => copy_disk(source, unfinished)?,
                None => drop(fs::File::create_new(unfinished)?),
            }
            grow(unfinished, bytes)?;
        }
    }
    fs::rename(unfinished, path)
}

/// Makes a copy of a volume as it is now.
pub fn take(source: &Path, copy: &Path) -> io::Result<()> {
    let form = if source.is_dir() { Form::Directory } else { Form::Disk(0) };
    make(copy, form, Some(source), |_| Ok(()))
}

/// Makes a disk's file at least this long.
pub fn grow(path: &Path, bytes: u64) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() < bytes { file.set_len(bytes) } else { Ok(()) }
}

/// Removes a directory with all it holds, or a file, if it is there.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Copies a disk: shares its blocks where the file system can, leaves out its holes where not.
fn copy_disk(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = fs::File::open(from)?;
    let mut copy = fs::File::create_new(to)?;
    if rustix::fs::ioctl_ficlone(&copy, &source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    let mut chunk = vec![0u8; CHUNK_BYTES];
    let mut at = 0;
    while at < length {
        let read = source.read(&mut chunk)?;
        let Some(part) = chunk.get(..read).filter(|part| !part.is_empty()) else { break };
        if part.iter().any(|byte| *byte != 0) {
            copy.seek(SeekFrom::Start(at))?;
            copy.write_all(part)?;
        }
        at += read as u64;
    }
    copy.set_len(length)
}

/// Copies what is in a directory into one that is there, and what the directory itself is like.
fn copy_content(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()), depth + 1)?;
    }
    finish(&fs::symlink_metadata(from)?, to)
}

/// Owner, mode and time as they were.
fn finish(metadata: &fs::Metadata, to: &Path) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    // After the owner: changing that clears bits of the mode.
    fs::set_permissions(to, metadata.permissions())?;
    fs::File::open(to)?.set_times(fs::FileTimes::new().set_modified(metadata.modified()?))
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
        return copy_content(from, to, depth);
    } else if metadata.is_file() {
        fs::copy(from, to)?;
    } else {
        // Sockets, pipes and devices are their owners' for as long as they run.
        return Ok(());
    }
    finish(&metadata, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_copied_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join("volumes").join(name);
        make(&at("a"), Form::Directory, None, |_| Ok(())).unwrap();
        assert_eq!(fs::metadata(at("a")).unwrap().mode() & 0o777, 0o777);
        fs::create_dir(at("a/sub")).unwrap();
        fs::write(at("a/sub/file"), "text").unwrap();
        fs::set_permissions(at("a/sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("sub/file", at("a/link")).unwrap();
        make(&at("a"), Form::Directory, None, |_| Ok(())).unwrap();
        assert!(at("a/sub/file").exists(), "what is there stays");
        // What an earlier try left is not part of the copy.
        fs::create_dir(root.path().join("volumes/b.new")).unwrap();
        fs::write(root.path().join("volumes/b.new/rest"), "").unwrap();
        take(&at("a"), &at("b")).unwrap();
        assert_eq!(fs::read_to_string(at("b/link")).unwrap(), "text");
        assert_eq!(fs::metadata(at("b/sub/file")).unwrap().mode() & 0o777, 0o640);
        assert!(!at("b/rest").exists());
        remove(&at("a")).unwrap();
        remove(&at("a")).unwrap();
        assert!(!at("a").exists() && at("b/sub/file").exists());
    }

    #[test]
    fn disks_keep_their_holes() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        make(&at("a"), Form::Disk(64 << 20), None, |_| Ok(())).unwrap();
        let mut file = fs::OpenOptions::new().write(true).open(at("a")).unwrap();
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(b"data").unwrap();
        make(&at("b"), Form::Disk(128 << 20), Some(&at("a")), |_| Ok(())).unwrap();
        let metadata = fs::metadata(at("b")).unwrap();
        assert_eq!(metadata.len(), 128 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        assert_eq!(&fs::read(at("b")).unwrap()[1 << 20..(1 << 20) + 4], b"data");
        remove(&at("b")).unwrap();
        assert!(!at("b").exists());
    }
}
