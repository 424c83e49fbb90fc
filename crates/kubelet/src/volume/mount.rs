//! Mounts and ownership: the few system calls that volumes need.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Deepest directory tree that ownership is set in: deeper ones are somebody's mistake or attack.
const OWNERSHIP_DEPTH_MAX: usize = 256;

/// Whether a directory is the root of a mount.
pub fn is_mountpoint(path: &Path) -> bool {
    let parent = path.parent().unwrap_or(Path::new("/"));
    match (fs::symlink_metadata(path), fs::symlink_metadata(parent)) {
        (Ok(own), Ok(above)) => own.dev() != above.dev(),
        _ => false,
    }
}

/// Mounts a file system in memory, `size` bytes large at most (0: the kernel's default).
pub fn tmpfs(path: &Path, size: i64) -> io::Result<()> {
    if is_mountpoint(path) {
        return Ok(());
    }
    let options = if size > 0 { format!("size={size}") } else { String::new() };
    let options = Some(options.as_str()).filter(|options| !options.is_empty());
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)?;
    Ok(())
}

/// Mounts a file system of huge pages of `size` bytes.
pub fn huge_pages(path: &Path, size: i64) -> io::Result<()> {
    if is_mountpoint(path) {
        return Ok(());
    }
    let options = format!("pagesize={size}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("nodev"), path, Some("hugetlbfs"), flags, Some(options.as_str()))?;
    Ok(())
}

/// Unmounts everything below `root`, deepest first.
pub fn unmount_below(root: &Path) -> io::Result<()> {
    for path in mounts_below(root)?.into_iter().rev() {
        nix::mount::umount2(&path, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// Whether something is mounted exactly there, be it on a directory or a file.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(mounts_below(path)?.iter().any(|point| point == path))
}

/// Mount points below `root` in the order they were made.
fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|path| PathBuf::from(unescape(path)));
    Ok(points.filter(|path| path.starts_with(root)).collect())
}

/// The mount table writes blanks and the like in octal.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte as char);
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// Removes a pod's directory. Refuses while something is still mounted in it: what is mounted is not ours to
/// delete.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    unmount_below(root)?;
    if !mounts_below(root)?.is_empty() {
        return Err(io::Error::other(format!("{} still has mounts", root.display())));
    }
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a volume to a group: everything in it becomes the group's, readable and writable, and new files
/// inherit the group. With `on_root_mismatch` only if the root is not right already.
pub fn set_group(root: &Path, group: u32, on_root_mismatch: bool) -> io::Result<()> {
    let metadata = fs::symlink_metadata(root)?;
    let right = metadata.gid() == group && metadata.mode() & 0o2070 == 0o2070;
    if on_root_mismatch && right {
        return Ok(());
    }
    set_group_below(root, group, 0)
}

fn set_group_below(path: &Path, group: u32, depth: usize) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mut mode = metadata.mode() & 0o7777 | 0o660;
    if metadata.is_dir() {
        mode |= 0o2110;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if metadata.is_dir() && depth < OWNERSHIP_DEPTH_MAX {
        for entry in fs::read_dir(path)? {
            set_group_below(&entry?.path(), group, depth + 1)?;
        }
    }
    Ok(())
}

/// Checks a hostPath against its type, making it where the type says so.
pub fn host_path(path: &Path, kind: &str) -> Result<(), String> {
    let found = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(test);
    let shown = path.display();
    let check = |fine: bool, what: &str| {
        if fine { Ok(()) } else { Err(format!("hostPath type check failed: {shown} is not {what}")) }
    };
    let failed = |error: io::Error| error.to_string();
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            fs::create_dir_all(path).map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)
        }
        "DirectoryOrCreate" | "Directory" => check(is(fs::FileType::is_dir), "a directory"),
        "FileOrCreate" if found.is_none() => {
            fs::File::create(path).map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(failed)
        }
        "FileOrCreate" | "File" => check(is(fs::FileType::is_file), "a file"),
        "Socket" => check(is(FileTypeExt::is_socket), "a socket file"),
        "CharDevice" => check(is(FileTypeExt::is_char_device), "a character device"),
        "BlockDevice" => check(is(FileTypeExt::is_block_device), "a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

/// Makes a part of a volume available at `target` by a bind mount. Links in the volume, which its
/// containers can change at any time, cannot lead out of it. A path that does not exist becomes a directory.
pub fn bind_sub_path(volume: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    if is_mountpoint(target) || mounts_below(target)?.iter().any(|path| path == target) {
        return Ok(());
    }
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open =
        |path: &str| rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let mut walked = String::new();
    for part in sub_path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let parent = open(if walked.is_empty() { "." } else { &walked })?;
        if !walked.is_empty() {
            walked.push('/');
        }
        walked.push_str(part);
        if let Err(rustix::io::Errno::NOENT) = open(&walked) {
            rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o750))?;
        }
    }
    let source = open(if walked.is_empty() { "." } else { &walked })?;
    let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::metadata(&from)?.is_dir() {
        true => fs::create_dir_all(target)?,
        false => drop(fs::File::create(target)?),
    }
    nix::mount::mount(Some(&from), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_names() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
    }

    #[test]
    fn host_path_types() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("f"), "").unwrap();
        assert!(host_path(&at("new"), "DirectoryOrCreate").is_ok() && at("new").is_dir());
        assert!(host_path(&at("file"), "FileOrCreate").is_ok() && at("file").is_file());
        assert!(host_path(&at("f"), "Directory").unwrap_err().ends_with("f is not a directory"));
        assert!(host_path(&at("gone"), "File").unwrap_err().ends_with("gone is not a file"));
        assert!(host_path(&at("gone"), "").is_ok());
        assert!(host_path(&at("f"), "Socket").is_err());
    }
}
