//! Values that make no sense, in upstream's words. Pure.

use super::Configuration;
use crate::duration;

/// Numbers that must not be negative: path and option.
const NOT_NEGATIVE: [(&str, &str); 9] = [
    ("eventBurst", "event-burst"),
    ("eventRecordQPS", "event-qps"),
    ("kubeAPIBurst", "kube-api-burst"),
    ("kubeAPIQPS", "kube-api-qps"),
    ("maxOpenFiles", "max-open-files"),
    ("maxPods", "max-pods"),
    ("podsPerCore", "pods-per-core"),
    ("registryBurst", "registry-burst"),
    ("registryPullQPS", "registry-qps"),
];
/// Numbers with bounds: path, option, least and most.
const BETWEEN: [(&str, &str, i64, i64); 6] = [
    ("imageGCHighThresholdPercent", "image-gc-high-threshold", 0, 100),
    ("imageGCLowThresholdPercent", "image-gc-low-threshold", 0, 100),
    ("iptablesDropBit", "iptables-drop-bit", 0, 31),
    ("iptablesMasqueradeBit", "iptables-masquerade-bit", 0, 31),
    ("oomScoreAdj", "oom-score-adj", -1000, 1000),
    ("port", "port", 1, 65535),
];

fn plain(configuration: &Configuration, problems: &mut Vec<String>) {
    for (path, option) in NOT_NEGATIVE {
        let value = configuration.int(path);
        if value < 0 {
            problems.push(format!("{path} (--{option}) {value} must not be a negative number"));
        }
    }
    for (path, option, least, most) in BETWEEN {
        let value = configuration.int(path);
        if !(least..=most).contains(&value) {
            problems
                .push(format!("{path} (--{option}) {value} must be between {least} and {most}, inclusive"));
        }
    }
    if configuration.int("nodeLeaseDurationSeconds") <= 0 {
        problems.push("nodeLeaseDurationSeconds must be greater than 0".into());
    }
    let images = configuration.int("nodeStatusMaxImages");
    if images < -1 {
        problems
            .push(format!("nodeStatusMaxImages (--node-status-max-images) {images} must be -1 or greater"));
    }
    if configuration.int("containerLogMaxFiles") <= 1 {
        problems.push("containerLogMaxFiles must be greater than 1".into());
    }
    if configuration.int("containerLogMaxWorkers") < 1 {
        problems.push("containerLogMaxWorkers must be greater than or equal to 1".into());
    }
    if configuration.flag("enableSystemLogQuery") && !configuration.flag("enableSystemLogHandler") {
        problems.push("enableSystemLogHandler is required for enableSystemLogQuery".into());
    }
    if meta::Quantity::parse(configuration.text("containerLogMaxSize")).is_err() {
        let text = configuration.text("containerLogMaxSize");
        problems.push(format!("containerLogMaxSize {text:?} is no quantity"));
    }
}

fn images(configuration: &Configuration, problems: &mut Vec<String>) {
    let (low, high) =
        (configuration.int("imageGCLowThresholdPercent"), configuration.int("imageGCHighThresholdPercent"));
    if low >= high {
        problems.push(format!(
            "imageGCLowThresholdPercent (--image-gc-low-threshold) {low} must be less than \
             imageGCHighThresholdPercent (--image-gc-high-threshold) {high}"
        ));
    }
    let written =
        |(length, negative)| format!("{}{}", if negative { "-" } else { "" }, duration::format(length));
    let (minimum, maximum) =
        (configuration.signed("imageMinimumGCAge"), configuration.signed("imageMaximumGCAge"));
    for (path, age) in [("imageMinimumGCAge", minimum), ("imageMaximumGCAge", maximum)] {
        if age.1 {
            problems.push(format!("{path} {} must not be negative", written(age)));
        }
    }
    if !maximum.0.is_zero() && !maximum.1 && maximum.0 <= minimum.0 {
        problems.push(format!(
            "imageMaximumGCAge {} must be greater than imageMinimumGCAge {}",
            written(maximum),
            written(minimum)
        ));
    }
    let pulls = configuration.int("maxParallelImagePulls");
    if configuration.is_given("maxParallelImagePulls") && pulls < 1 {
        problems.push(format!("maxParallelImagePulls {pulls} must be a positive number"));
    }
    if configuration.flag("serializeImagePulls") && pulls > 1 {
        problems.push(
            "maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is \
             set to false"
                .into(),
        );
    }
}

fn policies(configuration: &Configuration, problems: &mut Vec<String>) {
    let policy = configuration.text("topologyManagerPolicy");
    let known = ["none", "best-effort", "restricted", "single-numa-node"];
    if !known.contains(&policy) {
        let known = known.map(|name| format!("{name:?}")).join(" ");
        problems.push(format!(
            "topologyManagerPolicy (--topology-manager-policy) {policy:?} must be one of: [{known}]"
        ));
    }
    let scope = configuration.text("topologyManagerScope");
    if !["container", "pod"].contains(&scope) {
        problems.push(format!(
            "topologyManagerScope (--topology-manager-scope) {scope:?} must be one of: \"container\", or \"pod\""
        ));
    }
    let policy = configuration.text("cpuManagerPolicy");
    if !["none", "static"].contains(&policy) {
        problems.push(format!("unknown policy: {policy:?}"));
    }
    if policy == "static" && configuration.reserved().get("cpu").copied().unwrap_or(0) == 0 {
        problems.push(
            "[cpumanager] unable to determine reserved CPU resources for static policy: cpuManagerPolicy static needs \
             kubeReserved, systemReserved or reservedSystemCPUs with some CPU"
                .into(),
        );
    }
    let ids = configuration.int("userNamespaces.idsPerPod");
    let unit = i64::from(crate::userns::UNIT);
    let most = i64::from(u32::MAX);
    let wrong = match ids {
        _ if ids < unit => Some(format!("must not be less than {unit}")),
        _ if ids % unit != 0 => Some(format!("must be a multiple of {unit}")),
        _ if ids > most => Some(format!("must not be more than {most}")),
        _ => None,
    };
    problems.extend(wrong.map(|wrong| format!("userNamespaces.idsPerPod {wrong}")));
    let swap = configuration.text("memorySwap.swapBehavior");
    if !["", "NoSwap", "LimitedSwap"].contains(&swap) {
        problems.push(format!(
            "memorySwap.swapBehavior {swap:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\""
        ));
    }
    let hairpin = configuration.text("hairpinMode");
    if !["none", "hairpin-veth", "promiscuous-bridge"].contains(&hairpin) {
        problems.push(format!(
            "option {hairpin:?} specified for hairpinMode (--hairpin-mode). Valid options are \"none\", \
             \"hairpin-veth\" or \"promiscuous-bridge\""
        ));
    }
    let mode = configuration.text("authorization.mode");
    if !["Webhook", "AlwaysAllow"].contains(&mode) {
        problems.push(format!("unknown authorization mode {mode}"));
    }
    let cpus = configuration.text("reservedSystemCPUs");
    if crate::cpu::parse(cpus).is_none() {
        problems.push(format!(
            "unable to parse reservedSystemCPUs (--reserved-cpus) {cpus}, error: invalid format"
        ));
    }
}

fn enforcement(configuration: &Configuration, problems: &mut Vec<String>) {
    const FLAG: &str = "enforceNodeAllocatable (--enforce-node-allocatable)";
    let all = configuration.texts("enforceNodeAllocatable");
    for (index, what) in all.iter().enumerate() {
        if all.iter().take(index).any(|before| before == what) {
            problems.push(format!("duplicated enforcements {what:?} in {FLAG}"));
            continue;
        }
        let of_group = |field: &str, option: &str, group: &str| {
            configuration.text(field).is_empty().then(|| {
                format!(
                    "{field} (--{option}) must be specified when {group:?} or \"{group}-compressible\" included in \
                     {FLAG}"
                )
            })
        };
        match what.as_str() {
            "pods" => {}
            "none" if all.len() > 1 => problems
                .push(format!("{FLAG} may not contain additional enforcements when \"none\" is specified")),
            "none" => {}
            "system-reserved" | "system-reserved-compressible" => {
                problems.extend(of_group("systemReservedCgroup", "system-reserved-cgroup", "system-reserved"));
            }
            "kube-reserved" | "kube-reserved-compressible" => {
                problems.extend(of_group("kubeReservedCgroup", "kube-reserved-cgroup", "kube-reserved"));
            }
            other => problems.push(format!(
                "option {other:?} specified for {FLAG}. Valid options are \"pods\", \"system-reserved\", \
                 \"system-reserved-compressible\", \"kube-reserved\", \"kube-reserved-compressible\" or \"none\""
            )),
        }
    }
}

fn shutdown(configuration: &Configuration, problems: &mut Vec<String>) {
    let (all, critical) = (
        configuration.duration("shutdownGracePeriod"),
        configuration.duration("shutdownGracePeriodCriticalPods"),
    );
    if critical > all {
        problems.push(format!(
            "shutdownGracePeriodCriticalPods {{{}}} must be <= shutdownGracePeriod {{{}}}",
            duration::format(critical),
            duration::format(all)
        ));
    }
    let second = std::time::Duration::from_secs(1);
    for (path, period) in [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)] {
        if !period.is_zero() && period < second {
            problems.push(format!(
                "{path} {{{}}} must be either zero or otherwise >= 1 sec",
                duration::format(period)
            ));
        }
    }
    let either = !all.is_zero() || !critical.is_zero();
    if either && !configuration.shutdown_by_priority().is_empty() {
        problems.push(
            "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time"
                .into(),
        );
    }
}

/// Everything that is wrong.
pub(super) fn check(configuration: &Configuration) -> Vec<String> {
    let mut problems = Vec::new();
    plain(configuration, &mut problems);
    images(configuration, &mut problems);
    super::verification::check(configuration, &mut problems);
    policies(configuration, &mut problems);
    super::managers::check(configuration, &mut problems);
    enforcement(configuration, &mut problems);
    shutdown(configuration, &mut problems);
    for taint in configuration.taints() {
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&taint.effect.as_str())
            || taint.key.is_empty()
        {
            let value = taint.value.unwrap_or_default();
            problems.push(format!("invalid taint: {{{} {value} {} <nil>}}", taint.key, taint.effect));
        }
    }
    for path in ["kubeReserved", "systemReserved"] {
        for (name, text) in configuration.map(path) {
            let known = ["cpu", "memory", "ephemeral-storage", "pid"].contains(&name.as_str());
            match meta::Quantity::parse(&text) {
                _ if !known => problems.push(format!("cannot reserve {name:?} resource")),
                Ok(amount) if amount.is_negative() => {
                    problems.push(format!("resource quantity for {name:?} cannot be negative: {text}"));
                }
                Ok(_) => {}
                Err(_) => problems.push(format!("failed to parse quantity {text:?} for {name:?} resource")),
            }
        }
    }
    if let Err(error) = configuration.eviction() {
        problems.push(error.to_string());
    }
    problems.into_iter().map(|problem| format!("invalid configuration: {problem}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{API_VERSION, Error, KIND};
    use super::*;
    use serde_json::json;

    #[test]
    fn what_makes_no_sense() {
        let table = [
            (json!({}), ""),
            (
                json!({"imageGCHighThresholdPercent": 101}),
                "imageGCHighThresholdPercent (--image-gc-high-threshold) 101 must be between 0 and 100, inclusive",
            ),
            (
                json!({"imageGCLowThresholdPercent": 85}),
                "imageGCLowThresholdPercent (--image-gc-low-threshold) 85 must be less than \
                 imageGCHighThresholdPercent (--image-gc-high-threshold) 85",
            ),
            (
                json!({"topologyManagerPolicy": "x"}),
                "topologyManagerPolicy (--topology-manager-policy) \"x\" must be one of: [\"none\" \"best-effort\" \
                 \"restricted\" \"single-numa-node\"]",
            ),
            (json!({"containerLogMaxFiles": 1}), "containerLogMaxFiles must be greater than 1"),
            (
                json!({"memorySwap": {"swapBehavior": "UnlimitedSwap"}}),
                "memorySwap.swapBehavior \"UnlimitedSwap\" must be one of: \"\", \"LimitedSwap\" or \"NoSwap\"",
            ),
            (
                json!({"enforceNodeAllocatable": ["none", "pods"]}),
                "enforceNodeAllocatable (--enforce-node-allocatable) may not contain additional enforcements when \
                 \"none\" is specified",
            ),
            (
                json!({"maxParallelImagePulls": 3, "serializeImagePulls": true}),
                "maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) \
                 is set to false",
            ),
            (
                json!({"userNamespaces": {"idsPerPod": 1}}),
                "userNamespaces.idsPerPod must not be less than 65536",
            ),
            (
                json!({"userNamespaces": {"idsPerPod": 65537}}),
                "userNamespaces.idsPerPod must be a multiple of 65536",
            ),
            (
                json!({"userNamespaces": {"idsPerPod": 4_294_967_296_i64}}),
                "userNamespaces.idsPerPod must not be more than 4294967295",
            ),
            (json!({"evictionHard": {"x": "1"}}), "unsupported eviction signal x"),
            (
                json!({"registerWithTaints": [{"key": "a", "effect": "Never"}]}),
                "invalid taint: {a  Never <nil>}",
            ),
        ];
        for (more, expected) in table {
            let mut document = json!({"apiVersion": API_VERSION, "kind": KIND});
            document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let found = match Configuration::decode(document) {
                Ok(_) => Vec::new(),
                Err(Error::Invalid(problems)) => problems,
                Err(other) => panic!("{more}: {other}"),
            };
            let wanted: Vec<String> = match expected {
                "" => Vec::new(),
                text => vec![format!("invalid configuration: {text}")],
            };
            assert_eq!(found, wanted, "{more}");
        }
    }
}
