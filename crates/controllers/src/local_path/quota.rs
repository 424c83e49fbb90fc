//! Sizes of directories, enforced by the file system's project quotas (ext4 and xfs, mounted with `prjquota`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::libc;
use sha2::{Digest, Sha256};

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET_ATTRIBUTES: libc::c_ulong = 0x801c_581f;
const SET_ATTRIBUTES: libc::c_ulong = 0x401c_5820;
/// What is made below inherits the project.
const INHERIT: u32 = 0x200;
/// `QCMD(Q_SETQUOTA, PRJQUOTA)`.
const SET_QUOTA: libc::c_uint = 0x0080_0008 << 8 | 2;
/// Of the limits only those on blocks are set.
const BLOCK_LIMITS: u32 = 1;
/// Quotas count in blocks of this size.
const BLOCK_BYTES: u64 = 1024;
/// Projects below are people's own.
const PROJECTS_FIRST: u32 = 1 << 20;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_bytes: u32,
    extents: u32,
    project: u32,
    cow_extent_bytes: u32,
    padding: [u8; 8],
}

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Limits {
    blocks_hard: u64,
    blocks_soft: u64,
    bytes: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    blocks_grace: u64,
    inodes_grace: u64,
    valid: u32,
}

/// The project of a volume: any number will do that is the volume's alone.
pub fn project(volume: &str) -> u32 {
    let digest = Sha256::digest(volume);
    let number = digest.iter().take(4).fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    PROJECTS_FIRST + number % (i32::MAX as u32 - PROJECTS_FIRST)
}

/// Limits what a directory can hold. An error says why the file system does not.
pub fn limit(directory: &Path, project: u32, bytes: u64) -> io::Result<()> {
    let directory = File::open(directory)?;
    let blocks = bytes.div_ceil(BLOCK_BYTES);
    let limits =
        Limits { blocks_hard: blocks, blocks_soft: blocks, valid: BLOCK_LIMITS, ..Limits::default() };
    // SAFETY: the descriptor is open and `limits` has the kernel's layout; both outlive the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            directory.as_raw_fd(),
            SET_QUOTA,
            project,
            std::ptr::from_ref(&limits),
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut attributes = Attributes::default();
    // SAFETY: `attributes` has the kernel's layout and outlives the call.
    let got = unsafe { libc::ioctl(directory.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut attributes) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: as above.
    match unsafe { libc::ioctl(directory.as_raw_fd(), SET_ATTRIBUTES as _, &raw const attributes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Why sizes are not enforced, for people.
pub fn why_not(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOENT) => {
            "the file system has no project quotas (mount ext4 or xfs with prjquota)".into()
        }
        _ => error.to_string(),
    }
}

/// Bytes of the file system that a path is on.
pub fn capacity(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// A directory on a file system with project quotas: the temporary one, or one of its own that is unmounted
    /// with the value.
    struct Mounted(tempfile::TempDir, bool);

    impl Mounted {
        fn new() -> Option<Mounted> {
            let directory = tempfile::tempdir().unwrap();
            let (image, place) = (directory.path().join("image"), directory.path().join("place"));
            fs::create_dir(&place).unwrap();
            if limit(&place, project("try"), 1 << 20).is_ok() {
                return Some(Mounted(directory, false));
            }
            fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
            let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
            let made = run(Command::new("mkfs.ext4")
                .args(["-q", "-O", "quota,project", "-E", "quotatype=prjquota"])
                .arg(&image));
            let mounted =
                made && run(Command::new("mount").args(["-o", "loop,prjquota"]).arg(&image).arg(&place));
            mounted.then_some(Mounted(directory, true))
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            if self.1 {
                let _ = Command::new("umount").arg(self.0.path().join("place")).status();
            }
        }
    }

    #[test]
    fn projects_are_volumes_own() {
        assert_eq!(project("a"), project("a"));
        assert_ne!(project("a"), project("b"));
        assert!(project("a") >= PROJECTS_FIRST);
    }

    #[test]
    fn directories_hold_what_they_may() {
        // Needs root and a kernel with quotas: `cargo xtask vm` has one.
        let Some(mounted) = Mounted::new() else {
            eprintln!("no file system with project quotas can be made here");
            return;
        };
        let directory = mounted.0.path().join("place/volume");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        limit(&directory, project("volume"), 1 << 20).unwrap();
        // Root may go beyond; others may not.
        let write = |kib: u32| {
            let script = format!("dd if=/dev/zero of={}/file bs=1k count={kib}", directory.display());
            fs::set_permissions(mounted.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
            Command::new("sh").args(["-c", &script]).uid(65534).gid(65534).output().unwrap()
        };
        assert!(write(512).status.success());
        let over = write(2048);
        let said = String::from_utf8_lossy(&over.stderr);
        assert!(!over.status.success() && said.contains("quota exceeded"), "{said}");
        limit(&directory, project("volume"), 4 << 20).unwrap();
        assert!(write(2048).status.success());
    }

    #[test]
    fn elsewhere_people_are_told() {
        let directory = tempfile::tempdir().unwrap();
        if let Err(error) = limit(directory.path(), project("v"), 1 << 20) {
            assert!(why_not(&error).contains("project quotas"), "{error:?}");
        }
    }
}
