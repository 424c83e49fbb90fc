//! Pod start latency: from the create request until a watcher sees the phase Running.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{WatchParams, WatchStream};
use serde_json::{Value, json};

use crate::containerd::Peer;
use crate::instance::{Home, Instance, PODS, wait_for};
use crate::report::{Table, Target, median_ms, ms, percentile};
use crate::{Options, floors, image};

/// Where measured pods are.
pub const NAMESPACE: &str = "default";
/// Longest a burst may take.
const BURST_PATIENCE: Duration = Duration::from_secs(120);
/// A pod is refused until its service account exists; then it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);
const ASK_TIMES_MAX: usize = 5000;

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let floor = floors::processes(true)?;
    let (single, burst) = figures(options, None).await?;
    let mut table = Table::new(&format!(
        "pods: create -> Running seen by a watch, {} of each, image present (floor: fork+exec in five namespaces)",
        options.pods
    ));
    let (p50, p99) = (Some(median_ms(&floor)), Some(ms(percentile(&floor, 99.0))));
    table.row("one by one, p50", median_ms(&single), "ms", p50, Target::AtMost(100.0));
    table.row("one by one, p99", ms(percentile(&single, 99.0)), "ms", p99, Target::None);
    table.row("all at once, p50", median_ms(&burst), "ms", p50, Target::None);
    let all = burst.iter().max().copied().unwrap_or_default();
    let floor_all = floor.iter().sum::<Duration>().as_secs_f64() * 1e3 / floor.len() as f64;
    let floor_all = Some(floor_all * options.pods as f64);
    table.row("all at once, until the last", ms(all), "ms", floor_all, Target::None);
    if let Some(peer) = Peer::start(options)? {
        let (single, burst) = figures(options, Some(&peer)).await?;
        table.row("on containerd, one by one, p50", median_ms(&single), "ms", None, Target::None);
        table.row("on containerd, one by one, p99", ms(percentile(&single, 99.0)), "ms", None, Target::None);
        let all = burst.iter().max().copied().unwrap_or_default();
        table.row("on containerd, all at once, until the last", ms(all), "ms", None, Target::None);
    }
    table.print();
    Ok(())
}

/// Pods one by one and then all at once, on the embedded runtime or on the peer.
async fn figures(options: &Options, peer: Option<&Peer>) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let mut home = Home::new(options)?.with_arguments(peer.map(Peer::arguments).unwrap_or_default());
    let instance = home.start().await?;
    instance.node_ready().await?;
    if peer.is_none() {
        instance.import_image().await?;
    }
    // The first pod pays for what is made once (the bridge, the first mount of the layers).
    start_one(&instance, "warm-up").await?;
    let mut single = Vec::new();
    for n in 0..options.pods {
        single.push(start_one(&instance, &format!("single-{n}")).await?);
    }
    let burst = burst(&instance, options.pods).await?;
    Ok((single, burst))
}

/// What is started.
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": image::NAME, "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sleep", "3600"],
        }]},
    })
}

async fn watch(instance: &Instance<'_>, field_selector: String) -> anyhow::Result<WatchStream> {
    let params = WatchParams { field_selector, ..Default::default() };
    Ok(instance.client()?.watch(&PODS, NAMESPACE, &params).await?)
}

/// Starts a pod and waits for it; how long that took.
pub async fn start_one(instance: &Instance<'_>, name: &str) -> anyhow::Result<Duration> {
    let mut events = watch(instance, format!("metadata.name={name}")).await?;
    let mut attempt = 0;
    let created = loop {
        let created = Instant::now();
        match instance.client()?.create(&PODS, NAMESPACE, &pod(name)).await {
            Ok(_) => break created,
            Err(error) if error.status().is_some_and(|s| s.code == 403) && attempt < ASK_TIMES_MAX => {
                attempt += 1;
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    wait_for(&mut events, |pod| pod["status"]["phase"] == "Running")
        .await
        .with_context(|| format!("pod {name} never ran:\n{}", instance.log_tail()))?;
    Ok(created.elapsed())
}

/// Creates pods all at once; how long each took from the first create request.
async fn burst(instance: &Instance<'_>, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut events = watch(instance, String::new()).await?;
    let client = instance.client()?;
    let started = Instant::now();
    let creating = async {
        let creates = (0..count)
            .map(|n| async move { client.create(&PODS, NAMESPACE, &pod(&format!("burst-{n}"))).await });
        for created in futures_util::future::join_all(creates).await {
            created?;
        }
        anyhow::Ok(())
    };
    let mut running: HashMap<String, Duration> = HashMap::new();
    let watching = async {
        while running.len() < count {
            let Some(event) = events.next().await else { bail!("the watch ended") };
            let pod: Value = serde_json::from_slice(&event?.object)?;
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            if name.starts_with("burst-") && pod["status"]["phase"] == "Running" {
                running.entry(name.to_owned()).or_insert_with(|| started.elapsed());
            }
        }
        Ok(())
    };
    let both = futures_util::future::try_join(creating, watching);
    let done = tokio::time::timeout(BURST_PATIENCE, both).await;
    match done {
        Ok(result) => result?,
        Err(_) => bail!("only {} of {count} pods ran:\n{}", running.len(), instance.log_tail()),
    };
    Ok(running.into_values().collect())
}
