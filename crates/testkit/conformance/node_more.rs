//! \[sig-node\]: commands and logs over WebSockets, probes over gRPC, volumes of images that are pulled.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::registry::Registry;
use testkit::{Case, Scope};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::agnhost::tool;

/// `kubectl proxy`: the API without TLS, which upgrades connections as they come. It ends with the value.
struct Proxy {
    child: Child,
    address: String,
}

impl Proxy {
    fn start(s: &Scope<'_>) -> anyhow::Result<Proxy> {
        let mut command = s.kubectl_command(&["proxy", "--port=0", "--disable-filter"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        let out = child.stdout.take();
        let mut proxy = Proxy { child, address: String::new() };
        BufReader::new(out.context("kubectl proxy has no output")?).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().filter(|a| a.contains(':'));
        proxy.address = address.with_context(|| format!("kubectl proxy says {line:?}"))?.to_owned();
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a WebSocket may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// All messages that come over a WebSocket until its orderly end.
fn messages(s: &Scope<'_>, path: &str, protocol: &str) -> anyhow::Result<Vec<Message>> {
    let proxy = Proxy::start(s)?;
    let mut request = format!("ws://{}{path}", proxy.address).into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(&proxy.address).await?;
        let (mut socket, answer) = tokio_tungstenite::client_async(request, tcp).await?;
        let agreed = answer.headers().get("sec-websocket-protocol");
        ensure!(agreed.is_some_and(|agreed| agreed == protocol), "{answer:?}");
        let mut all = Vec::new();
        loop {
            let next = tokio::time::timeout(SILENCE, socket.next()).await.context("silence")?;
            match next.context("the WebSocket ends without a goodbye")?? {
                Message::Close(_) => return Ok(all),
                message => all.push(message),
            }
        }
    })
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [sockets(), probes(), images()].concat()
}

fn sockets() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Pods should support remote command execution over websockets [NodeConformance] [Conformance]",
            run: |s| {
                s.ready(pod("pod-exec-websocket", "echo container is alive; sleep 600", |_| ()))?;
                let path = format!(
                    "/api/v1/namespaces/{}/pods/pod-exec-websocket/exec?stderr=1&stdout=1&container=main&command=echo&command=remote%20execution%20test",
                    s.namespace
                );
                let mut said = Vec::new();
                for message in messages(s, &path, "channel.k8s.io")? {
                    let data = message.into_data();
                    match data.split_first() {
                        // An empty message on the error channel is upstream's way to say that all is well.
                        None | Some((3, [])) => {}
                        Some((1, rest)) => said.extend_from_slice(rest),
                        Some((channel, rest)) => {
                            anyhow::bail!("channel {channel}: {}", String::from_utf8_lossy(rest))
                        }
                    }
                }
                has(&String::from_utf8_lossy(&said), &["remote execution test"])
            },
        },
        Case {
            name: "[sig-node] Pods should support retrieving logs from the container over websockets [NodeConformance] [Conformance]",
            run: |s| {
                s.output(pod("pod-logs-websocket", "echo container is alive; echo and well", |_| ()))?;
                let path =
                    format!("/api/v1/namespaces/{}/pods/pod-logs-websocket/log?container=main", s.namespace);
                let binary = messages(s, &path, "binary.k8s.io")?;
                ensure!(binary.iter().all(Message::is_binary), "{binary:?}");
                let said: Vec<u8> = binary.into_iter().flat_map(Message::into_data).collect();
                ensure!(said == b"container is alive\nand well\n", "{}", String::from_utf8_lossy(&said));
                let text = messages(s, &path, "base64.binary.k8s.io")?;
                ensure!(text.first().is_some_and(Message::is_text), "{text:?}");
                // Watches leave the same way, an event each.
                let path = format!(
                    "/api/v1/namespaces/{}/pods?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dpod-logs-websocket",
                    s.namespace
                );
                let events = messages(s, &path, "any")?;
                let first: Value =
                    serde_json::from_slice(&events.first().context("no event")?.clone().into_data())?;
                ensure!(first["type"] == "ADDED" && first["object"]["kind"] == "Pod", "{first}");
                Ok(())
            },
        },
    ]
}

/// A pod with a health server and a probe of `port`.
fn probed(s: &Scope<'_>, port: u16) -> anyhow::Result<()> {
    let mut p = tool("probed", &["grpc-health-checking", "--port", "5000"])?;
    p["spec"]["restartPolicy"] = "Always".into();
    p["spec"]["containers"][0]["livenessProbe"] =
        json!({"grpc": {"port": port}, "periodSeconds": 1, "initialDelaySeconds": 1, "failureThreshold": 1});
    s.create("pods", p)?;
    Ok(())
}

fn probes() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Probing container should *not* be restarted with a GRPC liveness probe [NodeConformance] [Conformance]",
            run: |s| {
                probed(s, 5000)?;
                s.pod_ready("probed")?;
                s.pause(Duration::from_secs(6));
                let p = s.get("pods", "probed")?;
                let status = &p["status"]["containerStatuses"][0];
                ensure!(status["restartCount"] == 0 && status["state"]["running"].is_object(), "{status}");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Probing container should be restarted with a GRPC liveness probe [NodeConformance] [Conformance]",
            run: |s| {
                probed(s, 2333)?;
                s.wait_any("pods", "probed", "a restart", |p| {
                    p["status"]["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|n| n >= 1)
                })?;
                Ok(())
            },
        },
    ]
}

fn images() -> Vec<Case> {
    vec![Case {
        name: "[sig-node] ImageVolume should succeed with pod and pull policy of Always [LinuxOnly] [MinimumKubeletVersion:1.35] [Conformance]",
        run: |s| {
            let registry = Registry::start("kitten", &[("data.json", br#"{"name":"kitten"}"#)])?;
            for (i, name) in ["first", "second"].iter().enumerate() {
                let said = s.output(pod(
                    name,
                    "cat /volume/data.json; echo x > /volume/new || echo read-only",
                    |spec| {
                        spec["volumes"] = json!([{"name": "volume",
                        "image": {"reference": registry.reference, "pullPolicy": "Always"}}]);
                        spec["containers"][0]["volumeMounts"] =
                            json!([{"name": "volume", "mountPath": "/volume"}]);
                    },
                ))?;
                has(&said, &[r#"{"name":"kitten"}"#, "read-only"])?;
                // Always means that the registry is asked each time.
                ensure!(registry.asked() > i, "asked {} times", registry.asked());
            }
            Ok(())
        },
    }]
}
