//! What sandboxes and containers were made with, on disk: making a container needs its sandbox's
//! configuration again, also after a restart, and old runtimes do not tell limits.
//!
//! One file for each sandbox, written when something in it changes; files of sandboxes that the runtime no
//! longer knows go when the sandbox is removed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use cri::{ContainerResources, LogRotation, PodSandboxConfig};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What is known of a sandbox.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    config: PodSandboxConfig,
    containers: BTreeMap<String, Made>,
}

/// What a container was made with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Made {
    /// Limits, with later changes.
    pub(super) resources: ContainerResources,
    /// When its log is rotated.
    pub(super) log_rotation: Option<LogRotation>,
}

/// All records.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    sandboxes: Mutex<HashMap<String, Record>>,
}

/// Whether an id is fit to be a file's name: runtimes give hexadecimal ones.
fn is_plain(id: &str) -> bool {
    !id.is_empty()
        && id.len() < 200
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

impl Records {
    /// Reads what an earlier process wrote.
    pub(super) fn open(directory: &Path) -> io::Result<Records> {
        std::fs::create_dir_all(directory)?;
        let mut sandboxes = HashMap::new();
        for entry in std::fs::read_dir(directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_suffix(".json") else { continue };
            // A file that was cut off tells nothing; the sandbox is then made anew when it is needed.
            let read = std::fs::read(entry.path()).ok();
            if let Some(record) = read.and_then(|text| serde_json::from_slice(&text).ok()) {
                sandboxes.insert(id.to_owned(), record);
            }
        }
        Ok(Records { directory: directory.to_owned(), sandboxes: Mutex::new(sandboxes) })
    }

    fn change(&self, sandbox: &str, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        if !is_plain(sandbox) {
            return Err(io::Error::other(format!("unexpected id of a sandbox: {sandbox:?}")));
        }
        let mut sandboxes = self.sandboxes.lock();
        let record = sandboxes.entry(sandbox.to_owned()).or_default();
        change(record);
        let text = serde_json::to_vec(record)?;
        let path = self.directory.join(format!("{sandbox}.json"));
        let fresh = self.directory.join(format!("{sandbox}.new"));
        std::fs::write(&fresh, text)?;
        std::fs::rename(fresh, path)
    }

    /// A sandbox was made.
    pub(super) fn sandbox_made(&self, id: &str, config: PodSandboxConfig) -> io::Result<()> {
        self.change(id, |record| record.config = config)
    }

    /// A container was made, or its limits were changed.
    pub(super) fn container_made(&self, sandbox: &str, id: &str, made: Made) -> io::Result<()> {
        self.change(sandbox, |record| drop(record.containers.insert(id.to_owned(), made)))
    }

    /// A container is gone.
    pub(super) fn container_gone(&self, id: &str) -> io::Result<()> {
        let of = |(_, record): &(&String, &Record)| record.containers.contains_key(id);
        let found = self.sandboxes.lock().iter().find(of).map(|(sandbox, _)| sandbox.clone());
        match found {
            Some(sandbox) => self.change(&sandbox, |record| drop(record.containers.remove(id))),
            None => Ok(()),
        }
    }

    /// A sandbox is gone.
    pub(super) fn sandbox_gone(&self, id: &str) -> io::Result<()> {
        if self.sandboxes.lock().remove(id).is_none() {
            return Ok(());
        }
        match std::fs::remove_file(self.directory.join(format!("{id}.json"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All sandboxes.
    pub(super) fn ids(&self) -> Vec<String> {
        self.sandboxes.lock().keys().cloned().collect()
    }

    /// The configuration a sandbox was made with.
    pub(super) fn sandbox(&self, id: &str) -> Option<PodSandboxConfig> {
        self.sandboxes.lock().get(id).map(|record| record.config.clone())
    }

    /// What a container was made with.
    pub(super) fn container(&self, sandbox: &str, id: &str) -> Option<Made> {
        self.sandboxes.lock().get(sandbox)?.containers.get(id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_their_process() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).unwrap();
        let config = PodSandboxConfig { name: "p".into(), ..PodSandboxConfig::default() };
        let made = Made {
            resources: ContainerResources { cpu_shares: 7, ..Default::default() },
            log_rotation: None,
        };
        records.sandbox_made("s", config.clone()).unwrap();
        records.container_made("s", "c", made.clone()).unwrap();
        assert!(records.sandbox_made("../s", config.clone()).is_err());
        drop(records);

        let records = Records::open(directory.path()).unwrap();
        assert_eq!(records.sandbox("s"), Some(config));
        assert_eq!(records.container("s", "c"), Some(made));
        records.container_gone("c").unwrap();
        assert_eq!(records.container("s", "c"), None);
        records.sandbox_gone("s").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
