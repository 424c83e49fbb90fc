//! The API server's own speed: durable creates by many clients, and lists of many objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::Client;
use http::Method;

use crate::Options;
use crate::floors::{self, Echo};
use crate::idle::rollup_kib;
use crate::instance::Home;
use crate::report::{Table, Target, median_ms, ms, percentile};

/// Numbers of clients, each with a connection of its own.
const CLIENTS: [usize; 3] = [1, 16, 64];
/// Payload that makes a created ConfigMap about 1 KiB.
const CREATE_BYTES: usize = 900;
/// How long the HTTPS floor is measured per number of clients.
const ECHO_TIME: Duration = Duration::from_secs(3);
/// Objects in the list, the payload that makes each about 800 bytes, and how often it is read.
const LIST_OBJECTS: usize = 10_000;
const LIST_BYTES: usize = 400;
const LISTS: usize = 20;

/// A ConfigMap as JSON.
pub fn config_map(name: &str, payload: usize) -> Bytes {
    let payload = "x".repeat(payload);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"payload":"{payload}"}}}}"#
    )
    .into()
}

/// When clients stop.
#[derive(Clone, Copy)]
enum Until {
    Elapsed(Duration),
    Count(usize),
}

/// Lets clients POST ConfigMaps as fast as answers come; the latencies and the rate per second.
async fn post(
    clients: Vec<Client>,
    path: &str,
    prefix: &str,
    payload: usize,
    until: Until,
) -> anyhow::Result<(Vec<Duration>, f64)> {
    // Handshakes are not part of the figure.
    for client in &clients {
        let _ = client.get_path("/readyz").await?;
    }
    let (next, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let workers = clients.into_iter().map(|client| {
        let (next, path, prefix) = (next.clone(), path.to_owned(), prefix.to_owned());
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let done = match until {
                    Until::Elapsed(time) => started.elapsed() >= time,
                    Until::Count(count) => n >= count,
                };
                if done {
                    return anyhow::Ok(latencies);
                }
                let body = config_map(&format!("{prefix}-{n}"), payload);
                let asked = Instant::now();
                client.write_bytes(Method::POST, &path, body).await?;
                latencies.push(asked.elapsed());
            }
        })
    });
    let mut latencies = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        latencies.extend(worker.await??);
    }
    let rate = latencies.len() as f64 / started.elapsed().as_secs_f64();
    Ok((latencies, rate))
}

/// Durable creates: measures and prints.
pub async fn creates(options: &Options) -> anyhow::Result<()> {
    let mut home = Home::new(options)?;
    let instance = home.start().await?;
    instance.node_ready().await?;
    instance.namespace("bench").await?;
    let echo = Echo::start().await?;
    let appends = floors::synced_appends(instance.home().path())?;
    let mut table = Table::new(&format!(
        "creates: durable ConfigMaps of 1 KiB over HTTPS, {} s each (floor: HTTPS echo with the same clients; \
         fdatasync of 2 KiB appends: {appends:.0}/s, {:.3} ms)",
        options.seconds,
        1e3 / appends
    ));
    for count in CLIENTS {
        let connect = |_| echo.connect();
        let clients = (0..count).map(connect).collect::<anyhow::Result<_>>()?;
        let (echo_times, echo_rate) =
            post(clients, "/echo", "echo", CREATE_BYTES, Until::Elapsed(ECHO_TIME)).await?;
        let clients = (0..count).map(|_| instance.connect()).collect::<anyhow::Result<_>>()?;
        let until = Until::Elapsed(options.create_time());
        let path = "/api/v1/namespaces/bench/configmaps";
        let (times, rate) = post(clients, path, &format!("c{count}"), CREATE_BYTES, until).await?;
        let target = if count == 64 { Target::AtLeast(5000.0) } else { Target::None };
        table.row(format!("{count:>2} clients"), rate, "/s", Some(echo_rate), target);
        table.row("    p50", median_ms(&times), "ms", Some(median_ms(&echo_times)), Target::None);
        let floor = Some(ms(percentile(&echo_times, 99.0)));
        table.row("    p99", ms(percentile(&times, 99.0)), "ms", floor, Target::None);
    }
    table.print();
    Ok(())
}

/// Lists of many objects: measures and prints.
pub async fn list(options: &Options) -> anyhow::Result<()> {
    let mut home = Home::new(options)?;
    let instance = home.start().await?;
    instance.node_ready().await?;
    instance.namespace("bench").await?;
    let path = "/api/v1/namespaces/bench/configmaps";
    let clients = (0..16).map(|_| instance.connect()).collect::<anyhow::Result<_>>()?;
    post(clients, path, "l", LIST_BYTES, Until::Count(LIST_OBJECTS)).await?;
    let client = instance.client()?;
    let rss = || rollup_kib(instance.pid(), "Rss") as f64 / 1024.0;
    let before = rss();
    let (times, size) = read(client, path).await?;
    let after = rss();
    let echo = Echo::start().await?;
    let (floor, _) = read(&echo.connect()?, &format!("/{size}")).await?;
    let mb = size as f64 / 1e6;
    let rate = |times: &[Duration]| mb / percentile(times, 50.0).as_secs_f64();
    let mut table = Table::new(&format!(
        "list: {LIST_OBJECTS} ConfigMaps, {mb:.1} MB of JSON, {LISTS} times (floor: as many bytes over HTTPS)"
    ));
    table.row("p50", median_ms(&times), "ms", Some(median_ms(&floor)), Target::None);
    table.row(
        "slowest",
        ms(percentile(&times, 100.0)),
        "ms",
        Some(ms(percentile(&floor, 100.0))),
        Target::None,
    );
    table.row("throughput", rate(&times), "MB/s", Some(rate(&floor)), Target::None);
    table.row("server memory (RSS) before", before, "MiB", None, Target::None);
    table.row("server memory (RSS) growth", after - before, "MiB", None, Target::None);
    table.print();
    Ok(())
}

/// Reads a path again and again; the times and the size of the answer.
async fn read(client: &Client, path: &str) -> anyhow::Result<(Vec<Duration>, usize)> {
    let (mut times, mut size) = (Vec::new(), 0);
    for _ in 0..LISTS {
        let asked = Instant::now();
        size = client.get_path(path).await?.len();
        times.push(asked.elapsed());
    }
    Ok((times, size))
}
