//! File trees: layers stacked by overlayfs without a mount point, and paths that cannot lead out of them.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount as rm;

use crate::error::{Error, Result, message};
use crate::pattern::{Ignore, clean, fits_path, is_pattern};

/// Most files that one COPY brings; more would be no build context any more.
const FILES_MAX: usize = 5_000_000;
/// Deepest directories followed.
const DEPTH_MAX: usize = 255;

/// Where files come from.
pub(super) struct Tree {
    root: OwnedFd,
    ignore: Ignore,
    /// Whether files keep their owner; those of a build context belong to nobody here.
    pub(super) keep_owner: bool,
}

/// One file or directory of a tree.
#[derive(Debug)]
pub(super) struct Entry {
    /// Path below what was asked for; empty for that itself.
    pub(super) relative: PathBuf,
    /// A path by which it can be opened while the tree lives.
    pub(super) full: PathBuf,
    pub(super) metadata: Metadata,
}

/// Something that a source names, opened.
pub(super) struct Found {
    /// Path within the tree.
    pub(super) path: String,
    fd: OwnedFd,
    pub(super) metadata: Metadata,
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Stacks layers, lowest first; with `upper` (and a directory for its work) the tree can be written.
pub(super) fn overlay(layers: &[PathBuf], upper: Option<(&Path, &Path)>) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| Error::io("mount overlay")(e);
    if let (None, [only]) = (upper, layers) {
        return open_dir(only);
    }
    let stack = |by_parts: bool| -> rustix::io::Result<OwnedFd> {
        let context = rm::fsopen("overlay", rm::FsOpenFlags::FSOPEN_CLOEXEC)?;
        let fd = context.as_fd();
        if by_parts {
            for layer in layers.iter().rev() {
                rm::fsconfig_set_string(fd, "lowerdir+", layer)?;
            }
        } else {
            // Kernels before 6.5.
            let list: Vec<String> = layers.iter().rev().map(|l| l.display().to_string()).collect();
            rm::fsconfig_set_string(fd, "lowerdir", list.join(":"))?;
        }
        if let Some((upper, work)) = upper {
            rm::fsconfig_set_string(fd, "upperdir", upper)?;
            rm::fsconfig_set_string(fd, "workdir", work)?;
            rm::fsconfig_set_flag(fd, "volatile")?;
        }
        rm::fsconfig_create(fd)?;
        rm::fsmount(fd, rm::FsMountFlags::FSMOUNT_CLOEXEC, rm::MountAttrFlags::empty())
    };
    match stack(true) {
        Err(rustix::io::Errno::INVAL) => stack(false).map_err(failed),
        result => result.map_err(failed),
    }
}

/// Opens a directory to resolve paths in.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(Error::io(format!("open {}", path.display())))
}

/// Opens a path within a root; links are followed, but never out of it.
pub(super) fn open_in(root: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { "." } else { path };
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

impl Tree {
    pub(super) fn new(root: OwnedFd, ignore: Ignore, keep_owner: bool) -> Tree {
        Tree { root, ignore, keep_owner }
    }

    fn open(&self, path: &str) -> Result<Option<Found>> {
        match open_in(&self.root, path, OFlags::PATH) {
            Ok(fd) => {
                let metadata = fs::metadata(proc_path(&fd)).map_err(Error::io(format!("stat {path}")))?;
                Ok(Some(Found { path: path.to_owned(), fd, metadata }))
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(e) => Err(Error::io(format!("open {path}"))(e)),
        }
    }

    /// A path by which what was found can be opened.
    pub(super) fn path_of(&self, found: &Found) -> PathBuf {
        proc_path(&found.fd)
    }

    /// What a path or pattern names.
    pub(super) fn find(&self, pattern: &str) -> Result<Vec<Found>> {
        let cleaned = clean(pattern);
        let missing = || message(format!("{:?}: not found", format!("/{cleaned}")));
        let hidden = |path: &str| !path.is_empty() && self.ignore.hides(path);
        if !is_pattern(&cleaned) {
            // A hidden directory may hold files that are not.
            let found = self
                .open(&cleaned)?
                .filter(|f| !hidden(&cleaned) || (f.metadata.is_dir() && self.ignore.may_show_below()));
            return found.map(|f| vec![f]).ok_or_else(missing);
        }
        let fixed: Vec<&str> = cleaned.split('/').take_while(|part| !is_pattern(part)).collect();
        let base = fixed.join("/");
        let mut names = Vec::new();
        let deep = cleaned.contains("**");
        let levels = cleaned.split('/').count() - fixed.len();
        if let Some(found) = self.open(&base)? {
            self.names(&proc_path(&found.fd), &base, if deep { DEPTH_MAX } else { levels }, &mut names)?;
        }
        names.retain(|name| fits_path(&cleaned, name) && !hidden(name));
        names.sort();
        let found =
            names.iter().filter_map(|name| self.open(name).transpose()).collect::<Result<Vec<_>>>()?;
        if found.is_empty() { Err(missing()) } else { Ok(found) }
    }

    fn names(&self, full: &Path, path: &str, levels: usize, out: &mut Vec<String>) -> Result<()> {
        if levels == 0 || !full.is_dir() {
            return Ok(());
        }
        for name in list(full)? {
            let Some(text) = name.to_str() else { continue };
            let below = if path.is_empty() { text.to_owned() } else { format!("{path}/{text}") };
            let full = full.join(&name);
            let is_dir = fs::symlink_metadata(&full).is_ok_and(|m| m.is_dir());
            out.push(below.clone());
            if out.len() > FILES_MAX {
                return Err(message(format!("more than {FILES_MAX} files")));
            }
            if is_dir {
                self.names(&full, &below, levels - 1, out)?;
            }
        }
        Ok(())
    }

    /// Everything at and below what was found, directories before what is in them.
    pub(super) fn walk(
        &self,
        found: &Found,
        exclude: &Ignore,
        visit: &mut dyn FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        let full = proc_path(&found.fd);
        let top = Entry { relative: PathBuf::new(), full, metadata: found.metadata.clone() };
        let mut count = 0;
        self.walk_below(&found.path, top, exclude, 0, &mut count, visit)
    }

    fn walk_below(
        &self,
        path: &str,
        entry: Entry,
        exclude: &Ignore,
        depth: usize,
        count: &mut usize,
        visit: &mut dyn FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        *count += 1;
        if *count > FILES_MAX || depth > DEPTH_MAX {
            return Err(message(format!("/{path}: more than {FILES_MAX} files or {DEPTH_MAX} levels")));
        }
        visit(&entry)?;
        if !entry.metadata.is_dir() {
            return Ok(());
        }
        for name in list(&entry.full)? {
            let text = name.to_string_lossy();
            let below = if path.is_empty() { text.into_owned() } else { format!("{path}/{text}") };
            let relative = entry.relative.join(&name);
            let full = entry.full.join(&name);
            let metadata = fs::symlink_metadata(&full).map_err(Error::io(format!("stat {below}")))?;
            let inner = relative.to_string_lossy();
            let gone =
                |list: &Ignore, path: &str| list.hides(path) && !(metadata.is_dir() && list.may_show_below());
            if gone(&self.ignore, &below) || (!exclude.is_empty() && gone(exclude, &inner)) {
                continue;
            }
            // A whiteout that shows because the tree is one layer alone.
            if metadata.rdev() == 0 && std::os::unix::fs::FileTypeExt::is_char_device(&metadata.file_type()) {
                continue;
            }
            let entry = Entry { relative, full, metadata };
            self.walk_below(&below, entry, exclude, depth + 1, count, visit)?;
        }
        Ok(())
    }
}

/// Names in a directory, sorted.
fn list(dir: &Path) -> Result<Vec<OsString>> {
    let failed = || Error::io::<std::io::Error>(format!("list {}", dir.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        names.push(entry.map_err(failed())?.file_name());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tree: &Tree, pattern: &str, exclude: &str) -> Result<Vec<String>> {
        let exclude = Ignore::parse(exclude);
        let mut out = Vec::new();
        for found in tree.find(pattern)? {
            tree.walk(&found, &exclude, &mut |entry| {
                out.push(format!("{}:{}", found.path, entry.relative.display()));
                Ok(())
            })?;
        }
        Ok(out)
    }

    #[test]
    fn finds_what_shows_and_never_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join("root").join(path);
        for path in ["a/b", "c"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for path in ["a/x.txt", "a/b/y.txt", "c/z.log", "top.txt"] {
            fs::write(at(path), path).unwrap();
        }
        fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../../secret", at("a/out")).unwrap();
        std::os::unix::fs::symlink("/top.txt", at("in")).unwrap();
        let tree = Tree::new(open_dir(&at("")).unwrap(), Ignore::parse("*.log\nc/*\n!c/keep"), false);
        assert_eq!(names(&tree, "a", "").unwrap(), ["a:", "a:b", "a:b/y.txt", "a:out", "a:x.txt"]);
        assert_eq!(names(&tree, "a", "**/y*").unwrap(), ["a:", "a:b", "a:out", "a:x.txt"]);
        assert_eq!(names(&tree, "*.txt", "").unwrap(), ["top.txt:"]);
        assert_eq!(names(&tree, "**/*.txt", "").unwrap(), ["a/b/y.txt:", "a/x.txt:", "top.txt:"]);
        assert_eq!(names(&tree, "c", "").unwrap(), ["c:"]);
        assert_eq!(names(&tree, "../../top.txt", "").unwrap(), ["top.txt:"]);
        assert_eq!(tree.find("in").unwrap()[0].metadata.len(), 7);
        for missing in ["none", "a/out", "c/z.log", "*.none"] {
            let error = names(&tree, missing, "").unwrap_err().to_string();
            assert_eq!(error, format!("\"/{missing}\": not found"));
        }
    }
}
