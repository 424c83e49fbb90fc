//! A Deployment from creation over a rolling update to its deletion, with pods bound by the scheduler.

use api::prelude::*;
use client::{DeleteParams, Patch, Propagation};
use serde_json::json;

use crate::server::Cluster;

fn web() -> serde_json::Value {
    json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "example.com/web:1",
                "ports": [{"name": "http", "containerPort": 8080}]}]},
        }},
    })
}

fn is_rolled_out(d: &Deployment) -> bool {
    let status = d.status.clone().unwrap_or_default();
    status.observed_generation == d.metadata.generation
        && status.available_replicas == d.spec.replicas
        && status.updated_replicas == d.spec.replicas
        && status.replicas == d.spec.replicas
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_roll() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    for node in ["n1", "n2", "n3"] {
        cluster.add_node(node).await;
    }
    cluster.create::<Deployment>(web()).await;
    cluster
        .create::<Service>(json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}}))
        .await;
    let d = cluster.until::<Deployment>("default", "web", is_rolled_out).await;
    assert_eq!(d.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "1");
    let pods = cluster.list::<Pod>("default").await;
    // Which nodes depends on which the scheduler had seen by then.
    assert_eq!(pods.iter().filter(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some())).count(), 3);
    cluster
        .until::<Endpoints>("default", "web", |e| {
            e.subsets.as_ref().is_some_and(|s| s[0].addresses.as_ref().is_some_and(|a| a.len() == 3))
        })
        .await;
    let slices = cluster.list::<EndpointSlice>("default").await;
    let slice = slices.iter().find(|s| s.name().starts_with("web-")).unwrap();
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));

    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "example.com/web:2"}]}}}});
    cluster.client.patch(&Deployment::GVR, "default", "web", "", &Patch::Strategic(image)).await.unwrap();
    let d = cluster.until::<Deployment>("default", "web", is_rolled_out).await;
    assert_eq!(d.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "2");
    let sets = cluster.list::<ReplicaSet>("default").await;
    let mut sizes: Vec<_> = sets.iter().map(|s| s.spec.replicas.unwrap()).collect();
    sizes.sort();
    assert_eq!(sizes, [0, 3]);

    let foreground = DeleteParams::propagating(Propagation::Foreground);
    cluster.client.delete_typed::<Deployment>("default", "web", &foreground).await.unwrap();
    cluster.until_gone::<Deployment>("default", "web").await;
    assert!(cluster.list::<ReplicaSet>("default").await.is_empty(), "dependents go first");
    cluster.client.delete_typed::<Service>("default", "web", &DeleteParams::default()).await.unwrap();
    cluster.until_gone::<EndpointSlice>("default", slice.name()).await;
    let events = cluster.list::<Event>("default").await;
    let told = |reason: &str, part: &str| {
        events.iter().any(|e| {
            e.reason.as_deref() == Some(reason) && e.message.as_ref().is_some_and(|m| m.contains(part))
        })
    };
    assert!(told("ScalingReplicaSet", "Scaled up replica set web-"));
    assert!(told("SuccessfulCreate", "Created pod: web-"));
    assert!(told("Scheduled", "Successfully assigned default/web-"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_run_on_every_node() {
    let mut cluster = Cluster::start().await;
    cluster.run_kubelets();
    for node in ["n1", "n2"] {
        cluster.add_node(node).await;
    }
    cluster
        .create::<DaemonSet>(json!({"metadata": {"name": "d", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [{"name": "c", "image": "example.com/d:1"}]}}}}))
        .await;
    let available = |n: i32| {
        move |d: &DaemonSet| {
            d.status
                .as_ref()
                .is_some_and(|s| s.number_available == Some(n) && s.updated_number_scheduled == Some(n))
        }
    };
    cluster.until::<DaemonSet>("default", "d", available(2)).await;
    cluster.add_node("n3").await;
    cluster.until::<DaemonSet>("default", "d", available(3)).await;
    let image =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "example.com/d:2"}]}}}});
    cluster.client.patch(&DaemonSet::GVR, "default", "d", "", &Patch::Strategic(image)).await.unwrap();
    let updated = |d: &DaemonSet| {
        d.status.as_ref().is_some_and(|s| s.observed_generation == d.metadata.generation) && available(3)(d)
    };
    cluster.until::<DaemonSet>("default", "d", updated).await;
    let pods = cluster.list::<Pod>("default").await;
    let mut nodes: Vec<_> = pods.iter().map(|p| p.spec.clone().unwrap().node_name.unwrap()).collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
    cluster.stop().await;
}
