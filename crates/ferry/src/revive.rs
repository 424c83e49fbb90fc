//! Life after a store that failed: wait until its disk takes writes, then begin again as a new process.
//!
//! After a failed commit nobody knows what the disk holds, so nothing in memory may be trusted; the log says what
//! was committed when it is read again. Pods outlive this as they outlive any restart.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Bytes that must fit before it is worth beginning again: reading the log writes a little, and so does the
/// first minute of a cluster.
const ROOM: usize = 32 << 20;
/// First and longest time between looks at a disk: nothing tells of room on one.
const LOOK_FIRST: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(15);

/// Returns when files in `directory` can be written and synced.
pub async fn writable(directory: &Path) {
    let mut wait = LOOK_FIRST;
    loop {
        tokio::time::sleep(wait).await;
        let directory = directory.to_owned();
        match tokio::task::spawn_blocking(move || probe(&directory)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(%error, "the store's disk takes no writes yet"),
            Err(error) => tracing::warn!(%error, "the store's disk could not be tried"),
        }
        wait = (wait * 2).min(LOOK_MAX);
    }
}

fn probe(directory: &Path) -> std::io::Result<()> {
    // Without a name: it is gone whatever happens.
    let mut file = tempfile::tempfile_in(directory)?;
    file.write_all(&vec![0; ROOM])?;
    file.sync_all()
}

/// Replaces this process by a new one of the same program and arguments; answers why that was not possible.
pub fn begin_again() -> anyhow::Error {
    println!("\nbeginning again");
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "ferry".into());
    let error = Command::new("/proc/self/exe").arg0(name).args(arguments).exec();
    anyhow::Error::new(error).context("cannot begin again")
}

/// Takes leave of children that an earlier life of this process left to it. Called before it has any of its own.
pub fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(ended) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if ended == WaitStatus::StillAlive {
            return;
        }
    }
}
