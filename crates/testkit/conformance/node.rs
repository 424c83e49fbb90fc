//! \[sig-node\]: environment, commands, exits, init containers, probes, security contexts, pod life.

use anyhow::ensure;
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::pods::{condition, container, has, pod};
use testkit::{Case, Scope};

/// Runs `env` with these variables and sources; answers what it printed.
fn env(s: &Scope<'_>, env: Value, from: Value) -> anyhow::Result<String> {
    s.output(pod("env", "env", |spec| {
        spec["containers"][0]["env"] = env;
        spec["containers"][0]["envFrom"] = from;
        spec["containers"][0]["resources"] = json!({
            "requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"},
        });
    }))
}

fn field(path: &str) -> Value {
    json!([{"name": "OUT", "valueFrom": {"fieldRef": {"fieldPath": path}}}])
}

/// The termination message of a container that ended as told.
fn message(s: &Scope<'_>, script: &str, policy: &str, path: &str, user: u32) -> anyhow::Result<String> {
    s.create(
        "pods",
        pod("ending", script, |spec| {
            let c = &mut spec["containers"][0];
            c["terminationMessagePolicy"] = policy.into();
            c["terminationMessagePath"] = path.into();
            c["securityContext"] = json!({"runAsUser": user});
        }),
    )?;
    let ended = s.pod_ended("ending")?;
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    Ok(state["message"].as_str().unwrap_or_default().to_owned())
}

fn command(s: &Scope<'_>, command: Value, args: Value, expect: &str) -> anyhow::Result<()> {
    has(
        &s.output(pod("command", "", |spec| {
            spec["containers"][0]["command"] = command;
            spec["containers"][0]["args"] = args;
        }))?,
        &[expect],
    )
}

fn security(s: &Scope<'_>, script: &str, context: Value, expect: &str) -> anyhow::Result<()> {
    has(
        &s.output(pod("secure", script, |spec| spec["containers"][0]["securityContext"] = context))?,
        &[expect],
    )
}

/// A pod with init containers of the given exit codes.
fn inits(s: &Scope<'_>, policy: &str, codes: [u8; 2]) -> anyhow::Result<()> {
    s.create(
        "pods",
        pod("inits", "sleep 1", |spec| {
            spec["restartPolicy"] = policy.into();
            spec["initContainers"] = json!([
                container("init1", &format!("exit {}", codes[0])),
                container("init2", &format!("exit {}", codes[1])),
            ]);
        }),
    )?;
    Ok(())
}

/// A pod with a liveness probe; whether it is restarted.
fn liveness(s: &Scope<'_>, script: &str, probe: Value) -> anyhow::Result<()> {
    s.create(
        "pods",
        pod("probed", script, |spec| {
            spec["restartPolicy"] = "Always".into();
            spec["containers"][0]["livenessProbe"] = probe;
        }),
    )?;
    s.wait_any("pods", "probed", "a restart", |p| {
        p["status"]["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|n| n >= 1)
    })?;
    Ok(())
}

fn sources(s: &Scope<'_>) -> client::Result<()> {
    s.create(
        "configmaps",
        json!({"metadata": {"name": "c"}, "data": {"data-1": "value-1", "k2": "value-2"}}),
    )?;
    s.create(
        "secrets",
        json!({"metadata": {"name": "c"}, "stringData": {"data-1": "value-1", "k2": "value-2"}}),
    )?;
    Ok(())
}

fn from_key(kind: &str) -> Value {
    json!([{"name": "OUT", "valueFrom": {kind: {"name": "c", "key": "data-1"}}}])
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [from_configmap(), from_container(), from_security(), from_probing()].concat()
}

fn from_configmap() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] ConfigMap should be consumable via environment variable [NodeConformance] [Conformance]",
            run: |s| {
                sources(s)?;
                has(&env(s, from_key("configMapKeyRef"), json!([]))?, &["OUT=value-1\n"])
            },
        },
        Case {
            name: "[sig-node] ConfigMap should be consumable via the environment [NodeConformance] [Conformance]",
            run: |s| {
                sources(s)?;
                has(
                    &env(
                        s,
                        json!([]),
                        json!([{"configMapRef": {"name": "c"}}, {"prefix": "p_", "configMapRef": {"name": "c"}}]),
                    )?,
                    &["k2=value-2\n", "p_k2=value-2\n"],
                )
            },
        },
        Case {
            name: "[sig-node] Secrets should be consumable from pods in env vars [NodeConformance] [Conformance]",
            run: |s| {
                sources(s)?;
                has(&env(s, from_key("secretKeyRef"), json!([]))?, &["OUT=value-1\n"])
            },
        },
        Case {
            name: "[sig-node] Secrets should be consumable via the environment [NodeConformance] [Conformance]",
            run: |s| {
                sources(s)?;
                has(
                    &env(
                        s,
                        json!([]),
                        json!([{"secretRef": {"name": "c"}}, {"prefix": "p_", "secretRef": {"name": "c"}}]),
                    )?,
                    &["k2=value-2\n", "p_k2=value-2\n"],
                )
            },
        },
        Case {
            name: "[sig-node] ConfigMap should fail to create ConfigMap with empty key [Conformance]",
            run: |s| {
                ensure!(
                    s.create("configmaps", json!({"metadata": {"name": "c"}, "data": {"": "v"}}))
                        .is_err_and(|e| e.is_invalid())
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Secrets should fail to create secret due to empty secret key [Conformance]",
            run: |s| {
                ensure!(
                    s.create("secrets", json!({"metadata": {"name": "c"}, "data": {"": "dg=="}}))
                        .is_err_and(|e| e.is_invalid())
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars [NodeConformance] [Conformance]",
            run: |s| {
                let one = |name: &str, resource: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}});
                let vars = json!([
                    one("CL", "limits.cpu"),
                    one("ML", "limits.memory"),
                    one("CR", "requests.cpu"),
                    one("MR", "requests.memory")
                ]);
                has(&env(s, vars, json!([]))?, &["CL=2\n", "ML=67108864\n", "CR=1\n", "MR=33554432\n"])
            },
        },
        Case {
            name: "[sig-node] Downward API should provide host IP as an env var [NodeConformance] [Conformance]",
            run: |s| has(&env(s, field("status.hostIP"), json!([]))?, &["OUT=10."]),
        },
        Case {
            name: "[sig-node] Downward API should provide pod UID as env vars [NodeConformance] [Conformance]",
            run: |s| {
                let text = env(s, field("metadata.uid"), json!([]))?;
                let uid = s.get("pods", "env")?["metadata"]["uid"].as_str().unwrap_or("?").to_owned();
                has(&text, &[&format!("OUT={uid}\n")])
            },
        },
        Case {
            name: "[sig-node] Downward API should provide pod name, namespace and IP address as env vars [NodeConformance] [Conformance]",
            run: |s| {
                let vars = json!([field("metadata.name")[0], {"name": "NS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
                has(&env(s, vars, json!([]))?, &["OUT=env\n", &format!("NS={}\n", s.namespace), "IP=10.42."])
            },
        },
    ]
}

fn from_container() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Container Runtime blackbox test on terminated container should report termination message as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance] [Conformance]",
            run: |s| {
                ensure!(
                    message(s, "echo no", "FallbackToLogsOnError", "/dev/termination-log", 0)?.is_empty()
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Container Runtime blackbox test on terminated container should report termination message from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance] [Conformance]",
            run: |s| {
                ensure!(
                    message(
                        s,
                        "echo -n OK > /dev/termination-log",
                        "FallbackToLogsOnError",
                        "/dev/termination-log",
                        0
                    )? == "OK"
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Container Runtime blackbox test on terminated container should report termination message from log output if TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance] [Conformance]",
            run: |s| {
                let script = "echo -n DONE; exit 1";
                let text = message(s, script, "FallbackToLogsOnError", "/dev/termination-log", 0)?;
                ensure!(text == "DONE", "{text:?}");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Container Runtime blackbox test on terminated container should report termination message if TerminationMessagePath is set as non-root user and at a non-default path [NodeConformance] [Conformance]",
            run: |s| {
                ensure!(message(s, "echo -n DONE > /dev/custom", "File", "/dev/custom", 10000)? == "DONE");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Containers should be able to override the image's default arguments (container cmd) [NodeConformance] [Conformance]",
            run: |s| command(s, Value::Null, json!(["echo", "own", "args"]), "own args\n"),
        },
        Case {
            name: "[sig-node] Containers should be able to override the image's default command (container entrypoint) [NodeConformance] [Conformance]",
            run: |s| command(s, json!(["echo", "own"]), Value::Null, "own\n"),
        },
        Case {
            name: "[sig-node] Containers should be able to override the image's default command and arguments [NodeConformance] [Conformance]",
            run: |s| command(s, json!(["echo"]), json!(["both"]), "both\n"),
        },
        Case {
            name: "[sig-node] Containers should use the image defaults if command and args are blank [NodeConformance] [Conformance]",
            run: |s| command(s, Value::Null, Value::Null, "image default\n"),
        },
        Case {
            name: "[sig-node] Variable Expansion should allow composing env vars into new env vars [NodeConformance] [Conformance]",
            run: |s| {
                has(
                    &env(
                        s,
                        json!([{"name": "A", "value": "a"}, {"name": "B", "value": "b"}, {"name": "AB", "value": "$(A);;$(B)"}]),
                        json!([]),
                    )?,
                    &["AB=a;;b\n"],
                )
            },
        },
        Case {
            name: "[sig-node] Security Context should support container.SecurityContext.RunAsUser And container.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]",
            run: |s| security(s, "id", json!({"runAsUser": 1001, "runAsGroup": 2002}), "uid=1001 gid=2002"),
        },
        Case {
            name: "[sig-node] Security Context When creating a container with runAsUser should run the container with uid 65534 [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| security(s, "id -u", json!({"runAsUser": 65534}), "65534\n"),
        },
        Case {
            name: "[sig-node] Security Context When creating a pod with privileged should run the container as unprivileged when false [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| {
                security(
                    s,
                    "ip link add dummy0 type dummy || echo refused",
                    json!({"privileged": false}),
                    "refused",
                )
            },
        },
        Case {
            name: "[sig-node] Security Context When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false [NodeConformance] [Conformance]",
            run: |s| {
                security(s, "touch /f && echo written", json!({"readOnlyRootFilesystem": false}), "written")
            },
        },
    ]
}

fn from_security() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Security Context when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| {
                security(
                    s,
                    "grep NoNewPrivs /proc/self/status",
                    json!({"runAsUser": 1000, "allowPrivilegeEscalation": false}),
                    "\t1",
                )
            },
        },
        Case {
            name: "[sig-node] Kubelet when scheduling a read only busybox container should not write to root filesystem [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| {
                security(s, "touch /f || echo refused", json!({"readOnlyRootFilesystem": true}), "refused")
            },
        },
        Case {
            name: "[sig-node] Kubelet when scheduling a busybox command in a pod should print the output to logs [NodeConformance] [Conformance]",
            run: |s| has(&s.script("hello", "echo 'Hello World'")?, &["Hello World\n"]),
        },
        Case {
            name: "[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should have an terminated reason [NodeConformance] [Conformance]",
            run: |s| {
                s.create("pods", pod("fails", "exit 1", |_| ()))?;
                let ended = s.pod_ended("fails")?;
                ensure!(
                    ended["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "Error",
                    "{}",
                    ended["status"]
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Kubelet when scheduling an agnhost Pod with hostAliases should write entries to /etc/hosts [NodeConformance] [Conformance]",
            run: |s| {
                has(
                    &s.output(pod("hosts", "cat /etc/hosts", |spec| {
                        spec["hostAliases"] = json!([{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}])
                    }))?,
                    &["123.45.67.89\tfoo\tbar"],
                )
            },
        },
        Case {
            name: "[sig-node] InitContainer [NodeConformance] should invoke init containers on a RestartNever pod [Conformance]",
            run: |s| {
                inits(s, "Never", [0, 0])?;
                let p = s.pod_ended("inits")?;
                ensure!(
                    p["status"]["phase"] == "Succeeded" && condition(&p, "Initialized"),
                    "{}",
                    p["status"]
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] InitContainer [NodeConformance] should invoke init containers on a RestartAlways pod [Conformance]",
            run: |s| {
                inits(s, "Always", [0, 0])?;
                let p = s.pod_ready("inits")?;
                ensure!(condition(&p, "Initialized"), "{}", p["status"]);
                Ok(())
            },
        },
        Case {
            name: "[sig-node] InitContainer [NodeConformance] should not start app containers and fail the pod if init containers fail on a RestartNever pod [Conformance]",
            run: |s| {
                inits(s, "Never", [0, 1])?;
                let p = s.pod_ended("inits")?;
                ensure!(
                    p["status"]["phase"] == "Failed"
                        && p["status"]["containerStatuses"][0]["state"].get("waiting").is_some(),
                    "{}",
                    p["status"]
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Probing container should be restarted with a exec \"cat /tmp/health\" liveness probe [NodeConformance] [Conformance]",
            run: |s| {
                liveness(
                    s,
                    "echo ok > /tmp/health; sleep 2; rm /tmp/health; sleep 600",
                    json!({"exec": {"command": ["cat", "/tmp/health"]}, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 1}),
                )
            },
        },
    ]
}

fn from_probing() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Probing container should be restarted with a /healthz http liveness probe [NodeConformance] [Conformance]",
            run: |s| {
                liveness(
                    s,
                    "mkdir /w; echo ok > /w/healthz; httpd -p 8080 -h /w; sleep 2; rm /w/healthz; sleep 600",
                    json!({"httpGet": {"path": "/healthz", "port": 8080}, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 1}),
                )
            },
        },
        Case {
            name: "[sig-node] Pods should get a host IP [NodeConformance] [Conformance]",
            run: |s| {
                let p = s.ready(pod("host", "sleep 600", |_| ()))?;
                ensure!(
                    p["status"]["hostIP"].as_str().is_some_and(|ip| ip.starts_with("10.")),
                    "{}",
                    p["status"]
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Pods should be submitted and removed [NodeConformance] [Conformance]",
            run: |s| {
                s.ready(pod("short", "sleep 600", |_| ()))?;
                ensure!(s.list("pods", "app=short")?.len() == 1);
                s.delete(
                    "pods",
                    "short",
                    &DeleteParams { grace_period_seconds: Some(1), ..Default::default() },
                )?;
                s.wait_gone("pods", "short")
            },
        },
        Case {
            name: "[sig-node] Pods should be updated [NodeConformance] [Conformance]",
            run: |s| {
                s.ready(pod("old", "sleep 600", |_| ()))?;
                s.merge("pods", "old", "", json!({"metadata": {"labels": {"time": "now"}}}))?;
                ensure!(s.list("pods", "time=now")?.len() == 1);
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Pods should allow activeDeadlineSeconds to be updated [NodeConformance] [Conformance]",
            run: |s| {
                s.ready(pod("deadline", "sleep 600", |_| ()))?;
                s.merge("pods", "deadline", "", json!({"spec": {"activeDeadlineSeconds": 2}}))?;
                let p = s.pod_ended("deadline")?;
                ensure!(p["status"]["reason"] == "DeadlineExceeded", "{}", p["status"]);
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Pods should contain environment variables for services [NodeConformance] [Conformance]",
            run: |s| {
                let svc = s.create(
                    "services",
                    json!({"metadata": {"name": "fooservice"}, "spec": {"ports": [{"port": 8765}]}}),
                )?;
                let ip = svc["spec"]["clusterIP"].as_str().unwrap_or("?").to_owned();
                has(
                    &env(s, json!([]), json!([]))?,
                    &[
                        &format!("FOOSERVICE_SERVICE_HOST={ip}\n"),
                        "FOOSERVICE_SERVICE_PORT=8765\n",
                        &format!("FOOSERVICE_PORT_8765_TCP_ADDR={ip}\n"),
                    ],
                )
            },
        },
        Case {
            name: "[sig-node] Pods should delete a collection of pods [Conformance]",
            run: |s| {
                for name in ["a", "b", "c"] {
                    let mut p = pod(name, "sleep 600", |_| ());
                    p["metadata"]["labels"] = json!({"set": "s"});
                    s.create("pods", p)?;
                }
                s.delete_all("pods", "set=s")?;
                ["a", "b", "c"].iter().try_for_each(|name| s.wait_gone("pods", name))
            },
        },
    ]
}
