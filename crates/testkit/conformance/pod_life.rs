//! \[sig-node\]: resize, generations, hooks, ephemeral containers, statuses, and objects that are only API.

use std::time::{Duration, Instant};

use anyhow::ensure;
use client::DeleteParams;
use http::Method;
use serde_json::{Value, json};
use testkit::pods::{condition, container, has, pod};
use testkit::{Case, Scope};

/// A pod that stays.
fn stays(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    pod(name, "while :; do sleep 1; done", change)
}

fn resources(cpu: &str, memory: &str, limits: Option<(&str, &str)>) -> Value {
    let mut out = json!({"requests": {"cpu": cpu, "memory": memory}});
    if let Some((cpu, memory)) = limits {
        out["limits"] = json!({"cpu": cpu, "memory": memory});
    }
    out
}

/// CPU shares and memory limit as the kernel has them, on either version of cgroups, seen from inside.
const SHOW: &str = "if [ -e /sys/fs/cgroup/cpu.weight ]; then cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max; \
    else cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory/memory.limit_in_bytes; fi";

/// Resizes containers and waits until the status and the kernel agree.
fn resize(s: &Scope<'_>, before: &[Value], after: &[Value], put: bool) -> anyhow::Result<()> {
    let name = |i: usize| format!("c{i}");
    let made = s.ready(stays("resized", |spec| {
        spec["containers"] = before
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let mut c = container(&name(i), "while :; do sleep 1; done");
                c["resources"] = r.clone();
                c
            })
            .collect();
    }))?;
    let ids = |p: &Value| -> Vec<Value> {
        let all = p["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.iter().map(|c| c["containerID"].clone()).collect()
    };
    if put {
        let mut changed = made.clone();
        for (i, r) in after.iter().enumerate() {
            changed["spec"]["containers"][i]["resources"] = r.clone();
        }
        let path = format!("/api/v1/namespaces/{}/pods/resized/resize", s.namespace);
        changed["metadata"]["resourceVersion"] = Value::Null;
        s.send(Method::PUT, &path, &changed)?;
    } else {
        let list: Vec<Value> =
            after.iter().enumerate().map(|(i, r)| json!({"name": name(i), "resources": r})).collect();
        let patch = client::Patch::Strategic(json!({"spec": {"containers": list}}));
        s.patch("pods", "resized", "resize", &patch)?;
    }
    let done = s.wait_any("pods", "resized", "the resize", |p| {
        let statuses = p["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let all = after.iter().enumerate().all(|(i, r)| {
            statuses.iter().any(|c| {
                c["name"] == name(i).as_str()
                    && ["requests", "limits"].iter().all(|k| c["resources"][*k] == r[*k])
            })
        });
        all && p["status"]["observedGeneration"] == p["metadata"]["generation"]
            && !condition(p, "PodResizePending")
            && !condition(p, "PodResizeInProgress")
    })?;
    ensure!(ids(&made) == ids(&done), "containers were restarted: {}", done["status"]);
    for (i, r) in after.iter().enumerate() {
        let Some(memory) = r["limits"]["memory"].as_str() else { continue };
        let bytes = meta::Quantity::parse(memory)?.value().to_string();
        let shown = s.kubectl(&["exec", "resized", "-c", &name(i), "--", "sh", "-c", SHOW])?;
        has(&shown, &[&bytes])?;
    }
    Ok(())
}

/// A pod in the background to which hooks talk; its address, and a wait for what it was asked for.
fn listener(s: &Scope<'_>) -> anyhow::Result<String> {
    let script = "mkdir -p /w; echo ok > /w/post; echo ok > /w/pre; exec httpd -f -vv -p 8080 -h /w";
    let made = s.ready(pod("listener", script, |_| ()))?;
    Ok(made["status"]["podIP"].as_str().unwrap_or_default().to_owned())
}

fn was_asked(s: &Scope<'_>, what: &str) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let log = s.logs("listener", "main")?;
        if log.contains(what) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "nobody asked for {what}:\n{log}");
        s.pause(Duration::from_millis(100));
    }
}

/// A hook that makes a request.
fn hook(ip: &str, path: &str, exec: bool) -> Value {
    match exec {
        true => json!({"exec": {"command": ["sh", "-c",
            format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc {ip} 8080")]}}),
        false => json!({"httpGet": {"path": path, "host": ip, "port": 8080}}),
    }
}

fn post_start(s: &Scope<'_>, exec: bool) -> anyhow::Result<()> {
    let ip = listener(s)?;
    s.ready(stays("hooked", |spec| {
        spec["containers"][0]["lifecycle"] = json!({"postStart": hook(&ip, "/post", exec)});
    }))?;
    was_asked(s, "/post")
}

fn pre_stop(s: &Scope<'_>, exec: bool) -> anyhow::Result<()> {
    let ip = listener(s)?;
    s.ready(stays("hooked", |spec| {
        spec["containers"][0]["lifecycle"] = json!({"preStop": hook(&ip, "/pre", exec)});
    }))?;
    s.delete("pods", "hooked", &DeleteParams { grace_period_seconds: Some(3), ..Default::default() })?;
    was_asked(s, "/pre")?;
    s.wait_gone("pods", "hooked")
}

fn ephemeral(s: &Scope<'_>, name: &str) -> anyhow::Result<Value> {
    s.ready(stays("host", |_| ()))?;
    let add = json!({"spec": {"ephemeralContainers": [
        {"name": name, "image": testkit::image::BUSYBOX, "command": ["sh", "-c", "echo polo; sleep 600"]}]}});
    s.patch("pods", "host", "ephemeralcontainers", &client::Patch::Strategic(add))?;
    s.wait_any("pods", "host", "the ephemeral container", |p| {
        let all = p["status"]["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
        all.iter().any(|c| c["name"] == name && c["state"]["running"].is_object())
    })
}

fn generation(p: &Value) -> i64 {
    p["metadata"]["generation"].as_i64().unwrap_or_default()
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [resizes(), refused_resizes(), generations(), hooks(), statuses(), ends()].concat()
}

fn resizes() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Pod InPlace Resize Container burstable pods - extended 6 containers - various operations performed (including adding limits and requests) [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| {
                let limited = |c: &str, m: &str| Some((c.to_owned(), m.to_owned()));
                let rows = [
                    (("20m", "20Mi", None), ("30m", "40Mi", limited("40m", "60Mi"))),
                    (("20m", "20Mi", limited("30m", "30Mi")), ("30m", "30Mi", limited("40m", "40Mi"))),
                    (("20m", "20Mi", limited("30m", "30Mi")), ("10m", "20Mi", limited("20m", "30Mi"))),
                    (("20m", "20Mi", None), ("25m", "20Mi", None)),
                    (("20m", "20Mi", limited("30m", "40Mi")), ("20m", "20Mi", limited("30m", "50Mi"))),
                    (("20m", "20Mi", None), ("20m", "30Mi", None)),
                ];
                let value = |r: &(&str, &str, Option<(String, String)>)| {
                    resources(r.0, r.1, r.2.as_ref().map(|(c, m)| (c.as_str(), m.as_str())))
                };
                let before: Vec<Value> = rows.iter().map(|r| value(&r.0)).collect();
                let after: Vec<Value> = rows.iter().map(|r| value(&r.1)).collect();
                resize(s, &before, &after, false)
            },
        },
        Case {
            name: "[sig-node] Pod InPlace Resize Container burstable pods - extended resize with equivalents [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| {
                // Two milli-CPUs are the least the kernel knows: nothing changes there.
                let before = resources("2m", "20Mi", Some(("10m", "30Mi")));
                let after = resources("1m", "20Mi", Some(("5m", "30Mi")));
                resize(s, &[before], &[after], false)
            },
        },
        Case {
            name: "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, c2, decrease cpu & mem on c3 - net increase [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| guaranteed(s, [("30m", "40Mi"), ("30m", "40Mi"), ("15m", "25Mi")]),
        },
        Case {
            name: "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, decrease cpu & mem on c2, c3 - net decrease [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| guaranteed(s, [("25m", "35Mi"), ("12m", "22Mi"), ("12m", "22Mi")]),
        },
        Case {
            name: "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase: CPU (c1,c3), memory (c2, c3) ; decrease: CPU (c2) [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| guaranteed(s, [("30m", "30Mi"), ("15m", "40Mi"), ("30m", "40Mi")]),
        },
        Case {
            name: "[sig-node] Pod InPlace Resize Container resize pod via the replace endpoint [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| {
                let both = |c, m| resources(c, m, Some((c, m)));
                resize(s, &[both("20m", "30Mi")], &[both("30m", "40Mi")], true)
            },
        },
    ]
}

fn refused_resizes() -> Vec<Case> {
    vec![Case {
        name: "Ferry: a resize that does not fit says why and happens when there is room",
        run: |s| {
            s.ready(stays("big", |spec| {
                spec["containers"][0]["resources"] = resources("20m", "20Mi", None);
            }))?;
            let ask = |cpu: &str| {
                let list = json!([{"name": "main", "resources": {"requests": {"cpu": cpu}}}]);
                s.patch(
                    "pods",
                    "big",
                    "resize",
                    &client::Patch::Strategic(json!({"spec": {"containers": list}})),
                )
            };
            ask("10000")?;
            let says = |reason: &'static str| {
                move |p: &Value| {
                    let all = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
                    all.iter().any(|c| {
                        c["type"] == "PodResizePending"
                            && c["reason"] == reason
                            && c["message"].as_str().is_some_and(|m| m.contains("cpu"))
                    })
                }
            };
            let p = s.wait_any("pods", "big", "a refusal", says("Infeasible"))?;
            ensure!(
                p["status"]["containerStatuses"][0]["resources"]["requests"]["cpu"] == "20m",
                "{}",
                p["status"]
            );
            ask("30m")?;
            s.wait_any("pods", "big", "room", |p| {
                p["status"]["containerStatuses"][0]["resources"]["requests"]["cpu"] == "30m"
                    && !condition(p, "PodResizePending")
            })?;
            let removed = s.patch(
                "pods",
                "big",
                "resize",
                &client::Patch::Json(json!([
                    {"op": "remove", "path": "/spec/containers/0/resources/requests/cpu"}])),
            );
            has(
                &removed.err().map(|e| e.to_string()).unwrap_or_default(),
                &["resource requests cannot be removed"],
            )
        },
    }]
}

fn guaranteed(s: &Scope<'_>, after: [(&str, &str); 3]) -> anyhow::Result<()> {
    let both = |(c, m)| resources(c, m, Some((c, m)));
    let before: Vec<Value> = (0..3).map(|_| both(("20m", "30Mi"))).collect();
    let after: Vec<Value> = after.into_iter().map(both).collect();
    resize(s, &before, &after, false)
}

fn generations() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Pods Extended (pod generation) Pod Generation custom-set generation on new pods and graceful delete [Conformance]",
            run: |s| {
                let mut p = stays("g", |_| ());
                p["metadata"]["generation"] = 100.into();
                let made = s.ready(p)?;
                ensure!(generation(&made) == 1, "{made}");
                s.merge("pods", "g", "", json!({"metadata": {"finalizers": ["example.com/hold"]}}))?;
                s.delete("pods", "g", &DeleteParams { grace_period_seconds: Some(1), ..Default::default() })?;
                let going = s.wait_any("pods", "g", "its deletion", |p| {
                    !p["metadata"]["deletionTimestamp"].is_null()
                })?;
                ensure!(generation(&going) == 2, "{going}");
                s.merge("pods", "g", "", json!({"metadata": {"finalizers": null}}))?;
                s.wait_gone("pods", "g")
            },
        },
        Case {
            name: "[sig-node] Pods Extended (pod generation) Pod Generation issue 500 podspec updates and verify generation and observedGeneration eventually converge [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| {
                s.ready(stays("g", |_| ()))?;
                for i in 0..500 {
                    s.merge("pods", "g", "", json!({"spec": {"activeDeadlineSeconds": 2000 - i}}))?;
                }
                s.wait_any("pods", "g", "generation 501 observed", |p| {
                    generation(p) == 501 && p["status"]["observedGeneration"] == 501
                })?;
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Pods Extended (pod generation) Pod Generation pod generation should start at 1 and increment per update [MinimumKubeletVersion:1.34] [Conformance]",
            run: |s| {
                let made = s.ready(stays("g", |spec| {
                    spec["containers"][0]["resources"] = resources("20m", "20Mi", None);
                }))?;
                ensure!(generation(&made) == 1);
                let observed = |n: i64| {
                    s.wait_any("pods", "g", &format!("generation {n}"), |p| {
                        generation(p) == n && p["status"]["observedGeneration"] == n
                    })
                };
                s.merge("pods", "g", "", json!({"metadata": {"labels": {"new": "label"}}}))?;
                observed(1)?;
                s.merge("pods", "g", "", json!({"spec": {"activeDeadlineSeconds": 600}}))?;
                observed(2)?;
                let tolerations = json!([{"op": "add", "path": "/spec/tolerations/-", "value": {"key": "k", "operator": "Exists"}}]);
                s.patch("pods", "g", "", &client::Patch::Json(tolerations))?;
                observed(3)?;
                let list = json!([{"name": "main", "resources": {"requests": {"cpu": "30m"}}}]);
                s.patch(
                    "pods",
                    "g",
                    "resize",
                    &client::Patch::Strategic(json!({"spec": {"containers": list}})),
                )?;
                observed(4)?;
                let add = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": testkit::image::BUSYBOX, "command": ["true"]}]}});
                s.patch("pods", "g", "ephemeralcontainers", &client::Patch::Strategic(add))?;
                observed(5).map(drop)
            },
        },
    ]
}

fn hooks() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute poststart exec hook properly [NodeConformance] [Conformance]",
            run: |s| post_start(s, true),
        },
        Case {
            name: "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute poststart http hook properly [NodeConformance] [Conformance]",
            run: |s| post_start(s, false),
        },
        Case {
            name: "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop exec hook properly [NodeConformance] [Conformance]",
            run: |s| pre_stop(s, true),
        },
        Case {
            name: "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop http hook properly [NodeConformance] [Conformance]",
            run: |s| pre_stop(s, false),
        },
        Case {
            name: "[sig-node] PreStop should call prestop when killing a pod [Conformance]",
            run: |s| pre_stop(s, true),
        },
        Case {
            name: "[sig-node] Ephemeral Containers [NodeConformance] will start an ephemeral container in an existing pod [Conformance]",
            run: |s| {
                ephemeral(s, "debugger")?;
                has(&s.logs("host", "debugger")?, &["polo"])
            },
        },
        Case {
            name: "[sig-node] Ephemeral Containers [NodeConformance] should update the ephemeral containers in an existing pod [Conformance]",
            run: |s| {
                ephemeral(s, "first")?;
                let path = format!("/api/v1/namespaces/{}/pods/host/ephemeralcontainers", s.namespace);
                let mut read = s.path(&path)?;
                ensure!(
                    read["spec"]["ephemeralContainers"].as_array().is_some_and(|l| l.len() == 1),
                    "{read}"
                );
                let mut second = read["spec"]["ephemeralContainers"][0].clone();
                second["name"] = "second".into();
                if let Some(list) = read["spec"]["ephemeralContainers"].as_array_mut() {
                    list.push(second);
                }
                let updated = s.send(Method::PUT, &path, &read)?;
                ensure!(updated["spec"]["ephemeralContainers"].as_array().is_some_and(|l| l.len() == 2));
                s.wait_any("pods", "host", "the second ephemeral container", |p| {
                    let all =
                        p["status"]["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
                    all.iter().filter(|c| c["state"]["running"].is_object()).count() == 2
                })?;
                Ok(())
            },
        },
    ]
}

fn statuses() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Pods Extended Pods Set QOS Class should be set on Pods with matching resource requests and limits for memory and cpu [Conformance]",
            run: |s| {
                let made = s.create(
                    "pods",
                    stays("qos", |spec| {
                        spec["containers"][0]["resources"] =
                            resources("100m", "100Mi", Some(("100m", "100Mi")));
                    }),
                )?;
                ensure!(made["status"]["qosClass"] == "Guaranteed", "{made}");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Pods should patch a pod status [Conformance]",
            run: |s| {
                s.ready(stays("p", |_| ()))?;
                let condition = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from an e2e test"});
                s.patch("pods", "p", "status", &client::Patch::Strategic(json!({"metadata": {"labels": {"e2e": "patched"}}, "status": {"conditions": [condition]}})))?;
                let read = s.get("pods", "p")?;
                ensure!(
                    read["metadata"]["labels"]["e2e"] == "patched"
                        && testkit::pods::condition(&read, "StatusUpdate"),
                    "{read}"
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Pods should run through the lifecycle of Pods and PodStatus [Conformance]",
            run: |s| {
                s.create("pods", stays("p", |spec| spec["terminationGracePeriodSeconds"] = 1.into()))?;
                let ready = s.pod_ready("p")?;
                let image = ready["spec"]["containers"][0]["image"].clone();
                s.patch("pods", "p", "", &client::Patch::Strategic(json!({"metadata": {"labels": {"test-pod": "patched"}}, "spec": {"containers": [{"name": "main", "image": image}]}})))?;
                s.wait_any("pods", "p", "the label", |p| p["metadata"]["labels"]["test-pod"] == "patched")?;
                let path = format!("/api/v1/namespaces/{}/pods/p/status", s.namespace);
                let mut status = s.path(&path)?;
                let mut conditions = status["status"]["conditions"].as_array().cloned().unwrap_or_default();
                conditions.push(json!({"type": "Extra", "status": "False"}));
                status["status"]["conditions"] = conditions.into();
                status["metadata"]["resourceVersion"] = Value::Null;
                let updated = s.send(Method::PUT, &path, &status)?;
                ensure!(updated["status"]["conditions"].to_string().contains("Extra"), "{updated}");
                s.delete_all("pods", "test-pod=patched")?;
                s.wait_gone("pods", "p")
            },
        },
    ]
}

fn ends() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Container Runtime blackbox test when starting a container that exits should run with the expected status [NodeConformance] [Conformance]",
            run: |s| {
                let script = "f=/count/n; echo x >> $f; n=$(wc -l < $f); if [ $n = 1 ]; then exit 1; fi; if [ $n = 2 ]; then exit 0; fi; while :; do sleep 1; done";
                for (policy, phase, restarts) in
                    [("Never", "Failed", 0), ("OnFailure", "Succeeded", 1), ("Always", "Running", 2)]
                {
                    let name = policy.to_lowercase();
                    s.create(
                        "pods",
                        pod(&name, script, |spec| {
                            spec["restartPolicy"] = policy.into();
                            spec["volumes"] = json!([{"name": "n", "emptyDir": {"medium": "Memory"}}]);
                            spec["containers"][0]["volumeMounts"] =
                                json!([{"name": "n", "mountPath": "/count"}]);
                        }),
                    )?;
                    let p = s.wait_any("pods", &name, "its end", |p| {
                        p["status"]["phase"] == phase
                            && p["status"]["containerStatuses"][0]["restartCount"] == restarts
                            && (phase != "Running" || testkit::pods::condition(p, "Ready"))
                    })?;
                    ensure!(testkit::pods::condition(&p, "Ready") == (phase == "Running"), "{}", p["status"]);
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should be possible to delete [NodeConformance] [Conformance]",
            run: |s| {
                s.create("pods", pod("fails", "exit 1", |spec| spec["restartPolicy"] = "Always".into()))?;
                s.delete("pods", "fails", &DeleteParams::default())?;
                s.wait_gone("pods", "fails")
            },
        },
        Case {
            name: "[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file [NodeConformance] [Conformance]",
            run: |s| {
                const HEAD: &str = "# Kubernetes-managed hosts file.";
                s.ready(stays("own", |spec| {
                    let mut second = container("mounts", "while :; do sleep 1; done");
                    second["volumeMounts"] = json!([{"name": "hosts", "mountPath": "/etc/hosts"}]);
                    spec["volumes"] =
                        json!([{"name": "hosts", "hostPath": {"path": "/etc/hosts", "type": "File"}}]);
                    if let Some(list) = spec["containers"].as_array_mut() {
                        list.push(second);
                    }
                }))?;
                let hosts =
                    |pod: &str, c: &str| s.kubectl(&["exec", pod, "-c", c, "--", "cat", "/etc/hosts"]);
                has(&hosts("own", "main")?, &[HEAD])?;
                ensure!(!hosts("own", "mounts")?.contains(HEAD), "a mounted file was managed");
                s.ready(stays("host", |spec| spec["hostNetwork"] = true.into()))?;
                ensure!(!hosts("host", "main")?.contains(HEAD), "the node's own file was managed");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] InitContainer [NodeConformance] should not start app containers if init containers fail on a RestartAlways pod [Conformance]",
            run: |s| {
                s.create(
                    "pods",
                    stays("inits", |spec| {
                        spec["restartPolicy"] = "Always".into();
                        spec["initContainers"] =
                            json!([container("init1", "exit 1"), container("init2", "exit 0")]);
                    }),
                )?;
                let p = s.wait_any("pods", "inits", "a restart of the first", |p| {
                    p["status"]["initContainerStatuses"][0]["restartCount"].as_u64().is_some_and(|n| n >= 1)
                })?;
                ensure!(
                    p["status"]["phase"] == "Pending"
                        && p["status"]["containerStatuses"][0]["state"]["waiting"].is_object(),
                    "{}",
                    p["status"]
                );
                ensure!(
                    p["status"]["initContainerStatuses"][1]["state"]["waiting"].is_object(),
                    "{}",
                    p["status"]
                );
                Ok(())
            },
        },
    ]
}
