//! The container's root: overlay of layers, pivot, and what stands in it before the program runs.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount as rm;

use super::mounts::{self, PreparedMount};
use crate::cgroup::Cgroups;
use crate::spec::ContainerSpec;
use crate::userns::{self, UserNamespace};
use crate::wire::Failure;

/// Most bytes of options that `mount(2)` takes.
const MOUNT_OPTIONS_LEN_MAX: usize = 4095;

/// A root that stands in its place, with everything from outside still at hand.
pub(super) struct Inside {
    /// Where it stands.
    place: PathBuf,
    mounts: Vec<PreparedMount>,
    shm: PreparedMount,
    cgroup_views: Vec<(String, PreparedMount)>,
    /// The node's id of the container's root.
    root_id: u32,
}

fn failed(context: impl std::fmt::Display) -> impl FnOnce(rustix::io::Errno) -> Failure {
    move |e| Failure::during(context)(e.into())
}

/// Opens all that comes from the node, and puts the root in its place.
pub(super) fn prepare(
    spec: &ContainerSpec,
    dir: &Path,
    sandbox_dir: &Path,
    cgroups: &Cgroups,
    user: Option<UserNamespace<'_>>,
) -> Result<Inside, Failure> {
    let mut mounts = Vec::with_capacity(spec.mounts.len() + spec.image_mounts.len());
    for mount in &spec.mounts {
        mounts.push(PreparedMount::of_host(mount, user)?);
    }
    let shm_source = if spec.host_ipc { PathBuf::from("/dev/shm") } else { sandbox_dir.join("shm") };
    let shm = PreparedMount::private(&shm_source, Path::new("/dev/shm"), false)?;
    let mut cgroup_views = Vec::new();
    for (name, view) in cgroups.views(&spec.cgroup).map_err(|e| Failure::new(e.to_string()))? {
        let target = Path::new("/sys/fs/cgroup").join(&name);
        cgroup_views.push((name, PreparedMount::private(&view, &target, !spec.privileged)?));
    }
    // From here on nothing that is mounted shows on the node.
    rm::mount_change("/", rm::MountPropagationFlags::DOWNSTREAM | rm::MountPropagationFlags::REC)
        .map_err(failed("make / a slave mount"))?;
    let lower = |name: String, layers: &[PathBuf]| match user {
        Some(user) => user.shift_layers(layers, &dir.join("lower").join(name)),
        None => Ok(layers.to_vec()),
    };
    for (index, mount) in spec.image_mounts.iter().enumerate() {
        let layers = lower(index.to_string(), &mount.layers)?;
        mounts.push(PreparedMount::of_image(mount, overlay_of_image(&layers)?)?);
    }
    mounts.sort_by_key(|m| m.depth());
    let root_id = user.map_or(0, |user| user.range.host);
    userns::give(&dir.join("upper"), root_id).map_err(Failure::during("give / to the pod"))?;
    let root = overlay(&lower("root".into(), &spec.layers)?, Some(dir))?;
    let place = dir.join("root");
    let flags = rm::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rm::move_mount(&root, "", CWD, &place, flags).map_err(failed("mount root file system"))?;
    Ok(Inside { place, mounts, shm, cgroup_views, root_id })
}

impl Inside {
    /// Makes the root the only one there is.
    pub(super) fn change_root(&self) -> Result<(), Failure> {
        rustix::process::chdir(&self.place).map_err(failed("chdir to root file system"))?;
        rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
        rm::unmount(".", rm::UnmountFlags::DETACH).map_err(failed("leave the node's root"))?;
        rustix::process::chdir("/").map_err(failed("chdir to /"))
    }

    /// Takes the root as this process's alone, to be furnished; what comes back leads out again.
    pub(super) fn step_in(&self) -> Result<OwnedFd, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let outside = rustix::fs::open("/", flags, Mode::empty()).map_err(failed("open the node's root"))?;
        rustix::process::chroot(&self.place).map_err(failed("chroot"))?;
        rustix::process::chdir("/").map_err(failed("chdir to /"))?;
        Ok(outside)
    }

    /// The reverse of [`Inside::step_in`].
    pub(super) fn step_out(&self, outside: &OwnedFd) -> Result<(), Failure> {
        rustix::process::fchdir(outside).map_err(failed("return to the node's root"))?;
        rustix::process::chroot(".").map_err(failed("chroot"))
    }

    /// Mounts and devices.
    pub(super) fn furnish(&self, spec: &ContainerSpec, cgroups: &Cgroups) -> Result<(), Failure> {
        mounts::mount_proc()?;
        mounts::make_dev(spec, self.root_id)?;
        self.shm.attach(self.root_id)?;
        mounts::mount_sys(spec.privileged)?;
        if cgroups.is_v2() {
            mounts::mount_cgroup2(spec.privileged)?;
        } else {
            mounts::mount_cgroup_views(&self.cgroup_views, spec.privileged, self.root_id)?;
        }
        self.mounts.iter().try_for_each(|mount| mount.attach(self.root_id))
    }

    /// Hides and protects.
    pub(super) fn seal(&self, spec: &ContainerSpec) -> Result<(), Failure> {
        if !spec.privileged {
            spec.readonly_paths.iter().try_for_each(|path| mounts::make_readonly(path))?;
            mounts::mask(&spec.masked_paths)?;
        }
        if spec.readonly_rootfs { mounts::protect_root() } else { Ok(()) }
    }
}

/// An overlay of layers; with `dir` writable there, else read-only.
fn overlay(layers: &[PathBuf], dir: Option<&Path>) -> Result<OwnedFd, Failure> {
    // "volatile": nobody will look at this upper directory after a crash of the machine, so nothing needs to
    // be synced when the container goes. Kernels without `lowerdir+` take the old way.
    if !takes_parts(&rustix::system::uname().release().to_string_lossy()) {
        return overlay_by_string(layers, dir);
    }
    match overlay_by_parts(layers, dir) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => overlay_by_string(layers, dir),
        result => result.map_err(failed("mount overlay")),
    }
}

/// Whether a kernel of this release knows `lowerdir+` (6.7). One that does not would write a line into its log for
/// every container that asks.
fn takes_parts(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

fn overlay_by_parts(layers: &[PathBuf], dir: Option<&Path>) -> rustix::io::Result<OwnedFd> {
    let fs = rm::fsopen("overlay", rm::FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = fs.as_fd();
    for layer in layers.iter().rev() {
        rm::fsconfig_set_string(fd, "lowerdir+", layer)?;
    }
    if let Some(dir) = dir {
        rm::fsconfig_set_string(fd, "upperdir", dir.join("upper"))?;
        rm::fsconfig_set_string(fd, "workdir", dir.join("work"))?;
        rm::fsconfig_set_flag(fd, "volatile")?;
    }
    rm::fsconfig_create(fd)?;
    rm::fsmount(fd, rm::FsMountFlags::FSMOUNT_CLOEXEC, rm::MountAttrFlags::empty())
}

fn overlay_by_string(layers: &[PathBuf], dir: Option<&Path>) -> Result<OwnedFd, Failure> {
    let lower: Vec<_> = layers.iter().rev().map(|l| escape(l)).collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some(dir) = dir {
        let (upper, work) = (escape(&dir.join("upper")), escape(&dir.join("work")));
        options.push_str(&format!(",upperdir={upper},workdir={work}"));
    }
    if options.len() > MOUNT_OPTIONS_LEN_MAX {
        return Err(Failure::new("image has more layers than this kernel can mount"));
    }
    let place = dir.map_or_else(|| PathBuf::from("/tmp"), |d| d.join("root"));
    let options = std::ffi::CString::new(options).map_err(|_| Failure::new("invalid layer path"))?;
    elsewhere(|| {
        rm::mount("overlay", &place, "overlay", rm::MountFlags::empty(), options.as_c_str())
            .map_err(failed("mount overlay"))?;
        let clone = rm::OpenTreeFlags::OPEN_TREE_CLONE | rm::OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rm::open_tree(CWD, &place, clone).map_err(failed("open overlay"))
    })
}

/// Does something in a mount namespace of its own. What is mounted where the node's mounts are shared would show
/// on the node, and would be shared itself, which a root must not be.
fn elsewhere<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let home = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())
        .map_err(failed("open the mount namespace"))?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|e| Failure::during("make a mount namespace")(e.into()))?;
    rm::mount_change("/", rm::MountPropagationFlags::DOWNSTREAM | rm::MountPropagationFlags::REC)
        .map_err(failed("make / a slave mount"))?;
    let done = work();
    nix::sched::setns(&home, nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|e| Failure::during("return to the mount namespace")(e.into()))?;
    done
}

fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// One layer is its own file tree; overlayfs wants two at least without an upper directory.
fn overlay_of_image(layers: &[PathBuf]) -> Result<OwnedFd, Failure> {
    match layers {
        [] => Err(Failure::new("image volume without layers")),
        [only] => {
            let clone = rm::OpenTreeFlags::OPEN_TREE_CLONE | rm::OpenTreeFlags::OPEN_TREE_CLOEXEC;
            rm::open_tree(CWD, only, clone).map_err(failed("open image volume"))
        }
        several => overlay(several, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, expected) in [
            ("6.1.0-56-cloud-amd64", false),
            ("6.6.9", false),
            ("6.7-rc1", true),
            ("6.18.3", true),
            ("7.0", true),
            ("5.15", false),
            ("odd", false),
        ] {
            assert_eq!(takes_parts(release), expected, "{release}");
        }
    }
}
