//! The Metrics API (`metrics.k8s.io`): what nodes and Pods use now, asked of the kubelets when somebody wants to
//! know. Nothing is sampled while nobody asks.
//!
//! Use of CPU is the difference of two counters. The earlier sample is that of the last question, if it is
//! neither too fresh nor too old; otherwise the first question waits a moment between two samples.
//!
//! Flow: [`Usage::now`] has the samples ([`sample`] asks every kubelet for `/stats/summary`), [`rates`] is the
//! pure arithmetic, the rest makes objects of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use jiff::Timestamp;
use meta::{Object, Quantity, Status};
use registry::ResourceDef;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::body::{self, Answer};
use crate::kubelet;
use crate::listing::{self, Listing};
use crate::server::Server;
use crate::verbs::Call;

/// The group.
pub const GROUP: &str = "metrics.k8s.io";
/// Two samples that are closer than this say little about a rate.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// An older sample says more about the past than about now.
const WINDOW_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a kubelet; others do not wait for one that hangs.
const KUBELET_MAX: Duration = Duration::from_secs(5);

/// The part of a kubelet's summary that counts here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Summary {
    node: NodeStats,
    pods: Vec<PodStats>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStats {
    cpu: CpuStats,
    memory: MemoryStats,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodRef,
    start_time: Option<Timestamp>,
    containers: Vec<ContainerStats>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodRef {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerStats {
    name: String,
    cpu: CpuStats,
    memory: MemoryStats,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CpuStats {
    usage_core_nano_seconds: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MemoryStats {
    working_set_bytes: u64,
}

/// Counters of all nodes at one time.
#[derive(Debug, Clone)]
struct Sample {
    at: Timestamp,
    nodes: BTreeMap<String, Summary>,
}

/// What something uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Use {
    nano_cores: u64,
    memory_bytes: u64,
}

/// What everything uses.
#[derive(Debug, Clone, Default)]
struct Rates {
    at: Timestamp,
    window: Duration,
    nodes: BTreeMap<String, Use>,
    /// By namespace and name; the containers by name.
    pods: BTreeMap<(String, String), BTreeMap<String, Use>>,
}

/// The last sample and what it said.
#[derive(Default)]
pub struct Usage(Mutex<Option<(Sample, Rates)>>);

/// What was used between two samples. A container that is new since the first counts from its Pod's start.
fn rates(before: &Sample, after: &Sample) -> Rates {
    let window = Duration::try_from(after.at.duration_since(before.at)).unwrap_or_default();
    let per_second = |used: u64, seconds: f64| if seconds > 0.0 { (used as f64 / seconds) as u64 } else { 0 };
    let mut out = Rates { at: after.at, window, ..Rates::default() };
    for (name, now) in &after.nodes {
        let Some(then) = before.nodes.get(name) else { continue };
        let used = now.node.cpu.usage_core_nano_seconds.saturating_sub(then.node.cpu.usage_core_nano_seconds);
        let nano_cores = per_second(used, window.as_secs_f64());
        out.nodes.insert(name.clone(), Use { nano_cores, memory_bytes: now.node.memory.working_set_bytes });
        let earlier: BTreeMap<(&str, &str), u64> = then
            .pods
            .iter()
            .flat_map(|p| p.containers.iter().map(|c| (p.pod_ref.uid.as_str(), c)))
            .map(|(uid, c)| ((uid, c.name.as_str()), c.cpu.usage_core_nano_seconds))
            .collect();
        for pod in &now.pods {
            let age = pod.start_time.map(|t| after.at.duration_since(t).as_secs_f64().max(1.0));
            let mut containers = BTreeMap::new();
            for container in &pod.containers {
                let total = container.cpu.usage_core_nano_seconds;
                // A counter that went back belongs to a container that was started anew.
                let known = earlier.get(&(pod.pod_ref.uid.as_str(), container.name.as_str()));
                let nano_cores = match known.filter(|then| **then <= total) {
                    Some(then) => per_second(total - then, window.as_secs_f64()),
                    None => per_second(total, age.unwrap_or(window.as_secs_f64())),
                };
                let memory_bytes = container.memory.working_set_bytes;
                containers.insert(container.name.clone(), Use { nano_cores, memory_bytes });
            }
            out.pods.insert((pod.pod_ref.namespace.clone(), pod.pod_ref.name.clone()), containers);
        }
    }
    out
}

async fn sample(server: &Server) -> Sample {
    let table = server.registry.table();
    let nodes = table.find("", "v1", "nodes").map(|def| server.registry.cacher().kind(&def.storage_prefix()));
    let names: Vec<String> = nodes
        .map(|kind| kind.snapshot(None))
        .unwrap_or_default()
        .iter()
        .map(|n| n.name.to_string())
        .collect();
    let ask = async |name: String| {
        let asked = tokio::time::timeout(KUBELET_MAX, summary(server, &name)).await;
        match asked.unwrap_or_else(|_| Err(Status::timeout("the kubelet did not answer in time"))) {
            Ok(summary) => Some((name, summary)),
            Err(error) => {
                tracing::warn!(node = name, %error, "no statistics from a kubelet");
                None
            }
        }
    };
    let answers = join_all(names.into_iter().map(ask)).await;
    Sample { at: server.registry.clock().now(), nodes: answers.into_iter().flatten().collect() }
}

async fn summary(server: &Server, node: &str) -> Result<Summary, Status> {
    let request = Request::new(body::full(Bytes::new()));
    let answer = kubelet::ask(server, node, request, "/stats/summary".into()).await?;
    let code = answer.status();
    let bytes = body::read(answer.into_body()).await?;
    if !code.is_success() {
        return Err(Status::internal(format!("the kubelet answered {code}")));
    }
    serde_json::from_slice(&bytes).map_err(Status::internal)
}

impl Usage {
    /// What everything uses, as of a moment ago.
    async fn now(&self, server: &Server) -> Rates {
        let mut last = self.0.lock().await;
        let now = server.registry.clock().now();
        let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        let first = match last.take() {
            // Several who ask at once get the same answer.
            Some((sample, rates)) if age(sample.at) < WINDOW_MIN => {
                *last = Some((sample, rates.clone()));
                return rates;
            }
            Some((sample, _)) if age(sample.at) <= WINDOW_MAX => sample,
            _ => {
                let first = sample(server).await;
                tokio::time::sleep(WINDOW_MIN).await;
                first
            }
        };
        let second = sample(server).await;
        let rates = rates(&first, &second);
        *last = Some((second, rates.clone()));
        rates
    }
}

/// A `Use` as the quantities that clients read.
fn quantities(usage: Use) -> Value {
    let quantity = |text: String| Quantity::parse(&text).map_or(text, |q| q.to_string());
    json!({
        "cpu": quantity(format!("{}n", usage.nano_cores)),
        "memory": quantity(format!("{}Ki", usage.memory_bytes / 1024)),
    })
}

/// The object that says what `object` (a Node or a Pod) uses, if that is known.
fn metrics_of(def: &ResourceDef, object: &Object, rates: &Rates) -> Option<Value> {
    let source = object.to_value();
    let mut metadata = json!({"name": &*object.name, "creationTimestamp": schema::time::seconds(rates.at)});
    if def.namespaced {
        metadata["namespace"] = (*object.namespace).into();
    }
    if let Some(labels) = source["metadata"].get("labels") {
        metadata["labels"] = labels.clone();
    }
    let mut out = json!({
        "kind": &*def.kind, "apiVersion": def.api_version(), "metadata": metadata,
        "timestamp": schema::time::seconds(rates.at), "window": go_duration(rates.window),
    });
    if def.namespaced {
        let containers = rates.pods.get(&(object.namespace.to_string(), object.name.to_string()))?;
        let containers = containers.iter().map(|(name, c)| json!({"name": name, "usage": quantities(*c)}));
        out["containers"] = containers.collect();
    } else {
        out["usage"] = quantities(*rates.nodes.get(&*object.name)?);
    }
    Some(out)
}

/// A duration as Go writes it, to the millisecond.
fn go_duration(duration: Duration) -> String {
    format!("{}s", (duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// The Nodes or Pods behind the request, which the watch cache has.
fn sources(server: &Server, call: &Call<'_>) -> Result<Vec<std::sync::Arc<Object>>, Status> {
    let table = server.registry.table();
    let def = table.find("", "v1", &call.def.resource).ok_or_else(Status::path_not_found)?;
    let kind = server.registry.cacher().kind(&def.storage_prefix());
    let namespace = (!call.info.namespace.is_empty()).then_some(call.info.namespace.as_str());
    Ok(kind.snapshot(namespace.filter(|_| def.namespaced)))
}

/// GET of one object.
pub async fn get(server: &Server, call: &Call<'_>) -> Result<Answer, Status> {
    let name = call.info.name.as_str();
    let missing = || Status::not_found(GROUP, &call.def.resource, name);
    let found = sources(server, call)?.into_iter().find(|o| *o.name == *name).ok_or_else(missing)?;
    let rates = server.usage.now(server).await;
    let value = metrics_of(call.def, &found, &rates).ok_or_else(missing)?;
    server.object_answer(call, 200, Bytes::from(value.to_string()))
}

/// GET of a collection.
pub async fn list(server: &Server, call: &Call<'_>) -> Result<Answer, Status> {
    let options = call.list_options()?;
    let filter = options.filter(call.def, &call.info.namespace, "")?;
    let mut sources = sources(server, call)?;
    sources.retain(|object| filter.matches(object));
    let rates = server.usage.now(server).await;
    let shown = sources
        .iter()
        .filter_map(|object| metrics_of(call.def, object, &rates))
        .map(|value| Bytes::from(value.to_string()))
        .collect();
    let listing = Listing { def: call.def.clone(), metadata: json!({}), objects: Vec::new(), shown };
    listing::answer(call.headers, listing, call.include(), server.registry.clock().now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, node_cpu: u64, containers: &[(&str, u64, u64)]) -> Sample {
        let containers = containers.iter().map(|(name, cpu, memory)| ContainerStats {
            name: (*name).into(),
            cpu: CpuStats { usage_core_nano_seconds: *cpu },
            memory: MemoryStats { working_set_bytes: *memory },
        });
        let pod = PodStats {
            pod_ref: PodRef { name: "p".into(), namespace: "ns".into(), uid: "u".into() },
            start_time: Some(Timestamp::from_second(90).unwrap()),
            containers: containers.collect(),
        };
        let node = NodeStats {
            cpu: CpuStats { usage_core_nano_seconds: node_cpu },
            memory: MemoryStats { working_set_bytes: 1 << 30 },
        };
        let nodes = BTreeMap::from([("n".into(), Summary { node, pods: vec![pod] })]);
        Sample { at: Timestamp::from_second(at).unwrap(), nodes }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let before = sample(100, 1_000_000_000, &[("a", 5_000_000_000, 1), ("again", 9_000_000_000, 1)]);
        let after = sample(
            110,
            11_000_000_000,
            &[("a", 7_500_000_000, 3 << 20), ("again", 1_000_000_000, 1), ("new", 4_000_000_000, 2048)],
        );
        let rates = rates(&before, &after);
        assert_eq!(rates.window, Duration::from_secs(10));
        assert_eq!(rates.nodes["n"], Use { nano_cores: 1_000_000_000, memory_bytes: 1 << 30 });
        let pod = &rates.pods[&("ns".to_owned(), "p".to_owned())];
        // A quarter of a core; one that went back and one that is new count from the Pod's start, 20 s ago.
        assert_eq!(pod["a"], Use { nano_cores: 250_000_000, memory_bytes: 3 << 20 });
        assert_eq!((pod["again"].nano_cores, pod["new"].nano_cores), (50_000_000, 200_000_000));
        assert_eq!(quantities(pod["a"]), json!({"cpu": "250m", "memory": "3Mi"}));
        assert_eq!(
            quantities(Use { nano_cores: 1_234_567, memory_bytes: 5000 }),
            json!({"cpu": "1234567n", "memory": "4Ki"})
        );
        assert_eq!(go_duration(Duration::from_millis(1503)), "1.503s");
        assert_eq!(go_duration(Duration::from_secs(10)), "10s");
    }
}
