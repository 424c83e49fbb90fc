//! \[sig-cli\]: what the official cases do with kubectl, beyond the first few.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::json;
use testkit::image::BUSYBOX;
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

/// A file beside the cluster's state, named after the case's namespace.
fn file(s: &Scope<'_>, text: &str) -> anyhow::Result<String> {
    let path = s.cluster.data().join(format!("{}.yaml", s.namespace));
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

fn controller(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: v1\nkind: ReplicationController\nmetadata: {{name: {name}}}\nspec: {{replicas: {replicas}, selector: {{app: {name}}}, template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: {BUSYBOX}, command: [sleep, '600'], ports: [{{containerPort: 6379}}]}}]}}}}}}\n"
    )
}

fn ready(s: &Scope<'_>, name: &str, n: u32) -> anyhow::Result<()> {
    s.wait_any("replicationcontrollers", name, "ready replicas", |v| {
        v["status"]["readyReplicas"].as_u64().unwrap_or(0) == u64::from(n) && v["status"]["replicas"] == n
    })
    .map(drop)
}

/// A `kubectl proxy` that ends with the case.
struct Proxy(std::process::Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a proxy and answers its first line.
fn proxy(s: &Scope<'_>, arguments: &[&str]) -> anyhow::Result<(Proxy, String)> {
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(s.cluster.data().join("admin.kubeconfig"))
        .arg("proxy")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().context("no output")?;
    let proxy = Proxy(child);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    Ok((proxy, line))
}

fn ask(mut stream: impl Read + Write) -> anyhow::Result<String> {
    stream.write_all(b"GET /api HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-cli] Kubectl client Kubectl describe should check if kubectl describe prints relevant information for rc and pods [Conformance]",
            run: |s| {
                s.kubectl(&["create", "-f", &file(s, &controller("agnhost-primary", 1))?])?;
                s.kubectl(&["expose", "rc", "agnhost-primary", "--port=6379"])?;
                ready(s, "agnhost-primary", 1)?;
                let pods = s.list("pods", "app=agnhost-primary")?;
                let name = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
                has(
                    &s.kubectl(&["describe", "pod", name])?,
                    &[
                        "Name:",
                        "Namespace:",
                        "Node:",
                        "Labels:",
                        "app=",
                        "Status:",
                        "Running",
                        "IP:",
                        "Controlled By:",
                        "ReplicationController/agnhost-primary",
                        "Image:",
                        "State:",
                        "QoS Class:",
                    ],
                )?;
                has(
                    &s.kubectl(&["describe", "rc", "agnhost-primary"])?,
                    &[
                        "Name:",
                        "Namespace:",
                        "Selector:",
                        "Labels:",
                        "Annotations:",
                        "Replicas:",
                        "Pods Status:",
                        "Pod Template:",
                        "Image:",
                        "Events:",
                    ],
                )?;
                has(
                    &s.kubectl(&["describe", "service", "agnhost-primary"])?,
                    &[
                        "Name:",
                        "Labels:",
                        "Annotations:",
                        "Selector:",
                        "Type:",
                        "ClusterIP",
                        "IP:",
                        "Port:",
                        "Endpoints:",
                        "Session Affinity:",
                    ],
                )?;
                let nodes = s.list("nodes", "")?;
                let node = nodes[0]["metadata"]["name"].as_str().unwrap_or_default();
                has(
                    &s.kubectl(&["describe", "node", node])?,
                    &[
                        "Name:",
                        "Labels:",
                        "Annotations:",
                        "CreationTimestamp:",
                        "Conditions:",
                        "Type",
                        "Status",
                        "LastHeartbeatTime",
                        "LastTransitionTime",
                        "Reason",
                        "Message",
                        "Addresses:",
                        "Capacity:",
                        "Version:",
                        "Kernel Version:",
                        "OS Image:",
                        "Container Runtime Version:",
                        "Kubelet Version:",
                    ],
                )?;
                has(
                    &s.kubectl(&["describe", "namespace", &s.namespace])?,
                    &["Name:", "Labels:", "Annotations:", "Status:", "Active"],
                )
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl diff should check if kubectl diff finds a difference for Deployments [Conformance]",
            run: |s| {
                s.kubectl(&[
                    "create",
                    "deployment",
                    "httpd-deployment",
                    &format!("--image={BUSYBOX}"),
                    "--replicas=0",
                ])?;
                let shown = s.kubectl(&["get", "deployment", "httpd-deployment", "-o", "yaml"])?;
                let path = file(s, &shown.replace("busybox:1", "busybox:2"))?;
                let out = s.kubectl_raw(&["diff", "-f", &path])?;
                ensure!(out.status.code() == Some(1));
                has(&String::from_utf8_lossy(&out.stdout), &["busybox:1", "busybox:2"])
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl expose should create services for rc [Conformance]",
            run: |s| {
                s.kubectl(&["create", "-f", &file(s, &controller("agnhost-primary", 1))?])?;
                ready(s, "agnhost-primary", 1)?;
                for (source, name, port) in
                    [("rc/agnhost-primary", "rm2", "1234"), ("service/rm2", "rm3", "2345")]
                {
                    s.kubectl(&[
                        "expose",
                        source,
                        &format!("--name={name}"),
                        &format!("--port={port}"),
                        "--target-port=6379",
                    ])?;
                    s.wait_any("endpoints", name, "an address", |e| {
                        e["subsets"][0]["ports"][0]["port"] == 6379 && e["subsets"][0]["addresses"].is_array()
                    })?;
                    ensure!(s.get("services", name)?["spec"]["ports"][0]["port"].to_string() == port);
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl patch should add annotations for pods in rc [Conformance]",
            run: |s| {
                s.kubectl(&["create", "-f", &file(s, &controller("agnhost-primary", 1))?])?;
                ready(s, "agnhost-primary", 1)?;
                for pod in s.list("pods", "app=agnhost-primary")? {
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                    s.kubectl(&["patch", "pod", name, "-p", r#"{"metadata":{"annotations":{"x":"y"}}}"#])?;
                    ensure!(s.get("pods", name)?["metadata"]["annotations"]["x"] == "y");
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl replace should update a single-container pod's image [Conformance]",
            run: |s| {
                s.ready(pod("e2e", "sleep 600", |_| ()))?;
                let other = BUSYBOX.replace(":1", ":2");
                let shown = s.kubectl(&["get", "pod", "e2e", "-o", "json"])?.replace(BUSYBOX, &other);
                s.kubectl(&["replace", "-f", &file(s, &shown)?])?;
                ensure!(s.get("pods", "e2e")?["spec"]["containers"][0]["image"] == *other);
                Ok(())
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Proxy server should support --unix-socket=/path [Conformance]",
            run: |s| {
                let socket = s.cluster.data().join(format!("{}.sock", s.namespace));
                let path = socket.to_string_lossy().into_owned();
                let (_proxy, line) = proxy(s, &[&format!("--unix-socket={path}")])?;
                has(&line, &["Starting to serve on", &path])?;
                has(&ask(std::os::unix::net::UnixStream::connect(&socket)?)?, &["APIVersions"])
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Proxy server should support proxy with --port 0 [Conformance]",
            run: |s| {
                let (_proxy, line) = proxy(s, &["--port=0"])?;
                let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
                has(&ask(std::net::TcpStream::connect(&address)?)?, &["APIVersions"])
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Update Demo should create and stop a replication controller [Conformance]",
            run: |s| {
                let path = file(s, &controller("update-demo-nautilus", 2))?;
                s.kubectl(&["create", "-f", &path])?;
                ready(s, "update-demo-nautilus", 2)?;
                s.kubectl(&["delete", "--grace-period=0", "--force", "-f", &path])?;
                s.kubectl(&[
                    "wait",
                    "--for=delete",
                    "pods",
                    "-l",
                    "app=update-demo-nautilus",
                    "--timeout=60s",
                ])?;
                Ok(())
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Update Demo should scale a replication controller [Conformance]",
            run: |s| {
                s.kubectl(&["create", "-f", &file(s, &controller("update-demo-nautilus", 2))?])?;
                ready(s, "update-demo-nautilus", 2)?;
                for n in [1, 2] {
                    s.kubectl(&[
                        "scale",
                        "rc",
                        "update-demo-nautilus",
                        &format!("--replicas={n}"),
                        "--timeout=60s",
                    ])?;
                    ready(s, "update-demo-nautilus", n)?;
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-cli] Kubectl logs logs should be able to retrieve and filter logs [Conformance]",
            run: |s| {
                s.ready(pod("logs", "for i in 1 2 3; do echo line $i of this log; done; sleep 600", |_| ()))?;
                let logs = |more: &[&str]| s.kubectl(&[&["logs", "logs", "main"], more].concat());
                ensure!(logs(&[])?.lines().count() == 3);
                ensure!(logs(&["--tail=1"])? == "line 3 of this log\n");
                ensure!(logs(&["--limit-bytes=1"])? == "l");
                let stamped = logs(&["--tail=1", "--timestamps"])?;
                let stamp = stamped.split(' ').next().unwrap_or_default();
                ensure!(stamp.len() >= "2026-01-01T00:00:00Z".len() && stamp.contains('T'), "{stamped}");
                ensure!(logs(&["--since=24h"])?.lines().count() == 3);
                // Nothing was said in the last second once a second has passed.
                s.script("pause", "sleep 2")?;
                ensure!(logs(&["--since=1s"])?.is_empty());
                Ok(())
            },
        },
    ]
}

/// Objects of the network group that need no traffic.
pub fn network_cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] Endpoints should test the lifecycle of an Endpoint [Conformance]",
            run: |s| {
                let subsets = json!([{"addresses": [{"ip": "10.0.0.24"}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]);
                s.create("endpoints", json!({"kind": "Endpoints", "metadata": {"name": "e", "labels": {"test-endpoint-static": "true"}}, "subsets": subsets}))?;
                let all = s.path("/api/v1/endpoints?labelSelector=test-endpoint-static%3Dtrue")?;
                ensure!(all["items"].as_array().is_some_and(|items| !items.is_empty()));
                let mut read = s.get("endpoints", "e")?;
                read["metadata"]["labels"]["test-service"] = "updated".into();
                s.update("endpoints", &read)?;
                let patch = json!({"metadata": {"labels": {"test-service": "patched"}}, "subsets": [{"addresses": [{"ip": "10.0.0.25"}], "ports": [{"name": "http-test", "port": 8080, "protocol": "TCP"}]}]});
                let patched = s.merge("endpoints", "e", "", patch)?;
                ensure!(patched["subsets"][0]["addresses"][0]["ip"] == "10.0.0.25", "{patched}");
                s.delete_all("endpoints", "test-endpoint-static=true")?;
                s.wait_gone("endpoints", "e")
            },
        },
        Case {
            name: "[sig-network] Services should complete a service status lifecycle [Conformance]",
            run: |s| {
                s.create("services", json!({"kind": "Service", "metadata": {"name": "svc", "labels": {"test-service-static": "true"}}, "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "targetPort": 80}]}}))?;
                let path = format!("/api/v1/namespaces/{}/services/svc/status", s.namespace);
                ensure!(s.path(&path)?["status"]["loadBalancer"].is_object());
                let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
                let patched = s.merge("services", "svc", "status", patch)?;
                ensure!(patched["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.1", "{patched}");
                let mut read = s.path(&path)?;
                read["status"]["conditions"] = json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E",
                    "message": "Set from e2e test", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
                let put = s.send(http::Method::PUT, &path, &read)?;
                ensure!(put["status"]["conditions"][0]["type"] == "StatusUpdate", "{put}");
                s.merge("services", "svc", "", json!({"metadata": {"labels": {"test-service": "patched"}}}))?;
                s.kubectl(&["delete", "service", "svc"])?;
                s.wait_gone("services", "svc")
            },
        },
        Case {
            name: "[sig-network] Services should find a service from listing all namespaces [Conformance]",
            run: |s| {
                let all = s.path("/api/v1/services")?;
                let found = |v: &serde_json::Value| {
                    v["metadata"]["name"] == "kubernetes" && v["metadata"]["namespace"] == "default"
                };
                ensure!(all["items"].as_array().is_some_and(|items| items.iter().any(found)));
                Ok(())
            },
        },
        Case {
            name: "[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods [Conformance]",
            run: |s| no_pods(s, "endpointslices"),
        },
        Case {
            name: "[sig-network] EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods [Conformance]",
            run: |s| no_pods(s, "endpoints"),
        },
        Case {
            name: "[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server [Conformance]",
            run: |s| {
                let default = s.cluster.scope("default");
                ensure!(
                    default.get("endpoints", "kubernetes")?["subsets"][0]["addresses"][0]["ip"].is_string()
                );
                let slices = default.list("endpointslices", "kubernetes.io/service-name=kubernetes")?;
                ensure!(!slices.is_empty() && slices[0]["endpoints"][0]["addresses"][0].is_string());
                Ok(())
            },
        },
    ]
}

fn no_pods(s: &Scope<'_>, resource: &str) -> anyhow::Result<()> {
    s.create("services", json!({"kind": "Service", "metadata": {"name": "empty"}, "spec": {"selector": {"does-not": "match"}, "ports": [{"port": 80}]}}))?;
    let made = s.wait_any(resource, "", "its endpoints", |e| {
        e["metadata"]["name"] == "empty" || e["metadata"]["labels"]["kubernetes.io/service-name"] == "empty"
    })?;
    s.kubectl(&["delete", "service", "empty"])?;
    s.wait_gone(resource, made["metadata"]["name"].as_str().unwrap_or_default())
}
