//! The kubelet's configuration file: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`, decoded strictly,
//! checked as upstream does and mapped onto [`Config`].
//!
//! The fields are rows of `data/configuration.txt`. What the file names wins over options; what it does not name
//! is the options'.

mod check;
mod managers;
mod table;
mod verification;

use std::collections::BTreeMap;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::Taint;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::duration;
use crate::eviction::threshold::{self, Eviction, Statements};
use crate::images;
use crate::resources::Amounts;
use crate::shutdown;

/// Group and version of the file.
pub const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Its kind.
pub const KIND: &str = "KubeletConfiguration";

/// A file that cannot be used, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no such object.
    #[error("failed to decode: {0}")]
    Decode(String),
    /// It has fields that do not exist.
    #[error("failed to decode: strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    /// Its values make no sense.
    #[error("failed to validate kubelet configuration, error: {}", aggregate(.0))]
    Invalid(Vec<String>),
}

fn aggregate(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// A configuration that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// As it was given.
    given: Map<String, Value>,
    /// With all defaults.
    complete: Map<String, Value>,
    /// Fields that nothing depends on.
    pub idle: Vec<String>,
}

impl Configuration {
    /// Decodes and checks a document.
    pub fn decode(document: Value) -> Result<Configuration, Error> {
        let Value::Object(given) = document else {
            return Err(Error::Decode("Object 'Kind' is missing in the document".into()));
        };
        let text = |name: &str| given.get(name).and_then(Value::as_str).unwrap_or_default();
        match (text("apiVersion"), text("kind")) {
            (_, "") => {
                let shown = Value::Object(given.clone()).to_string();
                return Err(Error::Decode(format!("Object 'Kind' is missing in '{shown}'")));
            }
            ("", _) => {
                let shown = Value::Object(given.clone()).to_string();
                return Err(Error::Decode(format!("Object 'apiVersion' is missing in '{shown}'")));
            }
            (API_VERSION, KIND) => {}
            (API_VERSION, kind) => {
                let scheme = "pkg/kubelet/apis/config/scheme/scheme.go:33";
                return Err(Error::Decode(format!(
                    "no kind {kind:?} is registered for version {API_VERSION:?} in scheme {scheme:?}"
                )));
            }
            (version, kind) => {
                return Err(Error::Decode(format!(
                    "no kind {kind:?} is registered for version {version:?} in scheme \
                     \"pkg/kubelet/apis/config/scheme/scheme.go:33\""
                )));
            }
        }
        let problems = table::judge(&given);
        if let Some(first) = problems.wrong.into_iter().next() {
            return Err(Error::Decode(first));
        }
        if !problems.unknown.is_empty() {
            return Err(Error::Strict(problems.unknown));
        }
        let complete = table::complete(given.clone());
        let made = Configuration { given, complete, idle: problems.idle };
        let invalid = check::check(&made);
        if invalid.is_empty() { Ok(made) } else { Err(Error::Invalid(invalid)) }
    }

    fn value(&self, path: &str) -> Option<&Value> {
        let mut parts = path.split('.');
        let first = self.complete.get(parts.next()?)?;
        parts.try_fold(first, |at, part| at.get(part)).filter(|value| !value.is_null())
    }

    fn is_given(&self, path: &str) -> bool {
        let mut parts = path.split('.');
        let first = parts.next().and_then(|part| self.given.get(part));
        parts.fold(first, |at, part| at?.get(part)).is_some_and(|value| !value.is_null())
    }

    fn int(&self, path: &str) -> i64 {
        self.value(path).and_then(Value::as_i64).unwrap_or(0)
    }

    fn flag(&self, path: &str) -> bool {
        self.value(path).and_then(Value::as_bool).unwrap_or(false)
    }

    fn text(&self, path: &str) -> &str {
        self.value(path).and_then(Value::as_str).unwrap_or_default()
    }

    /// A duration and whether it is negative.
    fn signed(&self, path: &str) -> (Duration, bool) {
        let text = self.text(path);
        let negative = text.starts_with('-');
        (duration::parse(text.trim_start_matches('-')).unwrap_or_default(), negative)
    }

    fn duration(&self, path: &str) -> Duration {
        self.signed(path).0
    }

    fn texts(&self, path: &str) -> Vec<String> {
        let list = self.value(path).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    fn map(&self, path: &str) -> BTreeMap<String, String> {
        let map = self.value(path).and_then(Value::as_object);
        map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
    }

    fn taints(&self) -> Vec<Taint> {
        let list = self.value("registerWithTaints").cloned().unwrap_or_default();
        serde_json::from_value(list).unwrap_or_default()
    }

    fn eviction(&self) -> Result<Eviction, threshold::Error> {
        let mut hard: Statements = match self.is_given("evictionHard") {
            false => threshold::defaults(),
            true if self.flag("mergeDefaultEvictionSettings") => threshold::defaults(),
            true => Statements::new(),
        };
        hard.extend(self.map("evictionHard"));
        let made = Eviction::new(
            &hard,
            &self.map("evictionSoft"),
            &self.map("evictionSoftGracePeriod"),
            &self.map("evictionMinimumReclaim"),
            self.enforces_pods(),
        )?;
        Ok(Eviction {
            transition: self.duration("evictionPressureTransitionPeriod"),
            pod_grace_seconds_max: self.int("evictionMaxPodGracePeriod"),
            ..made
        })
    }

    fn shutdown_by_priority(&self) -> Vec<shutdown::Period> {
        let list = self.value("shutdownGracePeriodByPodPriority").and_then(Value::as_array);
        let number = |item: &Value, name: &str| item.get(name).and_then(Value::as_i64).unwrap_or(0);
        let of = |item: &Value| shutdown::Period {
            priority: i32::try_from(number(item, "priority")).unwrap_or(i32::MAX),
            seconds: number(item, "shutdownGracePeriodSeconds"),
        };
        list.into_iter().flatten().map(of).collect()
    }

    fn enforces_pods(&self) -> bool {
        self.texts("enforceNodeAllocatable").iter().any(|what| what == "pods")
    }

    /// What is kept from pods, both reservations together.
    fn reserved(&self) -> Amounts {
        let mut all = Amounts::new();
        for path in ["kubeReserved", "systemReserved"] {
            for (name, text) in self.map(path) {
                let amount = crate::resources::amount(&name, &api::prelude::Quantity(text));
                *all.entry(name).or_insert(0) += amount;
            }
        }
        let cpus = crate::cpu::parse(self.text("reservedSystemCPUs")).unwrap_or_default();
        if !cpus.is_empty() {
            all.insert("cpu".into(), cpus.len() as i64 * 1000);
        }
        all
    }

    /// Puts what the file names into a kubelet's configuration.
    pub fn apply(&self, config: &mut Config) {
        let given = |path: &str| self.is_given(path);
        let evicting = [
            "evictionHard",
            "evictionSoft",
            "evictionSoftGracePeriod",
            "evictionPressureTransitionPeriod",
            "evictionMaxPodGracePeriod",
            "evictionMinimumReclaim",
            "enforceNodeAllocatable",
        ];
        if evicting.into_iter().any(given)
            && let Ok(eviction) = self.eviction()
        {
            config.eviction = eviction;
        }
        config.enforce_pods = self.enforces_pods();
        if given("maxPods") {
            config.max_pods = self.int("maxPods");
        }
        config.pods_per_core = self.int("podsPerCore");
        config.pod_pids_limit = self.int("podPidsLimit");
        let reserved = self.reserved();
        let kept = |name: &str| reserved.get(name).copied().unwrap_or(0);
        config.reserved_cpu_milli = kept("cpu");
        config.reserved_memory_bytes = kept("memory");
        config.reserved_storage_bytes = kept("ephemeral-storage");
        config.reserved_pids = kept("pid");
        config.reserved_cpus = crate::cpu::parse(self.text("reservedSystemCPUs")).unwrap_or_default();
        managers::apply(self, config);
        let policy = &mut config.image_gc;
        let percent = |path: &str| u8::try_from(self.int(path)).unwrap_or(100);
        if given("imageGCHighThresholdPercent") {
            policy.high_percent = percent("imageGCHighThresholdPercent");
        }
        if given("imageGCLowThresholdPercent") {
            policy.low_percent = percent("imageGCLowThresholdPercent");
        }
        if given("imageMinimumGCAge") {
            policy.minimum_age = self.duration("imageMinimumGCAge");
        }
        if given("imageMaximumGCAge") {
            policy.maximum_age = self.duration("imageMaximumGCAge");
        }
        if given("maxParallelImagePulls") || given("serializeImagePulls") {
            config.parallel_pulls =
                match (self.flag("serializeImagePulls"), self.int("maxParallelImagePulls")) {
                    (true, _) => 1,
                    (false, 0) => images::PULLS_AT_ONCE,
                    (false, most) => usize::try_from(most).unwrap_or(1).max(1),
                };
        }
        self.apply_rest(config);
    }

    fn apply_rest(&self, config: &mut Config) {
        let size = meta::Quantity::parse(self.text("containerLogMaxSize")).map_or(0, |size| size.value());
        config.log_rotation = cri::LogRotation {
            max_bytes: size.max(0) as u64,
            max_files: u32::try_from(self.int("containerLogMaxFiles")).unwrap_or(u32::MAX),
        };
        config.image_verification = verification::read(self);
        config.allowed_sysctls = self.texts("allowedUnsafeSysctls");
        config.shutdown_periods = shutdown::periods(
            &self.shutdown_by_priority(),
            self.duration("shutdownGracePeriod"),
            self.duration("shutdownGracePeriodCriticalPods"),
        );
        config.ids_per_pod =
            u32::try_from(self.int("userNamespaces.idsPerPod")).unwrap_or(crate::userns::UNIT);
        config.limited_swap = self.text("memorySwap.swapBehavior") == "LimitedSwap";
        let dns: Vec<_> = self.texts("clusterDNS").iter().filter_map(|ip| ip.parse().ok()).collect();
        if !dns.is_empty() {
            config.cluster_dns = dns;
        }
        if self.is_given("clusterDomain") {
            config.cluster_domain = self.text("clusterDomain").to_owned();
        }
        if self.is_given("resolvConf") {
            config.resolv_conf = self.text("resolvConf").into();
        }
        if self.is_given("providerID") {
            config.provider_id = Some(self.text("providerID").to_owned());
        }
        config.register_taints.extend(self.taints());
        if !self.flag("enableServer") {
            config.server = None;
        }
        config.debugging_handlers = self.flag("enableDebuggingHandlers");
        config.system_logs = self.flag("enableSystemLogHandler");
        config.system_log_query = self.flag("enableSystemLogQuery");
        config.configuration = self.complete.clone();
    }
}

/// The configuration that is in effect, as `/configz` shows it.
pub fn effective(config: &Config) -> Value {
    let mut shown = match config.configuration.is_empty() {
        true => table::complete(Map::new()),
        false => config.configuration.clone(),
    };
    let percent = |path: u8| Value::from(path);
    let of_options = [
        ("clusterDNS", json!(config.cluster_dns)),
        ("clusterDomain", json!(config.cluster_domain)),
        ("resolvConf", json!(config.resolv_conf)),
        ("maxPods", json!(config.max_pods)),
        ("imageGCHighThresholdPercent", percent(config.image_gc.high_percent)),
        ("imageGCLowThresholdPercent", percent(config.image_gc.low_percent)),
        ("imageMinimumGCAge", json!(duration::format(config.image_gc.minimum_age))),
        ("imageMaximumGCAge", json!(duration::format(config.image_gc.maximum_age))),
        ("serializeImagePulls", json!(config.parallel_pulls == 1)),
        ("maxParallelImagePulls", json!(config.parallel_pulls)),
        ("podLogsDir", json!(config.log_dir)),
        ("cgroupRoot", json!(config.cgroup_root)),
    ];
    for (name, value) in of_options {
        shown.insert(name.to_owned(), value);
    }
    if let Some(server) = &config.server {
        shown.insert("address".into(), json!(server.listen.ip()));
        shown.insert("port".into(), json!(server.listen.port()));
    }
    let (mut hard, mut soft) = (Map::new(), Map::new());
    for threshold in &config.eviction.thresholds {
        let written = match threshold.value {
            threshold::Bound::Absolute(units) => crate::eviction::rank::binary(units as i64),
            threshold::Bound::Percent(percent) => format!("{percent}%"),
        };
        let into = if threshold.is_hard() { &mut hard } else { &mut soft };
        if threshold.signal != threshold::Signal::AllocatableMemoryAvailable {
            into.insert(threshold.signal.name().to_owned(), written.into());
        }
    }
    shown.insert("evictionHard".into(), hard.into());
    if !soft.is_empty() {
        shown.insert("evictionSoft".into(), soft.into());
    }
    shown.remove("kind");
    shown.remove("apiVersion");
    json!({"kubeletconfig": shown})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(more: Value) -> Result<Configuration, Error> {
        let mut document = json!({"apiVersion": API_VERSION, "kind": KIND});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Configuration::decode(document)
    }

    #[test]
    fn what_cannot_be_read() {
        let table = [
            (
                Configuration::decode(json!({"kind": KIND})),
                "failed to decode: Object 'apiVersion' is missing in '{\"kind\":\"KubeletConfiguration\"}'",
            ),
            (decode(json!({"foo": 1})), "failed to decode: strict decoding error: unknown field \"foo\""),
            (
                decode(json!({"maxPods": "x"})),
                "failed to decode: json: cannot unmarshal string into Go struct field \
                 KubeletConfiguration.maxPods of type int32",
            ),
            (
                decode(json!({"maxPods": -1})),
                "failed to validate kubelet configuration, error: invalid configuration: maxPods (--max-pods) -1 \
                 must not be a negative number",
            ),
        ];
        for (result, message) in table {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn what_it_names_wins() {
        let file = decode(json!({"maxPods": 7, "podPidsLimit": 64, "evictionHard": {"memory.available": "200Mi"},
            "evictionSoft": {"nodefs.available": "20%"}, "evictionSoftGracePeriod": {"nodefs.available": "1m"},
            "kubeReserved": {"cpu": "100m", "memory": "100Mi"}, "systemReserved": {"cpu": "0.1", "pid": "100"},
            "containerLogMaxSize": "1Mi", "containerLogMaxFiles": 3, "cpuManagerPolicy": "static",
            "allowedUnsafeSysctls": ["kernel.msg*"], "imageGCHighThresholdPercent": 90,
            "registerWithTaints": [{"key": "a", "effect": "NoSchedule"}], "readOnlyPort": 10255}))
        .unwrap();
        assert_eq!(file.idle, ["readOnlyPort"]);
        let mut config = Config::new("n", "/d".into());
        config.image_gc.low_percent = 70;
        file.apply(&mut config);
        assert_eq!((config.max_pods, config.pod_pids_limit), (7, 64));
        assert_eq!((config.reserved_cpu_milli, config.reserved_memory_bytes), (200, 100 << 20));
        assert_eq!((config.log_rotation.max_bytes, config.log_rotation.max_files), (1 << 20, 3));
        assert_eq!((config.image_gc.high_percent, config.image_gc.low_percent), (90, 70));
        assert_eq!(config.cpu_policy, crate::config::CpuPolicy::Static(crate::config::StaticCpus::default()));
        assert_eq!(config.register_taints.len(), 1);
        let names: Vec<_> = config.eviction.thresholds.iter().map(|t| t.signal.name()).collect();
        assert_eq!(names, ["memory.available", "allocatableMemory.available", "nodefs.available"]);
        let shown = effective(&config);
        let shown = &shown["kubeletconfig"];
        assert_eq!(shown["evictionHard"], json!({"memory.available": "200Mi"}));
        assert_eq!(shown["evictionSoft"], json!({"nodefs.available": "20%"}));
        assert_eq!((&shown["maxPods"], &shown["podPidsLimit"]), (&json!(7), &json!(64)));
        assert_eq!(shown["evictionPressureTransitionPeriod"], "5m0s");
    }
}
