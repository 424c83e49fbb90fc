//! \[sig-network\]: UDP, ports of the host, mirrored Endpoints, latency; \[sig-cli\]: the guestbook.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::{Case, Scope};

use crate::agnhost::{ask, tool};

/// How long traffic may take to follow a change.
const FOLLOWS: Duration = Duration::from_secs(30);

/// A server of both protocols that answers with its name.
fn server(name: &str, http: &str, udp: &str) -> anyhow::Result<Value> {
    tool(name, &["netexec", "--http-port", http, "--udp-port", udp])
}

/// The pod that asks, on the host's network if it shall.
fn client(s: &Scope<'_>, on_host: bool) -> anyhow::Result<Value> {
    let mut p = tool("client", &["netexec", "--http-port", "18080", "--udp-port", "18081"])?;
    p["spec"]["hostNetwork"] = on_host.into();
    s.ready(p)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Waits until the answer to the client is this one; `None` means that nobody answers.
fn answers(
    s: &Scope<'_>,
    protocol: &str,
    host: &str,
    port: &str,
    expect: Option<&str>,
) -> anyhow::Result<()> {
    let until = Instant::now() + FOLLOWS;
    loop {
        let said = ask(s, "client", protocol, host, port)?;
        if said.as_deref() == expect {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{protocol} {host}:{port} said {said:?}, not {expect:?}");
        s.pause(Duration::from_millis(100));
    }
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [udp(), endpoints(), cli()].concat()
}

fn granular(s: &Scope<'_>, on_host: bool) -> anyhow::Result<()> {
    client(s, on_host)?;
    let netserver = s.ready(server("netserver-0", "8083", "8081")?)?;
    answers(s, "udp", text(&netserver["status"]["podIP"]), "8081", Some("netserver-0"))
}

fn udp() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp [NodeConformance] [Conformance]",
            run: |s| granular(s, false),
        },
        Case {
            name: "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: udp [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| granular(s, true),
        },
        Case {
            name: "[sig-network] Services should serve endpoints on same port and different protocols [Conformance]",
            run: |s| {
                client(s, false)?;
                s.ready(server("pod1", "80", "80")?)?;
                let tcp = json!({"name": "tcp-port", "port": 80, "protocol": "TCP"});
                let udp = json!({"name": "udp-port", "port": 80, "protocol": "UDP"});
                let ports = |ports: Value| json!({"spec": {"ports": ports}});
                let made = s.create(
                    "services",
                    json!({"metadata": {"name": "multiprotocol-test"},
                    "spec": {"selector": {"app": "pod1"}, "ports": [tcp, udp]}}),
                )?;
                let ip = text(&made["spec"]["clusterIP"]);
                let both = |tcp: Option<&str>, udp: Option<&str>| {
                    answers(s, "tcp", ip, "80", tcp)?;
                    answers(s, "udp", ip, "80", udp)
                };
                both(Some("pod1"), Some("pod1"))?;
                s.merge("services", "multiprotocol-test", "", ports(json!([tcp])))?;
                both(Some("pod1"), None)?;
                s.merge("services", "multiprotocol-test", "", ports(json!([udp])))?;
                both(None, Some("pod1"))
            },
        },
        Case {
            name: "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance]",
            run: |s| {
                let host = client(s, true)?;
                let host = text(&host["status"]["hostIP"]);
                let rows = [("pod1", "127.0.0.1", "TCP"), ("pod2", host, "TCP"), ("pod3", host, "UDP")];
                for (name, ip, protocol) in rows {
                    let mut p = server(name, "8080", "8080")?;
                    p["spec"]["containers"][0]["ports"] = json!([{"hostPort": 54323, "containerPort": 8080, "protocol": protocol, "hostIP": ip}]);
                    s.ready(p)?;
                }
                rows.iter().try_for_each(|(name, ip, protocol)| {
                    answers(s, &protocol.to_lowercase(), ip, "54323", Some(name))
                })
            },
        },
    ]
}

fn slices(s: &Scope<'_>, service: &str) -> anyhow::Result<Vec<Value>> {
    s.list("endpointslices", &format!("kubernetes.io/service-name={service}"))
}

fn mirrors(s: &Scope<'_>) -> anyhow::Result<()> {
    let name = "example-custom-endpoints";
    s.create("services", json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "example", "port": 80, "protocol": "TCP"}]}}))?;
    let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]);
    let mut made =
        s.create("endpoints", json!({"metadata": {"name": name}, "subsets": subsets("10.1.2.3")}))?;
    let shows = |ip: &str| {
        let slice = s.wait_any("endpointslices", "", "the address", |slice| {
            slice["endpoints"].as_array().is_some_and(|e| e.len() == 1 && e[0]["addresses"] == json!([ip]))
        })?;
        let ports = slice["ports"].as_array().cloned().unwrap_or_default();
        ensure!(ports.len() == 1 && ports[0]["port"] == 80, "{slice}");
        let labels = &slice["metadata"]["labels"];
        ensure!(labels["kubernetes.io/service-name"] == name, "{slice}");
        ensure!(
            labels["endpointslice.kubernetes.io/managed-by"] == "endpointslicemirroring-controller.k8s.io",
            "{slice}"
        );
        ensure!(slices(s, name)?.len() == 1, "more than one slice");
        anyhow::Ok(slice)
    };
    let first = shows("10.1.2.3")?;
    made["subsets"] = subsets("10.2.3.4");
    s.update("endpoints", &made)?;
    let second = shows("10.2.3.4")?;
    ensure!(first["metadata"]["uid"] == second["metadata"]["uid"], "another slice");
    s.delete("endpoints", name, &DeleteParams::default())?;
    s.wait_gone("endpointslices", text(&second["metadata"]["name"]))?;
    ensure!(slices(s, name)?.is_empty(), "slices are left");
    Ok(())
}

/// Services whose endpoints are timed.
const TIMED: usize = 100;

fn latency(s: &Scope<'_>) -> anyhow::Result<()> {
    let mut p = testkit::pods::pod("svc-latency-rc", "exec sleep 600", |_| ());
    p["metadata"]["labels"] = json!({"name": "svc-latency-rc"});
    s.ready(p)?;
    let mut took = Vec::new();
    for i in 0..TIMED {
        let name = format!("latency-svc-{i}");
        let began = Instant::now();
        s.create(
            "services",
            json!({"metadata": {"name": name}, "spec": {"selector": {"name": "svc-latency-rc"},
            "ports": [{"protocol": "TCP", "port": 80}], "type": "ClusterIP", "sessionAffinity": "None"}}),
        )?;
        s.wait_any("endpoints", &name, "an address", |e| e["subsets"][0]["addresses"][0]["ip"].is_string())?;
        took.push(began.elapsed());
    }
    took.sort();
    let at = |percent: usize| took.get(TIMED * percent / 100).copied().context("too few");
    ensure!(at(50)? < Duration::from_secs(20) && at(90)? < Duration::from_secs(50), "{took:?}");
    Ok(())
}

fn endpoints() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete [Conformance]",
            run: mirrors,
        },
        Case {
            name: "[sig-network] Service endpoints latency should not be very high [Conformance]",
            run: latency,
        },
    ]
}

/// A Deployment of the tool and a Service before it.
fn part(s: &Scope<'_>, name: &str, replicas: u32, arguments: &[&str]) -> anyhow::Result<()> {
    let mut p = tool(name, arguments)?;
    p["spec"]["restartPolicy"] = "Always".into();
    let labels = json!({"app": name});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": p["spec"]}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
        "spec": {"ports": [{"port": 6379}], "selector": labels}});
    for object in [&deployment, &service] {
        let path = s.cluster.data().join(format!("{}-{name}-{}.json", s.namespace, text(&object["kind"])));
        std::fs::write(&path, object.to_string())?;
        s.kubectl(&["create", "-f", &path.display().to_string()])?;
    }
    Ok(())
}

/// Asks the front end through the API server until it says what it should.
fn front(s: &Scope<'_>, query: &str, expect: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{}/services/frontend/proxy/guestbook?{query}", s.namespace);
    let until = Instant::now() + FOLLOWS;
    loop {
        let (code, _, body) = s.raw(http::Method::GET, &path, &[], "")?;
        let said = String::from_utf8_lossy(&body).into_owned();
        if code == 200 && said == expect {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{query}: {code} {said}");
        s.pause(Duration::from_millis(200));
    }
}

fn cli() -> Vec<Case> {
    vec![Case {
        name: "[sig-cli] Kubectl client Guestbook application should create and stop a working application [Conformance]",
        run: |s| {
            part(
                s,
                "agnhost-replica",
                2,
                &[
                    "guestbook",
                    "--replicaof",
                    "agnhost-primary",
                    "--http-port",
                    "6379",
                    "--backend-port",
                    "6379",
                ],
            )?;
            part(
                s,
                "agnhost-primary",
                1,
                &["guestbook", "--replicaof", "", "--http-port", "6379", "--backend-port", "6379"],
            )?;
            part(s, "frontend", 3, &["guestbook", "--http-port", "6379", "--backend-port", "6379"])?;
            for name in ["agnhost-primary", "agnhost-replica", "frontend"] {
                s.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"])?;
            }
            front(s, "cmd=get&key=messages&value=", r#"{"data":""}"#)?;
            front(s, "cmd=set&key=messages&value=TestEntry", r#"{"data":"Updated"}"#)?;
            front(s, "cmd=get&key=messages&value=", r#"{"data":"TestEntry"}"#)?;
            for name in ["agnhost-primary", "agnhost-replica", "frontend"] {
                s.kubectl(&["delete", "--grace-period=0", "--force", "deployment,service", name])?;
            }
            let left = s.kubectl(&["get", "rc,svc,pods", "--no-headers"])?;
            ensure!(!left.contains("Running"), "{left}");
            Ok(())
        },
    }]
}
