//! Ferry's own keys: Secrets are sealed with AES-GCM under a key that is replaced from time to time.
//!
//! The keys are in one file that only root can read. A new key is first made durable, then used, then
//! everything is sealed anew with it; the one before stays for the history that is not compacted yet.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use stdx::Clock;
use store::Store;

use crate::cipher::Cipher;
use crate::sealed::rewrite_stale;
use crate::{Rule, Rules};

/// Age at which a key is replaced.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Keys that are kept: the one in use and the one before.
const KEPT: usize = 2;
const SECRET_LEN: usize = 32;
/// Pause before a rotation that failed is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// The keys cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file cannot be read or written.
    #[error("cannot {doing} the encryption keys in {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has something else in it.
    #[error("the encryption keys in {} are damaged", .0.display())]
    Damaged(PathBuf),
    /// No randomness.
    #[error("the machine gave no randomness for an encryption key")]
    Random,
}

#[derive(Serialize, Deserialize, Clone)]
struct Entry {
    name: String,
    secret: String,
    /// Seconds since the epoch.
    created: i64,
}

/// The keys, newest first, and the rules they make.
pub struct Keyring {
    path: PathBuf,
    entries: Vec<Entry>,
    clock: Arc<dyn Clock>,
    rules: Arc<ArcSwap<Rules>>,
}

impl Keyring {
    /// Reads the keys, or makes the first.
    pub fn open_or_create(path: &Path, clock: Arc<dyn Clock>) -> Result<Keyring, KeyringError> {
        let entries = match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|_| KeyringError::Damaged(path.to_owned()))?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(KeyringError::File { doing: "read", path: path.to_owned(), source }),
        };
        let mut ring = Keyring { path: path.to_owned(), entries, clock, rules: Arc::default() };
        if ring.entries.is_empty() {
            ring.add_key()?;
        }
        ring.publish()?;
        Ok(ring)
    }

    /// The rules; replaced whenever a key is.
    pub fn rules(&self) -> Arc<ArcSwap<Rules>> {
        self.rules.clone()
    }

    /// Seals anew what is not sealed with the newest key, then replaces keys as they get old. Never returns.
    pub async fn keep(mut self, inner: Arc<dyn Store>) {
        loop {
            let wait = match self.turn(&inner).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(error = &*error, "encryption keys could not be rotated");
                    RETRY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One look: rotates if it is time, seals anew what is not sealed with the newest key. Returns when to look
    /// again.
    pub async fn turn(
        &mut self,
        inner: &Arc<dyn Store>,
    ) -> Result<Duration, Box<dyn std::error::Error + Send + Sync>> {
        if self.age() >= LIFETIME {
            self.add_key()?;
            self.publish()?;
        }
        let count = rewrite_stale(inner, &self.rules.load()).await?;
        if count > 0 {
            tracing::info!(count, "Secrets were encrypted with the newest key");
        }
        Ok(LIFETIME.saturating_sub(self.age()).max(RETRY))
    }

    fn age(&self) -> Duration {
        let Some(newest) = self.entries.first() else { return LIFETIME };
        let age = self.clock.now().as_second().saturating_sub(newest.created);
        // A clock that was set back makes no key old.
        Duration::from_secs(age.max(0).unsigned_abs())
    }

    /// Makes a key and writes it down before anything can be sealed with it.
    fn add_key(&mut self) -> Result<(), KeyringError> {
        let mut secret = [0; SECRET_LEN];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| KeyringError::Random)?;
        let created = self.clock.now().as_second();
        let name = format!("ferry-{created}");
        let mut entries = self.entries.clone();
        entries.insert(0, Entry { name, secret: STANDARD.encode(secret), created });
        entries.truncate(KEPT);
        write_private(&self.path, &serde_json::to_vec(&entries).unwrap_or_default())
            .map_err(|source| KeyringError::File { doing: "write", path: self.path.clone(), source })?;
        self.entries = entries;
        Ok(())
    }

    fn publish(&self) -> Result<(), KeyringError> {
        let damaged = || KeyringError::Damaged(self.path.clone());
        let mut ciphers = Vec::new();
        for entry in &self.entries {
            let secret = STANDARD.decode(&entry.secret).map_err(|_| damaged())?;
            ciphers.push(Cipher::aes_gcm(&entry.name, secret).map_err(|_| damaged())?);
        }
        // What an earlier version wrote plainly can be read until it is sealed.
        ciphers.push(Cipher::identity());
        self.rules.store(Arc::new(Rules(vec![Rule { resources: vec!["secrets".into()], ciphers }])));
        Ok(())
    }
}

/// Writes a file that only its owner can read: whole or not at all, also when the machine stops.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
