//! \[sig-cli\]: what the official cases do with kubectl, beyond the first few.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
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
    [describes(), changes(), proxies(), controllers()].concat()
}

fn describe(s: &Scope<'_>) -> anyhow::Result<()> {
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
}

fn describes() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-cli] Kubectl client Kubectl describe should check if kubectl describe prints relevant information for rc and pods [Conformance]",
            run: |s| describe(s),
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

fn changes() -> Vec<Case> {
    vec![
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
    ]
}

fn proxies() -> Vec<Case> {
    vec![
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
    ]
}

fn controllers() -> Vec<Case> {
    vec![
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
    ]
}
