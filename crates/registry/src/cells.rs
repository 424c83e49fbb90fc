//! Table cells that need more than a path: the short words `kubectl get` shows for pods, services, nodes and
//! the rest, as upstream's printers compute them.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::columns::{age, at, human_duration};

/// Computes a cell from an object and the time.
pub type Cell = fn(&Value, Timestamp) -> Value;

const NONE: &str = "<none>";

fn text<'a>(v: &'a Value, path: &str) -> &'a str {
    at(v, path).as_str().unwrap_or_default()
}

fn number(v: &Value, path: &str) -> i64 {
    at(v, path).as_i64().unwrap_or(0)
}

fn items<'a>(v: &'a Value, path: &str) -> &'a [Value] {
    at(v, path).as_array().map_or(&[], Vec::as_slice)
}

/// Strings (or numbers) of a list joined by commas; `<none>` for an empty one.
pub fn joined(list: &Value) -> String {
    let parts: Vec<String> = (list.as_array().into_iter().flatten())
        .map(|v| v.as_str().map_or_else(|| v.to_string(), String::from))
        .collect();
    or_none(parts)
}

fn or_none(parts: Vec<String>) -> String {
    if parts.is_empty() { NONE.into() } else { parts.join(",") }
}

/// A label selector, or a map of labels, as text; `<none>` when empty.
pub fn selector_text(v: &Value) -> String {
    let Value::Object(object) = v else { return NONE.into() };
    let keyed = object.contains_key("matchLabels") || object.contains_key("matchExpressions");
    let text = if keyed {
        meta::LabelSelector::from_json(v).map(|s| s.to_string()).unwrap_or_default()
    } else {
        let parts: Vec<String> =
            object.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
        parts.join(",")
    };
    if text.is_empty() { NONE.into() } else { text }
}

macro_rules! cells {
    ($($name:ident),* $(,)?) => {
        /// The function with a name that `data/columns.txt` may use.
        pub fn by_name(name: &str) -> Option<Cell> {
            match name {
                $(stringify!($name) => Some($name),)*
                _ => None,
            }
        }
    };
}

cells!(
    pod_ready,
    pod_status,
    pod_restarts,
    pod_readiness_gates,
    pod_cpu,
    pod_memory,
    template_containers,
    template_images,
    spec_template_containers,
    spec_template_images,
    service_external_ip,
    service_ports,
    endpoints_addresses,
    node_status,
    node_roles,
    node_internal_ip,
    node_external_ip,
    data_count,
    event_last_seen,
    event_first_seen,
    event_object,
    event_source,
    quota_requests,
    quota_limits,
    access_modes,
    claim_access_modes,
    pv_claim,
    component_status,
    component_message,
    component_error,
    deployment_ready,
    statefulset_ready,
    controller_of,
    job_status,
    job_completions,
    job_duration,
    cronjob_suspend,
    hpa_reference,
    hpa_targets,
    slice_ports,
    slice_endpoints,
    ingress_hosts,
    ingress_ports,
    load_balancer_address,
    ingress_class_parameters,
    parent_ref,
    role_ref,
    subject_users,
    subject_groups,
    subject_accounts,
    csi_token_requests,
    csr_duration,
    csr_condition,
    param_kind,
    param_ref,
    apiservice_service,
    apiservice_available,
    flow_schema_missing,
    claim_state,
);

fn pod_ready(pod: &Value, _: Timestamp) -> Value {
    let sidecars: Vec<&str> = items(pod, "spec.initContainers")
        .iter()
        .filter(|c| c["restartPolicy"] == "Always")
        .filter_map(|c| c["name"].as_str())
        .collect();
    let total = items(pod, "spec.containers").len() + sidecars.len();
    let running_ready = |s: &&Value| s["ready"] == true && s["state"].get("running").is_some();
    let ready = items(pod, "status.containerStatuses").iter().filter(running_ready).count()
        + items(pod, "status.initContainerStatuses")
            .iter()
            .filter(|s| s["name"].as_str().is_some_and(|n| sidecars.contains(&n)))
            .filter(|s| s["ready"] == true)
            .count();
    json!(format!("{ready}/{total}"))
}

/// The word for one container's state, if it stands for the whole pod.
fn container_word(status: &Value, prefix: &str) -> Option<String> {
    let state = &status["state"];
    if let Some(waiting) = state.get("waiting") {
        let reason = waiting["reason"].as_str().unwrap_or_default();
        return (!reason.is_empty()).then(|| format!("{prefix}{reason}"));
    }
    let ended = state.get("terminated")?;
    Some(match (ended["reason"].as_str().unwrap_or_default(), ended["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("{prefix}ExitCode:{}", ended["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("{prefix}Signal:{signal}"),
        (reason, _) => format!("{prefix}{reason}"),
    })
}

fn init_word(pod: &Value) -> Option<String> {
    let inits = items(pod, "spec.initContainers");
    for (i, status) in items(pod, "status.initContainerStatuses").iter().enumerate() {
        let sidecar = inits.get(i).is_some_and(|c| c["restartPolicy"] == "Always");
        if status["state"]["terminated"]["exitCode"] == 0 || (sidecar && status["started"] == true) {
            continue;
        }
        let word = container_word(status, "Init:").filter(|w| w != "Init:PodInitializing");
        return Some(word.unwrap_or_else(|| format!("Init:{i}/{}", inits.len())));
    }
    None
}

fn pod_status(pod: &Value, _: Timestamp) -> Value {
    let phase = match text(pod, "status.reason") {
        "" => text(pod, "status.phase"),
        reason => reason,
    };
    let gated = items(pod, "status.conditions")
        .iter()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    let mut word = if gated { "SchedulingGated".to_owned() } else { phase.to_owned() };
    match init_word(pod) {
        Some(init) => word = init,
        None => {
            let statuses = items(pod, "status.containerStatuses");
            let mut running = false;
            for status in statuses.iter().rev() {
                if let Some(w) = container_word(status, "") {
                    word = w;
                } else if status["ready"] == true && status["state"].get("running").is_some() {
                    running = true;
                }
            }
            if word == "Completed" && running {
                let ready = (items(pod, "status.conditions").iter())
                    .any(|c| c["type"] == "Ready" && c["status"] == "True");
                word = if ready { "Running" } else { "NotReady" }.into();
            }
        }
    }
    if at(pod, "metadata.deletionTimestamp").is_string() {
        if text(pod, "status.reason") == "NodeLost" {
            word = "Unknown".into();
        } else if !matches!(text(pod, "status.phase"), "Failed" | "Succeeded") {
            word = "Terminating".into();
        }
    }
    json!(word)
}

fn pod_restarts(pod: &Value, now: Timestamp) -> Value {
    let waiting_for_init = init_word(pod).is_some();
    let statuses = if waiting_for_init { "status.initContainerStatuses" } else { "status.containerStatuses" };
    let (mut count, mut last) = (0, "");
    for s in items(pod, statuses) {
        count += s["restartCount"].as_i64().unwrap_or(0);
        last = last.max(text(s, "lastState.terminated.finishedAt"));
    }
    match (count, last) {
        (0, _) | (_, "") => json!(count.to_string()),
        _ => json!(format!("{count} ({} ago)", age(last, now))),
    }
}

/// The sum of what the containers of a PodMetrics use.
fn used(metrics: &Value, what: &str) -> Value {
    let uses = items(metrics, "containers").iter().filter_map(|c| c["usage"][what].as_str());
    let sum = uses.filter_map(|text| meta::Quantity::parse(text).ok()).reduce(|a, b| a.plus(b));
    sum.map_or_else(|| json!("0"), |sum| json!(sum.to_string()))
}

fn pod_cpu(metrics: &Value, _: Timestamp) -> Value {
    used(metrics, "cpu")
}

fn pod_memory(metrics: &Value, _: Timestamp) -> Value {
    used(metrics, "memory")
}

fn pod_readiness_gates(pod: &Value, _: Timestamp) -> Value {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return json!(NONE);
    }
    let true_one = |gate: &&Value| {
        items(pod, "status.conditions")
            .iter()
            .any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
    };
    json!(format!("{}/{}", gates.iter().filter(true_one).count(), gates.len()))
}

fn containers_field(v: &Value, path: &str, field: &str) -> Value {
    let names: Vec<&str> = items(v, path).iter().filter_map(|c| c[field].as_str()).collect();
    json!(names.join(","))
}
fn template_containers(v: &Value, _: Timestamp) -> Value {
    containers_field(v, "template.spec.containers", "name")
}
fn template_images(v: &Value, _: Timestamp) -> Value {
    containers_field(v, "template.spec.containers", "image")
}
fn spec_template_containers(v: &Value, _: Timestamp) -> Value {
    let path = if at(v, "spec.jobTemplate").is_object() {
        "spec.jobTemplate.spec.template.spec.containers"
    } else {
        "spec.template.spec.containers"
    };
    containers_field(v, path, "name")
}
fn spec_template_images(v: &Value, _: Timestamp) -> Value {
    let path = if at(v, "spec.jobTemplate").is_object() {
        "spec.jobTemplate.spec.template.spec.containers"
    } else {
        "spec.template.spec.containers"
    };
    containers_field(v, path, "image")
}

fn balancer_addresses(v: &Value) -> Vec<String> {
    (items(v, "status.loadBalancer.ingress").iter())
        .filter_map(|i| i["ip"].as_str().or(i["hostname"].as_str()).map(String::from))
        .collect()
}

fn service_external_ip(v: &Value, _: Timestamp) -> Value {
    let mut external: Vec<String> =
        items(v, "spec.externalIPs").iter().filter_map(|i| i.as_str().map(String::from)).collect();
    json!(match text(v, "spec.type") {
        "ExternalName" => text(v, "spec.externalName").to_owned(),
        "LoadBalancer" => {
            let mut all = balancer_addresses(v);
            all.append(&mut external);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        _ => or_none(external),
    })
}

fn service_ports(v: &Value, _: Timestamp) -> Value {
    let ports = items(v, "spec.ports").iter().map(|p| {
        let protocol = p["protocol"].as_str().unwrap_or("TCP");
        match p["nodePort"].as_i64().unwrap_or(0) {
            0 => format!("{}/{protocol}", p["port"]),
            node => format!("{}:{node}/{protocol}", p["port"]),
        }
    });
    json!(or_none(ports.collect()))
}

/// First `max` of a list, then how many there are more.
fn cut(list: Vec<String>, max: usize) -> String {
    if list.len() <= max {
        return or_none(list);
    }
    format!("{} + {} more...", list[..max].join(","), list.len() - max)
}

fn endpoints_addresses(v: &Value, _: Timestamp) -> Value {
    let mut out = Vec::new();
    for subset in items(v, "subsets") {
        for address in items(subset, "addresses").iter().filter_map(|a| a["ip"].as_str()) {
            match items(subset, "ports") {
                [] => out.push(address.to_owned()),
                ports => out.extend(ports.iter().map(|p| format!("{address}:{}", p["port"]))),
            }
        }
    }
    json!(cut(out, 3))
}

fn node_status(v: &Value, _: Timestamp) -> Value {
    let ready = items(v, "status.conditions").iter().find(|c| c["type"] == "Ready");
    let mut words = vec![match ready {
        Some(c) if c["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if at(v, "spec.unschedulable") == true {
        words.push("SchedulingDisabled");
    }
    json!(words.join(","))
}

fn node_roles(v: &Value, _: Timestamp) -> Value {
    let Some(labels) = at(v, "metadata.labels").as_object() else { return json!(NONE) };
    let mut roles: Vec<String> = (labels.iter())
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            _ if k == "kubernetes.io/role" => v.as_str().filter(|s| !s.is_empty()).map(String::from),
            _ => None,
        })
        .collect();
    roles.sort();
    json!(or_none(roles))
}

fn node_address(v: &Value, ty: &str) -> Value {
    let address =
        items(v, "status.addresses").iter().find(|a| a["type"] == ty).and_then(|a| a["address"].as_str());
    json!(address.unwrap_or(NONE))
}
fn node_internal_ip(v: &Value, _: Timestamp) -> Value {
    node_address(v, "InternalIP")
}
fn node_external_ip(v: &Value, _: Timestamp) -> Value {
    node_address(v, "ExternalIP")
}

fn data_count(v: &Value, _: Timestamp) -> Value {
    let len = |key: &str| v[key].as_object().map_or(0, |o| o.len());
    json!(len("data") + len("binaryData"))
}

fn since_first_of(v: &Value, paths: &[&str], now: Timestamp) -> String {
    let found = paths.iter().map(|p| text(v, p)).find(|t| !t.is_empty());
    found.map_or_else(|| "<unknown>".into(), |t| age(t, now))
}

fn event_last_seen(v: &Value, now: Timestamp) -> Value {
    let last = since_first_of(
        v,
        &[
            "series.lastObservedTime",
            "lastTimestamp",
            "deprecatedLastTimestamp",
            "eventTime",
            "firstTimestamp",
        ],
        now,
    );
    let count = number(v, "series.count").max(number(v, "count"));
    if count > 1 && at(v, "series").is_object() {
        let first = since_first_of(v, &["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"], now);
        return json!(format!("{last} (x{count} over {first})"));
    }
    json!(last)
}
fn event_first_seen(v: &Value, now: Timestamp) -> Value {
    json!(since_first_of(v, &["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"], now))
}
fn event_object(v: &Value, _: Timestamp) -> Value {
    let about = if v["involvedObject"].is_object() { &v["involvedObject"] } else { &v["regarding"] };
    let kind = text(about, "kind").to_lowercase();
    match text(about, "name") {
        "" => json!(kind),
        name => json!(format!("{kind}/{name}")),
    }
}
fn event_source(v: &Value, _: Timestamp) -> Value {
    let component = match text(v, "source.component") {
        "" => text(v, "reportingComponent"),
        c => c,
    };
    let host = match text(v, "source.host") {
        "" => text(v, "reportingInstance"),
        h => h,
    };
    json!(if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") })
}

fn quota(v: &Value, limits: bool) -> Value {
    let Some(hard) = at(v, "status.hard").as_object() else { return json!("") };
    let used = at(v, "status.used");
    let parts: Vec<String> = (hard.iter())
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let used = used.get(name).and_then(Value::as_str).unwrap_or("0");
            format!("{name}: {used}/{}", hard.as_str().unwrap_or_default())
        })
        .collect();
    json!(parts.join(", "))
}
fn quota_requests(v: &Value, _: Timestamp) -> Value {
    quota(v, false)
}
fn quota_limits(v: &Value, _: Timestamp) -> Value {
    quota(v, true)
}

fn modes(list: &Value) -> Value {
    let short = (list.as_array().into_iter().flatten()).filter_map(|m| match m.as_str()? {
        "ReadWriteOnce" => Some("RWO"),
        "ReadOnlyMany" => Some("ROX"),
        "ReadWriteMany" => Some("RWX"),
        "ReadWriteOncePod" => Some("RWOP"),
        _ => None,
    });
    json!(short.collect::<Vec<_>>().join(","))
}
fn access_modes(v: &Value, _: Timestamp) -> Value {
    modes(at(v, "spec.accessModes"))
}
fn claim_access_modes(v: &Value, _: Timestamp) -> Value {
    modes(at(v, "status.accessModes"))
}
fn pv_claim(v: &Value, _: Timestamp) -> Value {
    match at(v, "spec.claimRef") {
        Value::Null => json!(""),
        claim => json!(format!("{}/{}", text(claim, "namespace"), text(claim, "name"))),
    }
}

fn component(v: &Value) -> &Value {
    items(v, "conditions").iter().find(|c| c["type"] == "Healthy").unwrap_or(&Value::Null)
}
fn component_status(v: &Value, _: Timestamp) -> Value {
    json!(match text(component(v), "status") {
        "True" => "Healthy",
        "False" => "Unhealthy",
        _ => "Unknown",
    })
}
fn component_message(v: &Value, _: Timestamp) -> Value {
    json!(text(component(v), "message"))
}
fn component_error(v: &Value, _: Timestamp) -> Value {
    json!(text(component(v), "error"))
}

fn deployment_ready(v: &Value, _: Timestamp) -> Value {
    json!(format!("{}/{}", number(v, "status.readyReplicas"), number(v, "spec.replicas")))
}
fn statefulset_ready(v: &Value, now: Timestamp) -> Value {
    deployment_ready(v, now)
}
fn controller_of(v: &Value, _: Timestamp) -> Value {
    let owner = items(v, "metadata.ownerReferences").iter().find(|o| o["controller"] == true);
    match owner {
        Some(o) => json!(format!("{}/{}", text(o, "kind").to_lowercase(), text(o, "name"))),
        None => json!(NONE),
    }
}

fn condition_true(v: &Value, ty: &str) -> bool {
    items(v, "status.conditions").iter().any(|c| c["type"] == ty && c["status"] == "True")
}
fn job_status(v: &Value, _: Timestamp) -> Value {
    json!(if condition_true(v, "Complete") {
        "Complete"
    } else if condition_true(v, "Failed") {
        "Failed"
    } else if at(v, "metadata.deletionTimestamp").is_string() {
        "Terminating"
    } else if condition_true(v, "Suspended") {
        "Suspended"
    } else if condition_true(v, "FailureTarget") {
        "FailureTarget"
    } else if condition_true(v, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    })
}
fn job_completions(v: &Value, _: Timestamp) -> Value {
    let done = number(v, "status.succeeded");
    json!(match (at(v, "spec.completions").as_i64(), number(v, "spec.parallelism")) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, n) if n > 1 => format!("{done}/1 of {n}"),
        _ => format!("{done}/1"),
    })
}
fn job_duration(v: &Value, now: Timestamp) -> Value {
    let Ok(start) = text(v, "status.startTime").parse::<Timestamp>() else { return json!("") };
    let end = text(v, "status.completionTime").parse::<Timestamp>().unwrap_or(now);
    json!(human_duration(end.as_second() - start.as_second()))
}
fn cronjob_suspend(v: &Value, _: Timestamp) -> Value {
    json!(if at(v, "spec.suspend") == true { "True" } else { "False" })
}
fn hpa_reference(v: &Value, _: Timestamp) -> Value {
    json!(format!("{}/{}", text(v, "spec.scaleTargetRef.kind"), text(v, "spec.scaleTargetRef.name")))
}
fn hpa_targets(v: &Value, _: Timestamp) -> Value {
    let targets = items(v, "spec.metrics").iter().map(|m| {
        let name = text(m, "resource.name");
        let current = items(v, "status.currentMetrics")
            .iter()
            .find(|c| text(c, "resource.name") == name)
            .and_then(|c| at(c, "resource.current.averageUtilization").as_i64());
        let wanted = at(m, "resource.target.averageUtilization").as_i64();
        let percent = |n: Option<i64>| n.map_or_else(|| "<unknown>".into(), |n| format!("{n}%"));
        format!("{name}: {}/{}", percent(current), percent(wanted))
    });
    json!(or_none(targets.collect()))
}

fn slice_ports(v: &Value, _: Timestamp) -> Value {
    let ports: Vec<String> = items(v, "ports")
        .iter()
        .map(|p| p["port"].as_i64().map_or_else(|| "*".into(), |n| n.to_string()))
        .collect();
    json!(if ports.is_empty() { "<unset>".into() } else { cut(ports, 3) })
}
fn slice_endpoints(v: &Value, _: Timestamp) -> Value {
    let all: Vec<String> = (items(v, "endpoints").iter())
        .flat_map(|e| items(e, "addresses"))
        .filter_map(|a| a.as_str().map(String::from))
        .collect();
    json!(if all.is_empty() { "<unset>".into() } else { cut(all, 3) })
}

fn ingress_hosts(v: &Value, _: Timestamp) -> Value {
    let hosts: Vec<String> =
        items(v, "spec.rules").iter().filter_map(|r| r["host"].as_str().map(String::from)).collect();
    json!(if hosts.is_empty() { "*".into() } else { cut(hosts, 3) })
}
fn ingress_ports(v: &Value, _: Timestamp) -> Value {
    json!(if items(v, "spec.tls").is_empty() { "80" } else { "80, 443" })
}
fn load_balancer_address(v: &Value, _: Timestamp) -> Value {
    json!(balancer_addresses(v).join(","))
}
fn ingress_class_parameters(v: &Value, _: Timestamp) -> Value {
    match at(v, "spec.parameters") {
        Value::Null => json!(NONE),
        p => {
            let group = text(p, "apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            json!(format!("{}{dot}{group}/{}", text(p, "kind"), text(p, "name")))
        }
    }
}
fn parent_ref(v: &Value, _: Timestamp) -> Value {
    let parts = ["group", "resource", "namespace", "name"];
    let parent = at(v, "spec.parentRef");
    let shown: Vec<&str> = parts.iter().map(|p| text(parent, p)).filter(|p| !p.is_empty()).collect();
    json!(shown.join("/"))
}

fn role_ref(v: &Value, _: Timestamp) -> Value {
    json!(format!("{}/{}", text(v, "roleRef.kind"), text(v, "roleRef.name")))
}
fn subjects(v: &Value, kind: &str) -> Value {
    let names: Vec<String> = (items(v, "subjects").iter().filter(|s| s["kind"] == kind))
        .map(|s| match text(s, "namespace") {
            "" => text(s, "name").to_owned(),
            ns => format!("{ns}/{}", text(s, "name")),
        })
        .collect();
    json!(names.join(", "))
}
fn subject_users(v: &Value, _: Timestamp) -> Value {
    subjects(v, "User")
}
fn subject_groups(v: &Value, _: Timestamp) -> Value {
    subjects(v, "Group")
}
fn subject_accounts(v: &Value, _: Timestamp) -> Value {
    subjects(v, "ServiceAccount")
}

fn csi_token_requests(v: &Value, _: Timestamp) -> Value {
    let audiences: Vec<String> =
        items(v, "spec.tokenRequests").iter().map(|t| text(t, "audience").to_owned()).collect();
    json!(if audiences.is_empty() { "<unset>".into() } else { audiences.join(",") })
}
fn csr_duration(v: &Value, _: Timestamp) -> Value {
    match at(v, "spec.expirationSeconds").as_i64() {
        Some(s) => json!(human_duration(s)),
        None => json!(NONE),
    }
}
fn csr_condition(v: &Value, _: Timestamp) -> Value {
    let mut words: Vec<&str> = Vec::new();
    for wanted in ["Approved", "Denied", "Failed"] {
        if items(v, "status.conditions").iter().any(|c| c["type"] == wanted) {
            words.push(wanted);
        }
    }
    if words.is_empty() {
        words.push("Pending");
    }
    if !text(v, "status.certificate").is_empty() {
        words.push("Issued");
    }
    json!(words.join(","))
}
fn param_kind(v: &Value, _: Timestamp) -> Value {
    match at(v, "spec.paramKind") {
        Value::Null => json!("<unset>"),
        p => json!(format!("{}/{}", text(p, "apiVersion"), text(p, "kind"))),
    }
}
fn param_ref(v: &Value, _: Timestamp) -> Value {
    match at(v, "spec.paramRef") {
        Value::Null => json!("<unset>"),
        p if text(p, "namespace").is_empty() => json!(text(p, "name")),
        p => json!(format!("{}/{}", text(p, "namespace"), text(p, "name"))),
    }
}
fn apiservice_service(v: &Value, _: Timestamp) -> Value {
    match at(v, "spec.service") {
        Value::Null => json!("Local"),
        s => json!(format!("{}/{}", text(s, "namespace"), text(s, "name"))),
    }
}
fn apiservice_available(v: &Value, _: Timestamp) -> Value {
    match items(v, "status.conditions").iter().find(|c| c["type"] == "Available") {
        Some(c) if c["status"] == "True" => json!("True"),
        Some(c) => json!(format!("{} ({})", text(c, "status"), text(c, "reason"))),
        None => json!("Unknown"),
    }
}
fn flow_schema_missing(v: &Value, _: Timestamp) -> Value {
    let dangling = items(v, "status.conditions").iter().find(|c| c["type"] == "Dangling");
    json!(dangling.map_or("?", |c| text(c, "status")))
}
fn claim_state(v: &Value, _: Timestamp) -> Value {
    let mut words: Vec<&str> = Vec::new();
    if at(v, "metadata.deletionTimestamp").is_string() {
        words.push("deleted");
    }
    if at(v, "status.allocation").is_object() {
        words.push("allocated");
    }
    if !items(v, "status.reservedFor").is_empty() {
        words.push("reserved");
    }
    if words.is_empty() {
        words.push("pending");
    }
    json!(words.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pod: Value) -> String {
        pod_status(&pod, Timestamp::UNIX_EPOCH).as_str().unwrap().to_owned()
    }

    #[test]
    fn pod_words() {
        let running = json!({"ready": true, "state": {"running": {}}});
        for (pod, word) in [
            (json!({"status": {"phase": "Pending"}}), "Pending"),
            (json!({"status": {"phase": "Running", "containerStatuses": [running]}}), "Running"),
            (
                json!({"status": {"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
                "CrashLoopBackOff",
            ),
            (
                json!({"status": {"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}}),
                "Completed",
            ),
            (json!({"status": {"phase": "Failed", "reason": "Evicted"}}), "Evicted"),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}),
                "Terminating",
            ),
            (
                json!({"spec": {"initContainers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "a", "state": {"terminated": {"exitCode": 0}}}, {"name": "b", "state": {"waiting": {"reason": "PodInitializing"}}}]}}),
                "Init:1/2",
            ),
        ] {
            assert_eq!(status(pod.clone()), word, "{pod}");
        }
    }

    #[test]
    fn selectors() {
        assert_eq!(selector_text(&json!({"a": "b", "c": "d"})), "a=b,c=d");
        assert_eq!(selector_text(&json!({"matchLabels": {"a": "b"}})), "a=b");
        assert_eq!(selector_text(&json!({})), NONE);
    }
}
