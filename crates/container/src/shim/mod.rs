//! The shim: one small single-threaded process per pod that owns the pod's processes, pipes and exit codes.
//!
//! It is this very binary, re-executed. Not once per pod, though: the node starts one *zygote*, which forks a
//! shim when asked, so that making one costs a fork instead of an exec and all shims share their pages. The
//! zygote ends with the node; shims stay, each in its own session, and are found again through their sockets.
//!
//! The shim lives in the pod's network, IPC and UTS namespaces, so holding them needs no further process and
//! connecting to a port of the pod is a plain `connect`.
//!
//! **Invariant:** no thread is ever started here, which is what makes forking sound.

mod containers;
mod log;
mod output;
mod server;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::cgroup::Cgroups;
use crate::spec::{SOCKET_FILE, SandboxSpec};
use crate::sys::{self, Cloned};
use crate::userns;
use crate::wire::{self, Failure, Reply, Spawn};

/// First argument that makes the binary a zygote.
pub(crate) const ZYGOTE_ARGUMENT: &str = "container-shim";
/// Size of a pod's `/dev/shm`, as in containerd.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=1777,size=65536k";
/// Who the pod's own init runs as: nobody that any image knows.
const INIT_UID: u32 = 65535;

/// Must be called first thing in `main`, before any thread and any runtime: if this process was started as a
/// shim it never returns, else it does at once.
pub fn intercept() {
    if std::env::args_os().nth(1).is_some_and(|a| a == ZYGOTE_ARGUMENT) {
        let status = run_zygote();
        std::process::exit(if status.is_ok() { 0 } else { 1 });
    }
}

/// Serves spawn requests on descriptor 0 until the node closes it.
fn run_zygote() -> io::Result<()> {
    sys::set_name(c"ferry-zygote");
    let _ = nix::unistd::setsid();
    // It is told by the end of its socket; shims must not go with a Ctrl-C in the node's terminal.
    sys::ignore_signals(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGCHLD]);
    let socket = io::stdin();
    while let Some((spawn, fds)) = wire::receive::<Spawn>(socket.as_fd())? {
        let Some(first_connection) = fds.into_iter().next() else { continue };
        // SAFETY: this process has one thread.
        match unsafe { sys::clone_process(0, None) } {
            Ok(Cloned::Child) => run_shim(&spawn.dir, spawn.spec, first_connection),
            Ok(Cloned::Parent(..)) => {}
            Err(e) => report(first_connection.as_fd(), Failure::during("fork shim")(e)),
        }
    }
    Ok(())
}

fn report(socket: BorrowedFd<'_>, failure: Failure) {
    // The node sees the end of the connection if even this fails.
    let _ = wire::send(socket, &Reply::Failed { failure }, &[]);
}

fn run_shim(dir: &Path, spec: SandboxSpec, first_connection: OwnedFd) -> ! {
    match prepare(dir, spec) {
        Ok(server) => {
            let code = i32::from(server.run(first_connection).is_err());
            sys::exit_now(code)
        }
        Err(failure) => {
            report(first_connection.as_fd(), failure);
            sys::exit_now(1)
        }
    }
}

/// Namespaces, files and socket of a pod.
fn prepare(dir: &Path, spec: SandboxSpec) -> Result<server::Server, Failure> {
    sys::set_name(c"ferry-shim");
    nix::unistd::setsid().map_err(|e| Failure::during("setsid")(e.into()))?;
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map_err(Failure::during("become subreaper"))?;
    sys::reset_signals();
    sys::ignore_signals(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE]);
    detach_stdio().map_err(Failure::during("detach standard streams"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Names relative to the directory stay below the length limit of socket paths.
    std::env::set_current_dir(dir).map_err(Failure::during("enter sandbox directory"))?;
    let cgroups =
        Cgroups::open_at(spec.cgroup_v2_root.as_deref()).map_err(|e| Failure::new(e.to_string()))?;
    let user = enter_namespaces(&spec)?;
    make_shm(&spec)?;
    let signals = sys::child_signals().map_err(Failure::during("signalfd"))?;
    let pod_init = if spec.shared_pid { Some(start_pod_init(dir)?) } else { None };
    let listener = listen().map_err(Failure::during("listen on shim socket"))?;
    let user = spec.user.and_then(|range| Some((user?, range)));
    server::Server::new(dir.to_owned(), cgroups, listener, signals, pod_init, user)
}

fn detach_stdio() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    (0..3).try_for_each(|fd| sys::dup_onto(null.as_fd(), fd))
}

/// Enters the pod's namespaces, but for that of its users, which is returned.
fn enter_namespaces(spec: &SandboxSpec) -> Result<Option<OwnedFd>, Failure> {
    let mut flags = 0;
    if !spec.host_network {
        flags |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    }
    if !spec.host_ipc {
        flags |= libc::CLONE_NEWIPC;
    }
    let user = match spec.user {
        Some(range) => Some(userns::create(range, flags)?),
        None => {
            sys::unshare(flags).map_err(Failure::during("unshare namespaces"))?;
            None
        }
    };
    if !spec.host_network {
        sys::loopback_up().map_err(Failure::during("bring up loopback"))?;
        nix::unistd::sethostname(&spec.hostname).map_err(|e| Failure::during("sethostname")(e.into()))?;
        // As containerd does, so that images without privileges can serve port 80 and send pings.
        for (name, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")] {
            let _ = fs::write(Path::new("/proc/sys/net/ipv4").join(name), value);
        }
    }
    for (name, value) in &spec.sysctls {
        let path = sysctl_path(name).ok_or_else(|| Failure::new(format!("invalid sysctl {name:?}")))?;
        fs::write(&path, value).map_err(Failure::during(format!("set sysctl {name}={value}")))?;
    }
    Ok(user)
}

/// `net.ipv4.ip_forward` or `net/ipv4/ip_forward`; a name with both separators keeps dots as they are.
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let parts: Vec<&str> =
        if name.contains('/') { name.split('/').collect() } else { name.split('.').collect() };
    let plain = |part: &&str| !part.is_empty() && *part != "." && *part != "..";
    parts.iter().all(plain).then(|| Path::new("/proc/sys").join(parts.join("/")))
}

fn make_shm(spec: &SandboxSpec) -> Result<(), Failure> {
    if spec.host_ipc {
        return Ok(());
    }
    fs::create_dir_all("shm").map_err(Failure::during("create shm"))?;
    use rustix::mount::{MountFlags, mount};
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("shm", "shm", "tmpfs", flags, SHM_OPTIONS).map_err(|e| Failure::during("mount shm")(e.into()))?;
    let root = spec.user.map_or(0, |range| range.host);
    userns::give(Path::new("shm"), root).map_err(Failure::during("give shm to the pod"))
}

/// The process with id 1 of a pod whose containers see each other's processes. It only reaps.
fn start_pod_init(dir: &Path) -> Result<(i32, OwnedFd), Failure> {
    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    // SAFETY: this process has one thread.
    match unsafe { sys::clone_process(flags, None) }.map_err(Failure::during("start pod init"))? {
        Cloned::Parent(pid, pidfd) => Ok((pid, pidfd)),
        Cloned::Child => {
            sys::set_name(c"pause");
            let place = dir.join("init");
            let hidden = fs::create_dir_all(&place)
                .map_err(Failure::during("create root of pod init"))
                .and_then(|()| crate::init::mounts::enter_empty_root(&place))
                .and_then(|()| drop_privileges());
            match hidden {
                Ok(()) => reap_forever(),
                Err(_) => sys::exit_now(1),
            }
        }
    }
}

fn drop_privileges() -> Result<(), Failure> {
    let id = (nix::unistd::Uid::from_raw(INIT_UID), nix::unistd::Gid::from_raw(INIT_UID));
    let errno = |what| move |e: nix::errno::Errno| Failure::during(what)(e.into());
    nix::unistd::setgroups(&[]).map_err(errno("setgroups"))?;
    nix::unistd::setresgid(id.1, id.1, id.1).map_err(errno("setgid"))?;
    nix::unistd::setresuid(id.0, id.0, id.0).map_err(errno("setuid"))?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(Failure::during("set dumpable"))?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)
        .map_err(Failure::during("set parent death signal"))
}

/// As process 1 it ignores every signal it does not ask for; only SIGKILL from outside ends it.
fn reap_forever() -> ! {
    // SAFETY: no descriptor is used from here on; waiting and sleeping take no memory from us.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        loop {
            let mut signal = 0;
            libc::sigwait(&set, &mut signal);
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
        }
    }
}

fn listen() -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let _ = fs::remove_file(SOCKET_FILE);
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(SOCKET_FILE)?)?;
    fs::set_permissions(SOCKET_FILE, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names() {
        let table = [
            ("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.100/forwarding", Some("/proc/sys/net/ipv4/conf/eth0.100/forwarding")),
            ("kernel..x", None),
            ("../../etc/passwd", None),
            ("", None),
        ];
        for (name, want) in table {
            assert_eq!(sysctl_path(name), want.map(PathBuf::from), "{name}");
        }
    }
}
