//! The pieces that stand in a container's root.
//!
//! All of this runs after the root has changed, so that no path can lead outside any more.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cri::MountPropagation;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{self as rm, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::spec::{ContainerSpec, DeviceSpec, ImageMountSpec, MountSpec};
use crate::sys;
use crate::userns::{self, UserNamespace};
use crate::wire::Failure;

/// What is missing on the way to a mount point is made with this mode.
const MADE_MODE: u32 = 0o755;

fn failed(context: impl std::fmt::Display) -> impl FnOnce(rustix::io::Errno) -> Failure {
    move |e| Failure::during(context)(e.into())
}

/// A mount of the node, opened before the root changes and attached after.
pub(super) struct PreparedMount {
    tree: OwnedFd,
    target: PathBuf,
    is_dir: bool,
}

fn clone_tree(source: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rm::open_tree(CWD, source, flags).map_err(failed(format!("bind mount {}", source.display())))
}

fn is_dir(tree: &OwnedFd) -> Result<bool, Failure> {
    let stat = rustix::fs::fstat(tree).map_err(failed("stat mount"))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

impl PreparedMount {
    /// A volume or file of the node.
    pub(super) fn of_host(
        spec: &MountSpec,
        user: Option<UserNamespace<'_>>,
    ) -> Result<PreparedMount, Failure> {
        let tree = clone_tree(&spec.source, true)?;
        if let Some(user) = user {
            user.shift(tree.as_fd(), &spec.source)?;
        }
        let propagation = match spec.propagation {
            MountPropagation::Private => libc::MS_PRIVATE,
            MountPropagation::HostToContainer => libc::MS_SLAVE,
            MountPropagation::Bidirectional => libc::MS_SHARED,
        };
        let context = || format!("set up mount {}", spec.source.display());
        sys::mount_setattr(tree.as_fd(), 0, 0, propagation, true).map_err(Failure::during(context()))?;
        if spec.readonly {
            let recursive = spec.recursive_readonly;
            sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, 0, 0, recursive)
                .map_err(Failure::during(context()))?;
        }
        let is_dir = is_dir(&tree)?;
        Ok(PreparedMount { tree, target: spec.target.clone(), is_dir })
    }

    /// The file tree of an image, or a part of it.
    pub(super) fn of_image(spec: &ImageMountSpec, tree: OwnedFd) -> Result<PreparedMount, Failure> {
        let tree = if spec.sub_path.as_os_str().is_empty() {
            tree
        } else {
            let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let part = rustix::fs::openat2(&tree, &spec.sub_path, flags, Mode::empty(), resolve)
                .map_err(failed(format!("image volume has no {}", spec.sub_path.display())))?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            rm::open_tree(&part, "", flags).map_err(failed("open part of image volume"))?
        };
        sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, 0, libc::MS_PRIVATE, true)
            .map_err(Failure::during("set up image volume"))?;
        let is_dir = is_dir(&tree)?;
        Ok(PreparedMount { tree, target: spec.target.clone(), is_dir })
    }

    /// Something of the runtime's own.
    pub(super) fn private(source: &Path, target: &Path, readonly: bool) -> Result<PreparedMount, Failure> {
        let tree = clone_tree(source, false)?;
        let set = if readonly { sys::ATTR_RDONLY } else { 0 };
        sys::mount_setattr(tree.as_fd(), set, 0, libc::MS_PRIVATE, false)
            .map_err(Failure::during(format!("set up mount {}", source.display())))?;
        let is_dir = is_dir(&tree)?;
        Ok(PreparedMount { tree, target: target.to_owned(), is_dir })
    }

    /// Mounts are made from the root outwards.
    pub(super) fn depth(&self) -> usize {
        self.target.components().count()
    }

    /// Puts it in its place, which is made if missing.
    pub(super) fn attach(&self, root: u32) -> Result<(), Failure> {
        let target = Path::new("/").join(&self.target);
        make_mount_point(&target, self.is_dir, root)?;
        rm::move_mount(&self.tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(failed(format!("mount to {}", target.display())))
    }
}

/// `root` is the node's id of the container's root, whose it will be.
fn make_mount_point(target: &Path, dir: bool, root: u32) -> Result<(), Failure> {
    let context = || format!("create mount point {}", target.display());
    if dir {
        return userns::make_dirs(target, root).map_err(Failure::during(context()));
    }
    if fs::metadata(target).is_ok() {
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        userns::make_dirs(parent, root).map_err(Failure::during(context()))?;
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::from_raw_mode(MADE_MODE)).map(drop).map_err(failed(context()))?;
    userns::give(target, root).map_err(Failure::during(context()))
}

fn mount_new(kind: &str, target: &str, flags: MountFlags, options: &str) -> Result<(), Failure> {
    fs::create_dir_all(target).map_err(Failure::during(format!("create {target}")))?;
    let options = std::ffi::CString::new(options).map_err(|_| Failure::new("invalid mount options"))?;
    rm::mount(kind, target, kind, flags, options.as_c_str())
        .map_err(failed(format!("mount {kind} to {target}")))
}

const GUARDED: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);

/// `/proc` of the PID namespace.
pub(super) fn mount_proc() -> Result<(), Failure> {
    mount_new("proc", "/proc", GUARDED, "")
}

/// `/sys`, read-only unless privileged.
pub(super) fn mount_sys(writable: bool) -> Result<(), Failure> {
    let flags = if writable { GUARDED } else { GUARDED | MountFlags::RDONLY };
    mount_new("sysfs", "/sys", flags, "")
}

/// The container's part of the one tree.
pub(super) fn mount_cgroup2(writable: bool) -> Result<(), Failure> {
    let flags = GUARDED | MountFlags::RELATIME;
    let flags = if writable { flags } else { flags | MountFlags::RDONLY };
    let target = "/sys/fs/cgroup";
    rm::mount("cgroup", target, "cgroup2", flags, c"").map_err(failed("mount cgroup2"))
}

/// The container's part of each v1 tree.
pub(super) fn mount_cgroup_views(
    views: &[(String, PreparedMount)],
    writable: bool,
    root: u32,
) -> Result<(), Failure> {
    let target = "/sys/fs/cgroup";
    rm::mount("tmpfs", target, "tmpfs", GUARDED, c"mode=755").map_err(failed("mount cgroup tmpfs"))?;
    for (name, view) in views {
        fs::create_dir(Path::new(target).join(name)).map_err(Failure::during("create cgroup view"))?;
        view.attach(root)?;
    }
    if writable {
        return Ok(());
    }
    let dir = rustix::fs::open(target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open cgroup"))?;
    sys::mount_setattr(dir.as_fd(), sys::ATTR_RDONLY, 0, 0, false).map_err(Failure::during("protect cgroup"))
}

/// The group that terminals belong to.
const TTY_GROUP: u32 = 5;

/// The devices every container has: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// `/dev` and what stands in it.
pub(super) fn make_dev(spec: &ContainerSpec, root: u32) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::STRICTATIME;
    mount_new("tmpfs", "/dev", flags, &format!("mode=755,size=65536k,uid={root},gid={root}"))?;
    let old_mask = rustix::process::umask(Mode::empty());
    let made = make_devices(spec, root);
    rustix::process::umask(old_mask);
    made?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let options = format!("newinstance,ptmxmode=0666,mode=0620,gid={}", root.saturating_add(TTY_GROUP));
    mount_new("devpts", "/dev/pts", flags, &options)?;
    for path in ["/dev/pts", "/dev/pts/ptmx"] {
        userns::give(Path::new(path), root).map_err(Failure::during(format!("chown {path}")))?;
    }
    mount_new("mqueue", "/dev/mqueue", GUARDED, "")?;
    for (link, target) in LINKS {
        std::os::unix::fs::symlink(target, link)
            .and_then(|()| userns::give(Path::new(link), root))
            .map_err(Failure::during(format!("create {link}")))?;
    }
    Ok(())
}

fn make_devices(spec: &ContainerSpec, root: u32) -> Result<(), Failure> {
    for (name, major, minor) in DEVICES {
        let path = Path::new("/dev").join(name);
        make_node(&path, false, major, minor, 0o666)?;
        userns::give(&path, root).map_err(Failure::during(format!("chown {}", path.display())))?;
    }
    for device in &spec.devices {
        let DeviceSpec { path, block, major, minor, mode, uid, gid, .. } = device;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Failure::during(format!("create {}", parent.display())))?;
        }
        match fs::symlink_metadata(path) {
            // Privileged containers are given all the node's devices; these six are there already.
            Ok(_) if path.starts_with("/dev") => continue,
            _ => make_node(path, *block, *major, *minor, *mode)?,
        }
        let owner = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
        rustix::fs::chown(path, Some(owner.0), Some(owner.1))
            .map_err(failed(format!("chown {}", path.display())))?;
    }
    Ok(())
}

fn make_node(path: &Path, block: bool, major: u32, minor: u32, mode: u32) -> Result<(), Failure> {
    let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), rustix::fs::makedev(major, minor))
        .map_err(failed(format!("create device {}", path.display())))
}

/// `/dev/console` is the container's terminal.
pub(super) fn bind_console(peer: &OwnedFd) -> Result<(), Failure> {
    let console = Path::new("/dev/console");
    make_mount_point(console, false, 0)?;
    let name = nix::unistd::ttyname(peer).map_err(|e| Failure::during("name of terminal")(e.into()))?;
    rm::mount_bind(name, console).map_err(failed("bind /dev/console"))
}

/// Binds a path onto itself, read-only. Missing ones stay missing.
pub(super) fn make_readonly(path: &Path) -> Result<(), Failure> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = match rm::open_tree(CWD, path, flags) {
        Ok(tree) => tree,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        Err(e) => return Err(failed(format!("read-only path {}", path.display()))(e)),
    };
    let context = || format!("read-only path {}", path.display());
    sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, 0, 0, true).map_err(Failure::during(context()))?;
    rm::move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed(context()))
}

/// Hides paths: files behind `/dev/null`, directories behind an empty one.
pub(super) fn mask(paths: &[PathBuf]) -> Result<(), Failure> {
    // A device node of our own making, checked: what stands at /dev/null could be a volume by now.
    let null =
        rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("open /dev/null"))?;
    let stat = rustix::fs::fstat(&null).map_err(failed("stat /dev/null"))?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if !is_null {
        return Err(Failure::new("/dev/null of the container is not the null device"));
    }
    for path in paths {
        let context = || format!("mask {}", path.display());
        let Ok(metadata) = fs::metadata(path) else { continue };
        if metadata.is_dir() {
            rm::mount(
                "tmpfs",
                path,
                "tmpfs",
                GUARDED | MountFlags::RDONLY,
                c"nr_blocks=1,nr_inodes=1,mode=755",
            )
            .map_err(failed(context()))?;
            continue;
        }
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rm::open_tree(&null, "", flags).map_err(failed(context()))?;
        rm::move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(failed(context()))?;
    }
    Ok(())
}

/// Makes the root itself read-only; mounts in it stay as they are.
pub(super) fn protect_root() -> Result<(), Failure> {
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open /"))?;
    sys::mount_setattr(root.as_fd(), sys::ATTR_RDONLY, 0, 0, false)
        .map_err(Failure::during("make / read-only"))
}

/// An empty root for the pod's own init: it needs no files and should see none.
pub(crate) fn enter_empty_root(place: &Path) -> Result<(), Failure> {
    rm::mount_change("/", rm::MountPropagationFlags::DOWNSTREAM | rm::MountPropagationFlags::REC)
        .map_err(failed("make / a slave mount"))?;
    rm::mount("tmpfs", place, "tmpfs", GUARDED | MountFlags::RDONLY, c"nr_blocks=1,nr_inodes=8")
        .map_err(failed("mount empty root"))?;
    rustix::process::chdir(place).map_err(failed("chdir"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    rm::unmount(".", UnmountFlags::DETACH).map_err(failed("leave the node's root"))?;
    rustix::process::chdir("/").map_err(failed("chdir to /"))
}
