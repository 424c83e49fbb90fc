//! Volumes that claims stand behind: bound, of the mode that the pod expects, and reachable from this node.

use std::path::{Path, PathBuf};

use api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec};
use api::prelude::*;
use jiff::SignedDuration;

use super::job::Job;
use super::problem::Problem;
use super::{Claimed, Source, device, message, mount, nfs};
use crate::csi::volume::Wanted;
use crate::security;
use crate::spec;

/// The plugin of local volumes.
const LOCAL: &str = "kubernetes.io/local-volume";
/// When a volume that could not be looked after is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(60);

/// Mode of a claim or volume that names none.
fn mode(field: Option<&String>) -> &str {
    field.map_or("Filesystem", String::as_str)
}

/// Whether containers use a volume the way it can be used.
fn check_mode(name: &str, mode: &str, as_mount: bool, as_device: bool) -> Result<(), String> {
    let clash = |wanted: &str, list: &str| {
        (mode != wanted).then(|| format!("volume {name} has volumeMode {mode}, but is specified in {list}"))
    };
    let mount = as_mount.then(|| clash("Filesystem", "volumeMounts")).flatten();
    match mount.or(as_device.then(|| clash("Block", "volumeDevices")).flatten()) {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

/// Whether a volume is the claim's.
fn check_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = volume.name();
    let Some(to) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    let uid = to.uid.as_deref().unwrap_or_default();
    if uid == claim.uid() {
        return Ok(());
    }
    Err(format!(
        "found PV object {name} but its pv.Spec.ClaimRef.UID {uid} does not point to claim.UID {}",
        claim.uid()
    ))
}

impl Job<'_> {
    /// A claim's volume. One that is there already stays where it is, whatever has become of the claim meanwhile.
    pub(super) async fn claim(
        &mut self,
        volume: &str,
        claim: &str,
        read_only: bool,
        own: bool,
        before: Option<&Source>,
    ) -> Result<Source, Problem> {
        // Large, and most volumes need none of it.
        let made = Box::pin(self.bound(volume, claim, read_only, own)).await;
        match (made, before) {
            (Err(problem), Some(before)) => {
                tracing::debug!(volume, claim, ?problem, "a volume could not be looked after");
                self.look_again(self.volumes.clock.now() + RETRY);
                Ok(before.clone())
            }
            (made, _) => made,
        }
    }

    /// The claim and its volume, as the API has them.
    async fn find(
        &self,
        claim: &str,
        own: bool,
    ) -> Result<(PersistentVolumeClaim, PersistentVolume), String> {
        let client = &self.volumes.client;
        let namespace = self.pod.namespace();
        let failed = |why: String| format!("error processing PVC {namespace}/{claim}: {why}");
        let found = client.get_typed::<PersistentVolumeClaim>(namespace, claim).await;
        let found = found.map_err(|e| failed(format!("failed to fetch PVC from API server: {e}")))?;
        let mut owners = found.metadata.owner_references.iter().flatten();
        if own && !owners.any(|o| o.controller == Some(true) && o.uid == self.pod.uid()) {
            return Err(format!(
                "PVC {namespace}/{claim} was not created for pod {namespace}/{} (pod is not owner)",
                self.pod.name()
            ));
        }
        // A pod that runs already keeps what it has.
        if found.is_terminating() && self.facts.pod_ips.is_empty() {
            return Err(failed("PVC is being deleted".into()));
        }
        if found.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
            return Err(failed("PVC is not bound".into()));
        }
        let name = found.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        if name.is_empty() {
            return Err(failed("PVC has empty pvc.Spec.VolumeName".into()));
        }
        let volume = client.get_typed::<PersistentVolume>("", &name).await;
        let volume = volume.map_err(|e| failed(format!("failed to get PV {name} from API server: {e}")))?;
        check_volume(&volume, &found).map_err(failed)?;
        Ok((found, volume))
    }

    async fn bound(
        &mut self,
        volume: &str,
        claim: &str,
        read_only: bool,
        own: bool,
    ) -> Result<Source, Problem> {
        let (claim, persistent) = self.find(claim, own).await.map_err(Problem::Process)?;
        let spec = persistent.spec.clone().unwrap_or_default();
        let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
        let mode = mode(of_claim.or(spec.volume_mode.as_ref()));
        check_mode(volume, mode, self.as_mount, self.as_device).map_err(Problem::Process)?;
        let driver = spec.csi.as_ref().map(|s| (s.driver.clone(), s.volume_handle.clone()));
        self.claimed = Some(Claimed { claim: claim.name().to_owned(), driver });
        if spec.csi.is_some() {
            let volumes = self.volumes;
            let wanted =
                Wanted { pod: self.pod, dirs: self.dirs, volume: &persistent, claim: &claim, read_only };
            let ready = volumes.csi.set_up(&wanted, &volumes.tokens).await?;
            return Ok(self.ready(ready));
        }
        if mode == "Block" {
            return self.block(persistent.name(), &spec, read_only).await;
        }
        let name = persistent.name();
        let path = self.place(name, &spec, read_only).await?;
        if let Some(group) = security::fs_group(self.pod).filter(|_| !read_only) {
            let context = spec::spec(self.pod).security_context.clone().unwrap_or_default();
            let lazy = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
            mount::set_group(&path, group, lazy).map_err(|error| Problem::mount(name, error))?;
        }
        Ok(Source::Path(path))
    }

    /// The directory of a volume that is no driver's.
    async fn place(
        &self,
        name: &str,
        spec: &PersistentVolumeSpec,
        read_only: bool,
    ) -> Result<PathBuf, Problem> {
        let failed = |why: String| Problem::mount(name, why);
        if let Some(source) = &spec.host_path {
            let kind = source.type_.as_deref().unwrap_or_default();
            mount::host_path(source.path.as_ref(), kind).map_err(failed)?;
            return Ok(PathBuf::from(&source.path));
        }
        if let Some(source) = &spec.local {
            let path = PathBuf::from(&source.path);
            if !path.exists() {
                return Err(failed(format!("path {:?} does not exist", source.path)));
            }
            if !path.is_dir() {
                return Err(failed(format!(
                    "only directory and block device are supported: {:?}",
                    source.path
                )));
            }
            return Ok(path);
        }
        if let Some(source) = &spec.nfs {
            let target = self.dirs.volume(nfs::PLUGIN, name);
            let options = spec.mount_options.as_deref().unwrap_or_default();
            let read_only = read_only || source.read_only == Some(true);
            let mounted = nfs::mount(&source.server, &source.path, options, read_only, &target).await;
            return mounted.map_err(failed).map(|()| target);
        }
        Err(failed("no volume plugin matched".into()))
    }

    /// The device of a volume that is no driver's.
    async fn block(
        &mut self,
        name: &str,
        spec: &PersistentVolumeSpec,
        read_only: bool,
    ) -> Result<Source, Problem> {
        let Some(source) = &spec.local else {
            let why = "MapVolume.FindMapperPluginBySpec failed to find BlockVolumeMapper plugin. Volume plugin is nil.";
            return Err(Problem::Said { reason: "FailedMapVolume", message: why.into() });
        };
        let (root, dirs) = (self.volumes.root.clone(), self.dirs.clone());
        let (volume, uid) = (name.to_owned(), self.pod.uid().to_owned());
        let at = source.path.clone();
        let mapping = tokio::task::spawn_blocking(move || {
            let opened = device::open(&root, LOCAL, &volume, Path::new(&at))?;
            device::map(&root, &dirs, LOCAL, &volume, &uid, &opened)
        });
        let mapped = mapping.await.map_err(message).and_then(|mapped| mapped.map_err(message));
        let failed = |why| Problem::during("FailedMapVolume", "MapVolume.MapPodDevice", name, why);
        let path = mapped.map_err(failed)?;
        if device::is_loop(&self.volumes.root, LOCAL, name) {
            // Its file may become longer, and nobody tells.
            self.look_again(self.volumes.clock.now() + RETRY);
        }
        Ok(Source::Device { path, read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (mode, mount, device, expected) in [
            ("Filesystem", true, false, None),
            ("Block", false, true, None),
            ("Block", true, false, Some("volume v has volumeMode Block, but is specified in volumeMounts")),
            (
                "Filesystem",
                false,
                true,
                Some("volume v has volumeMode Filesystem, but is specified in volumeDevices"),
            ),
            ("Block", true, true, Some("volume v has volumeMode Block, but is specified in volumeMounts")),
        ] {
            assert_eq!(check_mode("v", mode, mount, device).err().as_deref(), expected);
        }
    }
}
