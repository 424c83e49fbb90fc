//! Writing files into a tree: COPY, ADD and WORKDIR.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::tree::{Entry, Found, Tree, open_in};
use crate::error::{Error, Result, message};
use crate::pattern::Ignore;

/// Longest list of extended attributes of one file, as in the kernel.
const XATTR_LEN_MAX: usize = 64 << 10;

/// Where files go.
pub(super) struct Target {
    root: OwnedFd,
    /// Who gets what is made; otherwise root, or whoever had it.
    pub(super) owner: Option<(u32, u32)>,
    /// Mode of everything copied.
    pub(super) chmod: Option<u32>,
    /// Directories made here and their times, set at the end as filling them changes them.
    times: Vec<(PathBuf, Timestamps)>,
}

fn failed(what: &str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    Error::io(format!("{what} /{}", path.display()))
}

fn times_of(metadata: &fs::Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
    Timestamps { last_access: time, last_modification: time }
}

impl Target {
    pub(super) fn new(root: OwnedFd) -> Target {
        Target { root, owner: None, chmod: None, times: Vec::new() }
    }

    /// Opens a directory of the tree, making what is missing of it.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut built = PathBuf::new();
        let mut at = open_in(&self.root, "", flags).map_err(failed("open", path))?;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            built.push(name);
            let text = built.to_string_lossy();
            at = match open_in(&self.root, &text, flags) {
                Ok(fd) => fd,
                Err(rustix::io::Errno::NOENT) => {
                    rfs::mkdirat(&at, name, Mode::from_raw_mode(0o755)).map_err(failed("create", &built))?;
                    let fd = open_in(&self.root, &text, flags).map_err(failed("open", &built))?;
                    let (uid, gid) = self.owner.unwrap_or((0, 0));
                    chown(&fd, ".", uid, gid, &built)?;
                    fd
                }
                Err(rustix::io::Errno::NOTDIR) => {
                    return Err(message(format!("cannot copy to non-directory: /{}", built.display())));
                }
                Err(e) => return Err(failed("open", &built)(e)),
            };
        }
        Ok(at)
    }

    /// Whether the path is a directory, links followed.
    pub(super) fn is_directory(&self, path: &Path) -> bool {
        open_in(&self.root, &path.to_string_lossy(), OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// Copies what was found: a directory's content goes into `destination`, a file becomes it or goes into it.
    pub(super) fn copy(
        &mut self,
        tree: &Tree,
        found: &Found,
        exclude: &Ignore,
        destination: &Path,
        into_directory: bool,
    ) -> Result<()> {
        let is_dir = found.metadata.is_dir();
        let into = is_dir || into_directory || self.is_directory(destination);
        let base = match (is_dir, into) {
            (true, _) => destination.to_owned(),
            (false, true) => destination.join(Path::new(&found.path).file_name().unwrap_or_default()),
            (false, false) => destination.to_owned(),
        };
        tree.walk(found, exclude, &mut |entry| {
            let path =
                if entry.relative.as_os_str().is_empty() { base.clone() } else { base.join(&entry.relative) };
            self.put(entry, &path, tree.keep_owner)
        })
    }

    fn owner_of(&self, metadata: &fs::Metadata, keep: bool) -> (u32, u32) {
        match (self.owner, keep) {
            (Some(owner), _) => owner,
            (None, true) => (metadata.uid(), metadata.gid()),
            (None, false) => (0, 0),
        }
    }

    fn put(&mut self, entry: &Entry, path: &Path, keep_owner: bool) -> Result<()> {
        let metadata = &entry.metadata;
        let kind = metadata.file_type();
        let (uid, gid) = self.owner_of(metadata, keep_owner);
        let mode = Mode::from_raw_mode(self.chmod.unwrap_or(metadata.mode() & 0o7777));
        let Some(name) = path.file_name() else { return Ok(()) };
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        if kind.is_dir() {
            if self.is_directory(path) {
                return Ok(());
            }
            clear(&parent, Path::new(name), path)?;
            rfs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(failed("create", path))?;
            chown(&parent, name, uid, gid, path)?;
            rfs::chmodat(&parent, name, mode, AtFlags::empty()).map_err(failed("chmod", path))?;
            self.times.push((path.to_owned(), times_of(metadata)));
            return Ok(());
        }
        clear(&parent, Path::new(name), path)?;
        if kind.is_symlink() {
            let target = fs::read_link(&entry.full).map_err(Error::io("read link"))?;
            rfs::symlinkat(&target, &parent, name).map_err(failed("create", path))?;
        } else if kind.is_file() {
            let mut source =
                File::open(&entry.full).map_err(Error::io(format!("open {}", entry.relative.display())))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rfs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))
                .map_err(failed("create", path))?;
            std::io::copy(&mut source, &mut File::from(fd))
                .map_err(Error::io(format!("write /{}", path.display())))?;
        } else if kind.is_socket() {
            return Ok(());
        } else {
            let kind = match () {
                () if kind.is_fifo() => FileType::Fifo,
                () if kind.is_block_device() => FileType::BlockDevice,
                () => FileType::CharacterDevice,
            };
            let mode = Mode::from_raw_mode(0o600);
            rfs::mknodat(&parent, name, kind, mode, metadata.rdev()).map_err(failed("create", path))?;
        }
        chown(&parent, name, uid, gid, path)?;
        if !kind.is_symlink() {
            rfs::chmodat(&parent, name, mode, AtFlags::empty()).map_err(failed("chmod", path))?;
            if keep_owner {
                copy_xattrs(&entry.full, &parent, Path::new(name), path)?;
            }
        }
        let times = times_of(metadata);
        rfs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set time of", path))
    }

    /// Writes a small file of a text.
    pub(super) fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        let name = path.file_name().ok_or_else(|| message("a file needs a name"))?;
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        clear(&parent, Path::new(name), path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rfs::openat(&parent, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("create", path))?;
        std::io::Write::write_all(&mut File::from(fd), content)
            .map_err(Error::io(format!("write /{}", path.display())))?;
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        chown(&parent, name, uid, gid, path)?;
        let mode = Mode::from_raw_mode(self.chmod.unwrap_or(mode));
        rfs::chmodat(&parent, name, mode, AtFlags::empty()).map_err(failed("chmod", path))
    }

    /// Sets the times of directories that were made.
    pub(super) fn finish(&mut self) -> Result<()> {
        for (path, times) in std::mem::take(&mut self.times).iter().rev() {
            let dir = self.directory(path)?;
            rfs::utimensat(&dir, ".", times, AtFlags::empty()).map_err(failed("set time of", path))?;
        }
        Ok(())
    }
}

fn chown<P: rustix::path::Arg>(dir: &OwnedFd, name: P, uid: u32, gid: u32, path: &Path) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rfs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("chown", path))
}

/// Removes what stands in the way; a file does not replace a directory.
fn clear(parent: &OwnedFd, name: &Path, path: &Path) -> Result<()> {
    match rfs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            Err(message(format!("cannot copy a file over the directory /{}", path.display())))
        }
        Err(e) => Err(failed("replace", path)(e)),
    }
}

/// Capabilities of programs and users' own attributes go along.
fn copy_xattrs(source: &Path, parent: &OwnedFd, name: &Path, path: &Path) -> Result<()> {
    let mut list = vec![0u8; XATTR_LEN_MAX];
    let Ok(len) = rfs::llistxattr(source, list.as_mut_slice()) else { return Ok(()) };
    for key in list.get(..len).unwrap_or_default().split(|b| *b == 0).filter(|k| !k.is_empty()) {
        let Ok(key) = std::str::from_utf8(key) else { continue };
        if key != "security.capability" && !key.starts_with("user.") {
            continue;
        }
        let mut value = vec![0u8; XATTR_LEN_MAX];
        let len =
            rfs::lgetxattr(source, key, value.as_mut_slice()).map_err(failed("read attribute of", path))?;
        value.truncate(len);
        let full = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        rfs::lsetxattr(full, key, &value, XattrFlags::empty()).map_err(failed("set attribute of", path))?;
    }
    Ok(())
}

/// Sets times after `epoch` back to it, for builds that are to give the same bytes again.
pub(super) fn clamp_times(dir: &Path, epoch: i64) -> Result<()> {
    let context = || format!("set times in {}", dir.display());
    for entry in fs::read_dir(dir).map_err(Error::io(context()))? {
        let path = entry.map_err(Error::io(context()))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(Error::io(context()))?;
        if metadata.is_dir() {
            clamp_times(&path, epoch)?;
        }
        if metadata.mtime() > epoch || metadata.is_dir() && metadata.mtime() >= epoch {
            let time = Timespec { tv_sec: epoch, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rfs::utimensat(rfs::CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(Error::io(context()))?;
        }
    }
    Ok(())
}
