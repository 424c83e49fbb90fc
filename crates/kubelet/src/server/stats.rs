//! Resource use as the summary API and as metrics: what metrics-server and `kubectl top` read.

use std::collections::HashMap;
use std::fmt::Write;

use api::prelude::*;
use client::Body;
use cri::{ContainerFilter, ContainerStats};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::text;
use crate::agent::Agent;

/// Statistics of the running containers by pod uid, with the pod.
async fn by_pod(agent: &Agent) -> cri::Result<Vec<(std::sync::Arc<Pod>, Vec<ContainerStats>)>> {
    let all = agent.runtime.list_containers(&ContainerFilter::default()).await?;
    let uids: HashMap<&str, &str> = all
        .iter()
        .filter_map(|container| {
            Some((container.id.as_str(), container.labels.get(crate::spec::mark::POD_UID)?.as_str()))
        })
        .collect();
    let stats = agent.runtime.list_container_stats(&ContainerFilter::default()).await?;
    let mut grouped: HashMap<&str, Vec<ContainerStats>> = HashMap::new();
    for stat in stats {
        if let Some(uid) = uids.get(stat.id.as_str()) {
            grouped.entry(uid).or_default().push(stat);
        }
    }
    let workers = agent.workers.0.lock();
    let mut pods: Vec<_> = grouped
        .into_iter()
        .filter_map(|(uid, stats)| Some((workers.get(uid)?.desired.borrow().pod.clone(), stats)))
        .collect();
    pods.sort_by_key(|(pod, _)| pod.key());
    Ok(pods)
}

fn cpu(stat: &ContainerStats) -> Value {
    json!({"time": stat.timestamp, "usageCoreNanoSeconds": stat.cpu_usage_ns})
}

fn memory(stat: &ContainerStats) -> Value {
    json!({
        "time": stat.timestamp,
        "availableBytes": stat.memory_available_bytes,
        "usageBytes": stat.memory_usage_bytes,
        "workingSetBytes": stat.memory_working_set_bytes,
        "rssBytes": stat.memory_rss_bytes,
        "pageFaults": stat.page_faults,
        "majorPageFaults": stat.major_page_faults,
    })
}

/// The summary (`stats/v1alpha1` Summary).
pub(super) async fn summary(agent: &Agent) -> cri::Result<Value> {
    let now = agent.clock.now();
    let pods = by_pod(agent).await?;
    let mut total = (0, 0);
    let mut list = Vec::new();
    for (pod, stats) in &pods {
        let containers: Vec<Value> = stats
            .iter()
            .map(|stat| {
                json!({"name": stat.name, "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
                       "cpu": cpu(stat), "memory": memory(stat),
                       "rootfs": {"time": stat.timestamp, "usedBytes": stat.writable_layer_bytes,
                                  "inodesUsed": stat.writable_layer_inodes}})
            })
            .collect();
        let sum = |of: fn(&ContainerStats) -> u64| stats.iter().map(of).sum::<u64>();
        let (cpu, working) = (sum(|stat| stat.cpu_usage_ns), sum(|stat| stat.memory_working_set_bytes));
        total = (total.0 + cpu, total.1 + working);
        list.push(json!({
            "podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
            "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
            "containers": containers,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
            "memory": {"time": now, "workingSetBytes": working, "usageBytes": sum(|s| s.memory_usage_bytes),
                       "rssBytes": sum(|s| s.memory_rss_bytes)},
        }));
    }
    let (node_cpu, node_memory) = node_use(agent);
    Ok(json!({
        "node": {"nodeName": agent.config.node_name,
                 "cpu": {"time": now, "usageCoreNanoSeconds": node_cpu},
                 "memory": {"time": now, "workingSetBytes": node_memory,
                            "availableBytes": agent.machine.memory_bytes.saturating_sub(node_memory as i64)}},
        "pods": list,
    }))
}

/// CPU time used by the machine in nanoseconds, and its memory in use.
fn node_use(agent: &Agent) -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, then idle and iowait, which are not use; 100 ticks a second.
    let used: u64 = ticks.iter().take(3).chain(ticks.iter().skip(5).take(3)).sum();
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = table
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|text| text.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1024;
    (used * 10_000_000, (agent.machine.memory_bytes as u64).saturating_sub(available))
}

fn exposition(body: String) -> Response<Body> {
    let mut response = text(StatusCode::OK, body);
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// The kubelet's own metrics.
pub(super) async fn metrics(agent: &Agent) -> Response<Body> {
    let (mut pods, mut states) = (0, HashMap::<&str, u64>::new());
    if let Ok(sandboxes) = agent.runtime.list_pod_sandboxes(&cri::PodSandboxFilter::default()).await {
        pods = sandboxes.iter().filter(|sandbox| sandbox.state == cri::PodSandboxState::Ready).count();
    }
    if let Ok(containers) = agent.runtime.list_containers(&ContainerFilter::default()).await {
        for container in containers {
            let state = match container.state {
                cri::ContainerState::Created => "created",
                cri::ContainerState::Running => "running",
                cri::ContainerState::Exited => "exited",
                cri::ContainerState::Unknown => "unknown",
            };
            *states.entry(state).or_default() += 1;
        }
    }
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node={:?}}} 1",
        agent.config.node_name
    );
    let _ = writeln!(out, "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}");
    let _ = writeln!(out, "# TYPE kubelet_running_containers gauge");
    for (state, count) in states {
        let _ = writeln!(out, "kubelet_running_containers{{container_state={state:?}}} {count}");
    }
    let desired = agent.workers.0.lock().len();
    let _ = writeln!(out, "# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {desired}");
    agent.counters.render(&mut out);
    exposition(out)
}

/// Resource metrics (`/metrics/resource`, KEP-727): what metrics-server scrapes.
pub(super) async fn resource_metrics(agent: &Agent) -> Response<Body> {
    let (pods, failed) = match by_pod(agent).await {
        Ok(pods) => (pods, 0),
        Err(_) => (Vec::new(), 1),
    };
    let (node_cpu, node_memory) = node_use(agent);
    let seconds = |ns: u64| ns as f64 / 1e9;
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, samples: Vec<(String, f64, i64)>| {
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (labels, value, at) in samples {
            let _ = match at {
                0 => writeln!(out, "{name}{labels} {value}"),
                at => writeln!(out, "{name}{labels} {value} {at}"),
            };
        }
    };
    let containers = |of: &dyn Fn(&ContainerStats) -> f64| {
        let samples = pods.iter().flat_map(|(pod, stats)| {
            stats.iter().map(move |stat| {
                let labels = format!(
                    "{{container={:?},namespace={:?},pod={:?}}}",
                    stat.name,
                    pod.namespace(),
                    pod.name()
                );
                (labels, of(stat), stat.timestamp.as_millisecond())
            })
        });
        samples.collect::<Vec<_>>()
    };
    let of_pods = |of: &dyn Fn(&ContainerStats) -> f64| {
        let samples = pods.iter().map(|(pod, stats)| {
            let labels = format!("{{namespace={:?},pod={:?}}}", pod.namespace(), pod.name());
            let at = stats.first().map_or(0, |stat| stat.timestamp.as_millisecond());
            (labels, stats.iter().map(of).sum(), at)
        });
        samples.collect::<Vec<_>>()
    };
    let cpu = |stat: &ContainerStats| seconds(stat.cpu_usage_ns);
    let working = |stat: &ContainerStats| stat.memory_working_set_bytes as f64;
    family("container_cpu_usage_seconds_total", "counter", containers(&cpu));
    family("container_memory_working_set_bytes", "gauge", containers(&working));
    family("node_cpu_usage_seconds_total", "counter", vec![(String::new(), seconds(node_cpu), 0)]);
    family("node_memory_working_set_bytes", "gauge", vec![(String::new(), node_memory as f64, 0)]);
    family("pod_cpu_usage_seconds_total", "counter", of_pods(&cpu));
    family("pod_memory_working_set_bytes", "gauge", of_pods(&working));
    family("scrape_error", "gauge", vec![(String::new(), f64::from(failed), 0)]);
    exposition(out)
}
