//! The shim's event loop: connections, signals, streams.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::containers::{Container, Starting};
use crate::cgroup::Cgroups;
use crate::spec::SOCKET_FILE;
use crate::sys;
use crate::userns::{IdRange, UserNamespace};
use crate::wire::{self, Failure, Reply, Request};

/// Most connections at once; more wait in the listen queue. Every probe and every exec takes one for its time.
const CONNECTIONS_MAX: usize = 512;

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// Has not asked yet, or asks one thing after the other.
    Idle,
    /// Gets events.
    Subscriber,
    /// Watches a further process: its pid, its terminal.
    Exec { pid: i32 },
    /// Is attached to a container.
    Attached { container: String },
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) role: Role,
    pub(super) terminal: Option<OwnedFd>,
}

/// The state of a shim.
pub(super) struct Server {
    pub(super) dir: PathBuf,
    pub(super) cgroups: Cgroups,
    pub(super) listener: OwnedFd,
    pub(super) signals: OwnedFd,
    /// The shim's own PID namespace, to come back to.
    pub(super) own_pid_namespace: OwnedFd,
    pub(super) pod_init: Option<(i32, OwnedFd)>,
    /// The pod's user namespace and its ids.
    user: Option<(OwnedFd, IdRange)>,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next_connection: u64,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) starting: Vec<Starting>,
    /// Who asked for the end.
    pub(super) stopping: Option<u64>,
    pub(super) clock: stdx::SystemClock,
}

/// What a descriptor in the poll set stands for.
#[derive(Debug, Clone)]
enum Source {
    Signals,
    Listener,
    Connection(u64),
    Setup(i32),
    Output { container: String, index: usize },
    Sink { container: String },
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Server {
    pub(super) fn new(
        dir: PathBuf,
        cgroups: Cgroups,
        listener: OwnedFd,
        signals: OwnedFd,
        pod_init: Option<(i32, OwnedFd)>,
        user: Option<(OwnedFd, IdRange)>,
    ) -> Result<Server, Failure> {
        let own = std::fs::File::open("/proc/self/ns/pid").map_err(Failure::during("open PID namespace"))?;
        Ok(Server {
            dir,
            cgroups,
            listener,
            signals,
            own_pid_namespace: own.into(),
            pod_init,
            user,
            connections: BTreeMap::new(),
            next_connection: 0,
            containers: BTreeMap::new(),
            starting: Vec::new(),
            stopping: None,
            clock: stdx::SystemClock,
        })
    }

    /// The pod's user namespace, if it has one.
    pub(super) fn user(&self) -> Option<UserNamespace<'_>> {
        self.user.as_ref().map(|(fd, range)| UserNamespace { fd: fd.as_fd(), range: *range })
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self, first_connection: OwnedFd) -> io::Result<()> {
        let id = self.add_connection(first_connection)?;
        self.subscribe(id);
        loop {
            let ready = self.wait()?;
            for source in ready {
                self.serve(source);
            }
            if self.stopping.is_some() && self.is_quiet() {
                return self.finish();
            }
        }
    }

    /// Waits until something can be done.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.connections.len() < CONNECTIONS_MAX {
            sources.push(Source::Listener);
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        for starting in &self.starting {
            sources.push(Source::Setup(starting.pid));
            fds.push(PollFd::new(starting.setup.as_fd(), PollFlags::POLLIN));
        }
        for (id, connection) in &self.connections {
            sources.push(Source::Connection(*id));
            fds.push(PollFd::new(connection.fd.as_fd(), PollFlags::POLLIN));
        }
        for (name, container) in &self.containers {
            for (index, output) in container.outputs.iter().enumerate() {
                sources.push(Source::Output { container: name.clone(), index });
                fds.push(PollFd::new(output.fd.as_fd(), PollFlags::POLLIN));
            }
            let sinks = container.attached.iter().flat_map(|a| [&a.stdout, &a.stderr]).flatten();
            for sink in sinks.filter(|s| s.wants_to_write()) {
                sources.push(Source::Sink { container: name.clone() });
                fds.push(PollFd::new(sink.fd.as_fd(), PollFlags::POLLOUT));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = fds.iter().map(|fd| fd.revents().is_some_and(|r| !r.is_empty()));
        let mut ready: Vec<Source> =
            sources.into_iter().zip(ready).filter(|(_, r)| *r).map(|(s, _)| s).collect();
        // Streams with a higher index first, as serving one may remove it.
        ready.reverse();
        Ok(ready)
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Signals => self.reap(),
            Source::Listener => self.accept(),
            Source::Setup(pid) => self.setup_ready(pid),
            Source::Connection(id) => self.connection_ready(id),
            Source::Output { container, index } => self.output_ready(&container, index),
            Source::Sink { container } => self.flush_sinks(&container),
        }
    }

    fn accept(&mut self) {
        use nix::sys::socket::{SockFlag, accept4};
        let Ok(fd) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
        else {
            return;
        };
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        let _ = self.add_connection(fd);
    }

    fn add_connection(&mut self, fd: OwnedFd) -> io::Result<u64> {
        set_nonblocking(fd.as_fd())?;
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(id, Connection { fd, role: Role::Idle, terminal: None });
        Ok(id)
    }

    fn connection_ready(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        match wire::receive::<Request>(connection.fd.as_fd()) {
            Ok(Some((request, _))) => self.request(id, request),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.drop_connection(id),
        }
    }

    pub(super) fn drop_connection(&mut self, id: u64) {
        self.connections.remove(&id);
        self.give_up(id);
        for container in self.containers.values_mut() {
            container.attached.retain(|a| a.connection != id);
        }
    }

    /// Sends to a connection; one that does not take it is let go, and asks again when it comes back.
    pub(super) fn reply(&mut self, id: u64, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let Some(connection) = self.connections.get(&id) else { return };
        if wire::send(connection.fd.as_fd(), reply, fds).is_err() {
            self.drop_connection(id);
        }
    }

    pub(super) fn reply_result(&mut self, id: u64, result: Result<(), Failure>) {
        let reply = match result {
            Ok(()) => Reply::Ok,
            Err(failure) => Reply::Failed { failure },
        };
        self.reply(id, &reply, &[]);
    }

    /// Tells all subscribers.
    pub(super) fn broadcast(&mut self, event: &Reply) {
        let subscribers: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.role == Role::Subscriber).map(|(id, _)| *id).collect();
        for id in subscribers {
            self.reply(id, event, &[]);
        }
    }

    fn subscribe(&mut self, id: u64) {
        let containers = self.containers.iter().map(|(name, c)| (name.clone(), c.record.clone())).collect();
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.role = Role::Subscriber;
        }
        self.reply(id, &Reply::State { pid: std::process::id() as i32, containers }, &[]);
    }

    fn request(&mut self, id: u64, request: Request) {
        match request {
            Request::Subscribe => self.subscribe(id),
            Request::Start { container } => {
                if let Err(failure) = self.start(id, &container) {
                    self.start_failed(id, &container, failure);
                }
            }
            Request::Continue { container, failure } => self.go_on(&container, failure),
            Request::Fail { container, failure } => {
                let result = self.fail(&container, failure);
                self.reply_result(id, result);
            }
            Request::Signal { container, signal } => {
                let result = self.signal(&container, signal);
                self.reply_result(id, result);
            }
            Request::Exec { container, process, stdin, stdout, stderr } => {
                if let Err(failure) = self.exec(id, &container, &process, [stdin, stdout, stderr]) {
                    self.reply(id, &Reply::Failed { failure }, &[]);
                }
            }
            Request::Attach { container, stdin, stdout, stderr } => {
                if let Err(failure) = self.attach(id, &container, [stdin, stdout, stderr]) {
                    self.reply(id, &Reply::Failed { failure }, &[]);
                }
            }
            Request::Resize { width, height } => self.resize(id, width, height),
            Request::Kill => self.kill_exec(id),
            Request::Dial { port } => self.dial(id, port),
            Request::Reopen { container } => {
                let result = self.reopen(&container);
                self.reply_result(id, result);
            }
            Request::Forget { container } => {
                let ended = self.containers.get(&container).is_none_or(|c| !c.is_running());
                if ended {
                    self.containers.remove(&container);
                }
                let result = if ended { Ok(()) } else { Err(Failure::new("container is running")) };
                self.reply_result(id, result);
            }
            Request::Shutdown => {
                self.stopping = Some(id);
                self.kill_everything();
            }
        }
    }

    fn dial(&mut self, id: u64, port: u16) {
        // Loopback answers at once: it connects or refuses, it does not wait.
        let connect = |address: &str| std::net::TcpStream::connect((address, port));
        match connect("127.0.0.1").or_else(|first| connect("::1").map_err(|_| first)) {
            Ok(stream) => {
                let streams = Reply::Streams { stdin: false, stdout: false, stderr: false, terminal: false };
                self.reply(id, &streams, &[stream.as_fd()]);
            }
            Err(e) => {
                let what =
                    format!("failed to connect to localhost:{port} inside the pod's network namespace");
                self.reply(id, &Reply::Failed { failure: Failure::during(what)(e) }, &[]);
            }
        }
    }

    fn resize(&mut self, id: u64, width: u16, height: u16) {
        let Some(connection) = self.connections.get(&id) else { return };
        let terminal = match &connection.role {
            Role::Attached { container } => self.containers.get(container).and_then(|c| c.terminal.as_ref()),
            _ => connection.terminal.as_ref(),
        };
        if let Some(terminal) = terminal {
            // A terminal that has hung up has no size.
            let _ = sys::set_terminal_size(terminal.as_fd(), width, height);
        }
    }

    fn kill_exec(&mut self, id: u64) {
        if let Some(Connection { role: Role::Exec { pid }, .. }) = self.connections.get(&id) {
            // It leads a session of its own, so its group is its children too.
            let _ = sys::kill(-*pid, libc::SIGKILL);
            let _ = sys::kill(*pid, libc::SIGKILL);
        }
    }

    fn is_quiet(&self) -> bool {
        self.starting.is_empty() && self.containers.values().all(|c| !c.is_running())
    }

    /// Nothing runs any more: leave no trace and say so.
    fn finish(mut self) -> io::Result<()> {
        if let Some((pid, _)) = &self.pod_init {
            sys::kill(*pid, libc::SIGKILL)?;
        }
        let _ = rustix::mount::unmount(self.dir.join("shm"), rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(self.dir.join(SOCKET_FILE));
        if let Some(id) = self.stopping {
            self.reply(id, &Reply::Ok, &[]);
        }
        Ok(())
    }
}
