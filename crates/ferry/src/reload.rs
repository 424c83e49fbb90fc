//! Configuration files that take effect without a restart. The file's directory is watched, so that files which are
//! replaced, and mounted ones whose link moves, are seen too; a broken file changes nothing but a counter.

use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::inotify;
use sha2::{Digest, Sha256};
use stdx::Clock;
use tokio::io::unix::AsyncFd;

/// Time for a change to be complete: an editor writes, renames and removes.
const SETTLE: Duration = Duration::from_millis(50);
/// Bytes of a server's identity that its name is made from (upstream's).
const IDENTITY_BYTES: usize = 16;

/// Takes a new text of a file into effect, or says why it cannot.
pub type Apply = Box<dyn Fn(&str) -> anyhow::Result<()> + Send + Sync>;

/// A configuration file that is followed.
pub struct Followed {
    /// What it configures: `authentication`, `authorization`, `encryption`.
    pub kind: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// Takes it into effect.
    pub apply: Apply,
}

/// How reloads have gone.
#[derive(Debug, Default, Clone)]
struct Tally {
    /// Number and time of the last, of those that succeeded and of those that failed.
    success: (u64, f64),
    failure: (u64, f64),
    /// Hash of what is in effect.
    hash: String,
}

/// One file's reloads; shown on the page of metrics.
pub struct Reloads {
    kind: &'static str,
    server: String,
    tally: Mutex<Tally>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn hash(text: &str) -> String {
    format!("sha256:{}", hex(&Sha256::digest(text)))
}

/// The hash of a server's identity, as upstream's metrics name servers.
fn server_hash(host: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(host);
    let mut id = String::from("apiserver-");
    let (mut held, mut bits) = (0u32, 0u32);
    let mut push = |index: u32| id.push(char::from(LETTERS[(index & 31) as usize]));
    for b in digest.iter().take(IDENTITY_BYTES) {
        held = held << 8 | u32::from(*b);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            push(held >> bits);
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        push(held << (5 - bits));
    }
    hash(&id)
}

impl Reloads {
    /// Of a file with this text, on a server of this host.
    pub fn new(kind: &'static str, host: &str, text: &str) -> Arc<Reloads> {
        let tally = Tally { hash: hash(text), ..Tally::default() };
        Arc::new(Reloads { kind, server: server_hash(host), tally: Mutex::new(tally) })
    }

    fn count(&self, text: &str, done: bool, at: f64) {
        let mut tally = self.tally.lock();
        let count = if done { &mut tally.success } else { &mut tally.failure };
        *count = (count.0 + 1, at);
        if done {
            tally.hash = hash(text);
        }
    }

    /// The lines for the page of metrics.
    pub fn render(&self, out: &mut String) {
        let (kind, server, tally) = (self.kind, &self.server, self.tally.lock().clone());
        let metric = |of: &str| format!("apiserver_{kind}_config_controller_{of}");
        let counts: Vec<(&str, (u64, f64))> = [("failure", tally.failure), ("success", tally.success)]
            .into_iter()
            .filter(|(_, (n, _))| *n > 0)
            .collect();
        let name = metric("automatic_reload_last_timestamp_seconds");
        let _ = writeln!(
            out,
            "# HELP {name} [ALPHA] Timestamp of the last automatic reload of {kind} configuration split by status and apiserver identity.\n# TYPE {name} gauge"
        );
        for (status, (_, at)) in &counts {
            let _ = writeln!(out, "{name}{{apiserver_id_hash=\"{server}\",status=\"{status}\"}} {at}");
        }
        let name = metric("automatic_reloads_total");
        let _ = writeln!(
            out,
            "# HELP {name} [ALPHA] Total number of automatic reloads of {kind} configuration split by status and apiserver identity.\n# TYPE {name} counter"
        );
        for (status, (n, _)) in &counts {
            let _ = writeln!(out, "{name}{{apiserver_id_hash=\"{server}\",status=\"{status}\"}} {n}");
        }
        let name = metric("last_config_info");
        let _ = writeln!(
            out,
            "# HELP {name} [ALPHA] Information about the last applied {kind} configuration with hash as label, split by apiserver identity.\n# TYPE {name} gauge\n{name}{{apiserver_id_hash=\"{server}\",hash=\"{}\"}} 1",
            tally.hash
        );
    }
}

/// Follows a file until dropped; `last` is its text that is in effect.
pub async fn follow(followed: Followed, mut last: String, reloads: Arc<Reloads>, clock: Arc<dyn Clock>) {
    let (kind, path) = (followed.kind, &followed.path);
    let notices = match notices(path) {
        Ok(notices) => notices,
        Err(error) => {
            tracing::error!(%error, file = %path.display(), "changes of the {kind} configuration are not seen");
            return;
        }
    };
    loop {
        // It may have changed before it was watched.
        match std::fs::read_to_string(path) {
            Ok(text) if text == last => {}
            Ok(text) => {
                let done = (followed.apply)(&text);
                reloads.count(&text, done.is_ok(), clock.now().as_millisecond() as f64 / 1000.0);
                match done {
                    Ok(()) => tracing::info!(file = %path.display(), "reloaded the {kind} configuration"),
                    Err(error) => tracing::error!(
                        error = format!("{error:#}"), file = %path.display(), "reloading the {kind} configuration"
                    ),
                }
                last = text;
            }
            // Between two versions there may be none.
            Err(error) => tracing::warn!(%error, file = %path.display(), "the {kind} configuration"),
        }
        let Ok(mut ready) = notices.readable().await else { return };
        tokio::time::sleep(SETTLE).await;
        let mut buffer = [0u8; 4096];
        while rustix::io::read(notices.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
    }
}

fn notices(path: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let notices = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let flags = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::DELETE;
    inotify::add_watch(&notices, directory, flags)?;
    // SAFETY: an owned descriptor stays open, and itself, for as long as it lives.
    Ok(unsafe { AsyncFd::register(notices) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until the counters say so.
    async fn until(reloads: &Reloads, wanted: (u64, u64)) {
        let look = async {
            loop {
                let tally = reloads.tally.lock().clone();
                if (tally.success.0, tally.failure.0) == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), look).await.unwrap();
    }

    #[tokio::test]
    async fn files_take_effect_and_broken_ones_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, "one").unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let apply: Apply = Box::new(move |text| {
            anyhow::ensure!(text != "broken", "it is broken");
            log.lock().push(text.to_owned());
            Ok(())
        });
        let reloads = Reloads::new("encryption", "host", "one");
        let followed = Followed { kind: "encryption", path: path.clone(), apply };
        let task = tokio::spawn(follow(followed, "one".into(), reloads.clone(), stdx::SystemClock::shared()));
        std::fs::write(&path, "two").unwrap();
        until(&reloads, (1, 0)).await;
        std::fs::write(&path, "broken").unwrap();
        until(&reloads, (1, 1)).await;
        // Replaced at once, as careful people do it; then by a link that moves, as volumes do.
        std::fs::write(directory.path().join("next"), "three").unwrap();
        std::fs::rename(directory.path().join("next"), &path).unwrap();
        until(&reloads, (2, 1)).await;
        std::fs::write(directory.path().join("data"), "four").unwrap();
        std::os::unix::fs::symlink("data", directory.path().join("link")).unwrap();
        std::fs::rename(directory.path().join("link"), &path).unwrap();
        until(&reloads, (3, 1)).await;
        task.abort();
        assert_eq!(*seen.lock(), ["two", "three", "four"]);
        let mut out = String::new();
        reloads.render(&mut out);
        let server = server_hash("host");
        for line in [
            format!(
                "apiserver_encryption_config_controller_automatic_reloads_total{{apiserver_id_hash=\"{server}\",status=\"success\"}} 3"
            ),
            format!(
                "apiserver_encryption_config_controller_automatic_reloads_total{{apiserver_id_hash=\"{server}\",status=\"failure\"}} 1"
            ),
            format!(
                "apiserver_encryption_config_controller_last_config_info{{apiserver_id_hash=\"{server}\",hash=\"{}\"}} 1",
                hash("four")
            ),
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }

    #[test]
    fn servers_are_named_as_upstream_names_them() {
        // printf host | sha256sum, its first 16 bytes in base32; then the hash of that name.
        assert_eq!(server_hash("host"), hash("apiserver-i5ak4y2hwalsyajfj72vxls274"));
    }
}
