//! What earlier lives of this kubelet left of pods that no longer exist: sandboxes, volumes, directories, logs,
//! control groups. Looked for once, when the pods of this node are known for the first time.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use cri::PodSandboxFilter;
use reconcile::Informer;

use crate::agent::Agent;
use crate::cgroup;
use crate::spec::{PodDirs, mark};

/// Pauses between tries to clean up after a pod that is gone.
const RETRY: stdx::Backoff =
    stdx::Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(60) };

/// What is left of one pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    sandboxes: Vec<String>,
    directory: bool,
    logs: Vec<PathBuf>,
    cgroups: Vec<String>,
}

/// Removes it. Sandboxes take a while to stop, so each pod goes by itself.
pub async fn remove(agent: &Arc<Agent>, pods: &Informer<Pod>) {
    let wanted: HashSet<String> = pods.store().list().iter().map(|pod| pod.uid().to_owned()).collect();
    agent.cpus.keep_only(|uid| wanted.contains(uid));
    agent.devices.keep_only(|uid| wanted.contains(uid));
    agent.memory.keep_only(|uid| wanted.contains(uid));
    agent.users.keep_only(|uid| wanted.contains(uid));
    let (dra, known) = (agent.dra.clone(), wanted.clone());
    tokio::spawn(async move { dra.keep_only(|uid| known.contains(uid)).await });
    agent.shared_changed.notify_one();
    let mut left = on_disk(&agent.config.root_dir, &agent.config.log_dir);
    for (uid, path) in cgroup::pods(Path::new(cgroup::MOUNT), &agent.config.cgroup_root) {
        left.entry(uid).or_default().cgroups.push(path);
    }
    let sandboxes = agent.runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await.unwrap_or_default();
    for sandbox in sandboxes {
        // Other users of the runtime have theirs.
        if sandbox.labels.get(mark::POD_UID).is_some_and(|uid| *uid == sandbox.uid) {
            left.entry(sandbox.uid).or_default().sandboxes.push(sandbox.id);
        }
    }
    for (uid, left) in left {
        if !wanted.contains(&uid) && !agent.workers.0.lock().contains_key(&uid) {
            tokio::spawn(remove_one(agent.clone(), uid, left));
        }
    }
}

async fn remove_one(agent: Arc<Agent>, uid: String, left: Left) {
    for id in &left.sandboxes {
        if let Err(error) = agent.runtime.remove_pod_sandbox(id).await {
            tracing::warn!(uid, sandbox = id, %error, "an orphaned sandbox could not be removed");
        }
    }
    for path in &left.cgroups {
        cgroup::remove(Path::new(cgroup::MOUNT), path);
    }
    for logs in &left.logs {
        if let Err(error) = std::fs::remove_dir_all(logs) {
            tracing::warn!(uid, %error, "logs of an orphaned pod could not be removed");
        }
    }
    if left.directory {
        remove_volumes(&agent, &uid).await;
    }
}

/// Takes away what is left of a pod's volumes, however often it takes: a driver may not have come back yet.
async fn remove_volumes(agent: &Arc<Agent>, uid: &str) {
    let stand_in =
        Pod { metadata: ObjectMeta { uid: Some(uid.to_owned()), ..ObjectMeta::default() }, ..Pod::default() };
    let dirs = PodDirs::new(&agent.config.root_dir, &agent.config.log_dir, &stand_in);
    let mut failures = 0;
    loop {
        let outcome = match agent.volumes.unpublish(&dirs).await {
            Ok(()) => {
                let (agent, uid, dirs) = (agent.clone(), uid.to_owned(), dirs.clone());
                let tearing = tokio::task::spawn_blocking(move || agent.volumes.tear_down(&uid, &dirs));
                tearing.await.map_err(|e| e.to_string()).and_then(|torn| torn.map_err(|e| e.to_string()))
            }
            Err(error) => Err(error),
        };
        let Err(error) = outcome else {
            tracing::info!(uid, "what was left of an orphaned pod has been cleaned up");
            return;
        };
        failures += 1;
        tracing::warn!(uid, error, "orphaned pod found, but volumes are not cleaned up");
        tokio::time::sleep(RETRY.delay(failures)).await;
    }
}

/// The directories of pods by their uids, and the logs, whose directories are named `NAMESPACE_NAME_UID`.
fn on_disk(root: &Path, logs: &Path) -> BTreeMap<String, Left> {
    let mut left: BTreeMap<String, Left> = BTreeMap::new();
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries(&root.join("pods")) {
        left.entry(entry.file_name().to_string_lossy().into_owned()).or_default().directory = true;
    }
    for entry in entries(logs) {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Neither namespaces nor names of pods nor uids have underscores.
        if let [_, _, uid] = name.split('_').collect::<Vec<_>>()[..] {
            left.entry(uid.to_owned()).or_default().logs.push(entry.path());
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_logs_by_uid() {
        let root = tempfile::tempdir().unwrap();
        for path in ["pods/u1", "logs/ns_pod_u1", "logs/ns_pod_u2", "logs/other", "logs/a_b_c_d"] {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let logs = root.path().join("logs");
        let expected = BTreeMap::from([
            ("u1".into(), Left { directory: true, logs: vec![logs.join("ns_pod_u1")], ..Left::default() }),
            ("u2".into(), Left { logs: vec![logs.join("ns_pod_u2")], ..Left::default() }),
        ]);
        assert_eq!(on_disk(root.path(), &logs), expected);
        assert_eq!(on_disk(&root.path().join("none"), Path::new("/nonexistent")), BTreeMap::new());
    }
}
