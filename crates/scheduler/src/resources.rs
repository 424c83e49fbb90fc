//! Amounts of resources, as the scheduler adds and compares them.

use std::collections::BTreeMap;

use api::prelude::{Container, Pod, Quantity};

/// What a container that asks for no CPU is taken to use when nodes are compared.
const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container that asks for no memory is taken to use when nodes are compared, in bytes.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts. CPU in thousandths, the others in units or bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub milli_cpu: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Ephemeral storage in bytes.
    pub ephemeral_storage: i64,
    /// Pods; only used for what a node allows.
    pub pods: i64,
    /// Everything else, by name: huge pages, devices.
    pub scalar: BTreeMap<String, i64>,
}

type Amounts = BTreeMap<String, Quantity>;

fn parse(quantity: &Quantity) -> meta::Quantity {
    // The API does not store quantities that cannot be parsed; zero is the harmless reading.
    meta::Quantity::parse(&quantity.0).unwrap_or_else(|_| meta::Quantity::from_units(0))
}

impl Resources {
    /// Reads a resource list.
    pub fn from_list(list: Option<&Amounts>) -> Resources {
        let mut resources = Resources::default();
        for (name, quantity) in list.into_iter().flatten() {
            let quantity = parse(quantity);
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli_value(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.value(),
                "pods" => resources.pods = quantity.value(),
                _ => {
                    resources.scalar.insert(name.clone(), quantity.value());
                }
            }
        }
        resources
    }

    /// Adds `other`, `sign` times (1 or -1).
    pub fn add(&mut self, other: &Resources, sign: i64) {
        self.milli_cpu += sign * other.milli_cpu;
        self.memory += sign * other.memory;
        self.ephemeral_storage += sign * other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            match self.scalar.get_mut(name) {
                Some(have) => *have += sign * amount,
                None => drop(self.scalar.insert(name.clone(), sign * amount)),
            }
        }
    }

    /// Raises every amount to at least that of `other`.
    fn raise(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            let have = self.scalar.entry(name.clone()).or_default();
            *have = (*have).max(*amount);
        }
    }

    /// Whether nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalar.values().all(|amount| *amount == 0)
    }
}

fn requests(container: &Container) -> Resources {
    Resources::from_list(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// What one container counts for when nodes are compared.
fn with_defaults(container: &Container) -> (i64, i64) {
    let asked = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let amounts = Resources::from_list(asked);
    let has = |name: &str| asked.is_some_and(|list| list.contains_key(name));
    (
        if has("cpu") { amounts.milli_cpu } else { DEFAULT_MILLI_CPU },
        if has("memory") { amounts.memory } else { DEFAULT_MEMORY },
    )
}

/// What a pod asks of its node: the sum of its containers and sidecars, or the largest init container
/// together with the sidecars before it, whichever is more, and its overhead (KEP-753).
pub fn pod_requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&requests(container), 1);
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut own = requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own, 1);
            own = sidecars.clone();
        } else {
            own.add(&sidecars, 1);
        }
        peak.raise(&own);
    }
    total.add(&sidecars, 1);
    total.raise(&peak);
    // Requests of the whole pod (KEP-2837) stand in for those of its containers.
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let whole = Resources::from_list(Some(list));
        if list.contains_key("cpu") {
            total.milli_cpu = whole.milli_cpu;
        }
        if list.contains_key("memory") {
            total.memory = whole.memory;
        }
    }
    total.add(&Resources::from_list(spec.overhead.as_ref()), 1);
    total
}

/// CPU and memory a pod counts for when nodes are compared: containers that ask for nothing count for a
/// little, so that they spread too.
pub fn pod_weights(pod: &Pod) -> (i64, i64) {
    let Some(spec) = &pod.spec else { return (0, 0) };
    let sum = |mut totals: (i64, i64), container: &Container| {
        let (cpu, memory) = with_defaults(container);
        totals.0 += cpu;
        totals.1 += memory;
        totals
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let (cpu, memory) = spec.containers.iter().chain(sidecars).fold((0, 0), sum);
    let overhead = Resources::from_list(spec.overhead.as_ref());
    (cpu + overhead.milli_cpu, memory + overhead.memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::prelude::Typed;
    use serde_json::json;

    #[test]
    fn init_containers_count_at_their_peak() {
        let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = c("200m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = Pod::from_value(json!({"metadata": {}, "spec": {
            "containers": [c("300m"), c("100m")], "initContainers": [sidecar, c("1")],
            "overhead": {"cpu": "10m", "example.com/gpu": "1"},
        }}))
        .unwrap();
        let requests = pod_requests(&pod);
        assert_eq!(requests.milli_cpu, 1210, "sidecar and the large init container, not the sum of all");
        assert_eq!(requests.scalar["example.com/gpu"], 1);
        assert_eq!(pod_weights(&pod), (610, 3 * DEFAULT_MEMORY));
    }
}
