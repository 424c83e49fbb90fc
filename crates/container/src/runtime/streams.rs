//! Exec, attach and port-forward.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::{AttachRequest, BoxRead, BoxWrite, Duplex, ExecOutput, ExecRequest, StreamSession, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};

use super::connection::{Connection, FdStream, InputStream, ask};
use super::{Container, Runtime, lost};
use crate::spec::ProcessSpec;
use crate::wire::{Failure, Reply, Request};

/// Most output of a short command that is kept, as in the kubelet and containerd (16 MiB).
const OUTPUT_LEN_MAX: usize = 16 << 20;
/// How long output may still come after a short command has ended, if a child of it holds the pipe.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Terminal sizes that may wait; only the last matters.
const RESIZES_MAX: usize = 8;

/// A process in a container, or a container, as its connection and streams.
struct Joined {
    connection: Connection,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

fn unexpected(reply: &Reply) -> cri::Error {
    cri::Error::Internal { message: format!("unexpected answer of shim: {reply:?}") }
}

fn io(context: &'static str) -> impl FnOnce(std::io::Error) -> cri::Error {
    move |e| cri::Error::io(context, e)
}

async fn join(
    container: &Container,
    request: &Request,
    failed: impl FnOnce(Failure) -> cri::Error,
) -> cri::Result<Joined> {
    let (connection, reply, fds) =
        ask(&container.sandbox.dir, request).await.map_err(lost("join container"))?;
    let (stdin, stdout, stderr, terminal) = match reply {
        Reply::Streams { stdin, stdout, stderr, terminal } => (stdin, stdout, stderr, terminal),
        Reply::Failed { failure } => return Err(failed(failure)),
        other => return Err(unexpected(&other)),
    };
    let mut fds = fds.into_iter();
    let mut next = |present: bool| if present { fds.next() } else { None };
    Ok(Joined {
        stdin: next(stdin),
        stdout: next(stdout),
        stderr: next(stderr),
        terminal: next(terminal),
        connection,
    })
}

/// Waits for the process's end while passing terminal sizes and the wish to kill on.
async fn follow(
    connection: Connection,
    mut resizes: mpsc::Receiver<TerminalSize>,
    exit: oneshot::Sender<i32>,
) {
    let mut open = true;
    loop {
        tokio::select! {
            reply = connection.reply() => match reply {
                Ok((Reply::Exited { code }, _)) => {
                    // Nobody may be left to hear it.
                    let _ = exit.send(code);
                    return;
                }
                Ok(_) => {}
                Err(_) => return,
            },
            size = resizes.recv(), if open => match size {
                Some(TerminalSize { width, height }) => {
                    let _ = connection.send(&Request::Resize { width, height }, &[]).await;
                }
                None => open = false,
            },
        }
    }
}

fn session(joined: Joined, tty: bool) -> cri::Result<StreamSession> {
    let Joined { connection, stdin, stdout, stderr, terminal } = joined;
    let reader = |fd: OwnedFd| FdStream::new(fd).map(|s| Box::new(s) as BoxRead).map_err(io("open stream"));
    let (stdin, stdout) = match terminal {
        Some(terminal) => {
            let input = terminal.try_clone().map_err(io("duplicate terminal"))?;
            (Some(input), Some(terminal))
        }
        None => (stdin, stdout),
    };
    let stdin =
        stdin.map(|fd| InputStream::new(fd).map(|s| Box::new(s) as BoxWrite).map_err(io("open stream")));
    let (resize, resizes) = mpsc::channel(RESIZES_MAX);
    let (exited, exit) = oneshot::channel();
    let streams = StreamSession {
        stdin: stdin.transpose()?,
        stdout: stdout.map(reader).transpose()?,
        stderr: stderr.map(reader).transpose()?,
        resize: tty.then_some(resize),
        exit: Box::pin(async move {
            exit.await.map_err(|_| cri::Error::Internal { message: "lost contact with the process".into() })
        }),
    };
    tokio::spawn(follow(connection, resizes, exited));
    Ok(streams)
}

async fn read_limited(reader: Option<OwnedFd>, into: &mut Vec<u8>) -> std::io::Result<()> {
    let Some(fd) = reader else { return Ok(()) };
    let mut stream = FdStream::new(fd)?;
    let mut limited = (&mut stream).take(OUTPUT_LEN_MAX as u64);
    limited.read_to_end(into).await?;
    // What is too much is read and dropped, so that the command can end.
    drain(stream).await
}

/// Reads what a command says until it has ended.
async fn collect(
    connection: &Connection,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
) -> cri::Result<ExecOutput> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit_code = {
        let outputs =
            async { tokio::try_join!(read_limited(stdout, &mut out), read_limited(stderr, &mut err)) };
        tokio::pin!(outputs);
        // Reading goes on while waiting: a full pipe would keep the command from ending.
        let mut drained = false;
        let code = loop {
            tokio::select! {
                reply = connection.reply() => {
                    if let (Reply::Exited { code }, _) = reply.map_err(lost("exec"))? {
                        break code;
                    }
                }
                _ = &mut outputs, if !drained => drained = true,
            }
        };
        if !drained {
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, &mut outputs).await;
        }
        code
    };
    Ok(ExecOutput { stdout: Bytes::from(out), stderr: Bytes::from(err), exit_code })
}

async fn drain(mut stream: impl AsyncRead + Unpin) -> std::io::Result<()> {
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

impl Runtime {
    fn running(&self, id: &str) -> cri::Result<Arc<Container>> {
        let container = self.container(id)?;
        let running = {
            let record = container.record.borrow();
            record.pid != 0 && record.exit.is_none()
        };
        if running {
            return Ok(container);
        }
        Err(cri::Error::InvalidState { message: format!("container {id:?} is not running") })
    }

    async fn exec_in(&self, container: &Container, request: &ExecRequest) -> cri::Result<Joined> {
        if request.command.is_empty() {
            return Err(cri::Error::CreateContainerConfig { message: "no command specified".into() });
        }
        let mut process = ProcessSpec {
            argv: request.command.clone(),
            tty: request.tty,
            rlimits: Vec::new(),
            ..container.process.clone()
        };
        if request.tty && !process.env.iter().any(|line| line.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
        let message = Request::Exec {
            container: container.id.clone(),
            process: Box::new(process),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        join(container, &message, |f| cri::Error::Exec { message: f.message, exit_code: f.code }).await
    }

    pub(super) async fn exec_session(&self, request: ExecRequest) -> cri::Result<StreamSession> {
        let container = self.running(&request.container_id)?;
        session(self.exec_in(&container, &request).await?, request.tty)
    }

    pub(super) async fn exec_and_wait(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> cri::Result<ExecOutput> {
        let container = self.running(id)?;
        let request = ExecRequest {
            container_id: id.to_owned(),
            command: command.to_vec(),
            stdout: true,
            stderr: true,
            ..ExecRequest::default()
        };
        let joined = self.exec_in(&container, &request).await?;
        let limit = if timeout.is_zero() { Duration::MAX } else { timeout };
        let connection = &joined.connection;
        let work = collect(connection, joined.stdout, joined.stderr);
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => {
                // If this does not reach it the command has ended just now.
                let _ = connection.send(&Request::Kill, &[]).await;
                Err(cri::Error::Timeout { what: format!("command {:?}", command.join(" ")), after: timeout })
            }
        }
    }

    pub(super) async fn attach_session(&self, request: AttachRequest) -> cri::Result<StreamSession> {
        let container = self.running(&request.container_id)?;
        let message = Request::Attach {
            container: request.container_id.clone(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let joined = join(&container, &message, |f| cri::Error::InvalidState { message: f.message }).await?;
        session(joined, request.tty)
    }

    pub(super) async fn dial(&self, sandbox_id: &str, port: u16) -> cri::Result<Box<dyn Duplex>> {
        let sandbox = self.sandbox(sandbox_id)?;
        if !sandbox.is_ready() {
            let message = format!("sandbox container {sandbox_id:?} is not running");
            return Err(cri::Error::InvalidState { message });
        }
        let (_, reply, fds) =
            ask(&sandbox.dir, &Request::Dial { port }).await.map_err(lost("port forward"))?;
        match (reply, fds.into_iter().next()) {
            (Reply::Streams { .. }, Some(fd)) => {
                let stream = std::net::TcpStream::from(fd);
                stream.set_nonblocking(true).map_err(io("port forward"))?;
                Ok(Box::new(tokio::net::TcpStream::from_std(stream).map_err(io("port forward"))?))
            }
            (Reply::Failed { failure }, _) => Err(cri::Error::Network { message: failure.message }),
            (other, _) => Err(unexpected(&other)),
        }
    }
}
