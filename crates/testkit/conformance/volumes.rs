//! \[sig-storage\]: volumes that follow their sources, subpaths, limits that come from the node, and objects of
//! storage that are only API.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::pods::{container, has, pod};
use testkit::{Case, Scope};

/// Waits until a file in a running pod holds a text; an empty text means that the file is not there.
fn becomes(s: &Scope<'_>, pod: &str, file: &str, text: &str) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    let script = format!("cat {file} 2>/dev/null || true");
    loop {
        let found = s.kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", &script])?;
        if (text.is_empty() && found.is_empty()) || (!text.is_empty() && found.contains(text)) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{file} holds {found:?} instead of {text:?}");
        s.pause(Duration::from_millis(50));
    }
}

fn mounted(name: &str, volumes: Value, mounts: Value) -> Value {
    pod(name, "while :; do sleep 1; done", |spec| {
        spec["volumes"] = volumes;
        spec["containers"][0]["volumeMounts"] = mounts;
    })
}

/// Optional sources that go, change and come while a pod has them mounted.
fn optional(s: &Scope<'_>, source: &str, projected: bool) -> anyhow::Result<()> {
    let resource = if source == "configMap" { "configmaps" } else { "secrets" };
    let data = |value: &str| match source {
        "configMap" => json!({"data": {"data-1": value}}),
        _ => json!({"stringData": {"data-1": value}}),
    };
    let make = |name: &str, value: &str| {
        let mut object = data(value);
        object["metadata"] = json!({"name": name});
        s.create(resource, object)
    };
    make("goes", "value-1")?;
    make("changes", "value-1")?;
    let names = ["goes", "changes", "comes"];
    let key = if source == "secret" && !projected { "secretName" } else { "name" };
    let volumes: Vec<Value> = names
        .iter()
        .map(|n| {
            let from = json!({source: {key: n, "optional": true}});
            let mut volume = if projected { json!({"projected": {"sources": [from]}}) } else { from };
            volume["name"] = (*n).into();
            volume
        })
        .collect();
    let mounts: Vec<Value> =
        names.iter().map(|n| json!({"name": n, "mountPath": format!("/{n}"), "readOnly": true})).collect();
    s.ready(mounted("reader", volumes.into(), mounts.into()))?;
    becomes(s, "reader", "/goes/data-1", "value-1")?;
    becomes(s, "reader", "/comes/data-1", "")?;
    s.delete(resource, "goes", &client::DeleteParams::default())?;
    s.merge(resource, "changes", "", data("value-2"))?;
    make("comes", "value-3")?;
    becomes(s, "reader", "/comes/data-1", "value-3")?;
    becomes(s, "reader", "/changes/data-1", "value-2")?;
    becomes(s, "reader", "/goes/data-1", "")
}

/// The downward API's limit of a container without one is what the node has.
fn node_limit(s: &Scope<'_>, projected: bool, resource: &str) -> anyhow::Result<()> {
    let item = json!({"path": "file", "resourceFieldRef": {"containerName": "main", "resource": resource}});
    let volume = match projected {
        true => json!({"name": "v", "projected": {"sources": [{"downwardAPI": {"items": [item]}}]}}),
        false => json!({"name": "v", "downwardAPI": {"items": [item]}}),
    };
    let text = s.output(pod("reader", "cat /v/file", |spec| {
        spec["volumes"] = json!([volume]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    }))?;
    ensure!(text.trim().parse::<u64>().is_ok_and(|n| n > 0), "{text:?}");
    Ok(())
}

/// Labels or annotations in a projected file follow the pod's.
fn follows_metadata(s: &Scope<'_>, what: &str) -> anyhow::Result<()> {
    let item = json!({"path": "file", "fieldRef": {"fieldPath": format!("metadata.{what}")}});
    let volume = json!([{"name": "v", "projected": {"sources": [{"downwardAPI": {"items": [item]}}]}}]);
    let mut made = mounted("reader", volume, json!([{"name": "v", "mountPath": "/v"}]));
    made["metadata"][what] = json!({"key": "one"});
    s.ready(made)?;
    becomes(s, "reader", "/v/file", "key=\"one\"")?;
    s.merge("pods", "reader", "", json!({"metadata": {what: {"key": "two", "new": "three"}}}))?;
    becomes(s, "reader", "/v/file", "key=\"two\"\nnew=\"three\"")
}

/// A file of an atomically written volume through a subpath; it stays as it was mounted.
fn sub_path(s: &Scope<'_>, volume: Value, key: &str, text: &str, at: &str) -> anyhow::Result<()> {
    let mut volume = volume;
    volume["name"] = "v".into();
    let found = s.output(pod("reader", &format!("cat {at}"), |spec| {
        spec["volumes"] = json!([volume]);
        spec["containers"][0]["volumeMounts"] =
            json!([{"name": "v", "mountPath": at, "subPath": key, "readOnly": true}]);
    }))?;
    has(&found, &[text])
}

fn config(s: &Scope<'_>) -> client::Result<Value> {
    s.create("configmaps", json!({"metadata": {"name": "src"}, "data": {"key": "mount-tester"}}))
}

fn secret(s: &Scope<'_>) -> client::Result<Value> {
    s.create("secrets", json!({"metadata": {"name": "src"}, "stringData": {"key": "mount-tester"}}))
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [following(), projections(), sub_paths(), wrappers(), objects()].concat()
}

fn following() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-storage] ConfigMap optional updates should be reflected in volume [NodeConformance] [Conformance]",
            run: |s| optional(s, "configMap", false),
        },
        Case {
            name: "[sig-storage] Projected configMap optional updates should be reflected in volume [NodeConformance] [Conformance]",
            run: |s| optional(s, "configMap", true),
        },
        Case {
            name: "[sig-storage] Secrets optional updates should be reflected in volume [NodeConformance] [Conformance]",
            run: |s| optional(s, "secret", false),
        },
        Case {
            name: "[sig-storage] Projected secret optional updates should be reflected in volume [NodeConformance] [Conformance]",
            run: |s| optional(s, "secret", true),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should update labels on modification [NodeConformance] [Conformance]",
            run: |s| follows_metadata(s, "labels"),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should update annotations on modification [NodeConformance] [Conformance]",
            run: |s| follows_metadata(s, "annotations"),
        },
        Case {
            name: "[sig-storage] ConfigMap binary data should be reflected in volume [NodeConformance] [Conformance]",
            run: |s| {
                // 0xde 0xca 0xfe 0xba 0xd0 0xfe 0xff
                s.create(
                    "configmaps",
                    json!({"metadata": {"name": "src"}, "data": {"data-1": "value-1"},
                    "binaryData": {"dump.bin": "3sr+utD+/w=="}}),
                )?;
                let text =
                    s.output(pod("reader", "cat /v/data-1; echo; hexdump -C /v/dump.bin", |spec| {
                        spec["volumes"] = json!([{"name": "v", "configMap": {"name": "src"}}]);
                        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
                    }))?;
                has(&text, &["value-1", "de ca fe ba d0 fe ff"])
            },
        },
        Case {
            name: "[sig-storage] Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace [NodeConformance] [Conformance]",
            run: |s| {
                let other = format!("{}-other", s.namespace);
                s.create("namespaces", json!({"metadata": {"name": other}}))?;
                let path = format!("/api/v1/namespaces/{other}/secrets");
                let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "src"}, "stringData": {"key": "another"}});
                s.send(http::Method::POST, &path, &object)?;
                secret(s)?;
                let outcome =
                    sub_path(s, json!({"secret": {"secretName": "src"}}), "key", "mount-tester", "/file");
                s.delete("namespaces", &other, &client::DeleteParams::default())?;
                outcome
            },
        },
    ]
}

fn projections() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-storage] Downward API volume should provide node allocatable (cpu) as default cpu limit if the limit is not set [NodeConformance] [Conformance]",
            run: |s| node_limit(s, false, "limits.cpu"),
        },
        Case {
            name: "[sig-storage] Downward API volume should provide node allocatable (memory) as default memory limit if the limit is not set [NodeConformance] [Conformance]",
            run: |s| node_limit(s, false, "limits.memory"),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should provide node allocatable (cpu) as default cpu limit if the limit is not set [NodeConformance] [Conformance]",
            run: |s| node_limit(s, true, "limits.cpu"),
        },
        Case {
            name: "[sig-storage] Projected downwardAPI should provide node allocatable (memory) as default memory limit if the limit is not set [NodeConformance] [Conformance]",
            run: |s| node_limit(s, true, "limits.memory"),
        },
        Case {
            name: "[sig-storage] Projected combined should project all components that make up the projection API [Projection] [NodeConformance] [Conformance]",
            run: |s| {
                s.create(
                    "configmaps",
                    json!({"metadata": {"name": "c"}, "data": {"configmap-data": "configmap-value-1"}}),
                )?;
                s.create(
                    "secrets",
                    json!({"metadata": {"name": "s"}, "stringData": {"secret-data": "secret-value-1"}}),
                )?;
                let sources = json!([
                    {"secret": {"name": "s"}}, {"configMap": {"name": "c"}},
                    {"downwardAPI": {"items": [{"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                    {"serviceAccountToken": {"path": "token"}}]);
                let text = s.output(pod(
                    "all",
                    "cd /all; cat podname secret-data configmap-data; wc -c < token",
                    |spec| {
                        spec["volumes"] = json!([{"name": "v", "projected": {"sources": sources}}]);
                        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/all"}]);
                    },
                ))?;
                has(&text, &["all", "secret-value-1", "configmap-value-1"])
            },
        },
    ]
}

fn sub_paths() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-storage] Subpath Atomic writer volumes should support subpaths with configmap pod [Conformance]",
            run: |s| {
                config(s)?;
                sub_path(s, json!({"configMap": {"name": "src"}}), "key", "mount-tester", "/file")
            },
        },
        Case {
            name: "[sig-storage] Subpath Atomic writer volumes should support subpaths with configmap pod with mountPath of existing file [Conformance]",
            run: |s| {
                config(s)?;
                sub_path(s, json!({"configMap": {"name": "src"}}), "key", "mount-tester", "/etc/group")
            },
        },
        Case {
            name: "[sig-storage] Subpath Atomic writer volumes should support subpaths with secret pod [Conformance]",
            run: |s| {
                secret(s)?;
                sub_path(s, json!({"secret": {"secretName": "src"}}), "key", "mount-tester", "/file")
            },
        },
        Case {
            name: "[sig-storage] Subpath Atomic writer volumes should support subpaths with downward pod [Conformance]",
            run: |s| {
                let item = json!({"path": "downward/podname", "fieldRef": {"fieldPath": "metadata.name"}});
                sub_path(s, json!({"downwardAPI": {"items": [item]}}), "downward/podname", "reader", "/file")
            },
        },
        Case {
            name: "[sig-storage] Subpath Atomic writer volumes should support subpaths with projected pod [Conformance]",
            run: |s| {
                config(s)?;
                let source =
                    json!({"configMap": {"name": "src", "items": [{"key": "key", "path": "dir/key"}]}});
                sub_path(s, json!({"projected": {"sources": [source]}}), "dir/key", "mount-tester", "/file")
            },
        },
    ]
}

fn wrappers() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-storage] EmptyDir wrapper volumes should not conflict [Conformance]",
            run: |s| {
                config(s)?;
                secret(s)?;
                let volumes = json!([{"name": "c", "configMap": {"name": "src"}}, {"name": "s", "secret": {"secretName": "src"}}]);
                let mounts = json!([{"name": "c", "mountPath": "/etc/c", "readOnly": true}, {"name": "s", "mountPath": "/etc/s", "readOnly": true}]);
                s.ready(mounted("both", volumes, mounts)).map(drop)
            },
        },
        Case {
            name: "[sig-storage] EmptyDir wrapper volumes should not cause race condition when used for configmaps [Serial] [Conformance]",
            run: |s| {
                let names: Vec<String> = (0..50).map(|i| format!("racey-{i}")).collect();
                for name in &names {
                    s.create(
                        "configmaps",
                        json!({"metadata": {"name": name}, "data": {"data-1": "value-1"}}),
                    )?;
                }
                let volumes: Vec<Value> =
                    names.iter().map(|n| json!({"name": n, "configMap": {"name": n}})).collect();
                let mounts: Vec<Value> =
                    names.iter().map(|n| json!({"name": n, "mountPath": format!("/etc/{n}")})).collect();
                for i in 0..3 {
                    s.ready(mounted(&format!("race-{i}"), volumes.clone().into(), mounts.clone().into()))?;
                    becomes(s, &format!("race-{i}"), "/etc/racey-49/data-1", "value-1")?;
                }
                Ok(())
            },
        },
    ]
}

fn volume(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"case": label}}, "spec": {"capacity": {"storage": "2Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp/none"}, "storageClassName": label,
        "persistentVolumeReclaimPolicy": "Retain"}})
}

fn claim(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"case": label}}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": label, "resources": {"requests": {"storage": "2Gi"}}}})
}

fn objects() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-storage] PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC [Conformance]",
            run: |s| {
                let (name, label) = (format!("pv-{}", s.namespace), format!("case={}", s.namespace));
                s.create("persistentvolumes", volume(&name, &s.namespace))?;
                s.create("persistentvolumeclaims", claim("c", &s.namespace))?;
                ensure!(
                    s.list("persistentvolumes", &label)?.len() == 1
                        && s.list("persistentvolumeclaims", &label)?.len() == 1
                );
                for (resource, name) in
                    [("persistentvolumes", name.as_str()), ("persistentvolumeclaims", "c")]
                {
                    let patched =
                        s.merge(resource, name, "", json!({"metadata": {"labels": {name: "patched"}}}))?;
                    ensure!(patched["metadata"]["labels"][name] == "patched");
                    let mut read = s.get(resource, name)?;
                    read["metadata"]["labels"]["updated"] = "yes".into();
                    read["metadata"]["resourceVersion"] = Value::Null;
                    ensure!(s.update(resource, &read)?["metadata"]["labels"]["updated"] == "yes");
                }
                s.delete("persistentvolumeclaims", "c", &client::DeleteParams::default())?;
                s.wait_gone("persistentvolumeclaims", "c")?;
                s.delete_all("persistentvolumes", &label)?;
                s.wait_gone("persistentvolumes", &name)
            },
        },
        Case {
            name: "[sig-storage] PersistentVolumes CSI Conformance should apply changes to a pv/pvc status [Conformance]",
            run: |s| {
                let name = format!("pv-{}", s.namespace);
                s.create("persistentvolumes", volume(&name, &s.namespace))?;
                s.create("persistentvolumeclaims", claim("c", &s.namespace))?;
                let condition =
                    json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set"});
                let patched = s.merge(
                    "persistentvolumeclaims",
                    "c",
                    "status",
                    json!({"status": {"conditions": [condition]}}),
                )?;
                ensure!(patched["status"]["conditions"][0]["type"] == "StatusUpdate", "{patched}");
                let patched = s.merge(
                    "persistentvolumes",
                    &name,
                    "status",
                    json!({"status": {"message": "StatusPatched", "reason": "E2E"}}),
                )?;
                ensure!(
                    patched["status"]["message"] == "StatusPatched"
                        && patched["spec"]["capacity"]["storage"] == "2Gi",
                    "{patched}"
                );
                s.delete("persistentvolumeclaims", "c", &client::DeleteParams::default())?;
                s.delete("persistentvolumes", &name, &client::DeleteParams::default())?;
                s.wait_gone("persistentvolumes", &name)
            },
        },
        Case {
            name: "[sig-storage] VolumeAttachment Conformance should apply changes to a volumeattachment status [Conformance]",
            run: |s| {
                let name = format!("va-{}", s.namespace);
                s.create("volumeattachments", json!({"metadata": {"name": name}, "spec": {"attacher": "e2e.example.com", "nodeName": "n",
                    "source": {"persistentVolumeName": "pv"}}}))?;
                let patched =
                    s.merge("volumeattachments", &name, "status", json!({"status": {"attached": true}}))?;
                ensure!(patched["status"]["attached"] == true, "{patched}");
                let patched =
                    s.merge("volumeattachments", &name, "status", json!({"status": {"attached": false}}))?;
                ensure!(patched["status"]["attached"] == false, "{patched}");
                s.delete("volumeattachments", &name, &client::DeleteParams::default())?;
                s.wait_gone("volumeattachments", &name)
            },
        },
        Case {
            name: "[sig-storage] CSIInlineVolumes should support CSIVolumeSource in Pod API [Conformance]",
            run: |s| {
                let inline = |name: &str| {
                    let mut p = pod(name, "true", |spec| {
                        spec["volumes"] = json!([{"name": "v", "csi": {"driver": "none.example.com", "readOnly": true, "volumeAttributes": {"k": "v"}}}]);
                        spec["containers"] = json!([container("main", "true")]);
                    });
                    p["metadata"]["labels"] = json!({"set": "inline"});
                    p
                };
                let made = s.create("pods", inline("a"))?;
                ensure!(made["spec"]["volumes"][0]["csi"]["driver"] == "none.example.com", "{made}");
                let patched =
                    s.merge("pods", "a", "", json!({"metadata": {"labels": {"patched": "yes"}}}))?;
                ensure!(patched["spec"]["volumes"][0]["csi"]["readOnly"] == true);
                s.create("pods", inline("b"))?;
                ensure!(s.list("pods", "set=inline")?.len() == 2);
                s.delete_all("pods", "set=inline")?;
                ["a", "b"].iter().try_for_each(|name| s.wait_gone("pods", name))
            },
        },
    ]
}
