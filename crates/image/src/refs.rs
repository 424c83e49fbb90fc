//! Which reference stands for which image: one small JSON file, replaced atomically.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::content::write_atomically;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// What a reference stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefTarget {
    /// The image's manifest (never an index).
    pub(crate) manifest: Digest,
    /// The image id: digest of its configuration.
    pub(crate) image: Digest,
    /// When it was added, seconds since 1970.
    pub(crate) added_at: i64,
    /// Whether it was imported or built here: no registry could give it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) local: bool,
}

impl RefTarget {
    pub(crate) fn added(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.added_at).ok()
    }
}

/// The file, in memory.
#[derive(Debug)]
pub(crate) struct Refs {
    path: PathBuf,
    map: BTreeMap<String, RefTarget>,
}

impl Refs {
    pub(crate) fn open(root: &Path) -> Result<Refs> {
        let path = root.join("refs.json");
        let map = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::Malformed(format!("{}: {e}", path.display())))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(Error::io(format!("read {}", path.display()))(e)),
        };
        Ok(Refs { path, map })
    }

    pub(crate) fn all(&self) -> &BTreeMap<String, RefTarget> {
        &self.map
    }

    /// Applies a change and makes it durable; on failure nothing has changed.
    pub(crate) fn update(
        &mut self,
        temp: &Path,
        change: impl FnOnce(&mut BTreeMap<String, RefTarget>),
    ) -> Result<()> {
        let mut map = self.map.clone();
        change(&mut map);
        if map == self.map {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(&map)
            .map_err(|e| Error::Malformed(format!("encode image references: {e}")))?;
        write_atomically(&self.path, temp, &bytes)?;
        self.map = map;
        Ok(())
    }
}
