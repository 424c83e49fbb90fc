//! What drivers are told: capabilities, contexts, where things are. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolumeSpec, Secret};
use api::prelude::*;
use rpc::csi::VolumeCapability;
use rpc::csi::node_service_capability::rpc::Type;
use rpc::csi::volume_capability::access_mode::Mode;
use rpc::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use rpc::tonic;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Driver;

/// Name of the file that remembers what was published, so that it can be undone after a restart.
pub const NOTE: &str = "vol_data.json";

/// What is remembered of a published volume, in the form that upstream's kubelet keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// The driver.
    pub driver_name: String,
    /// Its name for the volume.
    pub volume_handle: String,
    /// Name of the PersistentVolume, or of the pod's volume.
    #[serde(rename = "specVolID")]
    pub spec_volume: String,
    /// `Persistent` or `Ephemeral`.
    pub volume_lifecycle_mode: String,
}

impl Note {
    /// The note of a claim's volume.
    pub fn of(source: &CSIPersistentVolumeSource, volume: &str, mode: &str) -> Note {
        Note {
            driver_name: source.driver.clone(),
            volume_handle: source.volume_handle.clone(),
            spec_volume: volume.to_owned(),
            volume_lifecycle_mode: mode.to_owned(),
        }
    }
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An error as Go's client writes it.
pub fn say(status: &tonic::Status) -> String {
    let code = format!("{:?}", status.code());
    format!("rpc error: code = {code} desc = {}", status.message())
}

/// Where a volume is staged.
pub fn staging(root: &Path, driver: &str, handle: &str) -> PathBuf {
    root.join("plugins/kubernetes.io/csi").join(driver).join(hex(Sha256::digest(handle))).join("globalmount")
}

/// Where drivers' block volumes have their files.
fn block(root: &Path) -> PathBuf {
    root.join("plugins").join(super::PLUGIN).join("volumeDevices")
}

/// Where a block volume is staged.
pub fn block_staging(root: &Path, volume: &str) -> PathBuf {
    block(root).join("staging").join(volume)
}

/// The file that a block volume is published at for a pod.
pub fn block_target(root: &Path, volume: &str, pod_uid: &str) -> PathBuf {
    block(root).join("publish").join(volume).join(pod_uid)
}

/// Where the note of a block volume is.
pub fn block_data(root: &Path, volume: &str) -> PathBuf {
    block(root).join(volume).join("data")
}

/// Name of the attachment of a volume to a node.
pub fn attachment(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hex(Sha256::digest(format!("{handle}{driver}{node}"))))
}

/// How the node calls a volume in its status.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The handle of a volume that lives with its pod.
pub fn ephemeral_handle(pod: &Pod, volume: &str) -> String {
    format!("csi-{}", hex(Sha256::digest(format!("{}{volume}", pod.uid()))))
}

/// The first access mode decides, as upstream has it.
pub fn capability(
    spec: &PersistentVolumeSpec,
    fs_type: &str,
    driver: &Driver,
    group: Option<u32>,
) -> VolumeCapability {
    let fine = driver.can(Type::SingleNodeMultiWriter);
    let mode = match spec.access_modes.as_ref().and_then(|m| m.first()).map(String::as_str) {
        Some("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        Some("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        Some("ReadWriteOncePod") if fine => Mode::SingleNodeSingleWriter,
        _ if fine => Mode::SingleNodeMultiWriter,
        _ => Mode::SingleNodeWriter,
    };
    if spec.volume_mode.as_deref() == Some("Block") {
        return VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        };
    }
    let flags = spec.mount_options.clone().unwrap_or_default();
    mounted(mode, fs_type, flags, group.filter(|_| driver.can(Type::VolumeMountGroup)))
}

/// The capability of a mounted volume.
pub fn mounted(mode: Mode, fs_type: &str, mount_flags: Vec<String>, group: Option<u32>) -> VolumeCapability {
    let volume_mount_group = group.map(|group| group.to_string()).unwrap_or_default();
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.to_owned(),
            mount_flags,
            volume_mount_group,
        })),
    }
}

/// What a driver is told of the pod, if it asks for that.
pub fn pod_info(pod: &Pod, ephemeral: bool) -> BTreeMap<String, String> {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    [
        ("csi.storage.k8s.io/pod.name", pod.name().to_owned()),
        ("csi.storage.k8s.io/pod.namespace", pod.namespace().to_owned()),
        ("csi.storage.k8s.io/pod.uid", pod.uid().to_owned()),
        ("csi.storage.k8s.io/serviceAccount.name", account),
        ("csi.storage.k8s.io/ephemeral", ephemeral.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// A Secret's values as text.
pub fn credentials(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.iter().flatten();
    data.map(|(key, value)| (key.clone(), String::from_utf8_lossy(&value.0).into_owned())).collect()
}

/// Whether the kubelet gives the volume's files to the pod's group.
pub fn gives_group(policy: Option<&str>, fs_type: &str, modes: Option<&[String]>, read_only: bool) -> bool {
    match policy {
        _ if read_only => false,
        Some("File") => true,
        Some("None") => false,
        _ => {
            !fs_type.is_empty()
                && modes.unwrap_or_default().iter().any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_the_drivers_choice() {
        let once = ["ReadWriteOnce".to_owned()];
        let many = ["ReadWriteMany".to_owned()];
        for (policy, fs_type, modes, read_only, expected) in [
            (None, "ext4", &once[..], false, true),
            (None, "", &once[..], false, false),
            (None, "ext4", &many[..], false, false),
            (Some("File"), "", &many[..], false, true),
            (Some("File"), "", &many[..], true, false),
            (Some("None"), "ext4", &once[..], false, false),
            (Some("ReadWriteOnceWithFSType"), "ext4", &once[..], false, true),
        ] {
            assert_eq!(gives_group(policy, fs_type, Some(modes), read_only), expected, "{policy:?}");
        }
    }

    #[test]
    fn errors_read_like_gos() {
        let status = tonic::Status::not_found("no such volume");
        assert_eq!(say(&status), "rpc error: code = NotFound desc = no such volume");
    }
}
