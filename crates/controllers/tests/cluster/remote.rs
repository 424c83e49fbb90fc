//! The client over HTTPS: many watches on few connections, impersonation, errors.

use api::prelude::*;
use client::{Client, WatchParams};
use meta::UserInfo;
use serde_json::json;

use crate::server::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_works_over_the_network() {
    let cluster = Cluster::start().await;
    let remote = &cluster.remote;
    // More watches than one HTTP/2 connection takes.
    let mut watches = Vec::new();
    for _ in 0..250 {
        watches.push(remote.watch(&ConfigMap::GVR, "default", &WatchParams::default()).await.unwrap());
    }
    let made =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"}});
    remote.create(&ConfigMap::GVR, "default", &made).await.unwrap();
    for watch in &mut watches {
        loop {
            let event = watch.next().await.unwrap().unwrap();
            if ConfigMap::decode(&event.object).unwrap().name() == "m" {
                break;
            }
        }
    }
    drop(watches);
    let error = remote.get(&ConfigMap::GVR, "default", "missing").await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let stranger: Client = remote.as_user(UserInfo::authenticated("stranger", &[]));
    let error = stranger.get(&ConfigMap::GVR, "default", "m").await.unwrap_err();
    assert_eq!(error.status().map(|s| s.code), Some(403), "{error}");
    let mapper = client::RestMapper::discover(remote).await.unwrap();
    assert_eq!(mapper.by_word("deploy").map(|r| r.gvr.to_string()).as_deref(), Some("deployments.apps"));
    cluster.stop().await;
}
