//! Which containers that have ended may go: those of pods that have, and of others all but the latest of each name.
//! Workers take superseded ones away as they start the next; here is what is done when the disk runs short. Pure.

use std::collections::{BTreeMap, HashSet};

use cri::{ContainerState, ContainerStatus};

use crate::observed::restart_count;
use crate::spec::mark;

/// How many that have ended are kept of each container of a pod that lives (upstream's `maxPerPodContainer`).
const KEPT_OF_EACH: usize = 1;

/// Ids of containers that may go. `over` says of a pod's uid whether it has ended or is no longer there.
pub fn removable(containers: &[ContainerStatus], over: impl Fn(&str) -> bool) -> Vec<String> {
    let mut groups: BTreeMap<(&str, &str), Vec<&ContainerStatus>> = BTreeMap::new();
    for container in containers {
        let Some(uid) = container.labels.get(mark::POD_UID) else { continue };
        if matches!(container.state, ContainerState::Exited | ContainerState::Unknown) {
            groups.entry((uid, &container.name)).or_default().push(container);
        }
    }
    let mut ids = Vec::new();
    for ((uid, _), mut group) in groups {
        group.sort_by_key(|container| std::cmp::Reverse((restart_count(container), container.created_at)));
        let kept = if over(uid) { 0 } else { KEPT_OF_EACH };
        ids.extend(group.into_iter().skip(kept).map(|container| container.id.clone()));
    }
    ids
}

/// Removes them.
pub(crate) async fn remove_unused(agent: &crate::agent::Agent) {
    let all = agent.runtime.list_containers(&cri::ContainerFilter::default()).await;
    let Ok(all) = all else { return };
    // A pod that is admitted counts: it runs, or is about to.
    let live: HashSet<String> = agent.admitted.lock().keys().cloned().collect();
    for id in removable(&all, |uid| !live.contains(uid)) {
        tracing::info!(id, "removing an ended container, as the node is short of disk");
        if let Err(error) = agent.runtime.remove_container(&id).await {
            tracing::warn!(id, %error, "an ended container could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn container(id: &str, pod: &str, name: &str, restarts: u32, state: ContainerState) -> ContainerStatus {
        ContainerStatus {
            id: id.into(),
            sandbox_id: String::new(),
            name: name.into(),
            attempt: restarts,
            state,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            exit: None,
            pid: None,
            image: String::new(),
            image_id: String::new(),
            image_ref: String::new(),
            user: None,
            labels: [(mark::POD_UID.to_owned(), pod.to_owned())].into(),
            annotations: [(mark::RESTART_COUNT.to_owned(), restarts.to_string())].into(),
            log_path: Default::default(),
            resources: Default::default(),
            stop_signal: String::new(),
        }
    }

    #[test]
    fn who_may_go() {
        use ContainerState::{Created, Exited, Running};
        let mut foreign = container("f", "live", "a", 0, Exited);
        foreign.labels.clear();
        let all = [
            container("a0", "live", "a", 0, Exited),
            container("a1", "live", "a", 1, Exited),
            container("a2", "live", "a", 2, Running),
            container("b0", "live", "b", 0, Exited),
            container("c0", "live", "c", 0, Created),
            container("d0", "over", "d", 0, Exited),
            container("d1", "over", "d", 1, Exited),
            foreign,
        ];
        assert_eq!(removable(&all, |uid| uid == "over"), ["a0", "d1", "d0"]);
        assert!(removable(&[], |_| true).is_empty());
    }
}
