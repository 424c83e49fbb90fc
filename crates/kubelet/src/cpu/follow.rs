//! Telling running containers which processors are left to share.

use std::collections::HashMap;
use std::sync::Arc;

use cri::{ContainerFilter, ContainerResources, ContainerState};

use crate::agent::Agent;
use crate::spec::mark;

/// Updates running containers whenever what they share has changed. Forever.
pub(crate) async fn keep(agent: Arc<Agent>) {
    // What each container was told last, by id.
    let mut told: HashMap<String, String> = HashMap::new();
    loop {
        agent.shared_changed.notified().await;
        let filter = ContainerFilter { state: Some(ContainerState::Running), ..ContainerFilter::default() };
        let Ok(running) = agent.runtime.list_containers(&filter).await else { continue };
        told.retain(|id, _| running.iter().any(|container| container.id == *id));
        for container in &running {
            let Some(uid) = container.labels.get(mark::POD_UID) else { continue };
            let cpus = agent.cpus.of(uid, &container.name);
            if cpus.is_empty() || told.get(&container.id) == Some(&cpus) {
                continue;
            }
            let resources = ContainerResources { cpuset_cpus: cpus.clone(), ..ContainerResources::default() };
            match agent.runtime.update_container_resources(&container.id, &resources).await {
                Ok(()) => drop(told.insert(container.id.clone(), cpus)),
                Err(error) => {
                    tracing::warn!(id = container.id, %error, "a container's processors could not be changed");
                }
            }
        }
    }
}
