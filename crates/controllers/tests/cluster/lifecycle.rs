//! Namespaces, ownership and nodes that vanish.

use api::prelude::*;
use client::{DeleteParams, Propagation};
use serde_json::json;

use crate::server::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_furnished_and_emptied() {
    let cluster = Cluster::start().await;
    cluster.create::<Namespace>(json!({"metadata": {"name": "team"}})).await;
    cluster.until::<ServiceAccount>("team", "default", |_| true).await;
    cluster
        .until::<ConfigMap>("team", "kube-root-ca.crt", |m| {
            m.data.as_ref().is_some_and(|d| d["ca.crt"].starts_with("-----BEGIN"))
        })
        .await;
    cluster
        .create::<ConfigMap>(
            json!({"metadata": {"name": "held", "namespace": "team", "finalizers": ["example.com/hold"]}}),
        )
        .await;
    cluster.create::<Deployment>(json!({"metadata": {"name": "web", "namespace": "team"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}}))
        .await;
    cluster
        .until::<Deployment>("team", "web", |d| d.status.as_ref().is_some_and(|s| s.replicas == Some(2)))
        .await;
    cluster.client.delete_typed::<Namespace>("", "team", &DeleteParams::default()).await.unwrap();
    let namespace = cluster
        .until::<Namespace>("", "team", |n| {
            n.status.as_ref().and_then(|s| s.conditions.as_ref()).is_some_and(|conditions| {
                conditions.iter().any(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")
            })
        })
        .await;
    assert_eq!(namespace.status.unwrap().phase.as_deref(), Some("Terminating"));
    let release = client::Patch::Merge(json!({"metadata": {"finalizers": null}}));
    cluster.client.patch(&ConfigMap::GVR, "team", "held", "", &release).await.unwrap();
    cluster.until_gone::<Namespace>("", "team").await;
    assert!(cluster.list::<Pod>("team").await.is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_and_garbage_goes() {
    let cluster = Cluster::start().await;
    let owner =
        cluster.create::<ConfigMap>(json!({"metadata": {"name": "owner", "namespace": "default"}})).await;
    let owned = |name: &str, uid: &str| {
        json!({"metadata": {"name": name, "namespace": "default", "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]}})
    };
    cluster.create::<ConfigMap>(owned("child", owner.uid())).await;
    cluster.create::<ConfigMap>(owned("stray", "00000000-0000-0000-0000-000000000000")).await;
    cluster.until_gone::<ConfigMap>("default", "stray").await;
    let orphan = DeleteParams::propagating(Propagation::Orphan);
    cluster.client.delete_typed::<ConfigMap>("default", "owner", &orphan).await.unwrap();
    cluster.until_gone::<ConfigMap>("default", "owner").await;
    let free = |m: &ConfigMap| m.metadata.owner_references.as_ref().is_none_or(Vec::is_empty);
    cluster.until::<ConfigMap>("default", "child", free).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_count_their_pods() {
    let cluster = Cluster::start().await;
    cluster
        .create::<Job>(json!({"metadata": {"name": "j", "namespace": "default"},
            "spec": {"completions": 2, "parallelism": 2, "ttlSecondsAfterFinished": 0, "template": {
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}))
        .await;
    cluster.until::<Job>("default", "j", |j| j.status.as_ref().is_some_and(|s| s.active == Some(2))).await;
    for pod in cluster.list::<Pod>("default").await {
        let status = client::Patch::Strategic(json!({"status": {"phase": "Succeeded"}}));
        cluster.client.patch(&Pod::GVR, "default", pod.name(), "status", &status).await.unwrap();
    }
    // It completes, expires at once, and takes its pods, finalizers and all, with it.
    cluster.until_gone::<Job>("default", "j").await;
    let wait = async {
        while !cluster.list::<Pod>("default").await.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.is_ok(), "pods stay");
    cluster.stop().await;
}
