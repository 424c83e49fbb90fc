//! Taking mount points out of a step's changes: files and directories that were only made to be mounted on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where every container has something mounted.
const ALWAYS: [&str; 6] = ["etc/hosts", "etc/hostname", "etc/resolv.conf", "dev", "proc", "sys"];

/// Whether any of the layers has this path (none of these is below a link in a sane image).
fn below<'a>(lower: &'a [PathBuf], path: &Path) -> Option<(&'a Path, fs::Metadata)> {
    lower.iter().rev().find_map(|l| Some((l.as_path(), fs::symlink_metadata(l.join(path)).ok()?)))
}

/// Removes stubs from `upper`, and directories that were touched for them alone.
pub(super) fn remove(upper: &Path, lower: &[PathBuf], targets: &[PathBuf]) -> Result<()> {
    let targets = targets.iter().map(|t| t.strip_prefix("/").unwrap_or(t));
    let mut all: Vec<&Path> = ALWAYS.iter().map(Path::new).chain(targets).collect();
    // Deepest first, so that a directory of stubs is empty when its turn comes.
    all.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for path in all {
        let full = upper.join(path);
        let Ok(metadata) = fs::symlink_metadata(&full) else { continue };
        if below(lower, path).is_some() {
            continue;
        }
        let gone = match metadata.is_dir() {
            true => fs::remove_dir(&full).is_ok(),
            false if metadata.is_file() && metadata.len() == 0 => {
                fs::remove_file(&full).map_err(Error::io(format!("remove {}", full.display())))?;
                true
            }
            false => false,
        };
        if gone {
            untouch(upper, lower, path.parent())?;
        }
    }
    Ok(())
}

/// Removes directories that hold nothing any more: made for a stub, or copied up for one and otherwise the same.
fn untouch(upper: &Path, lower: &[PathBuf], mut path: Option<&Path>) -> Result<()> {
    while let Some(dir) = path.filter(|p| !p.as_os_str().is_empty()) {
        let full = upper.join(dir);
        let metadata = fs::symlink_metadata(&full).map_err(Error::io(format!("stat {}", full.display())))?;
        let empty = fs::read_dir(&full).is_ok_and(|mut list| list.next().is_none());
        let mut value = [0u8; 1];
        let opaque = rustix::fs::lgetxattr(&full, "trusted.overlay.opaque", &mut value).is_ok();
        let same = |old: &fs::Metadata| {
            (old.mode(), old.uid(), old.gid()) == (metadata.mode(), metadata.uid(), metadata.gid())
        };
        let needless = below(lower, dir).is_none_or(|(_, old)| same(&old));
        if !empty || opaque || !needless {
            return Ok(());
        }
        fs::remove_dir(&full).map_err(Error::io(format!("remove {}", full.display())))?;
        path = dir.parent();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stubs_go() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
        for path in
            ["upper/etc", "upper/proc", "upper/run/secrets", "upper/cache/x", "upper/opt", "lower/etc"]
        {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for path in ["upper/etc/hosts", "upper/etc/resolv.conf", "upper/run/secrets/s", "upper/opt/empty"] {
            fs::write(dir.path().join(path), "").unwrap();
        }
        fs::write(upper.join("etc/hostname"), "mine").unwrap();
        let targets = ["/run/secrets/s", "/cache/x"].map(PathBuf::from);
        remove(&upper, std::slice::from_ref(&lower), &targets).unwrap();
        let mut left: Vec<_> = fs::read_dir(&upper).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        // A file of that name with content, and an empty file elsewhere, are the step's own.
        assert_eq!(left, ["etc", "opt"]);
        assert!(upper.join("etc/hostname").exists() && !upper.join("etc/hosts").exists());
        fs::remove_file(upper.join("etc/hostname")).unwrap();
        fs::write(upper.join("etc/hosts"), "").unwrap();
        remove(&upper, &[lower], &[]).unwrap();
        assert!(!upper.join("etc").exists());
    }
}
