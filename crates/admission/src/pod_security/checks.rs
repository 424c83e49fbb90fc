//! The controls of the Pod Security Standards, each a function from a pod to what is wrong with it
//! (kubernetes.io/docs/concepts/security/pod-security-standards).

use serde_json::Value;

use super::at;

/// A level of the standards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Anything goes.
    Privileged,
    /// No known privilege escalations.
    Baseline,
    /// Hardened.
    Restricted,
}

impl Level {
    pub fn parse(name: &str) -> Option<Level> {
        [Level::Privileged, Level::Baseline, Level::Restricted].into_iter().find(|l| l.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// A pod as the checks see it.
struct Pod<'a> {
    spec: &'a Value,
    metadata: &'a Value,
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .flat_map(move |k| spec[*k].as_array().into_iter().flatten())
    }

    fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }
}

fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

/// `container "a"` or `containers "a", "b"`
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("\"{n}\"")).collect();
    format!("container{} {}", if names.len() == 1 { "" } else { "s" }, quoted.join(", "))
}

fn quoted(values: &[String]) -> String {
    values.iter().map(|v| format!("\"{v}\"")).collect::<Vec<_>>().join(", ")
}

fn sorted(mut values: Vec<String>) -> Vec<String> {
    values.sort();
    values.dedup();
    values
}

/// Singular or plural.
fn s(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

type Check = fn(&Pod<'_>) -> Option<(String, String)>;

/// Checks in upstream's order of messages, with the level from which they count. Where the restricted level has a
/// stricter form of a baseline check, the pair is one row.
const BASELINE: &[Check] = &[
    host_namespaces,
    privileged,
    host_path_volumes,
    host_ports,
    app_armor,
    selinux,
    proc_mount,
    sysctls,
    host_process,
    host_probes,
];
const BASELINE_ONLY: &[Check] = &[capabilities_baseline, seccomp_baseline];
const RESTRICTED: &[Check] = &[
    privilege_escalation,
    capabilities_restricted,
    volume_types,
    run_as_non_root,
    run_as_user,
    seccomp_restricted,
];

/// What is wrong with a pod at a level: reasons with their details.
pub fn problems(level: Level, spec: &Value, metadata: &Value) -> Vec<(String, String)> {
    let pod = Pod { spec, metadata };
    let checks: Vec<&Check> = match level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => BASELINE.iter().chain(BASELINE_ONLY).collect(),
        Level::Restricted => BASELINE.iter().chain(RESTRICTED).collect(),
    };
    checks.into_iter().filter_map(|check| check(&pod)).collect()
}

/// Containers of which something holds, as a problem.
fn where_true(pod: &Pod<'_>, bad: impl Fn(&Value) -> bool) -> Option<Vec<String>> {
    let names: Vec<String> = pod.containers().filter(|c| bad(c)).map(|c| name(c).to_owned()).collect();
    (!names.is_empty()).then_some(names)
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

fn host_namespaces(pod: &Pod<'_>) -> Option<(String, String)> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|k| pod.spec[**k] == true)
        .map(|k| format!("{k}=true"))
        .collect();
    (!set.is_empty()).then(|| ("host namespaces".into(), set.join(", ")))
}

fn privileged(pod: &Pod<'_>) -> Option<(String, String)> {
    let names = where_true(pod, |c| c["securityContext"]["privileged"] == true)?;
    Some((
        "privileged".into(),
        format!("{} must not set securityContext.privileged=true", listed(&refs(&names))),
    ))
}

fn host_path_volumes(pod: &Pod<'_>) -> Option<(String, String)> {
    let volumes = pod.spec["volumes"].as_array().into_iter().flatten();
    let bad: Vec<String> =
        volumes.filter(|v| v["hostPath"].is_object()).map(|v| name(v).to_owned()).collect();
    (!bad.is_empty()).then(|| ("hostPath volumes".into(), format!("volume{} {}", s(bad.len()), quoted(&bad))))
}

fn host_ports(pod: &Pod<'_>) -> Option<(String, String)> {
    let ports_of = |c: &Value| -> Vec<i64> {
        let ports = c["ports"].as_array().into_iter().flatten();
        ports.filter_map(|p| p["hostPort"].as_i64()).filter(|p| *p != 0).collect()
    };
    let names = where_true(pod, |c| !ports_of(c).is_empty())?;
    let mut ports: Vec<i64> = pod.containers().flat_map(ports_of).collect();
    ports.sort_unstable();
    ports.dedup();
    let shown: Vec<String> = ports.iter().map(i64::to_string).collect();
    let uses = if names.len() == 1 { "uses" } else { "use" };
    Some((
        "hostPort".into(),
        format!("{} {uses} hostPort{} {}", listed(&refs(&names)), s(ports.len()), shown.join(", ")),
    ))
}

fn app_armor(pod: &Pod<'_>) -> Option<(String, String)> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut bad = Vec::new();
    let is_bad = |profile: &Value| profile["type"] == "Unconfined";
    if is_bad(&pod.spec["securityContext"]["appArmorProfile"]) {
        bad.push("pod must not set AppArmor profile type to \"Unconfined\"".to_owned());
    }
    if let Some(names) = where_true(pod, |c| is_bad(&c["securityContext"]["appArmorProfile"])) {
        bad.push(format!("{} must not set AppArmor profile type to \"Unconfined\"", listed(&refs(&names))));
    }
    let annotations = pod.metadata["annotations"].as_object().into_iter().flatten();
    let forbidden: Vec<String> = annotations
        .filter(|(key, value)| {
            let profile = value.as_str().unwrap_or_default();
            key.starts_with(ANNOTATION)
                && !(profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/"))
        })
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if !forbidden.is_empty() {
        bad.push(format!("annotation{} {}", s(forbidden.len()), sorted(forbidden).join(", ")));
    }
    let reason = if bad.len() == 1 { "forbidden AppArmor profile" } else { "forbidden AppArmor profiles" };
    (!bad.is_empty()).then(|| (reason.into(), bad.join(", ")))
}

fn selinux(pod: &Pod<'_>) -> Option<(String, String)> {
    const TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let mut setters = Vec::new();
    let (mut types, mut user, mut role) = (Vec::new(), false, false);
    let mut look = |options: &Value, who: String| {
        let text = |key: &str| options[key].as_str().unwrap_or_default().to_owned();
        let mut bad = false;
        if !TYPES.contains(&text("type").as_str()) {
            types.push(text("type"));
            bad = true;
        }
        user |= !text("user").is_empty();
        role |= !text("role").is_empty();
        if bad || !text("user").is_empty() || !text("role").is_empty() {
            setters.push(who);
        }
    };
    look(&pod.spec["securityContext"]["seLinuxOptions"], "pod".into());
    for container in pod.containers() {
        look(&container["securityContext"]["seLinuxOptions"], format!("container \"{}\"", name(container)));
    }
    if setters.is_empty() {
        return None;
    }
    let mut what = Vec::new();
    if !types.is_empty() {
        let types = sorted(types);
        what.push(format!("type{} {}", s(types.len()), quoted(&types)));
    }
    if user {
        what.push("user may not be set".to_owned());
    }
    if role {
        what.push("role may not be set".to_owned());
    }
    Some((
        "seLinuxOptions".into(),
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters.join(" and "),
            what.join("; ")
        ),
    ))
}

fn proc_mount(pod: &Pod<'_>) -> Option<(String, String)> {
    // With a user namespace of its own a pod may see all of /proc.
    if pod.spec["hostUsers"] == false {
        return None;
    }
    let mount = |c: &Value| c["securityContext"]["procMount"].as_str().unwrap_or("Default").to_owned();
    let names = where_true(pod, |c| mount(c) != "Default")?;
    let values = sorted(pod.containers().map(mount).filter(|m| m != "Default").collect());
    Some((
        "procMount".into(),
        format!("{} must not set securityContext.procMount to {}", listed(&refs(&names)), quoted(&values)),
    ))
}

fn sysctls(pod: &Pod<'_>) -> Option<(String, String)> {
    const SAFE: [&str; 11] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
    ];
    let list = pod.spec["securityContext"]["sysctls"].as_array().into_iter().flatten();
    let bad: Vec<String> = list
        .map(|c| name(c).to_owned())
        .filter(|n| !SAFE.contains(&n.as_str()) && n != "net.ipv4.tcp_wmem")
        .collect();
    (!bad.is_empty()).then(|| ("forbidden sysctls".into(), bad.join(", ")))
}

fn host_process(pod: &Pod<'_>) -> Option<(String, String)> {
    let bad = |v: &Value| v["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let names = where_true(pod, bad);
    let who = match (bad(pod.spec), names) {
        (false, None) => return None,
        (true, None) => "pod".to_owned(),
        (false, Some(names)) => listed(&refs(&names)),
        (true, Some(names)) => format!("pod and {}", listed(&refs(&names))),
    };
    Some((
        "hostProcess".into(),
        format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
    ))
}

fn host_probes(pod: &Pod<'_>) -> Option<(String, String)> {
    let hosts = |c: &Value| -> Vec<String> {
        let handlers = [
            &c["livenessProbe"],
            &c["readinessProbe"],
            &c["startupProbe"],
            &c["lifecycle"]["postStart"],
            &c["lifecycle"]["preStop"],
        ];
        let given = handlers.iter().flat_map(|h| [&h["httpGet"]["host"], &h["tcpSocket"]["host"]]);
        given.filter_map(Value::as_str).filter(|h| !h.is_empty()).map(String::from).collect()
    };
    let names = where_true(pod, |c| !hosts(c).is_empty())?;
    let all = sorted(pod.containers().flat_map(hosts).collect());
    Some((
        "probe or lifecycle host".into(),
        format!(
            "{} use{} probe or lifecycle host{} {}",
            listed(&refs(&names)),
            if names.len() == 1 { "s" } else { "" },
            s(all.len()),
            quoted(&all)
        ),
    ))
}

fn capabilities(container: &Value, kind: &str) -> Vec<String> {
    let list = container["securityContext"]["capabilities"][kind].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(String::from).collect()
}

fn capabilities_baseline(pod: &Pod<'_>) -> Option<(String, String)> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let extra = |c: &Value| -> Vec<String> {
        capabilities(c, "add").into_iter().filter(|n| !DEFAULT.contains(&n.as_str())).collect()
    };
    let names = where_true(pod, |c| !extra(c).is_empty())?;
    let all = sorted(pod.containers().flat_map(extra).collect());
    Some((
        "non-default capabilities".into(),
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            listed(&refs(&names)),
            quoted(&all)
        ),
    ))
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.is_windows() {
        return None;
    }
    let keeps = where_true(pod, |c| !capabilities(c, "drop").iter().any(|n| n == "ALL"));
    let extra = |c: &Value| -> Vec<String> {
        capabilities(c, "add").into_iter().filter(|n| n != "NET_BIND_SERVICE").collect()
    };
    let adds = where_true(pod, |c| !extra(c).is_empty());
    let mut details = Vec::new();
    if let Some(names) = keeps {
        details
            .push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", listed(&refs(&names))));
    }
    if let Some(names) = adds {
        let all = sorted(pod.containers().flat_map(extra).collect());
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            listed(&refs(&names)),
            quoted(&all)
        ));
    }
    (!details.is_empty()).then(|| ("unrestricted capabilities".into(), details.join("; ")))
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.is_windows() {
        return None;
    }
    let names = where_true(pod, |c| c["securityContext"]["allowPrivilegeEscalation"] != false)?;
    Some((
        "allowPrivilegeEscalation != false".into(),
        format!("{} must set securityContext.allowPrivilegeEscalation=false", listed(&refs(&names))),
    ))
}

fn volume_types(pod: &Pod<'_>) -> Option<(String, String)> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for volume in pod.spec["volumes"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        let kind = volume.keys().find(|k| k.as_str() != "name");
        if kind.is_none_or(|k| !ALLOWED.contains(&k.as_str())) {
            names.push(at(volume, "name").as_str().unwrap_or_default().to_owned());
            types.push(kind.cloned().unwrap_or_else(|| "unknown".into()));
        }
    }
    let (types, one) = (sorted(types), names.len() == 1);
    (!names.is_empty()).then(|| {
        let (plural, uses) = if one { ("", "uses") } else { ("s", "use") };
        let detail = format!(
            "volume{plural} {} {uses} restricted volume type{} {}",
            quoted(&names),
            s(types.len()),
            quoted(&types)
        );
        ("restricted volume types".into(), detail)
    })
}

/// Containers that a setting of their own or of the pod does not cover, and those whose own setting is bad.
fn uncovered<'a>(
    pod: &Pod<'a>,
    good: impl Fn(&Value) -> bool,
    set: impl Fn(&Value) -> bool,
) -> (Vec<&'a str>, Vec<&'a str>) {
    let pod_good = good(&pod.spec["securityContext"]);
    let (mut unset, mut bad) = (Vec::new(), Vec::new());
    for container in pod.containers() {
        let context = &container["securityContext"];
        match (set(context), good(context)) {
            (true, false) => bad.push(name(container)),
            (false, _) if !pod_good => unset.push(name(container)),
            _ => {}
        }
    }
    (unset, bad)
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<(String, String)> {
    let good = |c: &Value| c["runAsNonRoot"] == true;
    let set = |c: &Value| c["runAsNonRoot"].is_boolean();
    let context = &pod.spec["securityContext"];
    let (unset, bad) = uncovered(pod, good, set);
    let mut setters = Vec::new();
    if set(context) && !good(context) {
        setters.push("pod".to_owned());
    }
    if !bad.is_empty() {
        setters.push(listed(&bad));
    }
    if !setters.is_empty() {
        let detail = format!("{} must not set securityContext.runAsNonRoot=false", setters.join(" and "));
        return Some(("runAsNonRoot != true".into(), detail));
    }
    if unset.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", listed(&unset));
    Some(("runAsNonRoot != true".into(), detail))
}

fn run_as_user(pod: &Pod<'_>) -> Option<(String, String)> {
    let root = |c: &Value| c["securityContext"]["runAsUser"] == 0;
    let mut who = Vec::new();
    if root(pod.spec) {
        who.push("pod".to_owned());
    }
    if let Some(names) = where_true(pod, root) {
        who.push(listed(&refs(&names)));
    }
    (!who.is_empty())
        .then(|| ("runAsUser=0".into(), format!("{} must not set runAsUser=0", who.join(" and "))))
}

fn seccomp_baseline(pod: &Pod<'_>) -> Option<(String, String)> {
    let bad = |c: &Value| c["securityContext"]["seccompProfile"]["type"] == "Unconfined";
    let mut who = Vec::new();
    if bad(pod.spec) {
        who.push("pod".to_owned());
    }
    if let Some(names) = where_true(pod, bad) {
        who.push(listed(&refs(&names)));
    }
    (!who.is_empty()).then(|| {
        (
            "seccompProfile".into(),
            format!(
                "{} must not set securityContext.seccompProfile.type to \"Unconfined\"",
                who.join(" and ")
            ),
        )
    })
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<(String, String)> {
    if pod.is_windows() {
        return None;
    }
    let kind = |c: &Value| c["seccompProfile"]["type"].as_str().map(String::from);
    let good = |c: &Value| kind(c).is_some_and(|k| k == "RuntimeDefault" || k == "Localhost");
    let set = |c: &Value| kind(c).is_some();
    let context = &pod.spec["securityContext"];
    let (unset, bad) = uncovered(pod, good, set);
    let mut setters = Vec::new();
    if set(context) && !good(context) {
        setters.push("pod".to_owned());
    }
    if !bad.is_empty() {
        setters.push(listed(&bad));
    }
    if !setters.is_empty() {
        let bad_values =
            pod.containers().map(|c| &c["securityContext"]).chain([context]).filter(|c| set(c) && !good(c));
        let values = sorted(bad_values.filter_map(kind).collect());
        let detail = format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters.join(" and "),
            quoted(&values)
        );
        return Some(("seccompProfile".into(), detail));
    }
    if unset.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        listed(&unset)
    );
    Some(("seccompProfile".into(), detail))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reasons(level: Level, spec: Value) -> Vec<String> {
        problems(level, &spec, &json!({})).into_iter().map(|(reason, _)| reason).collect()
    }

    #[test]
    fn every_control_catches_its_breach() {
        let with = |context: Value| json!({"containers": [{"name": "c", "securityContext": context}]});
        for (spec, reason) in [
            (json!({"hostPID": true}), "host namespaces"),
            (with(json!({"privileged": true})), "privileged"),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes"),
            (json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}), "hostPort"),
            (with(json!({"appArmorProfile": {"type": "Unconfined"}})), "forbidden AppArmor profile"),
            (with(json!({"seLinuxOptions": {"type": "spc_t"}})), "seLinuxOptions"),
            (with(json!({"procMount": "Unmasked"})), "procMount"),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), "forbidden sysctls"),
            (with(json!({"windowsOptions": {"hostProcess": true}})), "hostProcess"),
            (with(json!({"capabilities": {"add": ["NET_ADMIN"]}})), "non-default capabilities"),
            (with(json!({"seccompProfile": {"type": "Unconfined"}})), "seccompProfile"),
            (
                json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "x"}}}]}),
                "probe or lifecycle host",
            ),
        ] {
            assert_eq!(reasons(Level::Baseline, spec.clone()), [reason], "{spec}");
        }
        assert!(reasons(Level::Baseline, with(json!({"capabilities": {"add": ["CHOWN"]}}))).is_empty());
        assert!(reasons(Level::Privileged, json!({"hostPID": true})).is_empty());
    }

    #[test]
    fn a_hardened_pod_passes_and_each_gap_shows() {
        let good = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
        });
        assert!(reasons(Level::Restricted, good.clone()).is_empty());
        for (path, value, reason) in [
            (
                "/containers/0/securityContext/allowPrivilegeEscalation",
                json!(true),
                "allowPrivilegeEscalation != false",
            ),
            ("/containers/0/securityContext/capabilities", json!({}), "unrestricted capabilities"),
            ("/volumes/0", json!({"name": "v", "nfs": {}}), "restricted volume types"),
            (
                "/securityContext",
                json!({"seccompProfile": {"type": "RuntimeDefault"}}),
                "runAsNonRoot != true",
            ),
            (
                "/securityContext",
                json!({"runAsNonRoot": true, "runAsUser": 0, "seccompProfile": {"type": "Localhost"}}),
                "runAsUser=0",
            ),
            ("/securityContext", json!({"runAsNonRoot": true}), "seccompProfile"),
        ] {
            let mut spec = good.clone();
            *spec.pointer_mut(path).unwrap() = value;
            assert_eq!(reasons(Level::Restricted, spec), [reason], "{path}");
        }
    }
}
