//! What earlier builds made: results of steps by key, and compressed blobs of layers, so that the same step is
//! not taken twice.
//!
//! One file, written after a build. It may be lost without harm: the next build takes its steps again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Most records; the ones not used for longest go first.
const RECORDS_MAX: usize = 20_000;

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// The layer it made; `None` where it changed nothing or stands for something else than files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// A value that was computed instead of a layer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Compressed form of a layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
    /// Size of that, bytes.
    #[serde(default)]
    pub blob_size: u64,
    /// Size on disk, bytes.
    #[serde(default)]
    pub size: u64,
    /// When it was made, seconds since 1970.
    pub created_at: i64,
    /// When it was last used.
    pub used_at: i64,
    /// The instruction, for people.
    #[serde(default)]
    pub what: String,
}

/// The records, in memory.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    pub(crate) records: BTreeMap<String, CacheRecord>,
    changed: bool,
}

impl Cache {
    /// A file that cannot be read is as good as none.
    pub(crate) fn open(root: &Path) -> Cache {
        let path = root.join("build-cache.json");
        let records = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Cache { path, records: records.unwrap_or_default(), changed: false }
    }

    pub(crate) fn get(&mut self, key: &str, now: i64) -> Option<CacheRecord> {
        let record = self.records.get_mut(key)?;
        if record.used_at != now {
            record.used_at = now;
            self.changed = true;
        }
        Some(record.clone())
    }

    pub(crate) fn put(&mut self, key: String, record: CacheRecord) {
        self.records.insert(key, record);
        self.changed = true;
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&String, &mut CacheRecord) -> bool) {
        let before = self.records.len();
        self.records.retain(keep);
        self.changed |= self.records.len() != before;
    }

    /// Writes the file if anything has changed. Not synced: see the module's head.
    pub(crate) fn save(&mut self, temp: &Path) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        if self.records.len() > RECORDS_MAX {
            let mut times: Vec<i64> = self.records.values().map(|r| r.used_at).collect();
            times.sort_unstable();
            let oldest = times.get(times.len() - RECORDS_MAX).copied().unwrap_or(i64::MIN);
            self.records.retain(|_, record| record.used_at >= oldest);
        }
        let bytes = serde_json::to_vec(&self.records)
            .map_err(|e| Error::Malformed(format!("encode build cache: {e}")))?;
        fs::write(temp, bytes)
            .and_then(|()| fs::rename(temp, &self.path))
            .map_err(Error::io("write build cache"))?;
        self.changed = false;
        Ok(())
    }
}
