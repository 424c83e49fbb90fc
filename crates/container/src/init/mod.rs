//! What a container's processes do before they become the user's program.
//!
//! Runs in a fresh clone of the shim. Everything that needs the node's view (layers, volumes, cgroups) is opened
//! first, then the root changes, then the inside is put together, and last of all privileges go. Failures and
//! terminals travel to the shim over the setup socket; a silent end of it means that the program runs.

mod command;
mod identity;
pub(crate) mod mounts;
mod rootfs;

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::hooks::{self, Status};
use crate::spec::{ContainerSpec, ProcessSpec};
use crate::sys;
use crate::userns::{self, UserNamespace};
use crate::wire::{self, Failure};

/// From a starting process to the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SetupMessage {
    /// The terminal's descriptor comes with this packet.
    Terminal,
    /// The root stands; an answer is waited for.
    Created,
    /// It did not work.
    Failed { failure: Failure },
}

/// To a starting process that has said `Created`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SetupAnswer {
    /// Who it is on the node.
    pub(crate) pid: i32,
    /// What went wrong on the node.
    pub(crate) failure: Option<Failure>,
}

/// The process's ends of its pipes.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// A first process to become.
pub(crate) struct FirstProcess<'a> {
    pub(crate) spec: &'a ContainerSpec,
    /// The container's directory.
    pub(crate) dir: &'a Path,
    /// The sandbox's directory.
    pub(crate) sandbox_dir: &'a Path,
    pub(crate) cgroups: &'a Cgroups,
    pub(crate) seccomp: Option<&'a [u8]>,
    /// `None` with a terminal.
    pub(crate) stdio: Option<Stdio>,
    pub(crate) setup: OwnedFd,
    /// The pod's users, where they are its own.
    pub(crate) user: Option<UserNamespace<'a>>,
}

/// A further process to become.
pub(crate) struct FurtherProcess<'a> {
    pub(crate) process: &'a ProcessSpec,
    pub(crate) cgroup: &'a Path,
    pub(crate) cgroups: &'a Cgroups,
    pub(crate) seccomp: Option<&'a [u8]>,
    pub(crate) stdio: Option<Stdio>,
    pub(crate) setup: OwnedFd,
    /// The container's first process.
    pub(crate) target: BorrowedFd<'a>,
    /// The pod's users, where they are its own.
    pub(crate) user: Option<UserNamespace<'a>>,
}

/// The node's id behind one of the pod.
fn host_id(user: Option<UserNamespace<'_>>, id: u32) -> u32 {
    user.map_or(id, |user| user.range.host.saturating_add(id))
}

/// Becomes the container's first process.
pub(crate) fn run_first(first: FirstProcess<'_>) -> ! {
    let setup = first.setup.as_fd();
    let Err(failure) = first.become_it();
    fail(setup, failure)
}

/// Becomes a further process of a container.
pub(crate) fn run_further(further: FurtherProcess<'_>) -> ! {
    let setup = further.setup.as_fd();
    let Err(failure) = further.become_it();
    fail(setup, failure)
}

fn fail(setup: BorrowedFd<'_>, failure: Failure) -> ! {
    // If the shim is gone nobody is left to be told.
    let _ = wire::send(setup, &SetupMessage::Failed { failure }, &[]);
    sys::exit_now(1)
}

fn start_alone() -> Result<(), Failure> {
    sys::reset_signals();
    nix::unistd::setsid().map_err(|e| Failure::during("setsid")(e.into()))?;
    // Nothing of the shim's reaches the program.
    sys::close_on_exec_from(3).map_err(Failure::during("close_range"))
}

fn use_stdio(stdio: &Stdio) -> Result<(), Failure> {
    for (fd, number) in [(&stdio.stdin, 0), (&stdio.stdout, 1), (&stdio.stderr, 2)] {
        sys::dup_onto(fd.as_fd(), number).map_err(Failure::during("set up standard streams"))?;
    }
    Ok(())
}

/// Makes a terminal inside the container, hands its other side to the shim and takes it as standard streams.
fn use_terminal(setup: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
        .map_err(|e| Failure::during("open /dev/ptmx")(e.into()))?;
    let peer = sys::open_terminal_peer(master.as_fd()).map_err(Failure::during("open terminal"))?;
    for number in 0..3 {
        sys::dup_onto(peer.as_fd(), number).map_err(Failure::during("set up terminal"))?;
    }
    sys::take_terminal().map_err(Failure::during("set controlling terminal"))?;
    wire::send(setup, &SetupMessage::Terminal, &[master.as_fd()])
        .map_err(Failure::during("send terminal"))?;
    Ok(peer)
}

/// The terminal belongs to the user, as after a login.
fn own_terminal(peer: &OwnedFd, uid: u32) {
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    // On a read-only or foreign file system the default owner works too.
    let _ = rustix::fs::fchown(peer, owner, None);
}

/// Lowering needs a capability that the node may lack; raising always works. Containers start either way.
fn set_oom_score(adj: i32) {
    let _ = fs::write("/proc/self/oom_score_adj", adj.to_string());
}

impl FirstProcess<'_> {
    fn become_it(&self) -> Result<Infallible, Failure> {
        let process = &self.spec.process;
        start_alone()?;
        if !self.cgroups.is_v2() {
            self.cgroups.join(&self.spec.cgroup).map_err(|e| Failure::new(e.to_string()))?;
        }
        set_oom_score(process.oom_score_adj);
        if self.cgroups.is_v2() {
            sys::unshare(libc::CLONE_NEWCGROUP).map_err(Failure::during("unshare cgroup namespace"))?;
        }
        if let (Some(user), true) = (self.user, self.spec.privileged)
            && let Some(cgroup) =
                self.cgroups.open(&self.spec.cgroup).map_err(|e| Failure::new(e.to_string()))?
        {
            userns::give_cgroup(cgroup.as_fd(), user.range.host).map_err(Failure::during("give cgroup"))?;
        }
        let inside = rootfs::prepare(self.spec, self.dir, self.sandbox_dir, self.cgroups, self.user)?;
        let mut pid = 0;
        if self.spec.hooks.need_word() {
            // Hooks see the whole container from outside, so it is put together before its root is the only one.
            let outside = inside.step_in()?;
            inside.furnish(self.spec, self.cgroups)?;
            inside.step_out(&outside)?;
            pid = self.wait_for_word()?;
            let state = self.spec.hooks.state(Status::Creating, pid);
            hooks::run_all(
                &self.spec.hooks.create_container,
                &state,
                Path::new(&self.spec.hooks.bundle),
                Some(outside.as_fd()),
            )
            .map_err(|e| hooks::failure(true, "createContainer", &e))?;
            inside.change_root()?;
        } else {
            inside.change_root()?;
            inside.furnish(self.spec, self.cgroups)?;
        }
        match &self.stdio {
            Some(stdio) => use_stdio(stdio)?,
            None => {
                let peer = use_terminal(self.setup.as_fd())?;
                own_terminal(&peer, host_id(self.user, process.uid));
                mounts::bind_console(&peer)?;
            }
        }
        if !process.cwd.as_os_str().is_empty() {
            userns::make_dirs(&process.cwd, host_id(self.user, 0))
                .map_err(Failure::during(format!("mkdir {}", process.cwd.display())))?;
        }
        inside.seal(self.spec)?;
        command::run(process, self.seccomp, self.user, Some((&self.spec.hooks, pid)))
    }

    /// Lets the node's hooks run; what comes back is this process as the node knows it.
    fn wait_for_word(&self) -> Result<i32, Failure> {
        wire::send(self.setup.as_fd(), &SetupMessage::Created, &[]).map_err(Failure::during("call hooks"))?;
        match wire::receive::<SetupAnswer>(self.setup.as_fd()) {
            Ok(Some((SetupAnswer { failure: Some(failure), .. }, _))) => Err(failure),
            Ok(Some((answer, _))) => Ok(answer.pid),
            Ok(None) => Err(Failure::new("the shim went away while hooks ran")),
            Err(error) => Err(Failure::during("wait for hooks")(error)),
        }
    }
}

impl FurtherProcess<'_> {
    fn become_it(&self) -> Result<Infallible, Failure> {
        start_alone()?;
        if !self.cgroups.is_v2() {
            self.cgroups.join(self.cgroup).map_err(|e| Failure::new(e.to_string()))?;
        }
        set_oom_score(self.process.oom_score_adj);
        let cgroup_namespace = if self.cgroups.is_v2() { libc::CLONE_NEWCGROUP } else { 0 };
        sys::setns(self.target, libc::CLONE_NEWNS | cgroup_namespace)
            .map_err(Failure::during("enter the container's namespaces"))?;
        match &self.stdio {
            Some(stdio) => use_stdio(stdio)?,
            None => {
                let peer = use_terminal(self.setup.as_fd())?;
                own_terminal(&peer, host_id(self.user, self.process.uid));
            }
        }
        command::run(self.process, self.seccomp, self.user, None)
    }
}
