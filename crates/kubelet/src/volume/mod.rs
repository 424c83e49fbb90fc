//! Volumes of pods: made before the sandbox, kept current while the pod runs, taken away at its end.

pub mod atomic;
pub mod certificate;
mod claim;
pub mod device;
pub mod figures;
mod job;
pub mod loops;
pub mod medium;
pub mod mount;
pub mod nfs;
pub mod payload;
pub mod problem;
mod projected;
pub mod token;
pub mod trust;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Volume;
use api::prelude::*;
use client::Client;
use futures_util::future::join_all;
use jiff::Timestamp;
use parking_lot::Mutex;
use stdx::Clock;

use self::certificate::Certificates;
use self::job::Job;
use self::problem::Failed;
use self::token::Tokens;
use self::trust::TrustBundles;
use crate::counters::Counters;
use crate::csi::volume::CsiVolumes;
use crate::env::Facts;
use crate::references::References;
use crate::spec::{self, PodDirs};

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory or file of the node.
    Path(PathBuf),
    /// A block device of the node.
    Device {
        /// The link that leads to it.
        path: PathBuf,
        /// Containers may not write to it.
        read_only: bool,
    },
    /// The files of an image.
    Image {
        /// Reference.
        reference: String,
        /// Pull policy.
        policy: String,
    },
}

/// A volume that a claim stands behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The claim's name.
    pub claim: String,
    /// The driver's name and handle, if it is a driver's.
    pub driver: Option<(String, String)>,
}

/// Volumes of a pod by name.
#[derive(Debug, Clone, Default)]
pub struct Mounted {
    /// Where they are.
    pub sources: HashMap<String, Source>,
    /// The ones that claims stand behind.
    pub claims: HashMap<String, Claimed>,
    /// When they have to be looked at again although nothing changes: a token is due.
    pub refresh_at: Option<Timestamp>,
}

/// Makes volumes.
pub struct Volumes {
    client: Client,
    root: PathBuf,
    references: Arc<References>,
    tokens: Tokens,
    certificates: Certificates,
    trust: TrustBundles,
    /// Volumes of drivers.
    pub csi: CsiVolumes,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    /// What pods have, by uid.
    mounted: Mutex<HashMap<String, Arc<Mounted>>>,
}

/// What volumes are made with.
pub struct Parts {
    /// Client with the node's identity.
    pub client: Client,
    /// Root directory of the kubelet.
    pub root: PathBuf,
    /// ConfigMaps and Secrets.
    pub references: Arc<References>,
    /// Certificates of pods.
    pub certificates: Certificates,
    /// Trust anchors.
    pub trust: TrustBundles,
    /// Volumes of drivers.
    pub csi: CsiVolumes,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What metrics count.
    pub counters: Arc<Counters>,
}

impl Volumes {
    /// A maker of volumes.
    pub fn new(parts: Parts) -> Self {
        let Parts { client, root, references, certificates, trust, csi, clock, counters } = parts;
        let tokens = Tokens::new(client.clone(), clock.clone());
        let mounted = Mutex::default();
        Volumes { client, root, references, tokens, certificates, trust, csi, clock, counters, mounted }
    }

    /// What a pod has, if its volumes have been made in this life.
    pub fn of(&self, pod_uid: &str) -> Option<Arc<Mounted>> {
        self.mounted.lock().get(pod_uid).cloned()
    }

    /// Makes every volume that a pod's containers use, or brings it up to date. All at once: one that hangs or fails
    /// is no reason for others to.
    pub async fn set_up(&self, pod: &Pod, dirs: &PodDirs, facts: &Facts) -> Result<Arc<Mounted>, Failed> {
        let spec = spec::spec(pod);
        let (mounts, devices) = spec::used_volumes(pod);
        let before = self.of(pod.uid());
        let used = |name: &String| mounts.contains(name) || devices.contains(name);
        let jobs = spec.volumes.iter().flatten().filter(|volume| used(&volume.name)).map(|volume| {
            let as_device = devices.contains(&volume.name);
            let as_mount = mounts.contains(&volume.name);
            let mut job =
                Job { volumes: self, pod, dirs, facts, as_device, as_mount, refresh_at: None, claimed: None };
            let before = before.as_ref().and_then(|before| before.sources.get(&volume.name));
            async move {
                let began = self.clock.instant();
                let made = job.make(volume, before).await;
                let took = self.clock.instant().duration_since(began);
                self.counters.mounted(plugin_of(volume), took, made.is_err());
                (volume.name.clone(), made, job.refresh_at, job.claimed)
            }
        });
        let mut mounted = Mounted::default();
        let mut failed = Failed::default();
        for (name, made, refresh_at, claimed) in join_all(jobs).await {
            mounted.refresh_at = match (mounted.refresh_at, refresh_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            match made {
                Ok(source) => {
                    mounted.claims.extend(claimed.map(|claimed| (name.clone(), claimed)));
                    mounted.sources.insert(name, source);
                }
                Err(problem) => failed.0.push((name, problem)),
            }
        }
        if !failed.0.is_empty() {
            return Err(failed);
        }
        let mounted = Arc::new(mounted);
        self.mounted.lock().insert(pod.uid().to_owned(), mounted.clone());
        Ok(mounted)
    }

    /// Has drivers take away what they published for a pod: before anything else of it goes.
    pub async fn unpublish(&self, dirs: &PodDirs) -> Result<(), String> {
        self.csi.tear_down(dirs).await
    }

    /// Takes away what was made for a pod. Blocks.
    pub fn tear_down(&self, pod_uid: &str, dirs: &PodDirs) -> std::io::Result<()> {
        self.references.release(pod_uid);
        self.tokens.release(pod_uid);
        self.certificates.release(pod_uid);
        self.trust.release(pod_uid);
        self.mounted.lock().remove(pod_uid);
        for (plugin, volume, link) in device::mapped(dirs) {
            device::unmap(&self.root, &plugin, &volume, pod_uid, &link)?;
        }
        mount::remove_tree(&dirs.root)
    }

    /// The kubelet's root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Name of the plugin that makes a volume.
fn plugin_of(volume: &Volume) -> &'static str {
    let sources = [
        (volume.config_map.is_some(), "kubernetes.io/configmap"),
        (volume.secret.is_some(), "kubernetes.io/secret"),
        (volume.downward_api.is_some(), "kubernetes.io/downward-api"),
        (volume.projected.is_some(), "kubernetes.io/projected"),
        (volume.host_path.is_some(), "kubernetes.io/host-path"),
        (volume.nfs.is_some(), nfs::PLUGIN),
        (volume.image.is_some(), "kubernetes.io/image"),
        (volume.csi.is_some(), "kubernetes.io/csi"),
        (
            volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some(),
            "kubernetes.io/persistent-claim",
        ),
    ];
    sources.into_iter().find(|(is, _)| *is).map_or("kubernetes.io/empty-dir", |(_, name)| name)
}

fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}
