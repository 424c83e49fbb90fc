//! User namespaces: a pod's own range of user and group ids.
//!
//! The shim stays the node's root and holds the namespace open. A process of the pod does everything that needs the
//! node's power first and enters the namespace last, just before it becomes the user's program; from there on its
//! mounts belong to the pod, and none that was made for it can be taken off. File trees come in through mounts that
//! shift the ids on the disk by as much, so that nobody's files have to change hands.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::sys::{self, Cloned};
use crate::wire::Failure;

/// Where the ids of a pod lie on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdRange {
    /// The pod's root.
    pub(crate) host: u32,
    /// How many there are.
    pub(crate) length: u32,
}

impl IdRange {
    /// The one mapping that is supported: all ids in one piece, from the pod's root on.
    pub(crate) fn of(mapping: &cri::IdMapping) -> Result<IdRange, String> {
        if mapping.container_id != 0
            || mapping.length == 0
            || mapping.host_id.checked_add(mapping.length).is_none()
        {
            return Err(format!(
                "user namespace mapping {}:{}:{} is not supported",
                mapping.container_id, mapping.host_id, mapping.length
            ));
        }
        Ok(IdRange { host: mapping.host_id, length: mapping.length })
    }
}

/// A user namespace at hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserNamespace<'a> {
    /// The namespace.
    pub(crate) fd: BorrowedFd<'a>,
    /// Its ids.
    pub(crate) range: IdRange,
}

impl UserNamespace<'_> {
    /// Shifts the ids of a mount that is not yet attached.
    pub(crate) fn shift(&self, tree: BorrowedFd<'_>, source: &Path) -> Result<(), Failure> {
        sys::mount_idmap(tree, self.fd).map_err(Failure::during(format!(
            "failed to set MOUNT_ATTR_IDMAP on {} (maybe the filesystem used doesn't support idmap mounts on this \
             kernel?)",
            source.display()
        )))
    }

    /// The layers of an image with their ids shifted, below `dir`. Only in a mount namespace of one's own.
    pub(crate) fn shift_layers(&self, layers: &[PathBuf], dir: &Path) -> Result<Vec<PathBuf>, Failure> {
        use rustix::mount as rm;
        let mut shifted = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let context = || format!("shift ids of layer {}", layer.display());
            let place = dir.join(index.to_string());
            fs::create_dir_all(&place).map_err(Failure::during(context()))?;
            let clone = rm::OpenTreeFlags::OPEN_TREE_CLONE | rm::OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = rm::open_tree(CWD, layer, clone).map_err(|e| Failure::during(context())(e.into()))?;
            self.shift(tree.as_fd(), layer)?;
            rm::move_mount(&tree, "", CWD, &place, rm::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|e| Failure::during(context())(e.into()))?;
            shifted.push(place);
        }
        Ok(shifted)
    }
}

/// Makes a user namespace and, owned by it, the namespaces `flags`, which this process enters.
pub(crate) fn create(range: IdRange, flags: i32) -> Result<OwnedFd, Failure> {
    // SAFETY: shims have one thread.
    let cloned = unsafe { sys::clone_process((libc::CLONE_NEWUSER | flags) as u64, None) };
    match cloned.map_err(Failure::during("create user namespace"))? {
        Cloned::Child => {
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
            sys::pause_forever()
        }
        Cloned::Parent(pid, pidfd) => {
            let entered = enter(pid, pidfd.as_fd(), range, flags);
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            sys::wait_for(pid);
            entered.map_err(Failure::during("set up user namespace"))
        }
    }
}

fn enter(pid: i32, pidfd: BorrowedFd<'_>, range: IdRange, flags: i32) -> io::Result<OwnedFd> {
    let of = PathBuf::from(format!("/proc/{pid}"));
    let line = format!("0 {} {}", range.host, range.length);
    fs::write(of.join("uid_map"), &line)?;
    fs::write(of.join("gid_map"), &line)?;
    let user = fs::File::open(of.join("ns/user"))?;
    if flags != 0 {
        sys::setns(pidfd, flags)?;
    }
    Ok(user.into())
}

/// Gives a path to the root of a pod; 0 is the node's own, whose it is already.
pub(crate) fn give(path: &Path, root: u32) -> io::Result<()> {
    if root == 0 {
        return Ok(());
    }
    let owner = (Some(Uid::from_raw(root)), Some(Gid::from_raw(root)));
    Ok(rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes directories that are missing, for the root of a pod.
pub(crate) fn make_dirs(path: &Path, root: u32) -> io::Result<()> {
    if root == 0 {
        return fs::create_dir_all(path);
    }
    let missing: Vec<&Path> = path.ancestors().take_while(|at| !at.exists()).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().filter(|at| !at.as_os_str().is_empty()).try_for_each(|at| give(at, root))
}

/// The files of a cgroup that go with it to another owner where the kernel does not tell.
const DELEGATED: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";

/// Gives a v2 cgroup to the root of a pod, whose containers may make cgroups in it.
pub(crate) fn give_cgroup(cgroup: BorrowedFd<'_>, root: u32) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(root)), Some(Gid::from_raw(root)));
    rustix::fs::fchown(cgroup, owner.0, owner.1)?;
    let files = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or(DELEGATED.to_owned());
    for file in files.lines() {
        match rustix::fs::chownat(cgroup, file, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            Err(error) if error != rustix::io::Errno::NOENT => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let of =
            |container_id, host_id, length| IdRange::of(&cri::IdMapping { container_id, host_id, length });
        assert_eq!(of(0, 65536, 65536), Ok(IdRange { host: 65536, length: 65536 }));
        for (container, host, length) in [(1, 65536, 65536), (0, 65536, 0), (0, u32::MAX, 2)] {
            assert!(of(container, host, length).is_err(), "{container} {host} {length}");
        }
    }
}
