//! Rules for pods: containers, probes, volumes, resources, and what may change in a running pod.

use std::collections::HashSet;

use meta::{FieldError, Quantity, names};
use serde_json::{Map, Value, json};

use super::{labels, not_negative, one_of, placement, port_number, positive, required_one_of};

type Object = Map<String, Value>;

/// The items of a list; none when absent.
pub(super) fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v[key].as_array().map_or(&[], Vec::as_slice)
}

/// A string; empty when absent.
pub(super) fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or_default()
}

/// A new Pod.
pub fn pod(object: &Object) -> Vec<FieldError> {
    spec(object.get("spec").unwrap_or(&Value::Null), "spec")
}

/// A pod template; `restart` lists the restart policies its owner allows.
pub fn template(template: Option<&Value>, at: &str, restart: &[&str]) -> Vec<FieldError> {
    let Some(template) = template.filter(|t| t.is_object()) else {
        return vec![FieldError::required(at, "")];
    };
    let mut errors = labels(&template["metadata"]["labels"], &format!("{at}.metadata.labels"));
    errors.extend(spec(&template["spec"], &format!("{at}.spec")));
    errors.extend(one_of(&template["spec"]["restartPolicy"], &format!("{at}.spec.restartPolicy"), restart));
    if !list(&template["spec"], "ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            format!("{at}.spec.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
    errors
}

/// A pod spec.
pub fn spec(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let volumes = volumes(spec, at, &mut errors);
    let containers = list(spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{at}.containers"), ""));
    }
    let mut seen = HashSet::new();
    for (key, init) in [("initContainers", true), ("containers", false), ("ephemeralContainers", false)] {
        for (i, c) in list(spec, key).iter().enumerate() {
            let at = format!("{at}.{key}[{i}]");
            if !text(c, "name").is_empty() && !seen.insert(text(c, "name")) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &c["name"]));
            }
            container(c, &at, init, &volumes, &mut errors);
        }
    }
    host_ports(spec, at, &mut errors);
    errors.extend(required_one_of(
        &spec["restartPolicy"],
        &format!("{at}.restartPolicy"),
        &["Always", "Never", "OnFailure"],
    ));
    let dns = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    errors.extend(required_one_of(&spec["dnsPolicy"], &format!("{at}.dnsPolicy"), &dns));
    if text(spec, "dnsPolicy") == "None" && list(&spec["dnsConfig"], "nameservers").is_empty() {
        errors.push(FieldError::required(
            format!("{at}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    errors.extend(not_negative(
        &spec["terminationGracePeriodSeconds"],
        &format!("{at}.terminationGracePeriodSeconds"),
    ));
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        errors.push(FieldError::invalid(
            format!("{at}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    for field in ["hostname", "subdomain"] {
        let name = text(spec, field);
        if !name.is_empty()
            && let Some(problem) = names::label_problem(name)
        {
            errors.push(FieldError::invalid(format!("{at}.{field}"), &spec[field], &problem));
        }
    }
    for field in ["nodeName", "serviceAccountName", "priorityClassName", "runtimeClassName"] {
        let name = text(spec, field);
        if !name.is_empty()
            && let Some(problem) = names::subdomain_problem(name)
        {
            errors.push(FieldError::invalid(format!("{at}.{field}"), &spec[field], &problem));
        }
    }
    errors.extend(labels(&spec["nodeSelector"], &format!("{at}.nodeSelector")));
    security(spec, at, &mut errors);
    placement::tolerations(spec, at, &mut errors);
    placement::affinity(&spec["affinity"], &format!("{at}.affinity"), &mut errors);
    placement::topology(spec, at, &mut errors);
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        if let Some(problem) = names::qualified_name_problem(text(gate, "name")) {
            errors.push(FieldError::invalid(format!("{at}.schedulingGates[{i}]"), &gate["name"], &problem));
        }
    }
    for (i, alias) in list(spec, "hostAliases").iter().enumerate() {
        if text(alias, "ip").parse::<std::net::IpAddr>().is_err() {
            errors.push(FieldError::invalid(
                format!("{at}.hostAliases[{i}].ip"),
                &alias["ip"],
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
    }
    errors
}

/// Sources a volume can have, as their fields are called.
const VOLUME_SOURCES: [&str; 31] = [
    "emptyDir",
    "hostPath",
    "configMap",
    "secret",
    "projected",
    "downwardAPI",
    "persistentVolumeClaim",
    "csi",
    "ephemeral",
    "image",
    "nfs",
    "iscsi",
    "fc",
    "rbd",
    "cephfs",
    "cinder",
    "glusterfs",
    "flexVolume",
    "flocker",
    "gitRepo",
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "gcePersistentDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "scaleIO",
    "storageos",
    "vsphereVolume",
    "none",
];

fn volumes<'a>(spec: &'a Value, at: &str, errors: &mut Vec<FieldError>) -> HashSet<&'a str> {
    let mut volume_names = HashSet::new();
    for (i, v) in list(spec, "volumes").iter().enumerate() {
        let at = format!("{at}.volumes[{i}]");
        let name = text(v, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if let Some(problem) = names::label_problem(name) {
            errors.push(FieldError::invalid(format!("{at}.name"), &v["name"], &problem));
        }
        if !name.is_empty() && !volume_names.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), &v["name"]));
        }
        let sources: Vec<&&str> = VOLUME_SOURCES.iter().filter(|s| v.get(**s).is_some()).collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::required(&at, "must specify a volume type")),
            [_] => {}
            [_, rest @ ..] => errors.extend(rest.iter().map(|s| {
                FieldError::forbidden(format!("{at}.{s}"), "may not specify more than 1 volume type")
            })),
        }
        volume_source(v, &at, errors);
    }
    volume_names
}

fn volume_source(v: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for (source, key) in [
        ("configMap", "name"),
        ("secret", "secretName"),
        ("persistentVolumeClaim", "claimName"),
        ("hostPath", "path"),
    ] {
        if v.get(source).is_some() && text(&v[source], key).is_empty() {
            errors.push(FieldError::required(format!("{at}.{source}.{key}"), ""));
        }
    }
    if v.get("hostPath").is_some() {
        let types = [
            "",
            "DirectoryOrCreate",
            "Directory",
            "FileOrCreate",
            "File",
            "Socket",
            "CharDevice",
            "BlockDevice",
        ];
        errors.extend(one_of(&v["hostPath"]["type"], &format!("{at}.hostPath.type"), &types));
        if text(&v["hostPath"], "path").split('/').any(|p| p == "..") {
            errors.push(FieldError::invalid(
                format!("{at}.hostPath.path"),
                &v["hostPath"]["path"],
                "must not contain '..'",
            ));
        }
    }
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        let body = &v[source];
        mode(&body["defaultMode"], &format!("{at}.{source}.defaultMode"), errors);
        for (i, item) in list(body, "items").iter().enumerate() {
            relative_path(&item["path"], &format!("{at}.{source}.items[{i}].path"), errors);
            mode(&item["mode"], &format!("{at}.{source}.items[{i}].mode"), errors);
        }
    }
    for (i, source) in list(&v["projected"], "sources").iter().enumerate() {
        let at = format!("{at}.projected.sources[{i}]");
        if let Some(token) = source.get("serviceAccountToken") {
            relative_path(&token["path"], &format!("{at}.serviceAccountToken.path"), errors);
            if token["expirationSeconds"].as_i64().is_some_and(|n| n < 600) {
                errors.push(FieldError::invalid(
                    format!("{at}.serviceAccountToken.expirationSeconds"),
                    &token["expirationSeconds"],
                    "may not specify a duration less than 10 minutes",
                ));
            }
        }
    }
}

fn mode(value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        errors.push(FieldError::invalid(
            at,
            value,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}

fn relative_path(value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let path = value.as_str().unwrap_or_default();
    if path.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if path.starts_with('/') {
        errors.push(FieldError::invalid(at, value, "must be a relative path"));
    } else if path.split('/').any(|p| p == "..") {
        errors.push(FieldError::invalid(at, value, "must not contain '..'"));
    } else if path.starts_with("..") {
        errors.push(FieldError::invalid(at, value, "must not start with '..'"));
    }
}

fn container(c: &Value, at: &str, init: bool, volumes: &HashSet<&str>, errors: &mut Vec<FieldError>) {
    let name = text(c, "name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{at}.name"), ""));
    } else if let Some(problem) = names::label_problem(name) {
        errors.push(FieldError::invalid(format!("{at}.name"), &c["name"], &problem));
    }
    let image = text(c, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{at}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{at}.image"),
            &c["image"],
            "must not have leading or trailing whitespace",
        ));
    }
    errors.extend(required_one_of(
        &c["imagePullPolicy"],
        &format!("{at}.imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    ));
    errors.extend(one_of(
        &c["terminationMessagePolicy"],
        &format!("{at}.terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
    ));
    ports(c, at, errors);
    env(c, at, errors);
    let mut mounts = HashSet::new();
    for (i, m) in list(c, "volumeMounts").iter().enumerate() {
        let at = format!("{at}.volumeMounts[{i}]");
        match text(m, "name") {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            name if !volumes.contains(name) => {
                errors.push(FieldError::not_found(format!("{at}.name"), &m["name"]))
            }
            _ => {}
        }
        match text(m, "mountPath") {
            "" => errors.push(FieldError::required(format!("{at}.mountPath"), "")),
            path if !mounts.insert(path) => {
                errors.push(FieldError::invalid(
                    format!("{at}.mountPath"),
                    &m["mountPath"],
                    "must be unique",
                ));
            }
            _ => {}
        }
        if !text(m, "subPath").is_empty() {
            relative_path(&m["subPath"], &format!("{at}.subPath"), errors);
        }
        let modes = ["Bidirectional", "HostToContainer", "None"];
        errors.extend(one_of(&m["mountPropagation"], &format!("{at}.mountPropagation"), &modes));
    }
    resources(&c["resources"], &format!("{at}.resources"), errors);
    let sidecar = text(c, "restartPolicy") == "Always";
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if c.get(key).is_none() {
            continue;
        }
        if init && !sidecar {
            errors.push(FieldError::forbidden(
                format!("{at}.{key}"),
                "may not be set for init containers without restartPolicy=Always",
            ));
        }
        probe(&c[key], &format!("{at}.{key}"), key != "readinessProbe", errors);
    }
    if init && !sidecar && c.get("lifecycle").is_some() {
        errors.push(FieldError::forbidden(
            format!("{at}.lifecycle"),
            "may not be set for init containers without restartPolicy=Always",
        ));
    }
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = c["lifecycle"].get(hook) {
            one_handler(
                handler,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                &format!("{at}.lifecycle.{hook}"),
                errors,
            );
        }
    }
    let context = &c["securityContext"];
    if context["privileged"] == true && context["allowPrivilegeEscalation"] == false {
        errors.push(FieldError::invalid(
            format!("{at}.securityContext"),
            context,
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ));
    }
    for field in ["runAsUser", "runAsGroup"] {
        user_id(&context[field], &format!("{at}.securityContext.{field}"), errors);
    }
}

fn ports(c: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, p) in list(c, "ports").iter().enumerate() {
        let at = format!("{at}.ports[{i}]");
        let name = text(p, "name");
        if !name.is_empty() {
            if let Some(problem) = names::port_name_problem(name) {
                errors.push(FieldError::invalid(format!("{at}.name"), &p["name"], problem));
            } else if !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &p["name"]));
            }
        }
        if p["containerPort"].as_i64().unwrap_or(0) == 0 {
            errors.push(FieldError::required(format!("{at}.containerPort"), ""));
        } else {
            errors.extend(port_number(&p["containerPort"], &format!("{at}.containerPort")));
        }
        if p["hostPort"].as_i64().unwrap_or(0) != 0 {
            errors.extend(port_number(&p["hostPort"], &format!("{at}.hostPort")));
        }
        errors.extend(required_one_of(&p["protocol"], &format!("{at}.protocol"), &["SCTP", "TCP", "UDP"]));
    }
}

/// Two containers of a pod cannot have the same port of the host; with the host's network, ports must agree.
fn host_ports(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let mut used = HashSet::new();
    for (i, c) in list(spec, "containers").iter().enumerate() {
        for (j, p) in list(c, "ports").iter().enumerate() {
            let port = p["hostPort"].as_i64().unwrap_or(0);
            if port == 0 {
                continue;
            }
            let at = format!("{at}.containers[{i}].ports[{j}]");
            if !used.insert((port, text(p, "protocol"), text(p, "hostIP"))) {
                let value = json!(format!("{}/{}/{port}", text(p, "protocol"), text(p, "hostIP")));
                errors.push(FieldError::duplicate(format!("{at}.hostPort"), &value));
            }
            if spec["hostNetwork"] == true && p["containerPort"].as_i64() != Some(port) {
                errors.push(FieldError::invalid(
                    format!("{at}.containerPort"),
                    &p["containerPort"],
                    "must match `hostPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

fn env(c: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for (i, e) in list(c, "env").iter().enumerate() {
        let at = format!("{at}.env[{i}]");
        match text(e, "name") {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            name => {
                if let Some(problem) = names::env_name_problem(name) {
                    errors.push(FieldError::invalid(format!("{at}.name"), &e["name"], &problem));
                }
            }
        }
        let Some(from) = e.get("valueFrom") else { continue };
        if !text(e, "value").is_empty() {
            errors.push(FieldError::invalid(
                format!("{at}.valueFrom"),
                &"".into(),
                "may not be specified when `value` is not empty",
            ));
        }
        one_handler(
            from,
            &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"],
            &format!("{at}.valueFrom"),
            errors,
        );
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if from.get(source).is_some() && text(&from[source], "key").is_empty() {
                errors.push(FieldError::required(format!("{at}.valueFrom.{source}.key"), ""));
            }
        }
        if let Some(field) = from.get("fieldRef")
            && text(field, "fieldPath").is_empty()
        {
            errors.push(FieldError::required(format!("{at}.valueFrom.fieldRef.fieldPath"), ""));
        }
    }
    for (i, e) in list(c, "envFrom").iter().enumerate() {
        one_handler(e, &["configMapRef", "secretRef"], &format!("{at}.envFrom[{i}]"), errors);
    }
}

/// Exactly one of the members must be there.
fn one_handler(value: &Value, members: &[&str], at: &str, errors: &mut Vec<FieldError>) {
    let present: Vec<&&str> = members.iter().filter(|m| value.get(**m).is_some()).collect();
    match present.as_slice() {
        [] => errors.push(FieldError::required(at, "must specify a handler type")),
        [_] => {}
        [_, more @ ..] => {
            errors.extend(more.iter().map(|m| {
                FieldError::forbidden(format!("{at}.{m}"), "may not specify more than 1 handler type")
            }));
        }
    }
}

fn probe(p: &Value, at: &str, once: bool, errors: &mut Vec<FieldError>) {
    one_handler(p, &["exec", "httpGet", "tcpSocket", "grpc"], at, errors);
    errors.extend(not_negative(&p["initialDelaySeconds"], &format!("{at}.initialDelaySeconds")));
    for field in ["timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.extend(positive(&p[field], &format!("{at}.{field}")));
    }
    if once && p["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        errors.push(FieldError::invalid(
            format!("{at}.successThreshold"),
            &p["successThreshold"],
            "must be 1",
        ));
    }
    for handler in ["httpGet", "tcpSocket"] {
        if let Some(h) = p.get(handler) {
            match &h["port"] {
                Value::Null => errors.push(FieldError::required(format!("{at}.{handler}.port"), "")),
                Value::String(name) => {
                    if let Some(problem) = names::port_name_problem(name) {
                        errors.push(FieldError::invalid(format!("{at}.{handler}.port"), &h["port"], problem));
                    }
                }
                number => errors.extend(port_number(number, &format!("{at}.{handler}.port"))),
            }
        }
    }
    if let Some(exec) = p.get("exec")
        && list(exec, "command").is_empty()
    {
        errors.push(FieldError::required(format!("{at}.exec.command"), ""));
    }
}

fn resources(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let parse = |v: &Value| v.as_str().and_then(|s| Quantity::parse(s).ok());
    for kind in ["limits", "requests"] {
        for (name, value) in r[kind].as_object().into_iter().flatten() {
            let at = format!("{at}.{kind}[{name}]");
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                errors.push(FieldError::invalid(
                    &at,
                    &name.as_str().into(),
                    "must be a standard resource type or fully qualified",
                ));
            }
            if parse(value).is_some_and(|q| q.is_negative()) {
                errors.push(FieldError::invalid(&at, value, "must be greater than or equal to 0"));
            }
        }
    }
    for (name, request) in r["requests"].as_object().into_iter().flatten() {
        let limit = &r["limits"][name];
        if let (Some(r), Some(l)) = (parse(request), parse(limit))
            && r > l
        {
            let why = format!(
                "must be less than or equal to {name} limit of {}",
                limit.as_str().unwrap_or_default()
            );
            errors.push(FieldError::invalid(format!("{at}.requests"), request, &why));
        }
    }
}

fn user_id(value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|n| !(0..=i64::from(i32::MAX)).contains(&n)) {
        errors.push(FieldError::invalid(at, value, "must be between 0 and 2147483647, inclusive"));
    }
}

/// Pattern of a sysctl's name, parts separated by dots or slashes.
const SYSCTL: &str = "([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
/// Longest name of a sysctl.
const SYSCTL_LEN_MAX: usize = 253;

fn is_sysctl(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= SYSCTL_LEN_MAX
        && name.split(['.', '/']).all(|part| {
            let b = part.as_bytes();
            edge(b.first()) && edge(b.last()) && b.iter().all(|c| edge(Some(c)) || matches!(c, b'-' | b'_'))
        })
}

fn sysctls(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, sysctl) in list(&spec["securityContext"], "sysctls").iter().enumerate() {
        let (name, field) = (text(sysctl, "name"), format!("{at}.securityContext.sysctls[{i}].name"));
        // The kernel takes both separators.
        let plain = name.replace('/', ".");
        let in_host = |what: &str, key: &str| spec[key] == true && plain.starts_with(what);
        if name.is_empty() {
            errors.push(FieldError::required(&field, ""));
        } else if !is_sysctl(name) {
            let why = format!("must have at most {SYSCTL_LEN_MAX} characters and match regex ^{SYSCTL}$");
            errors.push(FieldError::invalid(&field, &name.into(), &why));
        } else if in_host("net.", "hostNetwork") {
            errors.push(FieldError::invalid(
                &field,
                &name.into(),
                "may not be specified when 'hostNetwork' is true",
            ));
        } else if in_host("kernel.shm", "hostIPC")
            || in_host("kernel.msg", "hostIPC")
            || in_host("fs.mqueue.", "hostIPC")
        {
            errors.push(FieldError::invalid(
                &field,
                &name.into(),
                "may not be specified when 'hostIPC' is true",
            ));
        }
        if !name.is_empty() && !seen.insert(plain) {
            errors.push(FieldError::duplicate(&field, &name.into()));
        }
    }
}

fn security(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let context = &spec["securityContext"];
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        user_id(&context[field], &format!("{at}.securityContext.{field}"), errors);
    }
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        user_id(group, &format!("{at}.securityContext.supplementalGroups[{i}]"), errors);
    }
    sysctls(spec, at, errors);
    super::users::own_users(spec, at, errors);
    if spec["hostPID"] == true && spec["shareProcessNamespace"] == true {
        errors.push(FieldError::invalid(
            format!("{at}.shareProcessNamespace"),
            &json!(true),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
}

/// What a request may change in an existing pod, by subresource.
pub fn pod_update(subresource: &str, new: &Object, old: &Object) -> Vec<FieldError> {
    let spec = |o: &Object| o.get("spec").cloned().unwrap_or_default();
    let (mut new, old) = (spec(new), spec(old));
    if subresource == "binding" {
        return Vec::new();
    }
    let free: &[&str] = match subresource {
        "ephemeralcontainers" => &["ephemeralContainers"],
        "resize" => &["resources"],
        _ => &["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"],
    };
    let gated = !list(&old, "schedulingGates").is_empty();
    let mut errors = Vec::new();
    if subresource.is_empty() {
        errors.extend(deadline_update(&new, &old));
        if list(&new, "schedulingGates").iter().any(|g| !list(&old, "schedulingGates").contains(g)) {
            errors.push(FieldError::forbidden(
                "spec.schedulingGates",
                "only deletion is allowed, but found new scheduling gate",
            ));
        }
    }
    if subresource == "resize" {
        errors.extend(resize(&new, &old));
    }
    // What may change is set back; whatever still differs may not.
    for key in free.iter().chain(if gated { &["nodeSelector", "affinity"][..] } else { &[] }) {
        match old.get(*key) {
            Some(v) => new[*key] = v.clone(),
            None => drop(new.as_object_mut().map(|o| o.remove(*key))),
        }
    }
    for key in ["containers", "initContainers"] {
        let old_list = list(&old, key).to_vec();
        if let Some(items) = new[key].as_array_mut().filter(|l| l.len() == old_list.len()) {
            for (c, o) in items.iter_mut().zip(&old_list) {
                for field in
                    if subresource == "resize" { &["resources", "resizePolicy"][..] } else { &["image"] }
                {
                    match o.get(*field) {
                        Some(v) => c[*field] = v.clone(),
                        None => drop(c.as_object_mut().map(|o| o.remove(*field))),
                    }
                }
            }
        }
        if new[key].is_null() {
            new.as_object_mut().map(|o| o.remove(key));
        }
    }
    if new != old {
        errors.push(FieldError::forbidden("spec", "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"));
    }
    errors
}

/// What a resize may not do to the resources it is allowed to change (KEP-1287).
fn resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let class = |spec: &Value| crate::strategy::pod::qos_class(spec.as_object().unwrap_or(&Object::new()));
    if class(new) != class(old) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", &class(new).into(), why));
    }
    for key in ["containers", "initContainers"] {
        for (i, (n, o)) in list(new, key).iter().zip(list(old, key)).enumerate() {
            if n["resources"] == o["resources"] {
                continue;
            }
            let at = format!("spec.{key}[{i}].resources");
            if key == "initContainers" && o["restartPolicy"] != "Always" {
                errors.push(FieldError::forbidden(
                    &at,
                    "only sidecar containers among init containers can be resized",
                ));
            }
            for kind in ["limits", "requests"] {
                let names = |v: &Value| -> Vec<String> {
                    v["resources"][kind].as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect()
                };
                let (is, was) = (names(n), names(o));
                let changed = |name: &&String| {
                    n["resources"][kind][name.as_str()] != o["resources"][kind][name.as_str()]
                };
                if is
                    .iter()
                    .chain(&was)
                    .filter(changed)
                    .any(|name| !matches!(name.as_str(), "cpu" | "memory"))
                {
                    errors.push(FieldError::forbidden(&at, "only cpu and memory resources are mutable"));
                }
                if was.iter().any(|name| !is.contains(name)) {
                    let why = format!("resource {kind} cannot be removed");
                    errors.push(FieldError::forbidden(format!("{at}.{kind}"), &why));
                }
            }
        }
    }
    errors
}

fn deadline_update(new: &Value, old: &Value) -> Option<FieldError> {
    let (n, o) = (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64());
    match (n, o) {
        (None, Some(_)) => Some(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            &Value::Null,
            "must not update from a positive integer to nil value",
        )),
        (Some(n), Some(o)) if n > o => {
            let why = format!("must be less than or equal to previous value {o}");
            Some(FieldError::invalid("spec.activeDeadlineSeconds", &n.into(), &why))
        }
        _ => None,
    }
}

/// Doubts about a pod spec that are not errors.
pub fn warnings(spec: &Object, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    let spec = Value::Object(spec.clone());
    for (i, c) in list(&spec, "containers").iter().enumerate() {
        let mut seen = HashSet::new();
        for (j, e) in list(c, "env").iter().enumerate() {
            if !seen.insert(text(e, "name")) {
                out.push(format!("{at}.containers[{i}].env[{j}]: hides previous definition of {:?}, which may be dropped when using apply", text(e, "name")));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Value {
        json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always"}]})
    }

    fn fields(v: &Value) -> Vec<String> {
        spec(v, "spec").into_iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn every_error_at_once() {
        assert!(fields(&valid()).is_empty());
        let mut v = valid();
        v["restartPolicy"] = "Sometimes".into();
        v["containers"][0]["name"] = "Bad_Name".into();
        v["containers"][0]["volumeMounts"] = json!([{"name": "x", "mountPath": "/a"}]);
        v["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
        let found = fields(&v);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.contains(&"spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"".to_owned()));
        assert!(found.contains(&"spec.containers[0].volumeMounts[0].name: Not found: \"x\"".to_owned()));
        assert!(found.contains(&"spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1".to_owned()));
    }

    #[test]
    fn only_the_image_may_change() {
        let old = json!({"spec": valid()}).as_object().unwrap().clone();
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "other".into();
        assert!(pod_update("", &new, &old).is_empty());
        new["spec"]["hostname"] = "h".into();
        assert_eq!(pod_update("", &new, &old).len(), 1);
    }
}
