//! Starting, watching and ending processes.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use stdx::Clock;

use super::log::{LogWriter, Stream};
use super::output::{Attached, Output, Progress, Sink};
use super::server::{Role, Server, set_nonblocking};
use crate::init::{self, FirstProcess, FurtherProcess, SetupAnswer, SetupMessage, Stdio};
use crate::spec::{
    ContainerRecord, ContainerSpec, ExitRecord, PidMode, ProcessSpec, SECCOMP_FILE, SPEC_FILE, STATE_FILE,
    read_json, write_json,
};
use crate::sys::{self, Cloned};
use crate::wire::{self, Failure, Reply};

/// Most clients attached to one container.
const ATTACHED_MAX: usize = 64;
/// Size of the stream buffer.
const BUFFER_LEN: usize = 32 << 10;

/// A container whose first process was started here.
pub(super) struct Container {
    spec: ContainerSpec,
    dir: PathBuf,
    pub(super) record: ContainerRecord,
    pidfd: Option<OwnedFd>,
    pub(super) outputs: Vec<Output>,
    stdin: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    log: Option<LogWriter>,
    pub(super) attached: Vec<Attached>,
    /// Why its start failed although its program ran.
    failure: Option<Failure>,
}

impl Container {
    pub(super) fn is_running(&self) -> bool {
        self.pidfd.is_some() && self.record.exit.is_none()
    }
}

/// A process between its clone and its program.
pub(super) struct Starting {
    pub(super) pid: i32,
    pub(super) setup: OwnedFd,
    connection: u64,
    /// The container whose first process it is; `None` for a further process.
    first_of: Option<String>,
    terminal: Option<OwnedFd>,
    /// Whether it waits for the node's word.
    waits: bool,
    /// Client's ends of an exec's pipes.
    streams: [Option<OwnedFd>; 3],
}

/// Pipes of a process: its ends and ours, in the order stdin, stdout, stderr.
fn pipes(wanted: [bool; 3]) -> Result<(Stdio, [Option<OwnedFd>; 3]), Failure> {
    let failed = |e: nix::errno::Errno| Failure::during("create pipes")(e.into());
    let null = || {
        let file = fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        file.map(OwnedFd::from).map_err(Failure::during("open /dev/null"))
    };
    let mut ours = [None, None, None];
    let mut theirs = Vec::with_capacity(3);
    for (index, wanted) in wanted.into_iter().enumerate() {
        if !wanted {
            theirs.push(null()?);
            continue;
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        let (their, our) = if index == 0 { (read, write) } else { (write, read) };
        theirs.push(their);
        ours[index] = Some(our);
    }
    let mut theirs = theirs.into_iter();
    match (theirs.next(), theirs.next(), theirs.next()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok((Stdio { stdin, stdout, stderr }, ours)),
        _ => Err(Failure::new("create pipes")),
    }
}

impl Server {
    fn now(&self) -> i64 {
        i64::try_from(self.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// Starts a container's first process; the reply follows when its program runs.
    pub(super) fn start(&mut self, connection: u64, name: &str) -> Result<(), Failure> {
        if self.containers.contains_key(name) || self.stopping.is_some() {
            return Err(Failure::new(format!("container {name} cannot be started again")));
        }
        let dir = self.dir.join("c").join(name);
        let spec: ContainerSpec = read_json(&dir.join(SPEC_FILE))
            .map_err(Failure::during("read specification"))?
            .ok_or_else(|| Failure::new(format!("container {name} is unknown")))?;
        let filter = fs::read(dir.join(SECCOMP_FILE)).ok();
        let log = match spec.log_path.as_os_str().is_empty() {
            true => None,
            false => Some(LogWriter::open(&spec.log_path, spec.log_rotation).map_err(Failure::during(
                format!("failed to create container log {}", spec.log_path.display()),
            ))?),
        };
        let (stdio, [stdin, stdout, stderr]) = match spec.process.tty {
            true => (None, [None, None, None]),
            false => {
                let (theirs, ours) = pipes([spec.stdin, true, true])?;
                (Some(theirs), ours)
            }
        };
        let (setup, setup_child) = wire::pair().map_err(Failure::during("create setup socket"))?;
        let cgroup = self.cgroups.open(&spec.cgroup).map_err(|e| Failure::new(e.to_string()))?;
        let first = FirstProcess {
            spec: &spec,
            dir: &dir,
            sandbox_dir: &self.dir,
            cgroups: &self.cgroups,
            seccomp: filter.as_deref(),
            stdio,
            setup: setup_child,
            user: self.user(),
        };
        let (pid, pidfd) = match self.clone_into(&spec.pid, cgroup.as_ref().map(AsFd::as_fd))? {
            Cloned::Child => init::run_first(first),
            Cloned::Parent(pid, pidfd) => (pid, pidfd),
        };
        drop(first);
        let mut outputs = Vec::new();
        for (fd, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            if let Some(fd) = fd {
                set_nonblocking(fd.as_fd()).map_err(Failure::during("set up streams"))?;
                outputs.push(Output::new(fd, stream));
            }
        }
        let record = ContainerRecord { pid, started_at: self.now(), exit: None };
        let container = Container {
            spec,
            dir,
            record,
            pidfd: Some(pidfd),
            outputs,
            stdin,
            terminal: None,
            log,
            attached: Vec::new(),
            failure: None,
        };
        self.containers.insert(name.to_owned(), container);
        self.starting.push(Starting {
            pid,
            setup,
            connection,
            first_of: Some(name.to_owned()),
            terminal: None,
            waits: false,
            streams: [None, None, None],
        });
        Ok(())
    }

    /// Clones into the PID namespace that `mode` asks for, with a mount namespace of its own.
    fn clone_into(&self, mode: &PidMode, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Failure> {
        let namespace = match mode {
            PidMode::Private | PidMode::Node => None,
            PidMode::Pod => match &self.pod_init {
                Some((_, pidfd)) => Some(pidfd.as_fd()),
                None => return Err(Failure::new("the pod has no PID namespace of its own")),
            },
            PidMode::Container(target) => Some(self.running(target)?),
        };
        let own = if *mode == PidMode::Private { libc::CLONE_NEWPID } else { 0 };
        self.clone_in(namespace, (libc::CLONE_NEWNS | own) as u64, cgroup)
    }

    /// Clones with the PID namespace of `namespace`'s process. Only children are affected by entering one, so
    /// it is left again at once.
    fn clone_in(
        &self,
        namespace: Option<BorrowedFd<'_>>,
        flags: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Cloned, Failure> {
        if let Some(namespace) = namespace {
            sys::setns(namespace, libc::CLONE_NEWPID).map_err(Failure::during("enter PID namespace"))?;
        }
        // SAFETY: this process has one thread.
        let cloned = unsafe { sys::clone_process(flags, cgroup) };
        if namespace.is_some() && !matches!(cloned, Ok(Cloned::Child)) {
            sys::setns(self.own_pid_namespace.as_fd(), libc::CLONE_NEWPID)
                .map_err(Failure::during("leave PID namespace"))?;
        }
        cloned.map_err(Failure::during("clone"))
    }

    fn running(&self, name: &str) -> Result<BorrowedFd<'_>, Failure> {
        let container = self.containers.get(name).filter(|c| c.is_running());
        let pidfd = container.and_then(|c| c.pidfd.as_ref());
        pidfd.map(AsFd::as_fd).ok_or_else(|| Failure::new(format!("container {name} is not running")))
    }

    /// Records that a container could not be started.
    pub(super) fn start_failed(&mut self, connection: u64, name: &str, failure: Failure) {
        let exit = ExitRecord {
            code: failure.code,
            oom_killed: false,
            finished_at: self.now(),
            reason: "StartError".into(),
            message: failure.message.clone(),
        };
        let record = ContainerRecord { pid: 0, started_at: 0, exit: Some(exit) };
        // The node learns it from the reply too.
        let _ = write_json(&self.dir.join("c").join(name).join(STATE_FILE), &record);
        self.reply(connection, &Reply::Failed { failure }, &[]);
    }

    /// A starting process has said something, or its program runs.
    pub(super) fn setup_ready(&mut self, pid: i32) {
        let Some(at) = self.starting.iter().position(|s| s.pid == pid) else { return };
        match wire::receive::<SetupMessage>(self.starting[at].setup.as_fd()) {
            Ok(Some((SetupMessage::Terminal, fds))) => {
                self.starting[at].terminal = fds.into_iter().next();
            }
            Ok(Some((SetupMessage::Created, _))) => {
                self.starting[at].waits = true;
                self.reply(self.starting[at].connection, &Reply::Created { pid }, &[]);
            }
            Ok(Some((SetupMessage::Failed { failure }, _))) => {
                let starting = self.starting.swap_remove(at);
                match starting.first_of {
                    Some(name) => {
                        self.containers.remove(&name);
                        self.start_failed(starting.connection, &name, failure);
                    }
                    None => self.reply(starting.connection, &Reply::Failed { failure }, &[]),
                }
            }
            Ok(None) | Err(_) => {
                let starting = self.starting.swap_remove(at);
                match starting.first_of.clone() {
                    Some(name) => self.container_runs(&name, starting),
                    None => self.exec_runs(starting),
                }
            }
        }
    }

    /// The node's hooks have run.
    pub(super) fn go_on(&mut self, name: &str, failure: Option<Failure>) {
        let waiting = self.starting.iter_mut().find(|s| s.waits && s.first_of.as_deref() == Some(name));
        if let Some(starting) = waiting {
            starting.waits = false;
            // One that is gone is found by the end of its socket.
            let _ = wire::send(starting.setup.as_fd(), &SetupAnswer { pid: starting.pid, failure }, &[]);
        }
    }

    /// Nobody will say any more how the hooks went of what this connection was starting.
    pub(super) fn give_up(&mut self, connection: u64) {
        let waiting = self.starting.iter().filter(|s| s.waits && s.connection == connection);
        let names: Vec<String> = waiting.filter_map(|s| s.first_of.clone()).collect();
        for name in names {
            self.go_on(&name, Some(Failure::new("the node went away while hooks ran")));
        }
    }

    /// Ends a container whose start has failed although its program runs.
    pub(super) fn fail(&mut self, name: &str, failure: Failure) -> Result<(), Failure> {
        if let Some(container) = self.containers.get_mut(name).filter(|c| c.is_running()) {
            container.failure = Some(failure);
        }
        self.signal(name, libc::SIGKILL)
    }

    fn container_runs(&mut self, name: &str, starting: Starting) {
        let Some(container) = self.containers.get_mut(name) else { return };
        if let Some(terminal) = starting.terminal
            && set_nonblocking(terminal.as_fd()).is_ok()
            && let Ok(reader) = terminal.try_clone()
        {
            container.outputs.push(Output::new(reader, Stream::Stdout));
            container.terminal = Some(terminal);
        }
        let record = container.record.clone();
        let _ = write_json(&container.dir.join(STATE_FILE), &record);
        self.reply(starting.connection, &Reply::Started { record: record.clone() }, &[]);
        self.broadcast(&Reply::ContainerStarted { container: name.to_owned(), record });
    }

    /// Starts a further process.
    pub(super) fn exec(
        &mut self,
        connection: u64,
        name: &str,
        process: &ProcessSpec,
        wanted: [bool; 3],
    ) -> Result<(), Failure> {
        let container = self.containers.get(name).filter(|c| c.is_running());
        let container = container.ok_or_else(|| Failure::new(format!("container {name} is not running")))?;
        if self.starting.iter().any(|s| s.first_of.as_deref() == Some(name)) {
            return Err(Failure::new(format!("container {name} is still starting")));
        }
        let filter = fs::read(container.dir.join(SECCOMP_FILE)).ok();
        let (stdio, streams) = match process.tty {
            true => (None, [None, None, None]),
            false => {
                let (theirs, ours) = pipes(wanted)?;
                (Some(theirs), ours)
            }
        };
        let (setup, setup_child) = wire::pair().map_err(Failure::during("create setup socket"))?;
        let cgroup = self.cgroups.open(&container.spec.cgroup).map_err(|e| Failure::new(e.to_string()))?;
        let target = self.running(name)?;
        let further = FurtherProcess {
            process,
            cgroup: &container.spec.cgroup,
            cgroups: &self.cgroups,
            seccomp: filter.as_deref(),
            stdio,
            setup: setup_child,
            target,
            user: self.user(),
        };
        let pid = match self.clone_in(Some(target), 0, cgroup.as_ref().map(AsFd::as_fd))? {
            Cloned::Child => init::run_further(further),
            Cloned::Parent(pid, _) => pid,
        };
        drop(further);
        self.starting.push(Starting {
            pid,
            setup,
            connection,
            first_of: None,
            terminal: None,
            waits: false,
            streams,
        });
        Ok(())
    }

    fn exec_runs(&mut self, starting: Starting) {
        let Starting { pid, connection, terminal, streams, .. } = starting;
        let [stdin, stdout, stderr] = &streams;
        let reply = Reply::Streams {
            stdin: stdin.is_some(),
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
            terminal: terminal.is_some(),
        };
        let fds: Vec<BorrowedFd<'_>> =
            streams.iter().flatten().chain(terminal.as_ref()).map(AsFd::as_fd).collect();
        self.reply(connection, &reply, &fds);
        drop(fds);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.role = Role::Exec { pid };
            connection.terminal = terminal;
        }
    }

    /// Joins a client to a container's streams.
    pub(super) fn attach(&mut self, connection: u64, name: &str, wanted: [bool; 3]) -> Result<(), Failure> {
        let [stdin, stdout, stderr] = wanted;
        let failed = |e: std::io::Error| Failure::during("attach")(e);
        let container = self.containers.get_mut(name).filter(|c| c.is_running());
        let container = container.ok_or_else(|| Failure::new(format!("container {name} is not running")))?;
        if container.attached.len() >= ATTACHED_MAX {
            return Err(Failure::new("too many clients are attached"));
        }
        let mut fds: Vec<OwnedFd> = Vec::new();
        let input = container.terminal.as_ref().or(container.stdin.as_ref()).filter(|_| stdin);
        let has_stdin = input.is_some();
        if let Some(input) = input {
            fds.push(input.try_clone().map_err(failed)?);
            if container.spec.stdin_once && container.terminal.is_none() {
                // The client now holds the only end, so its closing is the container's end of input.
                container.stdin = None;
            }
        }
        let mut sink = |wanted: bool| -> Result<Option<Sink>, Failure> {
            if !wanted {
                return Ok(None);
            }
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| failed(e.into()))?;
            set_nonblocking(write.as_fd()).map_err(failed)?;
            fds.push(read);
            Ok(Some(Sink::new(write)))
        };
        let stdout = sink(stdout)?;
        let stderr = sink(stderr && container.terminal.is_none())?;
        let reply = Reply::Streams {
            stdin: has_stdin,
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
            terminal: false,
        };
        container.attached.push(Attached { connection, stdout, stderr });
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.role = Role::Attached { container: name.to_owned() };
        }
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.reply(connection, &reply, &fds);
        Ok(())
    }

    pub(super) fn output_ready(&mut self, name: &str, index: usize) {
        let now = self.clock.now();
        let Some(container) = self.containers.get_mut(name) else { return };
        let Container { outputs, log, attached, .. } = container;
        let Some(output) = outputs.get_mut(index) else { return };
        let mut buffer = [0; BUFFER_LEN];
        if output.pump(&mut buffer, log, attached, now, false) == Progress::Ended {
            output.finish(log, now);
            outputs.remove(index);
        }
    }

    pub(super) fn flush_sinks(&mut self, name: &str) {
        let Some(container) = self.containers.get_mut(name) else { return };
        for client in &mut container.attached {
            for sink in [&mut client.stdout, &mut client.stderr] {
                if sink.as_mut().is_some_and(|s| !s.flush()) {
                    *sink = None;
                }
            }
        }
    }

    pub(super) fn signal(&mut self, name: &str, signal: i32) -> Result<(), Failure> {
        let Some(container) = self.containers.get(name) else {
            return Err(Failure::new(format!("container {name} is unknown")));
        };
        match &container.pidfd {
            Some(pidfd) if container.is_running() => {
                sys::pidfd_signal(pidfd.as_fd(), signal).map_err(Failure::during("signal"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn reopen(&mut self, name: &str) -> Result<(), Failure> {
        match self.containers.get_mut(name).and_then(|c| c.log.as_mut()) {
            Some(log) => log.reopen().map_err(Failure::during("reopen log")),
            None => Err(Failure::new(format!("container {name} is not running"))),
        }
    }

    pub(super) fn kill_everything(&mut self) {
        for container in self.containers.values().filter(|c| c.is_running()) {
            if let Some(pidfd) = &container.pidfd {
                let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            }
            if container.spec.pid != PidMode::Private {
                let _ = self.cgroups.kill(&container.spec.cgroup);
            }
        }
    }

    /// Takes note of every process that has ended.
    pub(super) fn reap(&mut self) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while nix::unistd::read(self.signals.as_fd(), &mut info).is_ok_and(|n| n > 0) {}
        while let Some((pid, code)) = sys::reap() {
            // Its last words may still wait in the socket.
            while self.starting.iter().any(|s| s.pid == pid) {
                self.setup_ready(pid);
            }
            let first = self.containers.iter().find(|(_, c)| c.record.pid == pid && c.is_running());
            if let Some(name) = first.map(|(name, _)| name.clone()) {
                self.container_ended(&name, code);
                continue;
            }
            let exec = self.connections.iter().find(|(_, c)| c.role == Role::Exec { pid });
            if let Some(id) = exec.map(|(id, _)| *id) {
                self.reply(id, &Reply::Exited { code }, &[]);
                self.drop_connection(id);
            }
        }
    }

    fn container_ended(&mut self, name: &str, code: i32) {
        let (now, finished_at) = (self.clock.now(), self.now());
        let Some(container) = self.containers.get_mut(name) else { return };
        if container.spec.pid != PidMode::Private {
            // Without a PID namespace of its own nobody else ends what it left behind.
            let _ = self.cgroups.kill(&container.spec.cgroup);
        }
        let Container { outputs, log, attached, .. } = container;
        let mut buffer = [0; BUFFER_LEN];
        for output in outputs.iter_mut() {
            output.pump(&mut buffer, log, attached, now, true);
            output.finish(log, now);
        }
        let failure = container.failure.take();
        let code = failure.as_ref().map_or(code, |failure| failure.code);
        let oom_killed = failure.is_none() && code != 0 && self.cgroups.oom_kills(&container.spec.cgroup) > 0;
        let reason = match code {
            _ if failure.is_some() => "StartError",
            _ if oom_killed => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        let message = failure.map_or_else(String::new, |failure| failure.message);
        let exit = ExitRecord { code, oom_killed, finished_at, reason: reason.into(), message };
        container.record.exit = Some(exit.clone());
        // If the disk is full the exit is still known here for as long as this shim lives.
        let _ = write_json(&container.dir.join(STATE_FILE), &container.record);
        container.outputs.clear();
        (container.pidfd, container.stdin, container.terminal, container.log) = (None, None, None, None);
        let mut clients = std::mem::take(&mut container.attached);
        for client in &mut clients {
            for sink in [&mut client.stdout, &mut client.stderr].into_iter().flatten() {
                sink.flush();
            }
        }
        for client in clients {
            self.reply(client.connection, &Reply::Exited { code }, &[]);
        }
        self.broadcast(&Reply::ContainerExited { container: name.to_owned(), exit });
    }
}
