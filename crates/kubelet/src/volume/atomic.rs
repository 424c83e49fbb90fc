//! Files that change all at once: a timestamped directory behind the symbolic link `..data`.
//!
//! A container sees either every old file or every new one, as ConfigMap and Secret volumes promise.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

/// Name of the link to the current directory.
const DATA: &str = "..data";
/// Name it is made under before it replaces the old one.
const DATA_NEW: &str = "..data_tmp";

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// Whether a relative path stays inside.
pub fn is_safe(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
        && !path.starts_with("..")
}

/// Makes `directory` hold exactly `payload`. Does nothing, and returns false, if it already does. Files get
/// group `group` when one is given.
pub fn write(directory: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|path| !is_safe(path)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {bad:?} in volume")));
    }
    fs::create_dir_all(directory)?;
    let current = fs::read_link(directory.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&directory.join(current), payload)
    {
        return Ok(false);
    }
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let fresh = (0u32..)
        .map(|n| format!("{stamp}.{:09}", (now.subsec_nanosecond() as u32).wrapping_add(n)))
        .find(|name| !directory.join(name).exists())
        .unwrap_or(stamp);
    let fresh_path = directory.join(&fresh);
    fs::create_dir(&fresh_path)?;
    fs::set_permissions(&fresh_path, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&fresh_path.join(path), file, group)?;
    }
    let link = directory.join(DATA_NEW);
    let _ = fs::remove_file(&link);
    symlink(&fresh, &link)?;
    fs::rename(&link, directory.join(DATA))?;
    update_visible(directory, payload)?;
    if let Some(old) = current {
        fs::remove_dir_all(directory.join(old))?;
    }
    Ok(true)
}

fn write_file(path: &Path, file: &File, group: Option<u32>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, &file.content)?;
    let mut mode = file.mode;
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))?;
        // Whoever is in the group may read what the owner may.
        mode |= (mode & 0o400) >> 3;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Whether a directory holds exactly these files.
fn holds(directory: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if list(directory, Path::new(""), &mut found).is_err() {
        return false;
    }
    found.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            found.contains(Path::new(path))
                && fs::read(directory.join(path)).is_ok_and(|old| old == file.content)
        })
}

fn list(directory: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => list(directory, &path, found)?,
            false => {
                found.insert(path);
            }
        }
    }
    Ok(())
}

/// Links the first component of every path into the current directory, and removes links of what is gone.
fn update_visible(directory: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) {
            fs::remove_file(directory.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| (path.to_string(), File { content: text.as_bytes().to_vec(), mode: 0o644 }))
            .collect()
    }

    #[test]
    fn replaces_everything_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert!(write(&volume, &payload(&[("a", "1"), ("d/b", "2")]), None, at(0)).unwrap());
        assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");
        assert!(!write(&volume, &payload(&[("a", "1"), ("d/b", "2")]), None, at(1)).unwrap());
        let before = fs::read_link(volume.join(DATA)).unwrap();
        assert!(write(&volume, &payload(&[("a", "3")]), None, at(1)).unwrap());
        assert_ne!(before, fs::read_link(volume.join(DATA)).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join("d").exists() && !volume.join(before).exists());
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
    }

    #[test]
    fn paths_stay_inside() {
        for (path, safe) in [
            ("a", true),
            ("a/b", true),
            ("../a", false),
            ("/a", false),
            ("a/../b", false),
            ("", false),
            ("..x", false),
        ] {
            assert_eq!(is_safe(path), safe, "{path}");
        }
        let directory = tempfile::tempdir().unwrap();
        assert!(write(directory.path(), &payload(&[("../x", "1")]), None, Timestamp::UNIX_EPOCH).is_err());
    }
}
