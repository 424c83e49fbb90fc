//! A runtime whose commands and ports do what their names say.

use std::time::Duration;

use async_trait::async_trait;
use cri::{
    AttachRequest, ContainerConfig, ContainerFilter, ContainerResources, ContainerStats, ContainerStatus,
    Duplex, Error, EventStream, ExecOutput, ExecRequest, PodSandboxConfig, PodSandboxFilter, PodSandboxStats,
    PodSandboxStatus, Result, RuntimeInfo, RuntimeService, StreamSession, TerminalSize,
};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// What it was asked for, and what happened to the processes.
#[derive(Debug, Default)]
pub(super) struct Scripted {
    pub(super) execs: Mutex<Vec<ExecRequest>>,
    pub(super) attaches: Mutex<Vec<AttachRequest>>,
    /// Cancelled when the input of a `forever` ends.
    pub(super) input_ended: CancellationToken,
    /// Cancelled when the client's direction of a forwarded port ends.
    pub(super) port_ended: CancellationToken,
}

/// The process's own ends of its streams.
struct Process {
    stdin: DuplexStream,
    stdout: DuplexStream,
    stderr: DuplexStream,
    sizes: mpsc::Receiver<TerminalSize>,
    exit: oneshot::Sender<i32>,
}

fn process(tty: bool) -> (Process, StreamSession) {
    let (stdin, stdin_far) = tokio::io::duplex(1024);
    let (stdout, stdout_far) = tokio::io::duplex(1024);
    let (stderr, stderr_far) = tokio::io::duplex(1024);
    let (resize, sizes) = mpsc::channel(4);
    let (exit, exited) = oneshot::channel();
    let session = StreamSession {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: (!tty).then(|| Box::new(stderr) as cri::BoxRead),
        resize: tty.then_some(resize),
        exit: Box::pin(async move {
            exited.await.map_err(|_| Error::Internal { message: "lost contact with the process".into() })
        }),
    };
    (Process { stdin: stdin_far, stdout: stdout_far, stderr: stderr_far, sizes, exit }, session)
}

async fn run(command: Vec<String>, mut process: Process, ended: CancellationToken) {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let code = match words[..] {
        // Repeats its input, and says at its end that it saw it.
        ["cat"] => {
            tokio::io::copy(&mut process.stdin, &mut process.stdout).await.unwrap();
            process.stdout.write_all(b"<end>").await.unwrap();
            0
        }
        ["fail", code] => {
            process.stdout.write_all(b"out").await.unwrap();
            // Nobody may have asked for it.
            let _ = process.stderr.write_all(b"err").await;
            code.parse().unwrap()
        }
        ["much"] => {
            process.stdout.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
            0
        }
        // Ends, while a child of it keeps the output open.
        ["leaves-child"] => {
            process.stdout.write_all(b"parent").await.unwrap();
            let _ = process.exit.send(0);
            let _ = process.stdin.read_to_end(&mut Vec::new()).await;
            return;
        }
        ["size"] => {
            let size = process.sizes.recv().await.unwrap();
            let text = format!("{}x{}", size.width, size.height);
            process.stdout.write_all(text.as_bytes()).await.unwrap();
            0
        }
        // Until its input ends.
        ["forever"] => {
            let _ = process.stdin.read_to_end(&mut Vec::new()).await;
            ended.cancel();
            return;
        }
        ref other => panic!("{other:?}"),
    };
    let Process { stdout, stderr, exit, .. } = process;
    drop((stdout, stderr));
    let _ = exit.send(code);
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::Unsupported { message: what.into() })
}

#[async_trait]
impl RuntimeService for Scripted {
    async fn exec(&self, request: ExecRequest) -> Result<StreamSession> {
        self.execs.lock().push(request.clone());
        if request.command[0] == "missing" {
            let message = "exec: \"missing\": executable file not found in $PATH: unknown".into();
            return Err(Error::Exec { message, exit_code: 127 });
        }
        let (process, session) = process(request.tty);
        tokio::spawn(run(request.command, process, self.input_ended.clone()));
        Ok(session)
    }

    async fn attach(&self, request: AttachRequest) -> Result<StreamSession> {
        self.attaches.lock().push(request.clone());
        let (process, session) = process(request.tty);
        tokio::spawn(run(vec!["fail".into(), "3".into()], process, self.input_ended.clone()));
        Ok(session)
    }

    async fn port_forward(&self, _: &str, port: u16) -> Result<Box<dyn Duplex>> {
        if port == 81 {
            let message = "failed to connect to localhost:81 inside namespace \"n\": \
                           Connection refused (os error 111)";
            return Err(Error::Network { message: message.into() });
        }
        let (near, mut far) = tokio::io::duplex(1024);
        let ended = self.port_ended.clone();
        tokio::spawn(async move {
            match port {
                // Answers when everything was said.
                80 => {
                    let mut text = String::new();
                    far.read_to_string(&mut text).await.unwrap();
                    far.write_all(format!("got {text}").as_bytes()).await.unwrap();
                }
                // Greets and hangs up.
                82 => far.write_all(b"bye").await.unwrap(),
                // Listens only.
                83 => drop(far.read_to_end(&mut Vec::new()).await),
                // Repeats.
                _ => {
                    let (mut read, mut write) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                }
            }
            ended.cancel();
        });
        Ok(Box::new(near))
    }

    async fn info(&self) -> Result<RuntimeInfo> {
        unsupported("info")
    }
    async fn run_pod_sandbox(&self, _: PodSandboxConfig) -> Result<String> {
        unsupported("sandboxes")
    }
    async fn stop_pod_sandbox(&self, _: &str) -> Result<()> {
        unsupported("sandboxes")
    }
    async fn remove_pod_sandbox(&self, _: &str) -> Result<()> {
        unsupported("sandboxes")
    }
    async fn pod_sandbox_status(&self, _: &str) -> Result<PodSandboxStatus> {
        unsupported("sandboxes")
    }
    async fn list_pod_sandboxes(&self, _: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>> {
        unsupported("sandboxes")
    }
    async fn pod_sandbox_stats(&self, _: &str) -> Result<PodSandboxStats> {
        unsupported("sandboxes")
    }
    async fn create_container(&self, _: &str, _: ContainerConfig) -> Result<String> {
        unsupported("containers")
    }
    async fn start_container(&self, _: &str) -> Result<()> {
        unsupported("containers")
    }
    async fn stop_container(&self, _: &str, _: Duration) -> Result<()> {
        unsupported("containers")
    }
    async fn remove_container(&self, _: &str) -> Result<()> {
        unsupported("containers")
    }
    async fn container_status(&self, _: &str) -> Result<ContainerStatus> {
        unsupported("containers")
    }
    async fn list_containers(&self, _: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        unsupported("containers")
    }
    async fn container_stats(&self, _: &str) -> Result<ContainerStats> {
        unsupported("statistics")
    }
    async fn list_container_stats(&self, _: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        unsupported("statistics")
    }
    async fn update_container_resources(&self, _: &str, _: &ContainerResources) -> Result<()> {
        unsupported("resources")
    }
    async fn reopen_container_log(&self, _: &str) -> Result<()> {
        unsupported("logs")
    }
    fn events(&self) -> EventStream {
        futures_util::stream::empty().boxed()
    }
    async fn exec_sync(&self, _: &str, _: &[String], _: Duration) -> Result<ExecOutput> {
        unsupported("exec_sync")
    }
}
