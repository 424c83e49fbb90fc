//! Latency under mixed load: readers, writers, listers and watchers at once, each request timed by its kind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::{Client, WatchParams};
use http::Method;
use meta::Gvr;

use crate::Options;
use crate::floors::Echo;
use crate::instance::{Home, Instance};
use crate::report::{Table, Target, median_ms, ms, percentile};
use crate::storage::config_map;

/// Clients, each with a connection of its own and one request at a time.
const CLIENTS: usize = 16;
/// Watchers of everything that happens.
const WATCHERS: usize = 50;
/// Objects there at the start, and the payload of each.
const OBJECTS: usize = 1_000;
const PAYLOAD: usize = 900;
/// Objects in a page of a list.
const PAGE: usize = 100;
/// How long the floor is measured.
const ECHO_TIME: Duration = Duration::from_secs(2);
const PATH: &str = "/api/v1/namespaces/mixed/configmaps";
const CONFIG_MAPS: Gvr = Gvr::new("", "v1", "configmaps");
const MERGE_PATCH: &str = "application/merge-patch+json";

type Times = BTreeMap<&'static str, Vec<Duration>>;

/// What a client does next: of 100 requests 60 GETs, 8 pages of a LIST, 12 updates, 10 patches, 5 creates and
/// 5 deletes of what was created.
async fn step(client: &Client, turn: usize, mine: &str) -> anyhow::Result<&'static str> {
    let known = format!("{PATH}/m-{}", (turn * 7919) % OBJECTS);
    let own = format!("{mine}-{}", turn / 20);
    Ok(match turn % 20 {
        0 => {
            client.write_bytes(Method::POST, PATH, config_map(&own, PAYLOAD)).await?;
            "create"
        }
        19 => {
            client.write_bytes(Method::DELETE, &format!("{PATH}/{own}"), Bytes::new()).await?;
            "delete"
        }
        4 | 9 => {
            let body = format!(r#"{{"metadata":{{"labels":{{"turn":"t{turn}"}}}}}}"#);
            let mut request = client.request(Method::PATCH, &known, "application/json", body.into())?;
            request.headers_mut().insert(http::header::CONTENT_TYPE, MERGE_PATCH.parse()?);
            client.send(request).await?;
            "patch"
        }
        2 | 7 => {
            let name = known.rsplit('/').next().unwrap_or_default();
            client.write_bytes(Method::PUT, &known, config_map(name, PAYLOAD)).await?;
            "update"
        }
        12 if turn % 40 < 32 => {
            client.get_path(&format!("{PATH}?limit={PAGE}")).await?;
            "list of 100"
        }
        _ => {
            client.get_path(&known).await?;
            "get"
        }
    })
}

async fn load(instance: &Instance<'_>, time: Duration) -> anyhow::Result<Times> {
    let mut workers = Vec::new();
    let started = Instant::now();
    for worker in 0..CLIENTS {
        let client = instance.connect()?;
        workers.push(tokio::spawn(async move {
            let mut times = Times::new();
            let mine = format!("own-{worker}");
            for turn in 0.. {
                // A round ends with the delete of what it made.
                if turn % 20 == 0 && started.elapsed() >= time {
                    break;
                }
                let asked = Instant::now();
                let what = step(&client, turn, &mine).await?;
                times.entry(what).or_default().push(asked.elapsed());
            }
            anyhow::Ok(times)
        }));
    }
    let mut all = Times::new();
    for worker in workers {
        for (what, times) in worker.await?? {
            all.entry(what).or_default().extend(times);
        }
    }
    Ok(all)
}

/// GETs of one path by all clients at once and by nobody else: of an object, and of as many bytes from the bare
/// HTTPS server.
async fn gets(connect: impl Fn() -> anyhow::Result<Client>, path: &str) -> anyhow::Result<Vec<Duration>> {
    let mut workers = Vec::new();
    let started = Instant::now();
    for _ in 0..CLIENTS {
        let (client, path) = (connect()?, path.to_owned());
        workers.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while started.elapsed() < ECHO_TIME {
                let asked = Instant::now();
                client.get_path(&path).await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok(times)
        }));
    }
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await??);
    }
    Ok(all)
}

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut home = Home::new(options)?;
    let instance = home.start().await?;
    instance.node_ready().await?;
    instance.namespace("mixed").await?;
    let client = instance.client()?;
    for n in 0..OBJECTS {
        client.write_bytes(Method::POST, PATH, config_map(&format!("m-{n}"), PAYLOAD)).await?;
    }
    let delivered = Arc::new(AtomicU64::new(0));
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let mut watch = instance.connect()?.watch(&CONFIG_MAPS, "mixed", &WatchParams::default()).await?;
        let delivered = delivered.clone();
        watchers.push(tokio::spawn(async move {
            while let Some(Ok(_)) = watch.next().await {
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let size = client.get_path(&format!("{PATH}/m-1")).await?.len();
    let bare = Echo::start().await?;
    let echo = gets(|| bare.connect(), &format!("/{size}")).await?;
    let quiet = gets(|| instance.connect(), &format!("{PATH}/m-1")).await?;
    delivered.store(0, Ordering::Relaxed);
    let times = load(&instance, options.create_time()).await?;
    let delivered = delivered.load(Ordering::Relaxed) as f64;
    for watcher in watchers {
        watcher.abort();
    }
    let count: usize = times.values().map(Vec::len).sum();
    let seconds = options.seconds as f64;
    let mut table = Table::new(&format!(
        "mixed: {CLIENTS} clients at once (60 % GET, 30 % writes, lists), {WATCHERS} watchers, {seconds} s \
         (floor: as many bytes over HTTPS, as many clients)"
    ));
    let floor = median_ms(&echo);
    table.row("GET and nothing else, p50", median_ms(&quiet), "ms", Some(floor), Target::AtMost(2.0 * floor));
    table.row("requests", count as f64 / seconds, "/s", None, Target::None);
    table.row("watch deliveries", delivered / seconds, "/s", None, Target::None);
    for (what, times) in &times {
        table.row(format!("{what} p50"), median_ms(times), "ms", None, Target::None);
        table.row("    p99", ms(percentile(times, 99.0)), "ms", None, Target::None);
    }
    table.print();
    Ok(())
}
