//! What the server derives from objects and keeps up to date with them: the RBAC index and the node graph.
//! Both learn of a change before the write that made it is seen by anyone else.

use std::sync::Arc;

use auth::node::NodeGraph;
use auth::rbac::{Kind, RbacIndex};
use auth::revocation::Revocations;
use registry::{Change, Registry};

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// Keeps `index` in step with roles and bindings.
pub fn rbac(registry: &Registry, index: &Arc<RbacIndex>) {
    let table = registry.table();
    for resource in ["roles", "clusterroles", "rolebindings", "clusterrolebindings"] {
        let (Some(kind), Some(def)) = (Kind::from_resource(resource), table.find(RBAC_GROUP, "v1", resource))
        else {
            continue;
        };
        let index = index.clone();
        registry.cacher().kind(&def.storage_prefix()).observe(move |event| {
            let object = &event.object;
            if event.change == Change::Deleted {
                index.remove(kind, &object.namespace, &object.name);
            } else if let Err(error) = index.upsert(kind, &object.bytes) {
                tracing::error!(name = %object.name, %error, "a role or binding cannot be read");
            }
        });
    }
}

/// Where the list of revoked certificates is stored: a custom resource of the server's own.
const REVOCATIONS: &str = "/registry/certificaterevocations.auth.ferry.dev/";

/// Keeps the list of revoked certificates in step with its objects.
pub fn revocations(registry: &Registry, list: &Arc<Revocations>) {
    let list = list.clone();
    registry.cacher().kind(REVOCATIONS).observe(move |event| match event.change {
        Change::Deleted => list.remove(&event.object.name),
        _ => list.upsert(&event.object.to_value()),
    });
}

/// Keeps `graph` in step with pods, volumes and attachments.
pub fn nodes(registry: &Registry, graph: &Arc<NodeGraph>) {
    let table = registry.table();
    let follow = |group: &str, resource: &str, apply: fn(&NodeGraph, &registry::cache::CacheEvent)| {
        if let Some(def) = table.find(group, "v1", resource) {
            let graph = graph.clone();
            registry.cacher().kind(&def.storage_prefix()).observe(move |event| apply(&graph, event));
        }
    };
    follow("", "pods", |graph, event| match event.change {
        Change::Deleted => graph.remove_pod(&event.object.namespace, &event.object.name),
        // Only binding and (ephemeral) containers matter, and those rarely change.
        _ if event.object.field("spec.nodeName").is_none_or(str::is_empty) => {}
        _ => graph.upsert_pod(&event.object.to_value()),
    });
    follow("", "persistentvolumes", |graph, event| match event.change {
        Change::Deleted => graph.remove_volume(&event.object.name),
        _ => graph.upsert_volume(&event.object.to_value()),
    });
    follow("storage.k8s.io", "volumeattachments", |graph, event| match event.change {
        Change::Deleted => graph.remove_attachment(&event.object.name),
        _ => graph.upsert_attachment(&event.object.to_value()),
    });
}
