//! The lease that says the node is alive: renewed every 10 s, good for 40 s (KEP-589).

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::coordination::v1::LeaseSpec;
use api::prelude::*;
use client::{Client, Patch};
use serde_json::json;
use stdx::Clock;

/// Namespace of node leases.
pub const NAMESPACE: &str = "kube-node-lease";
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How long it is good for, in seconds.
const DURATION_SECONDS: i32 = 40;
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Renews the lease of `node` forever. The node owns it, so that it goes with it.
pub async fn keep(client: Client, node: String, clock: Arc<dyn Clock>) {
    loop {
        let wait = match renew(&client, &node, &*clock).await {
            Ok(()) => RENEW_EVERY,
            Err(error) => {
                tracing::warn!(%error, "the node's lease could not be renewed");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(client: &Client, node: &str, clock: &dyn Clock) -> client::Result<()> {
    let now = MicroTime(clock.now());
    let patch = Patch::Merge(json!({"spec": {
        "renewTime": now, "holderIdentity": node, "leaseDurationSeconds": DURATION_SECONDS}}));
    match client.patch(&Lease::GVR, NAMESPACE, node, "", &patch).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    let owner = client.get_typed::<Node>("", node).await?;
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.to_owned(),
                uid: owner.uid().to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    client.create_typed(&lease).await.map(drop)
}
