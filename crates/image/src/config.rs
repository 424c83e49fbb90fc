//! Manifests, indices and image configurations: the parts of them that a store needs.
//!
//! OCI image specification v1.1 and Docker's "image manifest version 2, schema 2", which has the same shape.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Most layers that an image may have: what overlayfs takes.
pub(crate) const LAYERS_MAX: usize = 127;
/// Most manifests read from one index.
const INDEX_ENTRIES_MAX: usize = 1000;

/// Media types accepted from registries.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Points at content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The machine an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
}

impl Platform {
    /// This machine.
    pub(crate) fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: String::new() }
    }
}

/// One image: its configuration and its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Images for several machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    pub(crate) manifests: Vec<Descriptor>,
}

/// Either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ManifestOrIndex {
    Manifest(Manifest),
    Index(Index),
}

impl ManifestOrIndex {
    /// Tells the two apart by shape, as media types are missing or wrong in the wild.
    pub(crate) fn parse(bytes: &[u8]) -> Result<ManifestOrIndex> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            schema_version: u32,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let bad = |e: serde_json::Error| Error::Malformed(format!("invalid manifest: {e}"));
        let probe: Probe = serde_json::from_slice(bytes).map_err(bad)?;
        if probe.schema_version != 2 {
            return Err(Error::Malformed(format!(
                "media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer \
                 supported (schema version {})",
                probe.schema_version
            )));
        }
        if probe.manifests.is_some() {
            let index: Index = serde_json::from_slice(bytes).map_err(bad)?;
            if index.manifests.len() > INDEX_ENTRIES_MAX {
                return Err(Error::TooLarge { what: "image index".into(), limit: INDEX_ENTRIES_MAX as u64 });
            }
            return Ok(ManifestOrIndex::Index(index));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(bad)?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(Error::TooLarge { what: "list of layers".into(), limit: LAYERS_MAX as u64 });
        }
        Ok(ManifestOrIndex::Manifest(manifest))
    }
}

impl Index {
    /// The entry for `platform`; an entry that names no platform serves where none matches.
    pub(crate) fn select(&self, platform: &Platform) -> Option<&Descriptor> {
        let matches = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| {
                p.os == platform.os
                    && p.architecture == platform.architecture
                    && (p.variant.is_empty() || p.variant == "v8" || p.variant == "v1")
            })
        };
        let of_arch = |d: &&Descriptor| {
            d.platform
                .as_ref()
                .is_some_and(|p| p.os == platform.os && p.architecture == platform.architecture)
        };
        let list = &self.manifests;
        list.iter()
            .find(matches)
            .or_else(|| list.iter().find(of_arch))
            .or_else(|| list.iter().find(|d| d.platform.is_none()))
    }
}

/// The image configuration document.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ImageDocument {
    #[serde(default)]
    pub(crate) config: Option<ExecutionConfig>,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

/// What the image says of processes made from it. Fields are null in many images.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ExecutionConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<HashMap<String, serde::de::IgnoredAny>>,
    exposed_ports: Option<HashMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

impl ImageDocument {
    pub(crate) fn parse(bytes: &[u8]) -> Result<ImageDocument> {
        serde_json::from_slice(bytes)
            .map_err(|e| Error::Malformed(format!("invalid image configuration: {e}")))
    }

    /// In the words of the runtime interface.
    pub(crate) fn to_cri(&self) -> cri::ImageConfig {
        let c = self.config.clone().unwrap_or_default();
        let keys = |map: Option<HashMap<String, serde::de::IgnoredAny>>| {
            let mut keys: Vec<String> = map.unwrap_or_default().into_keys().collect();
            keys.sort();
            keys
        };
        cri::ImageConfig {
            entrypoint: c.entrypoint.unwrap_or_default(),
            cmd: c.cmd.unwrap_or_default(),
            env: c.env.unwrap_or_default(),
            user: c.user.unwrap_or_default(),
            working_dir: c.working_dir.unwrap_or_default(),
            stop_signal: c.stop_signal.filter(|s| !s.is_empty()),
            volumes: keys(c.volumes).into_iter().map(Into::into).collect(),
            exposed_ports: keys(c.exposed_ports),
            labels: c.labels.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(n: u8, platform: Option<(&str, &str)>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(&[n]),
            size: 1,
            platform: platform.map(|(os, architecture)| Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: String::new(),
            }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn selects_by_platform() {
        let want = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
        let index = |manifests: Vec<Descriptor>| Index { schema_version: 2, manifests };
        let mixed = index(vec![
            descriptor(1, Some(("windows", "amd64"))),
            descriptor(2, Some(("linux", "arm64"))),
            descriptor(3, Some(("linux", "amd64"))),
        ]);
        assert_eq!(mixed.select(&want), Some(&mixed.manifests[2]));
        let untold = index(vec![descriptor(1, Some(("unknown", "unknown"))), descriptor(2, None)]);
        assert_eq!(untold.select(&want), Some(&untold.manifests[1]));
        assert_eq!(index(vec![descriptor(1, Some(("linux", "arm64")))]).select(&want), None);
    }

    #[test]
    fn tells_manifests_from_indices_and_refuses_schema_1() {
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(ManifestOrIndex::parse(index).unwrap(), ManifestOrIndex::Index(_)));
        let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(ManifestOrIndex::parse(old).unwrap_err().to_string().contains("no longer supported"));
        assert!(ManifestOrIndex::parse(b"<html>").is_err());
    }

    #[test]
    fn null_fields_are_empty() {
        let text = br#"{"config":{"Entrypoint":null,"Cmd":["sh"],"Env":null,"Volumes":{"/data":{}}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = ImageDocument::parse(text).unwrap().to_cri();
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.volumes, [std::path::PathBuf::from("/data")]);
        assert!(config.entrypoint.is_empty() && config.stop_signal.is_none());
    }
}
