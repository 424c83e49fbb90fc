//! The API server with many objects: what 50,000 pods cost in memory against their JSON, and how long a LIST
//! of all of them takes in each form, beside as many bytes over bare HTTPS.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::Client;
use http::Method;

use crate::Options;
use crate::floors::Echo;
use crate::idle::{cpu_seconds, rollup_kib};
use crate::instance::{Home, Instance};
use crate::report::{Table, Target, median_ms, ms, percentile};

/// Pods, and the clients that create them.
const PODS: usize = 50_000;
const WRITERS: usize = 16;
/// How often each list is read.
const LISTS: usize = 9;
/// How long after the creates (and after the lists) memory is read: allocators hand pages back late.
const SETTLE: Duration = Duration::from_secs(8);
/// Where the pods are.
const PATH: &str = "/api/v1/namespaces/scale/pods";
/// The forms an answer can have.
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

/// A pod as controllers make them. Nobody schedules it, so that nothing but the API works.
fn pod(n: usize) -> Bytes {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"web-7d4b9c6f5-{n:05}","labels":{{"app":"web","pod-template-hash":"7d4b9c6f5","shard":"{}"}},"annotations":{{"prometheus.io/scrape":"true"}}}},"spec":{{"schedulerName":"nobody","containers":[{{"name":"web","image":"registry.example/team/web:1.27.3","ports":[{{"name":"http","containerPort":8080}}],"env":[{{"name":"POD","valueFrom":{{"fieldRef":{{"fieldPath":"metadata.name"}}}}}},{{"name":"LEVEL","value":"info"}}],"resources":{{"requests":{{"cpu":"100m","memory":"64Mi"}},"limits":{{"memory":"128Mi"}}}},"readinessProbe":{{"httpGet":{{"path":"/healthz","port":"http"}},"periodSeconds":5}}}}]}}}}"#,
        n % 100
    )
    .into()
}

/// Creates the pods of a range; how many per second.
async fn fill(instance: &Instance<'_>, pods: Range<usize>) -> anyhow::Result<f64> {
    let (next, started) = (Arc::new(AtomicUsize::new(pods.start)), Instant::now());
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (client, next, pods) = (instance.connect()?, next.clone(), pods.clone());
        writers.push(tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= pods.end {
                    return anyhow::Ok(());
                }
                client.write_bytes(Method::POST, PATH, pod(n)).await?;
            }
        }));
    }
    for writer in writers {
        writer.await??;
    }
    Ok(pods.len() as f64 / started.elapsed().as_secs_f64())
}

/// Times of the reads and the size of the answer. The body is counted chunk by chunk, not gathered.
async fn read(client: &Client, path: &str, accept: &str) -> anyhow::Result<(Vec<Duration>, usize)> {
    let (mut times, mut size) = (Vec::new(), 0);
    for _ in 0..LISTS {
        let asked = Instant::now();
        let answer = client.raw(client.request(Method::GET, path, accept, Bytes::new())?).await?;
        anyhow::ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        let mut body = answer.into_body();
        size = 0;
        while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
            let frame = frame.map_err(|error| anyhow::anyhow!("{error}"))?;
            size += frame.data_ref().map_or(0, Bytes::len);
        }
        times.push(asked.elapsed());
    }
    Ok((times, size))
}

/// Memory that a pod more takes in an API server without anybody who watches it, per byte of its JSON: the second
/// half of the pods, when buffers of a fixed size are as large as they get.
async fn alone(options: &Options) -> anyhow::Result<f64> {
    let only = ["--disable", "controllers,scheduler,node,proxy,dns"].map(String::from);
    let mut home = Home::new(options)?.with_arguments(only.into());
    let instance = home.start().await?;
    instance.namespace("scale").await?;
    // What a controller does otherwise.
    let account = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
    let path = "/api/v1/namespaces/scale/serviceaccounts";
    instance.client()?.write_bytes(Method::POST, path, account.into()).await?;
    let client = instance.connect()?;
    let mut sizes = Vec::new();
    for half in [0..PODS / 2, PODS / 2..PODS] {
        fill(&instance, half).await?;
        tokio::time::sleep(SETTLE).await;
        let memory = rollup_kib(instance.pid(), "Rss") as f64 * 1024.0;
        sizes.push((memory, read(&client, PATH, JSON).await?.1 as f64));
    }
    Ok((sizes[1].0 - sizes[0].0) / (sizes[1].1 - sizes[0].1))
}

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let alone = alone(options).await?;
    let mut home = Home::new(options)?;
    let instance = home.start().await?;
    instance.node_ready().await?;
    instance.namespace("scale").await?;
    let memory = |what| rollup_kib(instance.pid(), what) as f64 / 1024.0;
    tokio::time::sleep(SETTLE).await;
    let empty = memory("Rss");
    let rate = fill(&instance, 0..PODS).await?;
    let peak = memory("Rss");
    tokio::time::sleep(SETTLE).await;
    let full = memory("Rss");

    let client = instance.connect()?;
    let echo = Echo::start().await?;
    let mut table = Table::new(&format!(
        "scale: {PODS} pods created by {WRITERS} clients; whole LISTs, {LISTS} of each \
         (floor: as many bytes over HTTPS)"
    ));
    table.row("pods created", rate, "/s", None, Target::None);
    let mut json_bytes = 0.0;
    for (name, query, accept) in [
        ("LIST JSON", "", JSON),
        ("LIST JSON, resourceVersion=0", "?resourceVersion=0", JSON),
        ("LIST protobuf", "", PROTOBUF),
        ("LIST as Table", "", TABLE),
        ("LIST metadata only", "", METADATA),
        ("LIST one shard in a hundred", "?labelSelector=shard%3D7", JSON),
        ("LIST limit=500", "?limit=500", JSON),
    ] {
        let (before, cpu) = (memory("Rss"), cpu_seconds(&[instance.pid()]));
        let (times, size) = read(&client, &format!("{PATH}{query}"), accept).await?;
        let cpu = (cpu_seconds(&[instance.pid()]) - cpu) * 1e3 / LISTS as f64;
        let growth = memory("Rss") - before;
        let (floor, _) = read(&echo.connect()?, &format!("/{size}"), JSON).await?;
        let megabytes = size as f64 / 1e6;
        if query.is_empty() && accept == JSON {
            json_bytes = size as f64;
        }
        let target = if accept == JSON && size as f64 == json_bytes {
            Target::AtMost(2.0 * median_ms(&floor))
        } else {
            Target::None
        };
        table.row(format!("{name} p50"), median_ms(&times), "ms", Some(median_ms(&floor)), target);
        table.row("    slowest", ms(percentile(&times, 100.0)), "ms", None, Target::None);
        table.row("    answer", megabytes, "MB", None, Target::None);
        table.row("    server CPU per LIST", cpu, "ms", None, Target::None);
        table.row("    server memory added", growth, "MiB", None, Target::None);
    }
    let json = json_bytes / f64::from(1 << 20);
    table.row("server memory, empty", empty, "MiB", None, Target::None);
    table.row("server memory after the creates", peak, "MiB", None, Target::None);
    table.row("server memory, settled", full, "MiB", None, Target::None);
    table.row("memory added per byte of JSON", (full - empty) / json, "x", None, Target::None);
    table.row("    by a pod more in an API server alone", alone, "x", None, Target::AtMost(1.5));
    tokio::time::sleep(SETTLE).await;
    table.row("server memory after all LISTs, settled", memory("Rss"), "MiB", None, Target::None);
    table.print();
    Ok(())
}
