//! What was published for pods, undone: from notes on the disk, so that an earlier life of this kubelet may have made
//! it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rpc::csi::node_service_capability::rpc::Type;
use rpc::csi::{NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest};

use super::request::{self, NOTE, Note};
use super::volume::{CsiVolumes, ask};
use super::{Driver, PLUGIN};
use crate::spec::PodDirs;
use crate::volume::device;

/// What a pod has of a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Had {
    pub note: Note,
    /// Where the driver published it.
    pub target: PathBuf,
    /// The pod.
    pub uid: String,
    /// The pod's link to it, if it is a device.
    pub link: Option<PathBuf>,
}

impl Had {
    fn is_same_volume(&self, other: &Had) -> bool {
        self.note.driver_name == other.note.driver_name && self.note.volume_handle == other.note.volume_handle
    }

    fn unique(&self) -> String {
        request::unique_name(&self.note.driver_name, &self.note.volume_handle)
    }
}

impl CsiVolumes {
    /// Takes everything away that was published for a pod. One that cannot be is no reason to leave the others.
    pub async fn tear_down(&self, dirs: &PodDirs) -> Result<(), String> {
        let all = had(&self.root, dirs);
        let outcomes = futures_util::future::join_all(all.iter().map(|one| self.unpublish(one))).await;
        let failures: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    async fn unpublish(&self, had: &Had) -> Result<(), String> {
        let (note, target) = (&had.note, &had.target);
        let _one = self.target_lock(target).await;
        let step = if had.link.is_some() { "UnmapVolume.UnmapPodDevice" } else { "UnmountVolume.TearDown" };
        let failed = |error: String| format!("{step} failed for volume {:?} : {error}", note.spec_volume);
        let driver = self.drivers.get(&note.driver_name).map_err(failed)?;
        let lock = self.volume_lock(&note.driver_name, &note.volume_handle);
        {
            let _shared = lock.clone().read_owned().await;
            if had.link.is_some() {
                let (root, volume) = (self.root.clone(), note.spec_volume.clone());
                let uid = had.uid.clone();
                let unmapping =
                    tokio::task::spawn_blocking(move || device::unkeep(&root, PLUGIN, &volume, &uid));
                unmapping.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
            }
            let unpublish = NodeUnpublishVolumeRequest {
                volume_id: note.volume_handle.clone(),
                target_path: target.display().to_string(),
            };
            let answer = ask(driver.node().node_unpublish_volume(unpublish)).await;
            answer.map_err(|status| failed(request::say(&status)))?;
            self.published.lock().remove(target);
        }
        if note.volume_lifecycle_mode == "Persistent" {
            let _alone = lock.write_owned().await;
            let others = all_had(&self.root);
            if !others.iter().any(|other| other.target != *target && other.is_same_volume(had)) {
                self.unstage(had, &driver).await?;
            }
        }
        forget(&self.root, had).map_err(|error| failed(error.to_string()))
    }

    /// The last pod has let go of a volume.
    async fn unstage(&self, had: &Had, driver: &Driver) -> Result<(), String> {
        let note = &had.note;
        if driver.can(Type::StageUnstageVolume) {
            let staging = match had.link {
                Some(_) => request::block_staging(&self.root, &note.spec_volume),
                None => request::staging(&self.root, &note.driver_name, &note.volume_handle),
            };
            let unstage = NodeUnstageVolumeRequest {
                volume_id: note.volume_handle.clone(),
                staging_target_path: staging.display().to_string(),
            };
            ask(driver.node().node_unstage_volume(unstage)).await.map_err(|status| {
                let step = if had.link.is_some() { "UnmapDevice" } else { "UnmountDevice" };
                format!("{step} failed for volume {:?} : {}", note.spec_volume, request::say(&status))
            })?;
            self.staged.lock().remove(&staging);
            // What is still mounted there is not ours to remove.
            let _ = fs::remove_dir(&staging);
            if let (None, Some(own)) = (&had.link, staging.parent()) {
                let _ = fs::remove_dir(own);
            }
        }
        let unique = had.unique();
        self.in_use.send_if_modified(|all| all.remove(&unique));
        Ok(())
    }

    /// What an earlier life of this kubelet published and not yet took away: it is in use.
    pub fn reconstruct(&self) {
        let all = all_had(&self.root);
        let names: BTreeSet<String> = all
            .iter()
            .filter(|had| had.note.volume_lifecycle_mode == "Persistent")
            .map(Had::unique)
            .collect();
        self.in_use.send_if_modified(|all| {
            all.extend(names);
            !all.is_empty()
        });
    }
}

/// The note goes, and what the driver may have left.
fn forget(root: &Path, had: &Had) -> std::io::Result<()> {
    let gone = |outcome: std::io::Result<()>| match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    match &had.link {
        Some(link) => {
            gone(fs::remove_file(link))?;
            if let Some(publish) = had.target.parent() {
                let _ = fs::remove_dir(publish);
            }
            let own = request::block_data(root, &had.note.spec_volume);
            let others = all_had(root).iter().any(|other| other.link.is_some() && other.is_same_volume(had));
            if !others {
                gone(fs::remove_dir_all(&own))?;
                let _ = fs::remove_dir(device::global(root, PLUGIN, &had.note.spec_volume));
                let _ = own.parent().map(fs::remove_dir);
            }
            Ok(())
        }
        None => {
            // The driver may have removed the directory, as the protocol lets it.
            let _ = fs::remove_dir(&had.target);
            had.target.parent().map_or(Ok(()), |own| gone(fs::remove_file(own.join(NOTE))))
        }
    }
}

fn read(directory: &Path) -> Option<Note> {
    let text = fs::read_to_string(directory.join(NOTE)).ok()?;
    match serde_json::from_str(&text) {
        Ok(note) => Some(note),
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "the note of a volume is damaged");
            None
        }
    }
}

/// What a pod has of drivers.
pub(super) fn had(root: &Path, dirs: &PodDirs) -> Vec<Had> {
    let uid = dirs.root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    let mounted = entries(dirs.volume(PLUGIN, "")).filter_map(|directory| {
        let note = read(&directory)?;
        Some(Had { note, target: directory.join("mount"), uid: uid.clone(), link: None })
    });
    let mapped = entries(dirs.device(PLUGIN, "")).filter_map(|link| {
        let volume = link.file_name()?.to_string_lossy().into_owned();
        let note = read(&request::block_data(root, &volume))?;
        let target = request::block_target(root, &volume, &uid);
        Some(Had { note, target, uid: uid.clone(), link: Some(link) })
    });
    mounted.chain(mapped).collect()
}

/// What all pods have.
pub(super) fn all_had(root: &Path) -> Vec<Had> {
    let pods = fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    pods.flat_map(|pod| had(root, &PodDirs { root: pod.path(), logs: PathBuf::new() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_tell_what_pods_have() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let dirs = |uid: &str| PodDirs { root: root.join("pods").join(uid), logs: PathBuf::new() };
        let note = |handle: &str| {
            format!(
                r#"{{"driverName":"d","volumeHandle":"{handle}","specVolID":"v","volumeLifecycleMode":"Persistent"}}"#
            )
        };
        for (uid, handle) in [("a", "disk"), ("b", "disk"), ("c", "other")] {
            let own = dirs(uid).volume(PLUGIN, "v");
            fs::create_dir_all(&own).unwrap();
            fs::write(own.join(NOTE), note(handle)).unwrap();
        }
        let data = request::block_data(root, "v");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join(NOTE), note("disk")).unwrap();
        let link = dirs("d").device(PLUGIN, "v");
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();

        let all = all_had(root);
        assert_eq!(all.len(), 4);
        let first = had(root, &dirs("a")).remove(0);
        assert_eq!(all.iter().filter(|other| other.is_same_volume(&first)).count(), 3);
        let block = had(root, &dirs("d")).remove(0);
        assert_eq!(block.target, request::block_target(root, "v", "d"));
        forget(root, &block).unwrap();
        forget(root, &first).unwrap();
        assert!(had(root, &dirs("d")).is_empty() && had(root, &dirs("a")).is_empty());
        assert!(!data.exists());
    }
}
