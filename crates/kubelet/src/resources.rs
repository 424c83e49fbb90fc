//! Requests and limits: QoS class, what a pod counts for, and the values that go into cgroups.

use std::collections::BTreeMap;

use api::prelude::*;
use cri::{ContainerResources, HugepageLimit};

use crate::spec::{self, Role};

/// CFS period in microseconds, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Smallest quota the kernel takes, in microseconds.
const CPU_QUOTA_US_MIN: i64 = 1_000;
/// CPU shares: kernel's limits and Kubernetes' scale of 1024 per CPU.
const CPU_SHARES_MIN: i64 = 2;
const CPU_SHARES_MAX: i64 = 262_144;

/// Resource name -> value; CPU in thousandths, all else in units.
pub type Amounts = BTreeMap<String, i64>;

/// Quality of service class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests for CPU and memory in every container.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// A quantity's value: thousandths for CPU, units for all else; 0 for what does not parse.
pub fn amount(resource: &str, quantity: &Quantity) -> i64 {
    let Ok(parsed) = meta::Quantity::parse(&quantity.0) else { return 0 };
    if resource == "cpu" { parsed.milli_value() } else { parsed.value() }
}

fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    list.into_iter().flatten().map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect()
}

/// Limits of a container.
pub fn limits(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|resources| resources.limits.as_ref()))
}

/// Requests of a container; what is only limited is requested to its limit.
pub fn requests(container: &Container) -> Amounts {
    let mut requests = limits(container);
    requests.extend(amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref())));
    requests
}

/// The QoS class of a pod.
pub fn qos(pod: &Pod) -> Qos {
    let mut any = false;
    let mut guaranteed = true;
    for (role, container) in spec::containers(pod) {
        if role == Role::Ephemeral {
            continue;
        }
        let (requests, limits) = (requests(&container), limits(&container));
        for resource in ["cpu", "memory"] {
            let limit = limits.get(resource).copied().unwrap_or(0);
            let request = requests.get(resource).copied().unwrap_or(0);
            any |= limit > 0 || request > 0;
            guaranteed &= limit > 0 && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

fn add(into: &mut Amounts, from: &Amounts) {
    for (name, value) in from {
        let sum = into.entry(name.clone()).or_insert(0);
        *sum = sum.saturating_add(*value);
    }
}

fn raise(into: &mut Amounts, from: &Amounts) {
    for (name, value) in from {
        let entry = into.entry(name.clone()).or_insert(0);
        *entry = (*entry).max(*value);
    }
}

/// What a pod counts for: the sum of its regular containers and sidecars, or the peak while it
/// initialises if that is more, plus overhead.
pub fn pod_total(pod: &Pod, of: fn(&Container) -> Amounts) -> Amounts {
    let mut total = Amounts::new();
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for (role, container) in spec::containers(pod) {
        let amounts = of(&container);
        match role {
            Role::Regular => add(&mut total, &amounts),
            Role::Sidecar => {
                add(&mut total, &amounts);
                add(&mut sidecars, &amounts);
                raise(&mut peak, &sidecars);
            }
            Role::Init => {
                let mut while_running = sidecars.clone();
                add(&mut while_running, &amounts);
                raise(&mut peak, &while_running);
            }
            Role::Ephemeral => {}
        }
    }
    raise(&mut total, &peak);
    add(&mut total, &amounts(spec::spec(pod).overhead.as_ref()));
    total
}

/// CPU shares for thousandths of a CPU.
pub fn cpu_shares(milli: i64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX) as u64
}

/// CFS quota for thousandths of a CPU.
fn cpu_quota(milli: i64) -> i64 {
    (milli.saturating_mul(CPU_PERIOD_US as i64) / 1000).max(CPU_QUOTA_US_MIN)
}

/// How willingly the kernel kills a container's processes when memory runs out.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i32 {
    const CRITICAL: i32 = -997;
    if spec::spec(pod).priority.unwrap_or(0) >= 2_000_000_000 {
        return CRITICAL;
    }
    match qos(pod) {
        Qos::Guaranteed => CRITICAL,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let requested = requests(container).get("memory").copied().unwrap_or(0);
            let share = 1000i64.saturating_mul(requested) / memory_capacity.max(1);
            // Between the two other classes.
            (1000 - share).clamp(3, 999) as i32
        }
    }
}

/// The cgroup values of a container on a node with `memory_capacity` bytes.
pub fn container_resources(pod: &Pod, container: &Container, memory_capacity: i64) -> ContainerResources {
    let (requests, limits) = (requests(container), limits(container));
    let limit = |resource: &str| limits.get(resource).copied().unwrap_or(0);
    let mut result = ContainerResources {
        cpu_shares: cpu_shares(requests.get("cpu").copied().unwrap_or(0)),
        memory_limit_bytes: limit("memory"),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..ContainerResources::default()
    };
    if limit("cpu") > 0 {
        result.cpu_period_us = CPU_PERIOD_US;
        result.cpu_quota_us = cpu_quota(limit("cpu"));
    }
    for (name, value) in &limits {
        if let Some(size) = name.strip_prefix("hugepages-") {
            // `2Mi` in the API is `2MB` in cgroup file names.
            let page_size = format!("{}B", size.trim_end_matches('i'));
            result.hugepage_limits.push(HugepageLimit { page_size, limit_bytes: (*value).max(0) as u64 });
        }
    }
    result
}

/// Name of a page size in cgroup files.
fn page_size(bytes: i64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// Limits on huge pages of all sizes that the machine has: none of what is not asked for.
pub fn huge_page_limits(asked: &[HugepageLimit], sizes: impl Iterator<Item = i64>) -> Vec<HugepageLimit> {
    let mut all = asked.to_vec();
    for page_size in sizes.map(page_size) {
        if !all.iter().any(|limit| limit.page_size == page_size) {
            all.push(HugepageLimit { page_size, limit_bytes: 0 });
        }
    }
    all
}

/// Limits on huge pages of a pod as a whole.
pub fn pod_huge_pages(pod: &Pod, sizes: impl Iterator<Item = i64>) -> Vec<HugepageLimit> {
    let total = pod_total(pod, limits);
    let of = |size: i64| {
        let name = format!("hugepages-{}", crate::node::machine::binary(size));
        let bytes = total.get(&name).copied().unwrap_or(0);
        HugepageLimit { page_size: page_size(size), limit_bytes: u64::try_from(bytes).unwrap_or(0) }
    };
    sizes.map(of).collect()
}

/// The cgroup of a pod below `root`, as upstream's cgroupfs driver names it.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let class = match qos(pod) {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("{}/kubepods{class}/pod{}", root.trim_end_matches('/'), pod.uid())
}

/// Values of a pod's own cgroup: the weight of all it requests, and limits only where every container is
/// limited.
pub fn pod_values(pod: &Pod) -> crate::cgroup::Values {
    let requests = pod_total(pod, requests);
    let totals = pod_total(pod, limits);
    let all_limited = |resource: &str| {
        let containers = spec::containers(pod);
        let mut counted = containers.iter().filter(|(role, _)| *role != Role::Ephemeral);
        counted.all(|(_, container)| limits(container).get(resource).is_some_and(|limit| *limit > 0))
    };
    let limit = |resource: &str| match all_limited(resource) {
        true => totals.get(resource).copied().unwrap_or(0),
        false => 0,
    };
    crate::cgroup::Values {
        cpu_shares: cpu_shares(requests.get("cpu").copied().unwrap_or(0)),
        cpu_quota_us: Some(limit("cpu")).filter(|milli| *milli > 0).map_or(0, cpu_quota),
        memory_bytes: limit("memory"),
        pids: 0,
    }
}

/// Values of the cgroup of all pods: what the machine has without what is reserved.
pub fn all_pods_values(
    machine: &crate::node::machine::Machine,
    config: &crate::config::Config,
) -> crate::cgroup::Values {
    let pids = crate::eviction::observe::process_ids().map_or(0, |(most, _)| most as i64);
    crate::cgroup::Values {
        cpu_shares: cpu_shares((machine.cpu_milli - config.reserved_cpu_milli).max(0)),
        cpu_quota_us: 0,
        memory_bytes: (machine.memory_bytes - config.reserved_memory_bytes).max(0),
        pids: if config.reserved_pids > 0 { (pids - config.reserved_pids).max(1) } else { 0 },
    }
}

/// Weight of the class cgroup of burstable pods: all that they request. Best-effort pods get the least.
pub fn class_values<'a>(class: Qos, pods: impl Iterator<Item = &'a Pod>) -> crate::cgroup::Values {
    let milli = match class {
        Qos::BestEffort => 0,
        _ => pods
            .filter(|pod| qos(pod) == class)
            .map(|pod| pod_total(pod, requests).get("cpu").copied().unwrap_or(0))
            .sum(),
    };
    crate::cgroup::Values { cpu_shares: cpu_shares(milli), ..crate::cgroup::Values::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::k8s_openapi::api::core::v1::ResourceRequirements;

    fn container(name: &str, requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let map = |list: &[(&str, &str)]| {
            Some(list.iter().map(|(k, v)| (k.to_string(), Quantity(v.to_string()))).collect())
        };
        Container {
            name: name.into(),
            resources: Some(ResourceRequirements {
                requests: map(requests),
                limits: map(limits),
                ..Default::default()
            }),
            ..Container::default()
        }
    }

    fn pod(init: Vec<Container>, containers: Vec<Container>) -> Pod {
        Pod {
            spec: Some(PodSpec { init_containers: Some(init), containers, ..PodSpec::default() }),
            ..Pod::default()
        }
    }

    #[test]
    fn classes() {
        let both = [("cpu", "1"), ("memory", "1Gi")];
        let cases = [
            (pod(vec![], vec![container("a", &[], &[])]), Qos::BestEffort),
            (pod(vec![], vec![container("a", &[], &both)]), Qos::Guaranteed),
            (pod(vec![], vec![container("a", &both, &both), container("b", &[], &[])]), Qos::Burstable),
            (pod(vec![], vec![container("a", &[("cpu", "1")], &[])]), Qos::Burstable),
            (
                pod(vec![container("i", &[("cpu", "1")], &[])], vec![container("a", &both, &both)]),
                Qos::Burstable,
            ),
        ];
        for (pod, expected) in cases {
            assert_eq!(qos(&pod), expected);
        }
    }

    #[test]
    fn totals_count_the_peak_of_initialisation() {
        let mut sidecar = container("s", &[("cpu", "200m")], &[]);
        sidecar.restart_policy = Some("Always".into());
        let init = container("i", &[("cpu", "1")], &[]);
        let regular = container("a", &[("cpu", "500m"), ("memory", "1Mi")], &[]);
        let total = pod_total(&pod(vec![sidecar, init], vec![regular]), requests);
        assert_eq!(total["cpu"], 1200);
        assert_eq!(total["memory"], 1 << 20);
    }

    #[test]
    fn huge_pages() {
        let all = [("hugepages-2Mi", "4Mi"), ("memory", "1Mi")];
        let c = container("a", &[], &all);
        let p = pod(vec![], vec![c.clone(), c.clone()]);
        let sizes = || [2 << 20, 1 << 30].into_iter();
        let limit = |size: &str, bytes| HugepageLimit { page_size: size.into(), limit_bytes: bytes };
        let own = container_resources(&p, &c, 1).hugepage_limits;
        assert_eq!(huge_page_limits(&own, sizes()), [limit("2MB", 4 << 20), limit("1GB", 0)]);
        assert_eq!(pod_huge_pages(&p, sizes()), [limit("2MB", 8 << 20), limit("1GB", 0)]);
    }

    #[test]
    fn cgroup_values() {
        let c = container("a", &[("cpu", "250m"), ("memory", "1Gi")], &[("cpu", "500m"), ("memory", "2Gi")]);
        let p = pod(vec![], vec![c.clone()]);
        let values = container_resources(&p, &c, 4 << 30);
        assert_eq!((values.cpu_shares, values.cpu_quota_us, values.cpu_period_us), (256, 50_000, 100_000));
        assert_eq!((values.memory_limit_bytes, values.oom_score_adj), (2 << 30, 750));
        let none = container("b", &[], &[]);
        let values = container_resources(&pod(vec![], vec![none.clone()]), &none, 1);
        assert_eq!((values.cpu_shares, values.cpu_quota_us, values.oom_score_adj), (2, 0, 1000));
    }
}
