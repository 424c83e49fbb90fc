//! Being told by the kernel that memory runs short: a trigger on pressure stall information.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when tasks have waited for memory for a fifth of a second within two, the shortest window that a process
/// without privileges may watch.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// A trigger; it costs nothing while memory is plenty.
pub struct Trigger(Option<AsyncFd<File>>);

impl Trigger {
    /// Sets the trigger. Kernels without this accounting get one that never fires.
    pub fn memory() -> Trigger {
        Trigger::at(Path::new("/proc/pressure/memory"))
    }

    #[expect(deprecated, reason = "its successor is unsafe; a file owns its descriptor")]
    fn at(path: &Path) -> Trigger {
        let set = || -> std::io::Result<AsyncFd<File>> {
            let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            let mut file = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(path)?;
            file.write_all(TRIGGER)?;
            AsyncFd::with_interest(file, Interest::PRIORITY)
        };
        match set() {
            Ok(file) => Trigger(Some(file)),
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell of memory pressure");
                Trigger(None)
            }
        }
    }

    /// Ready when there is pressure; never where the kernel does not tell.
    pub async fn fired(&self) {
        let Some(file) = &self.0 else { return std::future::pending().await };
        match file.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_quiet_machine_fires_nothing() {
        let none = Trigger::at(Path::new("/nonexistent"));
        assert!(none.0.is_none());
        tokio::time::timeout(Duration::from_millis(10), none.fired()).await.unwrap_err();
        // Where the kernel has it, setting it works.
        if std::fs::metadata("/proc/pressure/memory").is_ok() && rustix::process::geteuid().is_root() {
            assert!(Trigger::memory().0.is_some());
        }
    }
}
