//! \[sig-storage\]: volumes of ConfigMaps, Secrets, the downward API and emptyDir, alone and projected.

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

/// Which files of a source a case wants and how.
#[derive(Clone, Copy, Default)]
struct Shape {
    items: bool,
    item_mode: Option<u32>,
    default_mode: Option<u32>,
    non_root: bool,
    twice: bool,
}

const PLAIN: Shape =
    Shape { items: false, item_mode: None, default_mode: None, non_root: false, twice: false };

/// Creates a source `src` with `data-1`, mounts it as `shape` says and checks text and mode.
fn consume(s: &Scope<'_>, source: &str, projected: bool, shape: Shape) -> anyhow::Result<()> {
    if source == "configMap" {
        s.create("configmaps", json!({"metadata": {"name": "src"}, "data": {"data-1": "value-1"}}))?;
    } else {
        s.create("secrets", json!({"metadata": {"name": "src"}, "stringData": {"data-1": "value-1"}}))?;
    }
    let mut from = json!({});
    if shape.items {
        from["items"] = json!([{"key": "data-1", "path": "path/to/data"}]);
        if let Some(mode) = shape.item_mode {
            from["items"][0]["mode"] = mode.into();
        }
    }
    from[if source == "secret" && !projected { "secretName" } else { "name" }] = "src".into();
    let mut volume =
        if projected { json!({"projected": {"sources": [{source: from}]}}) } else { json!({source: from}) };
    if let Some(mode) = shape.default_mode {
        let outer = if projected { "projected" } else { source };
        volume[outer]["defaultMode"] = mode.into();
    }
    let file = if shape.items { "path/to/data" } else { "data-1" };
    let script = format!("for d in /v*; do cat $d/{file}; echo; stat -L -c mode=%a $d/{file}; id -u; done");
    let text = s.output(pod("reader", &script, |spec| {
        let volumes = if shape.twice { &["v1", "v2"][..] } else { &["v1"][..] };
        let named = |n: &&str| {
            let mut v = volume.clone();
            v["name"] = (*n).into();
            v
        };
        spec["volumes"] = volumes.iter().map(named).collect();
        spec["containers"][0]["volumeMounts"] = volumes
            .iter()
            .map(|n| json!({"name": n, "mountPath": format!("/{n}"), "readOnly": true}))
            .collect();
        if shape.non_root {
            spec["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 1001});
        }
    }))?;
    ensure!(text.matches("value-1").count() == if shape.twice { 2 } else { 1 }, "{text}");
    if !shape.non_root {
        let mode = shape.item_mode.or(shape.default_mode).unwrap_or(0o644);
        has(&text, &[&format!("mode={mode:o}\n")])?;
    } else {
        has(&text, &["\n1000\n"])?;
    }
    Ok(())
}

/// One emptyDir file written with a mode by some user, on some medium.
fn empty_dir(s: &Scope<'_>, user: u32, mode: &str, medium: &str) -> anyhow::Result<()> {
    let script = format!(
        "grep ' /test ' /proc/mounts; echo content > /test/f && chmod {mode} /test/f && stat -c 'file=%a user=%u' /test/f; cat /test/f"
    );
    let text = s.output(pod("writer", &script, |spec| on(spec, json!({"medium": medium}), user)))?;
    has(&text, &["content\n", &format!("file={} user={user}", mode.trim_start_matches('0'))])?;
    ensure!(text.contains("tmpfs") == (medium == "Memory"), "{text}");
    Ok(())
}

fn on(spec: &mut Value, empty_dir: Value, user: u32) {
    spec["volumes"] = json!([{"name": "test", "emptyDir": empty_dir}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "test", "mountPath": "/test"}]);
    spec["securityContext"] = json!({"runAsUser": user});
}

fn directory_mode(s: &Scope<'_>, medium: &str) -> anyhow::Result<()> {
    let text = s.output(pod("stat", "stat -c mode=%a /test; grep ' /test ' /proc/mounts", |spec| {
        on(spec, json!({"medium": medium}), 0);
    }))?;
    has(&text, &["mode=777"])?;
    ensure!(text.contains("tmpfs") == (medium == "Memory"), "{text}");
    Ok(())
}

/// Prints one downward API file, directly or projected.
fn downward(
    s: &Scope<'_>,
    projected: bool,
    item: Value,
    default_mode: Option<u32>,
) -> anyhow::Result<String> {
    s.output(pod("downward", "cat /info/file; echo; stat -L -c mode=%a /info/file", |spec| {
        let (inner, mut volume) = (json!({"items": [item]}), json!({"name": "info"}));
        let outer = if projected { "projected" } else { "downwardAPI" };
        volume[outer] = if projected { json!({"sources": [{"downwardAPI": inner}]}) } else { inner };
        if let Some(mode) = default_mode {
            volume[outer]["defaultMode"] = mode.into();
        }
        spec["volumes"] = json!([volume]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "info", "mountPath": "/info"}]);
        spec["containers"][0]["resources"] = json!({
            "requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"},
        });
    }))
}

fn resource(s: &Scope<'_>, projected: bool, name: &str, divisor: &str, expect: &str) -> anyhow::Result<()> {
    let from = json!({"containerName": "main", "resource": name, "divisor": divisor});
    has(
        &downward(s, projected, json!({"path": "file", "resourceFieldRef": from}), None)?,
        &[&format!("{expect}\nmode")],
    )
}

fn pod_name(s: &Scope<'_>, projected: bool, mode: Option<u32>, default: Option<u32>) -> anyhow::Result<()> {
    let mut item = json!({"path": "file", "fieldRef": {"fieldPath": "metadata.name"}});
    if let Some(mode) = mode {
        item["mode"] = mode.into();
    }
    let expect = format!("downward\nmode={:o}", mode.or(default).unwrap_or(0o644));
    has(&downward(s, projected, item, default)?, &[&expect])
}

/// A pod that prints a mounted file whenever it changes must come to print `second` after `change`.
fn follows(
    s: &Scope<'_>,
    volume: Value,
    file: &str,
    change: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let script = format!("while ! grep -q second /v/{file} 2>/dev/null; do sleep 0.2; done; echo seen");
    let mut object = pod("follower", &script, |spec| {
        spec["volumes"] = json!([volume]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    });
    object["metadata"]["annotations"] = json!({"key": "first"});
    s.ready(object)?;
    change()?;
    let ended = s.pod_ended("follower")?;
    ensure!(ended["status"]["phase"] == "Succeeded", "{}", ended["status"]);
    Ok(())
}

fn immutable(s: &Scope<'_>, kind: &str) -> anyhow::Result<()> {
    let object = s.create(kind, json!({"metadata": {"name": "x"}, "data": {"a": "YQ=="}}))?;
    let mut changed = object.clone();
    changed["data"]["a"] = "Yg==".into();
    let mut changed = s.update(kind, &changed)?;
    changed["immutable"] = true.into();
    let fixed = s.update(kind, &changed)?;
    for edit in [json!({"data": {"a": "Yw=="}}), json!({"immutable": false})] {
        ensure!(s.merge(kind, "x", "", edit).is_err_and(|e| e.is_invalid()), "an immutable object changed");
    }
    ensure!(
        s.merge(kind, "x", "", json!({"metadata": {"labels": {"l": "m"}}})).is_ok()
            && fixed["immutable"] == true
    );
    s.delete(kind, "x", &client::DeleteParams::default())?;
    Ok(())
}

macro_rules! empty_dirs {
    ($(($who:literal, $uid:literal, $mode:literal)),*) => {
        [$(
            Case {
                name: concat!("[sig-storage] EmptyDir volumes should support (", $who, ",", $mode, ",default) [LinuxOnly] [NodeConformance] [Conformance]"),
                run: |s| empty_dir(s, $uid, $mode, ""),
            },
            Case {
                name: concat!("[sig-storage] EmptyDir volumes should support (", $who, ",", $mode, ",tmpfs) [LinuxOnly] [NodeConformance] [Conformance]"),
                run: |s| empty_dir(s, $uid, $mode, "Memory"),
            },
        )*]
    };
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    let mut all = vec![
        Case {
            name: "[sig-storage] ConfigMap should be consumable from pods in volume [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", false, PLAIN),
        },
        Case {
            name: "[sig-storage] ConfigMap should be consumable from pods in volume as non-root [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", false, Shape { non_root: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] ConfigMap should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", false, Shape { default_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] ConfigMap should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", false, Shape { items: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] ConfigMap should be consumable from pods in volume with mappings and Item mode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", false, Shape { items: true, item_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] ConfigMap should be consumable from pods in volume with mappings as non-root [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", false, Shape { items: true, non_root: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] ConfigMap should be consumable in multiple volumes in the same pod [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", false, Shape { twice: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Secrets should be consumable from pods in volume [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", false, PLAIN),
        },
        Case {
            name: "[sig-storage] Secrets should be consumable from pods in volume as non-root with defaultMode and fsGroup set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| {
                consume(s, "secret", false, Shape { default_mode: Some(0o440), non_root: true, ..PLAIN })
            },
        },
        Case {
            name: "[sig-storage] Secrets should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", false, Shape { default_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Secrets should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", false, Shape { items: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Secrets should be consumable from pods in volume with mappings and Item Mode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", false, Shape { items: true, item_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Secrets should be consumable in multiple volumes in a pod [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", false, Shape { twice: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected configMap should be consumable from pods in volume [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", true, PLAIN),
        },
        Case {
            name: "[sig-storage] Projected configMap should be consumable from pods in volume as non-root [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", true, Shape { non_root: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected configMap should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", true, Shape { default_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected configMap should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", true, Shape { items: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected configMap should be consumable from pods in volume with mappings and Item mode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", true, Shape { items: true, item_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected configMap should be consumable from pods in volume with mappings as non-root [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", true, Shape { items: true, non_root: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected configMap should be consumable in multiple volumes in the same pod [NodeConformance] [Conformance]",
            run: |s| consume(s, "configMap", true, Shape { twice: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected secret should be consumable from pods in volume [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", true, PLAIN),
        },
        Case {
            name: "[sig-storage] Projected secret should be consumable from pods in volume as non-root with defaultMode and fsGroup set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", true, Shape { default_mode: Some(0o440), non_root: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected secret should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", true, Shape { default_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected secret should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", true, Shape { items: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected secret should be consumable from pods in volume with mappings and Item Mode set [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", true, Shape { items: true, item_mode: Some(0o400), ..PLAIN }),
        },
        Case {
            name: "[sig-storage] Projected secret should be consumable in multiple volumes in a pod [NodeConformance] [Conformance]",
            run: |s| consume(s, "secret", true, Shape { twice: true, ..PLAIN }),
        },
        Case {
            name: "[sig-storage] ConfigMap should be immutable if `immutable` field is set [Conformance]",
            run: |s| immutable(s, "configmaps"),
        },
        Case {
            name: "[sig-storage] Secrets should be immutable if `immutable` field is set [Conformance]",
            run: |s| immutable(s, "secrets"),
        },
        Case {
            name: "[sig-storage] EmptyDir volumes volume on default medium should have the correct mode [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| directory_mode(s, ""),
        },
        Case {
            name: "[sig-storage] EmptyDir volumes volume on tmpfs should have the correct mode [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| directory_mode(s, "Memory"),
        },
        Case {
            name: "[sig-storage] Downward API volume should provide container's cpu limit [NodeConformance] [Conformance]",
            run: |s| resource(s, false, "limits.cpu", "1m", "1250"),
        },
        Case {
            name: "[sig-storage] Downward API volume should provide container's cpu request [NodeConformance] [Conformance]",
            run: |s| resource(s, false, "requests.cpu", "1m", "250"),
        },
        Case {
            name: "[sig-storage] Downward API volume should provide container's memory limit [NodeConformance] [Conformance]",
            run: |s| resource(s, false, "limits.memory", "1Mi", "64"),
        },
        Case {
            name: "[sig-storage] Downward API volume should provide container's memory request [NodeConformance] [Conformance]",
            run: |s| resource(s, false, "requests.memory", "1Mi", "32"),
        },
        Case {
            name: "[sig-storage] Downward API volume should provide podname only [NodeConformance] [Conformance]",
            run: |s| pod_name(s, false, None, None),
        },
        Case {
            name: "[sig-storage] Downward API volume should set DefaultMode on files [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| pod_name(s, false, None, Some(0o400)),
        },
        Case {
            name: "[sig-storage] Downward API volume should set mode on item file [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| pod_name(s, false, Some(0o400), None),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should provide container's cpu limit [NodeConformance] [Conformance]",
            run: |s| resource(s, true, "limits.cpu", "1m", "1250"),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should provide container's cpu request [NodeConformance] [Conformance]",
            run: |s| resource(s, true, "requests.cpu", "1m", "250"),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should provide container's memory limit [NodeConformance] [Conformance]",
            run: |s| resource(s, true, "limits.memory", "1Mi", "64"),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should provide container's memory request [NodeConformance] [Conformance]",
            run: |s| resource(s, true, "requests.memory", "1Mi", "32"),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should provide podname only [NodeConformance] [Conformance]",
            run: |s| pod_name(s, true, None, None),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should set DefaultMode on files [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| pod_name(s, true, None, Some(0o400)),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should set mode on item file [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| pod_name(s, true, Some(0o400), None),
        },
        Case {
            name: "[sig-storage] ConfigMap updates should be reflected in volume [NodeConformance] [Conformance]",
            run: |s| {
                s.create("configmaps", json!({"metadata": {"name": "live"}, "data": {"k": "first"}}))?;
                follows(s, json!({"name": "v", "configMap": {"name": "live"}}), "k", || {
                    s.merge("configmaps", "live", "", json!({"data": {"k": "second"}}))?;
                    Ok(())
                })
            },
        },
        Case {
            name: "[sig-storage] Projected configMap updates should be reflected in volume [NodeConformance] [Conformance]",
            run: |s| {
                s.create("configmaps", json!({"metadata": {"name": "live"}, "data": {"k": "first"}}))?;
                follows(
                    s,
                    json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "live"}}]}}),
                    "k",
                    || {
                        s.merge("configmaps", "live", "", json!({"data": {"k": "second"}}))?;
                        Ok(())
                    },
                )
            },
        },
        Case {
            name: "[sig-storage] Downward API volume should update annotations on modification [NodeConformance] [Conformance]",
            run: |s| {
                let item = json!({"path": "k", "fieldRef": {"fieldPath": "metadata.annotations"}});
                follows(s, json!({"name": "v", "downwardAPI": {"items": [item]}}), "k", || {
                    s.merge("pods", "follower", "", json!({"metadata": {"annotations": {"key": "second"}}}))?;
                    Ok(())
                })
            },
        },
        Case {
            name: "[sig-storage] Downward API volume should update labels on modification [NodeConformance] [Conformance]",
            run: |s| {
                let item = json!({"path": "k", "fieldRef": {"fieldPath": "metadata.labels"}});
                follows(s, json!({"name": "v", "downwardAPI": {"items": [item]}}), "k", || {
                    s.merge("pods", "follower", "", json!({"metadata": {"labels": {"key": "second"}}}))?;
                    Ok(())
                })
            },
        },
        Case {
            name: "[sig-storage] EmptyDir volumes pod should support shared volumes between containers [Conformance]",
            run: |s| {
                s.output(pod("shared", "while ! cat /test/f; do sleep 0.1; done", |spec| {
                    on(spec, json!({}), 0);
                    let mut second = testkit::pods::container("second", "echo hello > /test/f");
                    second["volumeMounts"] = spec["containers"][0]["volumeMounts"].clone();
                    if let Some(list) = spec["containers"].as_array_mut() {
                        list.push(second);
                    }
                }))
                .and_then(|text| has(&text, &["hello"]))
            },
        },
    ];
    all.extend(empty_dirs!(
        ("root", 0, "0644"),
        ("root", 0, "0666"),
        ("root", 0, "0777"),
        ("non-root", 1001, "0644"),
        ("non-root", 1001, "0666"),
        ("non-root", 1001, "0777")
    ));
    all
}
