//! The node's zygote: started when first needed, started anew when lost.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::sync::Mutex;

use super::connection::Connection;
use crate::shim::ZYGOTE_ARGUMENT;
use crate::spec::SandboxSpec;
use crate::wire::{self, Spawn};

/// Makes shims.
#[derive(Debug)]
pub(super) struct Zygote {
    program: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    socket: Connection,
    /// Reaped by tokio once it has ended, which it does when `socket` closes.
    _process: tokio::process::Child,
}

impl Zygote {
    pub(super) fn new(program: PathBuf) -> Zygote {
        Zygote { program, running: Mutex::new(None) }
    }

    /// Starts the process ahead of need.
    pub(super) async fn warm_up(&self) -> io::Result<()> {
        let mut running = self.running.lock().await;
        if running.is_none() {
            *running = Some(self.start()?);
        }
        Ok(())
    }

    /// Asks for a shim; its first packet comes on the connection returned.
    pub(super) async fn spawn(&self, dir: &Path, spec: SandboxSpec) -> io::Result<Connection> {
        let (ours, theirs) = wire::pair()?;
        let request = Spawn { dir: dir.to_owned(), spec };
        let mut running = self.running.lock().await;
        // Once more with a new zygote, if the old one was killed.
        for last in [false, true] {
            if running.is_none() {
                *running = Some(self.start()?);
            }
            let Some(zygote) = &*running else { break };
            match zygote.socket.send(&request, &[theirs.as_fd()]).await {
                Ok(()) => break,
                Err(e) if last => return Err(e),
                Err(_) => *running = None,
            }
        }
        drop(theirs);
        Connection::new(ours)
    }

    fn start(&self) -> io::Result<Running> {
        let (ours, theirs): (OwnedFd, OwnedFd) = wire::pair()?;
        let process = tokio::process::Command::new(&self.program)
            .arg(ZYGOTE_ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Running { socket: Connection::new(ours)?, _process: process })
    }
}
