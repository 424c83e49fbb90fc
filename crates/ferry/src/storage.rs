//! Storage that works out of the box: the class `local-path`, and where its volumes are.

use client::Client;
use meta::Gvr;
use serde_json::json;

use crate::config::Part;
use crate::control::Environment;

static CLASSES: Gvr = Gvr::new("storage.k8s.io", "v1", "storageclasses");

/// Where this node makes volumes, if it does.
pub fn place(env: &Environment) -> Option<controllers::local_path::Place> {
    let here = env.options.enabled(Part::LocalStorage) && env.options.enabled(Part::Node);
    here.then(|| controllers::local_path::Place { root: env.paths.volumes(), node: env.node_name.clone() })
}

/// Makes the class, unless there is one of the name: what people have made of it stays.
pub async fn publish(client: &Client) {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "local.ferry.dev", "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
    });
    match client.create(&CLASSES, "", &class).await {
        Err(error) if !error.is_already_exists() => {
            tracing::warn!(%error, "the default storage class could not be made");
        }
        _ => {}
    }
}
