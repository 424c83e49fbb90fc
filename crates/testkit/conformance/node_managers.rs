//! \[sig-node\]: users of pods' own.

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

/// Whether the node's runtime can give pods users of their own. Where it cannot, such a pod has to say so.
fn has_user_namespaces(s: &Scope<'_>) -> anyhow::Result<bool> {
    let node = s.list("nodes", "")?.remove(0);
    let handlers = node["status"]["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    let default = handlers.iter().find(|handler| handler["name"].as_str().unwrap_or_default().is_empty());
    if default.is_some_and(|handler| handler["features"]["userNamespaces"] == true) {
        return Ok(true);
    }
    s.create("pods", pod("refused", "true", |spec| spec["hostUsers"] = false.into()))?;
    s.wait_any("events", "", "the refusal", |event| {
        let message = event["message"].as_str().unwrap_or_default();
        message.contains("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
    })?;
    Ok(false)
}

fn ids(s: &Scope<'_>, name: &str, host_users: bool) -> anyhow::Result<String> {
    s.output(pod(name, "cat /proc/self/uid_map", |spec| spec["hostUsers"] = host_users.into()))
}

/// A ConfigMap and a Secret with files of their own.
fn sources(s: &Scope<'_>) -> anyhow::Result<()> {
    let data = json!({"data-1": "value-1", "data-2": "value-2", "data-3": "value-3"});
    s.create("configmaps", json!({"metadata": {"name": "c"}, "data": data}))?;
    s.create("secrets", json!({"metadata": {"name": "c"}, "stringData": data}))?;
    Ok(())
}

/// Groups of all files in volumes, as the pod sees them.
fn groups(s: &Scope<'_>, volumes: Value, group: Option<u32>) -> anyhow::Result<String> {
    let script = "stat -c='%g' $(find /vol/ -type f)";
    s.output(pod("volumes", script, |spec| {
        spec["hostUsers"] = false.into();
        if let Some(group) = group {
            spec["securityContext"] = json!({"fsGroup": group});
        }
        let names = volumes.as_array().into_iter().flatten().map(|volume| volume["name"].clone());
        let mounts = names.map(|name| {
            let path = format!("/vol/{}", name.as_str().unwrap_or_default());
            json!({"name": name, "mountPath": path})
        });
        spec["containers"][0]["volumeMounts"] = mounts.collect();
        spec["volumes"] = volumes;
    }))
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Security Context When creating a pod with HostUsers must create the user namespace if set to false [LinuxOnly] [Feature:UserNamespacesSupport] [FeatureGate:UserNamespacesSupport]",
            run: |s| {
                if !has_user_namespaces(s)? {
                    return Ok(());
                }
                let script = "cat /proc/self/uid_map; sleep 1000";
                let long = |name: &str| pod(name, script, |spec| spec["hostUsers"] = false.into());
                let mut logs = Vec::new();
                for name in ["one", "two"] {
                    s.ready(long(name))?;
                    let mut log = String::new();
                    while log.is_empty() {
                        log = s.logs(name, "main")?;
                    }
                    has(&log, &["65536"])?;
                    logs.push(log);
                }
                ensure!(logs[0] != logs[1], "two pods have the same users: {logs:?}");
                let shown = s.kubectl(&["exec", "one", "--", "sh", "-c", "id -u; cat /proc/self/uid_map"])?;
                has(&shown, &["0\n", logs[0].trim()])
            },
        },
        Case {
            name: "[sig-node] Security Context When creating a pod with HostUsers must not create the user namespace if set to true [LinuxOnly] [Feature:UserNamespacesSupport] [FeatureGate:UserNamespacesSupport]",
            run: |s| has(&ids(s, "host", true)?, &["4294967295"]),
        },
        Case {
            name: "[sig-node] Security Context When creating a pod with HostUsers should mount all volumes with proper permissions with hostUsers=false [LinuxOnly] [Feature:UserNamespacesSupport] [FeatureGate:UserNamespacesSupport]",
            run: |s| {
                if !has_user_namespaces(s)? {
                    return Ok(());
                }
                sources(s)?;
                let name = json!([{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]);
                let volumes = json!([
                    {"name": "cfg", "configMap": {"name": "c"}},
                    {"name": "secret", "secret": {"secretName": "c"}},
                    {"name": "downward", "downwardAPI": {"items": name}},
                    {"name": "projected", "projected": {"sources":
                        [{"downwardAPI": {"items": name}}, {"secret": {"name": "c"}}]}},
                ]);
                let groups = groups(s, volumes, None)?;
                ensure!(groups == "=0\n".repeat(3 + 3 + 1 + 4), "{groups:?}");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Security Context When creating a pod with HostUsers should set FSGroup to user inside the container with hostUsers=false [LinuxOnly] [Feature:UserNamespacesSupport] [FeatureGate:UserNamespacesSupport]",
            run: |s| {
                if !has_user_namespaces(s)? {
                    return Ok(());
                }
                sources(s)?;
                let groups = groups(s, json!([{"name": "cfg", "configMap": {"name": "c"}}]), Some(200))?;
                ensure!(groups == "=200\n".repeat(3), "{groups:?}");
                Ok(())
            },
        },
        Case {
            name: "Ferry: a pod with users of its own makes namespaces and mounts within them",
            run: |s| {
                if !has_user_namespaces(s)? {
                    return Ok(());
                }
                let script = "mkdir /tmp/m; mount -t tmpfs t /tmp/m && echo mounted
                    unshare -Urm sh -c 'mount -t tmpfs t /tmp/m && echo nested $(id -u)'
                    unshare -mpf sh -c 'mount -t proc p /proc && readlink /proc/self'
                    unshare -Urmpf sh -c 'mount -t proc p /proc && readlink /proc/self'
                    true";
                let root = |caps: Value| json!({"capabilities": {"add": caps}, "procMount": "Unmasked"});
                let may = |name: &str, security: Value| {
                    pod(name, script, |spec| {
                        spec["hostUsers"] = false.into();
                        spec["containers"][0]["securityContext"] = security;
                    })
                };
                let said = s.output(may("may", root(json!(["SYS_ADMIN"]))))?;
                let lines: Vec<&str> = said.lines().collect();
                // Each is the first process of its own.
                ensure!(lines == ["mounted", "nested 0", "1", "1"], "{said}");
                // Without the capability only namespaces with further users of its own are left.
                let said = s.output(may("may-not", root(json!([]))))?;
                let refused = ["mount: permission denied", "unshare(0x20020000): Operation not permitted"];
                has(&said, &refused)?;
                has(&said, &["nested 0\n", "\n1\n"])?;
                // What is hidden in /proc stays hidden: a fresh one would show it.
                let masked = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
                let said = s.output(may("masked", masked))?;
                has(&said, &["mounted\n", "nested 0\n", "mount: permission denied"])?;
                ensure!(!said.contains("\n1\n"), "{said}");
                Ok(())
            },
        },
    ]
}
