//! A look as the summary API has it (`stats/v1alpha1` Summary).

use api::prelude::Typed;
use cri::{ContainerStats, InterfaceStats};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::look::{ContainerUse, Disk, PodUse, Seen};
use crate::agent::Agent;
use crate::volume::figures::OfClaim;

/// API times have whole seconds.
fn second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn cpu(at: Timestamp, rate: Option<u64>, ns: u64) -> Value {
    let mut cpu = json!({"time": second(at), "usageCoreNanoSeconds": ns});
    if let (Some(rate), Some(cpu)) = (rate, cpu.as_object_mut()) {
        cpu.insert("usageNanoCores".into(), rate.into());
    }
    cpu
}

fn memory(stat: &ContainerStats) -> Value {
    let mut memory = json!({
        "time": second(stat.timestamp),
        "usageBytes": stat.memory_usage_bytes,
        "workingSetBytes": stat.memory_working_set_bytes,
        "rssBytes": stat.memory_rss_bytes,
        "pageFaults": stat.page_faults,
        "majorPageFaults": stat.major_page_faults,
    });
    if let (Some(available), Some(memory)) = (stat.memory_available_bytes, memory.as_object_mut()) {
        memory.insert("availableBytes".into(), available.into());
    }
    memory
}

fn fs(at: Timestamp, disk: &Disk, used: u64, inodes_used: Option<u64>) -> Value {
    json!({
        "time": second(at),
        "availableBytes": disk.available, "capacityBytes": disk.capacity, "usedBytes": used,
        "inodesFree": disk.inodes_free, "inodes": disk.inodes,
        "inodesUsed": inodes_used.unwrap_or(disk.inodes.saturating_sub(disk.inodes_free)),
    })
}

fn network(at: Timestamp, interfaces: &[InterfaceStats]) -> Option<Value> {
    let one = |i: &InterfaceStats| {
        json!({"name": i.name, "rxBytes": i.rx_bytes, "rxErrors": i.rx_errors, "txBytes": i.tx_bytes,
               "txErrors": i.tx_errors})
    };
    let first = interfaces.iter().find(|i| i.name == "eth0").or_else(|| interfaces.first())?;
    let mut network = one(first);
    let all: Vec<Value> = interfaces.iter().map(one).collect();
    let map = network.as_object_mut()?;
    map.insert("time".into(), json!(second(at)));
    map.insert("interfaces".into(), all.into());
    Some(network)
}

fn container(used: &ContainerUse, disk: &Disk, short: bool) -> Value {
    let stat = &used.stats;
    let mut all = json!({
        "name": stat.name,
        "startTime": used.status.as_ref().and_then(|status| status.started_at).map(second),
        "cpu": cpu(stat.timestamp, used.rate, stat.cpu_usage_ns),
        "memory": memory(stat),
    });
    if let (false, Some(all)) = (short, all.as_object_mut()) {
        let rootfs = fs(stat.timestamp, disk, stat.writable_layer_bytes, Some(stat.writable_layer_inodes));
        let logs = fs(stat.timestamp, disk, used.log_bytes as u64, Some(used.log_files as u64));
        all.insert("rootfs".into(), rootfs);
        all.insert("logs".into(), logs);
    }
    all
}

/// A claim's volume; what nobody knows of it is absent.
fn of_claim(of: &OfClaim, namespace: &str, at: Timestamp) -> Value {
    let mut all = json!({"time": second(at), "name": of.volume,
        "pvcRef": {"name": of.claim, "namespace": namespace}});
    let Some(map) = all.as_object_mut() else { return all };
    let mut put = |name: &str, value: u64| drop(map.insert(name.to_owned(), value.into()));
    if let Some(bytes) = of.figures.bytes {
        put("availableBytes", bytes.available);
        put("capacityBytes", bytes.total);
        put("usedBytes", bytes.used);
    }
    if let Some(inodes) = of.figures.inodes {
        put("inodesFree", inodes.available);
        put("inodes", inodes.total);
        put("inodesUsed", inodes.used);
    }
    if let Some(abnormal) = of.figures.abnormal {
        map.insert("volumeHealthStats".into(), json!({"abnormal": abnormal}));
    }
    all
}

fn pod(used: &PodUse, seen: &Seen, short: bool) -> Value {
    let containers: Vec<Value> = used.containers.iter().map(|c| container(c, &seen.disk, short)).collect();
    let sum = |of: fn(&ContainerStats) -> u64| used.containers.iter().map(|c| of(&c.stats)).sum::<u64>();
    let rates: Option<u64> = used.containers.iter().map(|c| c.rate).sum();
    let pod = &used.pod;
    let mut all = json!({
        "podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
        "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
        "containers": containers,
        "cpu": cpu(seen.at, rates, sum(|s| s.cpu_usage_ns)),
        "memory": {"time": second(seen.at), "workingSetBytes": sum(|s| s.memory_working_set_bytes),
                   "usageBytes": sum(|s| s.memory_usage_bytes), "rssBytes": sum(|s| s.memory_rss_bytes),
                   "pageFaults": sum(|s| s.page_faults), "majorPageFaults": sum(|s| s.major_page_faults)},
    });
    let (false, Some(map)) = (short, all.as_object_mut()) else { return all };
    let sandbox = used.sandbox.as_ref();
    if let Some(network) = sandbox.and_then(|s| network(s.timestamp, &s.interfaces)) {
        map.insert("network".into(), network);
    }
    let volume = |(name, bytes, files): &(String, i64, i64)| {
        let mut volume = fs(seen.at, &seen.disk, *bytes as u64, Some(*files as u64));
        if let Some(volume) = volume.as_object_mut() {
            volume.insert("name".into(), name.as_str().into());
        }
        volume
    };
    let mut volumes: Vec<Value> = used.volumes.iter().map(volume).collect();
    volumes.extend(used.claims.iter().map(|claim| of_claim(claim, pod.namespace(), seen.at)));
    if !volumes.is_empty() {
        map.insert("volume".into(), volumes.into());
    }
    let in_volumes = |of: fn(&(String, i64, i64)) -> i64| used.volumes.iter().map(of).sum::<i64>() as u64;
    let in_logs = |of: fn(&ContainerUse) -> i64| used.containers.iter().map(of).sum::<i64>() as u64;
    let bytes = sum(|s| s.writable_layer_bytes) + in_logs(|c| c.log_bytes) + in_volumes(|v| v.1);
    let files = sum(|s| s.writable_layer_inodes) + in_logs(|c| c.log_files) + in_volumes(|v| v.2);
    map.insert("ephemeral-storage".into(), fs(seen.at, &seen.disk, bytes, Some(files)));
    let processes = sandbox.map_or_else(|| sum(|s| s.pids), |s| s.pids);
    map.insert("process_stats".into(), json!({"process_count": processes}));
    all
}

/// The whole.
pub(super) fn write(agent: &Agent, seen: &Seen, short: bool) -> Value {
    let at = second(seen.at);
    let working = seen.memory_total.saturating_sub(seen.memory_available);
    let mut node: Map<String, Value> = Map::new();
    let mut put = |name: &str, value: Value| drop(node.insert(name.to_owned(), value));
    put("nodeName", agent.config.node_name.as_str().into());
    put("startTime", json!(seen.booted));
    put("cpu", cpu(seen.at, seen.cpu_rate, seen.cpu_ns));
    put(
        "memory",
        json!({"time": at, "availableBytes": seen.memory_available, "usageBytes": seen.memory_usage,
               "workingSetBytes": working, "rssBytes": seen.memory_rss, "pageFaults": seen.page_faults.0,
               "majorPageFaults": seen.page_faults.1}),
    );
    let (swap, free) = seen.swap;
    put("swap", json!({"time": at, "swapAvailableBytes": free, "swapUsageBytes": swap.saturating_sub(free)}));
    let all = || seen.pods.iter().flat_map(|pod| &pod.containers);
    let mut system = Vec::new();
    if let Some((limit, used)) = seen.all_pods {
        let (ns, rate) = (all().map(|c| c.stats.cpu_usage_ns).sum(), all().map(|c| c.rate).sum());
        system.push(json!({"name": "pods", "startTime": seen.booted, "cpu": cpu(seen.at, rate, ns),
            "memory": {"time": at, "availableBytes": limit.saturating_sub(used), "workingSetBytes": used}}));
    }
    put("systemContainers", system.into());
    if !short {
        if let Some(network) = network(seen.at, &seen.interfaces) {
            put("network", network);
        }
        put("fs", fs(seen.at, &seen.disk, seen.disk.used, None));
        if let Some(images) = &seen.images {
            let disk = Disk {
                available: images.available_bytes,
                capacity: images.capacity_bytes,
                used: images.used_bytes,
                inodes: images.inodes,
                inodes_free: images.inodes_free,
            };
            let changes: u64 = all().map(|c| c.stats.writable_layer_bytes).sum();
            let image = fs(images.timestamp, &disk, images.used_bytes, Some(images.inodes_used));
            put("runtime", json!({"imageFs": image, "containerFs": fs(seen.at, &disk, changes, None)}));
        }
        if let Some((most, taken)) = seen.process_ids {
            put("rlimit", json!({"time": at, "maxpid": most, "curproc": taken}));
        }
    }
    let pods: Vec<Value> = seen.pods.iter().map(|used| pod(used, seen, short)).collect();
    json!({"node": node, "pods": pods})
}
