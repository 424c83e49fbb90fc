//! Watch fan-out: many watchers of one namespace, a few writers, every change to everybody.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use client::{EventKind, WatchParams};
use http::Method;
use meta::Gvr;

use crate::Options;
use crate::instance::Home;
use crate::report::{Table, Target, median_ms, ms, percentile};

const CONFIG_MAPS: Gvr = Gvr::new("", "v1", "configmaps");
/// Numbers of watchers, each with a connection of its own.
const WATCHERS: [usize; 2] = [100, 1000];
/// Writers, each with an object of its own, and the updates of all together.
const WRITERS: usize = 4;
const UPDATES: usize = 1000;
/// Longest the deliveries may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The object carries the time of its update, so that a watcher knows how old the news is.
fn object(writer: usize, epoch: Instant) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"w{writer}"}},"data":{{"at":"{:020}","pad":"{}"}}}}"#,
        epoch.elapsed().as_nanos(),
        "x".repeat(400)
    )
}

/// Finds the time in an object without parsing all of it.
fn written_at(object: &[u8]) -> Option<Duration> {
    let mark = b"\"at\":\"";
    let at = object.windows(mark.len()).position(|w| w == mark)? + mark.len();
    let digits = std::str::from_utf8(object.get(at..at + 20)?).ok()?;
    Some(Duration::from_nanos(digits.parse().ok()?))
}

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    for watchers in WATCHERS {
        fan_out(options, watchers).await?;
    }
    Ok(())
}

async fn fan_out(options: &Options, count: usize) -> anyhow::Result<()> {
    let mut home = Home::new(options)?;
    let instance = home.start().await?;
    instance.node_ready().await?;
    instance.namespace("fan").await?;
    let path = "/api/v1/namespaces/fan/configmaps";
    let epoch = Instant::now();
    for writer in 0..WRITERS {
        instance.client()?.write_bytes(Method::POST, path, object(writer, epoch).into()).await?;
    }
    let params = WatchParams { field_selector: String::new(), ..Default::default() };
    let mut watchers = Vec::new();
    for _ in 0..count {
        let mut watch = instance.connect()?.watch(&CONFIG_MAPS, "fan", &params).await?;
        watchers.push(tokio::spawn(async move {
            let mut ages = Vec::with_capacity(UPDATES);
            while ages.len() < UPDATES {
                let Some(event) = watch.next().await else { bail!("a watch ended early") };
                let event = event?;
                if event.kind == EventKind::Modified
                    && let Some(at) = written_at(&event.object)
                {
                    ages.push(epoch.elapsed().saturating_sub(at));
                }
            }
            Ok(ages)
        }));
    }
    let started = Instant::now();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = instance.connect()?;
        writers.push(tokio::spawn(async move {
            for _ in 0..UPDATES / WRITERS {
                let body = object(writer, epoch).into();
                client.write_bytes(Method::PUT, &format!("{path}/w{writer}"), body).await?;
            }
            anyhow::Ok(())
        }));
    }
    let mut ages = Vec::with_capacity(count * UPDATES);
    let all = async {
        for writer in writers {
            writer.await??;
        }
        let written = started.elapsed();
        for watcher in watchers {
            ages.extend(watcher.await??);
        }
        anyhow::Ok(written)
    };
    let written = tokio::time::timeout(PATIENCE, all).await.context("deliveries are missing")??;
    let took = started.elapsed().as_secs_f64();
    ensure!(ages.len() == count * UPDATES, "{} deliveries instead of {}", ages.len(), count * UPDATES);
    let mut table = Table::new(&format!(
        "watch: {count} watchers on connections of their own, {UPDATES} updates by {WRITERS} writers"
    ));
    table.row("deliveries", ages.len() as f64 / took, "/s", None, Target::None);
    table.row("updates", UPDATES as f64 / written.as_secs_f64(), "/s", None, Target::None);
    table.row("update sent -> delivered, p50", median_ms(&ages), "ms", None, Target::None);
    table.row("update sent -> delivered, p99", ms(percentile(&ages, 99.0)), "ms", None, Target::None);
    table.print();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found_again() {
        let epoch = Instant::now();
        let text = object(1, epoch);
        assert!(written_at(text.as_bytes()).is_some_and(|at| at <= epoch.elapsed()), "{text}");
        assert_eq!(written_at(b"{\"data\":{}}"), None);
    }
}
