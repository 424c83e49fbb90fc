//! What `--verbose` adds: maps of names to JSON, in the words that containerd uses where it has some.

use std::collections::BTreeMap;

use cri::{ContainerStatus, PodSandboxStatus, RuntimeInfo};
use serde_json::{Value, json};

type Info = BTreeMap<String, String>;

fn one(name: &str, value: &Value) -> Info {
    Info::from([(name.to_owned(), value.to_string())])
}

/// Of the runtime.
pub(super) fn runtime(info: &RuntimeInfo) -> Info {
    one(
        "config",
        &json!({
            "runtime": info.name, "version": info.version, "cgroupDriver": "cgroupfs",
            "cgroupVersion": if info.cgroup_v2 { 2 } else { 1 }, "userNamespaces": info.user_namespaces,
        }),
    )
}

/// Of a sandbox.
pub(super) fn sandbox(status: &PodSandboxStatus) -> Info {
    let handler = match status.runtime_handler.as_str() {
        "" => "ferry",
        handler => handler,
    };
    one(
        "info",
        &json!({"sandboxID": status.id, "runtimeHandler": handler, "runtimeType": "ferry", "addresses": status.ips}),
    )
}

/// Of a container.
pub(super) fn container(status: &ContainerStatus) -> Info {
    one(
        "info",
        &json!({
            "sandboxID": status.sandbox_id, "pid": status.pid.unwrap_or(0), "removing": false,
            "runtimeType": "ferry", "stopSignal": status.stop_signal,
            "user": status.user.as_ref().map(|(uid, gid, groups)| json!({"uid": uid, "gid": gid, "additionalGids": groups})),
        }),
    )
}
