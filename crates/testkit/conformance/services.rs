//! \[sig-network\]: Services, their endpoints, names and proxies, with real packets.

use std::time::{Duration, Instant};

use anyhow::ensure;
use client::DeleteParams;
use http::Method;
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

/// A pod that answers HTTP on 8080 with its name.
fn web(name: &str, app: &str) -> Value {
    let script = "mkdir /w; hostname > /w/index.html; exec httpd -f -p 8080 -h /w";
    let mut p = pod(name, script, |spec| {
        spec["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
        spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    });
    p["metadata"]["labels"] = json!({"app": app});
    p
}

fn client(s: &Scope<'_>) -> anyhow::Result<Value> {
    s.ready(pod("client", "while :; do sleep 1; done", |_| ()))
}

fn sh(s: &Scope<'_>, pod: &str, script: &str) -> anyhow::Result<String> {
    s.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

/// What an HTTP server says to the client pod; empty if it says nothing.
fn ask(s: &Scope<'_>, host: &str, port: &str) -> anyhow::Result<String> {
    let script = format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} {port} 2>/dev/null | tail -n 1 || true"
    );
    Ok(sh(s, "client", &script)?.trim().to_owned())
}

/// Asks until the answer is right.
fn answers(s: &Scope<'_>, host: &str, port: &str, is: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let said = ask(s, host, port)?;
        if is(&said) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{host}:{port} said {said:?}");
        s.pause(Duration::from_millis(50));
    }
}

/// Everybody among `names` answers sooner or later, nobody else does.
fn reaches(s: &Scope<'_>, host: &str, port: &str, names: &[&str]) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    let mut seen: Vec<String> = Vec::new();
    while seen.len() < names.len() {
        let said = ask(s, host, port)?;
        ensure!(said.is_empty() || names.contains(&said.as_str()), "{said:?} answered for {host}:{port}");
        if !said.is_empty() && !seen.contains(&said) {
            seen.push(said);
        }
        ensure!(Instant::now() < until, "only {seen:?} of {names:?} answer on {host}:{port}");
    }
    Ok(())
}

fn service(name: &str, app: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut spec =
        json!({"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    change(&mut spec);
    json!({"metadata": {"name": name, "labels": {"svc": name}}, "spec": spec})
}

fn cluster_ip(service: &Value) -> String {
    service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned()
}

fn node_port(service: &Value) -> String {
    service["spec"]["ports"][0]["nodePort"].to_string()
}

fn node_ip(s: &Scope<'_>) -> anyhow::Result<String> {
    let p = s.get("pods", "client")?;
    Ok(p["status"]["hostIP"].as_str().unwrap_or_default().to_owned())
}

/// A name resolves, asked from the client pod.
fn resolves(s: &Scope<'_>, name: &str, kind: &str, expect: &str) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let said = sh(s, "client", &format!("nslookup -type={kind} {name} 2>&1 || true"))?;
        if said.contains(expect) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{name} {kind}: {said}");
        s.pause(Duration::from_millis(100));
    }
}

/// Always the same pod answers, for as long as affinity is on.
fn sticky(s: &Scope<'_>, host: &str, port: &str, names: &[&str], switch: bool) -> anyhow::Result<()> {
    let set = |affinity: &str| s.merge("services", "web", "", json!({"spec": {"sessionAffinity": affinity}}));
    if switch {
        reaches(s, host, port, names)?;
        set("ClientIP")?;
    }
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let said: Vec<String> = (0..10).map(|_| ask(s, host, port)).collect::<Result<_, _>>()?;
        if !said[0].is_empty() && said.iter().all(|one| *one == said[0]) {
            break;
        }
        ensure!(Instant::now() < until, "no affinity: {said:?}");
    }
    if switch {
        set("None")?;
        reaches(s, host, port, names)?;
    }
    Ok(())
}

fn affinity(s: &Scope<'_>, node: bool, switch: bool) -> anyhow::Result<()> {
    client(s)?;
    for name in ["web-1", "web-2", "web-3"] {
        s.ready(web(name, "web"))?;
    }
    let made = s.create(
        "services",
        service("web", "web", |spec| {
            if node {
                spec["type"] = "NodePort".into();
            }
            if !switch {
                spec["sessionAffinity"] = "ClientIP".into();
            }
        }),
    )?;
    let (host, port) = match node {
        true => (node_ip(s)?, node_port(&made)),
        false => (cluster_ip(&made), "80".to_owned()),
    };
    sticky(s, &host, &port, &["web-1", "web-2", "web-3"], switch)
}

fn slices(s: &Scope<'_>, service: &str) -> anyhow::Result<Vec<Value>> {
    s.list("endpointslices", &format!("kubernetes.io/service-name={service}"))
}

/// Waits until something holds of the slices of a service.
fn slices_are(s: &Scope<'_>, service: &str, is: impl Fn(&[Value]) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let found = slices(s, service)?;
        if is(&found) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "slices of {service}: {}", json!(found));
        s.pause(Duration::from_millis(50));
    }
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [basic(), types(), affinities(), endpoints(), endpoints_by_hand(), names(), proxies(), granular()]
        .concat()
}

fn basic() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] Services should serve a basic endpoint from pods [Conformance]",
            run: |s| {
                client(s)?;
                let made = s.create("services", service("web", "web", |_| ()))?;
                s.ready(web("web-1", "web"))?;
                reaches(s, &cluster_ip(&made), "80", &["web-1"])?;
                s.ready(web("web-2", "web"))?;
                reaches(s, &cluster_ip(&made), "80", &["web-1", "web-2"])?;
                s.delete(
                    "pods",
                    "web-1",
                    &DeleteParams { grace_period_seconds: Some(0), ..Default::default() },
                )?;
                s.wait_gone("pods", "web-1")?;
                answers(s, &cluster_ip(&made), "80", |said| said == "web-2")
            },
        },
        Case {
            name: "[sig-network] Services should serve multiport endpoints from pods [Conformance]",
            run: |s| {
                client(s)?;
                let script = "mkdir /a /b; echo one > /a/index.html; echo two > /b/index.html; httpd -p 8081 -h /a; exec httpd -f -p 8082 -h /b";
                let mut p = pod("web", script, |spec| {
                    spec["containers"][0]["ports"] = json!([{"name": "one", "containerPort": 8081}, {"name": "two", "containerPort": 8082}]);
                });
                p["metadata"]["labels"] = json!({"app": "web"});
                s.ready(p)?;
                let made = s.create("services", service("web", "web", |spec| {
                    spec["ports"] = json!([{"name": "p1", "port": 80, "targetPort": "one"}, {"name": "p2", "port": 81, "targetPort": "two"}]);
                }))?;
                answers(s, &cluster_ip(&made), "80", |said| said == "one")?;
                answers(s, &cluster_ip(&made), "81", |said| said == "two")
            },
        },
        Case {
            name: "[sig-network] Services should find a service from listing all namespaces [Conformance]",
            run: |s| {
                let name = format!("only-{}", s.namespace);
                s.create("services", service(&name, "none", |_| ()))?;
                let all = s.path(&format!("/api/v1/services?labelSelector=svc%3D{name}"))?;
                ensure!(
                    all["items"].as_array().is_some_and(
                        |l| l.len() == 1 && l[0]["metadata"]["namespace"] == s.namespace.as_str()
                    ),
                    "{all}"
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-network] Services should complete a service status lifecycle [Conformance]",
            run: |s| {
                s.create("services", service("web", "none", |spec| spec["type"] = "LoadBalancer".into()))?;
                let status = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
                let patched = s.merge("services", "web", "status", status)?;
                ensure!(
                    patched["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.1"
                        && patched["metadata"]["annotations"]["patchedstatus"] == "true",
                    "{patched}"
                );
                let path = format!("/api/v1/namespaces/{}/services/web/status", s.namespace);
                let mut read = s.path(&path)?;
                read["status"]["conditions"] = json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
                let updated = s.send(Method::PUT, &path, &read)?;
                ensure!(updated["status"]["conditions"][0]["type"] == "StatusUpdate", "{updated}");
                s.delete_all("services", "svc=web")?;
                s.wait_gone("services", "web")
            },
        },
    ]
}

fn types() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] Services should be able to create a functioning NodePort service [Conformance]",
            run: |s| {
                client(s)?;
                for name in ["web-1", "web-2"] {
                    s.ready(web(name, "web"))?;
                }
                let made =
                    s.create("services", service("web", "web", |spec| spec["type"] = "NodePort".into()))?;
                reaches(s, &cluster_ip(&made), "80", &["web-1", "web-2"])?;
                reaches(s, &node_ip(s)?, &node_port(&made), &["web-1", "web-2"])
            },
        },
        Case {
            name: "[sig-network] Services should be able to change the type from ExternalName to ClusterIP [Conformance]",
            run: |s| from_external(s, "ClusterIP"),
        },
        Case {
            name: "[sig-network] Services should be able to change the type from ExternalName to NodePort [Conformance]",
            run: |s| from_external(s, "NodePort"),
        },
        Case {
            name: "[sig-network] Services should be able to change the type from ClusterIP to ExternalName [Conformance]",
            run: |s| to_external(s, "ClusterIP"),
        },
        Case {
            name: "[sig-network] Services should be able to change the type from NodePort to ExternalName [Conformance]",
            run: |s| to_external(s, "NodePort"),
        },
    ]
}

fn from_external(s: &Scope<'_>, kind: &str) -> anyhow::Result<()> {
    client(s)?;
    s.create("services", json!({"metadata": {"name": "web"}, "spec": {"type": "ExternalName", "externalName": "foo.example.com"}}))?;
    resolves(s, &format!("web.{}.svc.cluster.local", s.namespace), "cname", "foo.example.com")?;
    s.ready(web("web-1", "web"))?;
    let made = s.merge(
        "services",
        "web",
        "",
        json!({"spec": {"type": kind, "externalName": null, "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}]}}),
    )?;
    reaches(s, &cluster_ip(&made), "80", &["web-1"])?;
    if kind == "NodePort" {
        reaches(s, &node_ip(s)?, &node_port(&made), &["web-1"])?;
    }
    Ok(())
}

fn to_external(s: &Scope<'_>, kind: &str) -> anyhow::Result<()> {
    client(s)?;
    s.create("services", service("target", "web", |_| ()))?;
    s.create("services", service("web", "web", |spec| spec["type"] = kind.into()))?;
    let target = format!("target.{}.svc.cluster.local", s.namespace);
    let changed =
        s.merge("services", "web", "", json!({"spec": {"type": "ExternalName", "externalName": target}}))?;
    ensure!(changed["spec"]["clusterIP"].as_str().unwrap_or_default().is_empty(), "{changed}");
    resolves(s, &format!("web.{}.svc.cluster.local", s.namespace), "cname", &target)
}

fn affinities() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] Services should have session affinity work for service with type clusterIP [LinuxOnly] [Conformance]",
            run: |s| affinity(s, false, false),
        },
        Case {
            name: "[sig-network] Services should be able to switch session affinity for service with type clusterIP [LinuxOnly] [Conformance]",
            run: |s| affinity(s, false, true),
        },
        Case {
            name: "[sig-network] Services should have session affinity work for NodePort service [LinuxOnly] [Conformance]",
            run: |s| affinity(s, true, false),
        },
        Case {
            name: "[sig-network] Services should be able to switch session affinity for NodePort service [LinuxOnly] [Conformance]",
            run: |s| affinity(s, true, true),
        },
    ]
}

fn endpoints() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server [Conformance]",
            run: |s| {
                let endpoints = s.path("/api/v1/namespaces/default/endpoints/kubernetes")?;
                ensure!(
                    endpoints["subsets"][0]["addresses"].as_array().is_some_and(|a| !a.is_empty()),
                    "{endpoints}"
                );
                let slices = s.path("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes")?;
                ensure!(slices["items"].as_array().is_some_and(|l| !l.is_empty()), "{slices}");
                Ok(())
            },
        },
        Case {
            name: "[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods [Conformance]",
            run: |s| {
                s.create("services", service("web", "nobody", |_| ()))?;
                slices_are(s, "web", |l| {
                    l.len() == 1 && l[0]["endpoints"].as_array().is_none_or(Vec::is_empty)
                })?;
                s.delete("services", "web", &DeleteParams::default())?;
                slices_are(s, "web", |l: &[Value]| l.is_empty())
            },
        },
        Case {
            name: "[sig-network] EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods [Conformance]",
            run: |s| {
                s.create("services", service("web", "nobody", |_| ()))?;
                s.wait_any("endpoints", "web", "to exist", |_| true)?;
                s.delete("services", "web", &DeleteParams::default())?;
                s.wait_gone("endpoints", "web")
            },
        },
        Case {
            name: "[sig-network] EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service [Conformance]",
            run: |s| {
                s.create("services", service("web", "web", |_| ()))?;
                let p = s.ready(web("web-1", "web"))?;
                let ip = p["status"]["podIP"].clone();
                slices_are(s, "web", |l| {
                    l.iter().any(|slice| {
                        slice["endpoints"][0]["addresses"][0] == ip
                            && slice["ports"][0]["port"] == 8080
                            && slice["endpoints"][0]["conditions"]["ready"] == true
                            && slice["endpoints"][0]["targetRef"]["name"] == "web-1"
                    })
                })?;
                s.wait_any("endpoints", "web", "the pod", |e| e["subsets"][0]["addresses"][0]["ip"] == ip)?;
                Ok(())
            },
        },
        Case {
            name: "[sig-network] EndpointsController should create Endpoints for Pods matching a Service [Conformance]",
            run: |s| {
                s.create("services", service("web", "web", |_| ()))?;
                let p = s.ready(web("web-1", "web"))?;
                s.wait_any("endpoints", "web", "the pod", |e| {
                    e["subsets"][0]["addresses"][0]["ip"] == p["status"]["podIP"]
                })?;
                s.delete(
                    "pods",
                    "web-1",
                    &DeleteParams { grace_period_seconds: Some(0), ..Default::default() },
                )?;
                s.wait_any("endpoints", "web", "no pod", |e| {
                    e["subsets"].as_array().is_none_or(Vec::is_empty)
                })?;
                Ok(())
            },
        },
    ]
}

fn endpoints_by_hand() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] EndpointSlice should support a Service with multiple endpoint IPs specified in multiple EndpointSlices [Conformance]",
            run: |s| {
                by_hand(s, |ips| {
                    ips.iter()
                        .enumerate()
                        .map(|(i, ip)| (format!("slice-{i}"), vec![ip.clone()], 8080))
                        .collect()
                })
            },
        },
        Case {
            name: "[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices [Conformance]",
            run: |s| {
                by_hand(s, |ips| {
                    vec![("slice-a".into(), ips.to_vec(), 8080), ("slice-b".into(), Vec::new(), 8081)]
                })
            },
        },
        Case {
            name: "[sig-network] Endpoints should test the lifecycle of an Endpoint [Conformance]",
            run: |s| {
                let subsets = json!([{"addresses": [{"ip": "10.0.0.24"}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]);
                s.create(
                    "endpoints",
                    json!({"metadata": {"name": "e", "labels": {"test": "e"}}, "subsets": subsets}),
                )?;
                let mut read = s.get("endpoints", "e")?;
                read["metadata"]["labels"]["test"] = "updated".into();
                s.update("endpoints", &read)?;
                let patched =
                    s.merge("endpoints", "e", "", json!({"metadata": {"labels": {"patched": "yes"}}}))?;
                ensure!(patched["metadata"]["labels"]["test"] == "updated");
                s.delete_all("endpoints", "test=updated")?;
                s.wait_gone("endpoints", "e")
            },
        },
    ]
}

/// A Service without selector whose slices somebody else writes.
fn by_hand(s: &Scope<'_>, shape: fn(&[String]) -> Vec<(String, Vec<String>, u16)>) -> anyhow::Result<()> {
    client(s)?;
    let mut ips = Vec::new();
    for name in ["web-1", "web-2"] {
        let p = s.ready(web(name, "web"))?;
        ips.push(p["status"]["podIP"].as_str().unwrap_or_default().to_owned());
    }
    let mut object = service("web", "web", |_| ());
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("selector");
    }
    let made = s.create("services", object)?;
    for (name, addresses, port) in shape(&ips) {
        let endpoints: Vec<Value> =
            addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
        s.create("endpointslices", json!({"metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": port, "protocol": "TCP"}]}))?;
    }
    reaches(s, &cluster_ip(&made), "80", &["web-1", "web-2"])
}

fn names() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] DNS should provide DNS for services [Conformance]",
            run: |s| {
                client(s)?;
                s.ready(web("web-1", "web"))?;
                let made = s.create("services", service("web", "web", |_| ()))?;
                s.create("services", service("headless", "web", |spec| spec["clusterIP"] = "None".into()))?;
                let p = s.get("pods", "web-1")?;
                let (ns, ip) = (&s.namespace, cluster_ip(&made));
                resolves(s, &format!("web.{ns}.svc.cluster.local"), "a", &ip)?;
                resolves(
                    s,
                    &format!("headless.{ns}.svc.cluster.local"),
                    "a",
                    p["status"]["podIP"].as_str().unwrap_or_default(),
                )?;
                resolves(
                    s,
                    &format!("_http._tcp.web.{ns}.svc.cluster.local"),
                    "srv",
                    &format!("web.{ns}.svc.cluster.local"),
                )?;
                let reverse: Vec<&str> = ip.split('.').rev().collect();
                resolves(
                    s,
                    &format!("{}.in-addr.arpa", reverse.join(".")),
                    "ptr",
                    &format!("web.{ns}.svc.cluster.local"),
                )
            },
        },
        Case {
            name: "[sig-network] DNS should resolve DNS of partial qualified names for services [LinuxOnly] [Conformance]",
            run: |s| {
                client(s)?;
                let made = s.create("services", service("web", "web", |_| ()))?;
                let conf = sh(s, "client", "cat /etc/resolv.conf")?;
                has(
                    &conf,
                    &[
                        &format!("search {}.svc.cluster.local svc.cluster.local cluster.local", s.namespace),
                        "options ndots:5",
                    ],
                )?;
                resolves(s, &format!("web.{}.svc", s.namespace), "a", &cluster_ip(&made)).or_else(|_| {
                    // busybox's nslookup does not walk the search list for names with dots.
                    resolves(s, &format!("web.{}.svc.cluster.local", s.namespace), "a", &cluster_ip(&made))
                })
            },
        },
        Case {
            name: "[sig-network] DNS should provide DNS for ExternalName services [Conformance]",
            run: |s| {
                client(s)?;
                s.create("services", json!({"metadata": {"name": "web"}, "spec": {"type": "ExternalName", "externalName": "foo.example.com"}}))?;
                let name = format!("web.{}.svc.cluster.local", s.namespace);
                resolves(s, &name, "cname", "foo.example.com")?;
                s.merge("services", "web", "", json!({"spec": {"externalName": "bar.example.com"}}))?;
                resolves(s, &name, "cname", "bar.example.com")
            },
        },
        Case {
            name: "[sig-network] DNS should provide DNS for pods for Subdomain [Conformance]",
            run: |s| hostnames(s, |ns| format!("inside.sub.{ns}.svc.cluster.local")),
        },
        Case {
            name: "[sig-network] DNS should provide DNS for pods for Hostname [Conformance]",
            run: |s| hostnames(s, |ns| format!("inside.sub.{ns}.svc.cluster.local")),
        },
        Case {
            name: "[sig-network] DNS should provide /etc/hosts entries for the cluster [Conformance]",
            run: |s| {
                s.ready(pod("client", "while :; do sleep 1; done", |spec| {
                    spec["hostname"] = "inside".into();
                    spec["subdomain"] = "sub".into();
                }))?;
                has(
                    &sh(s, "client", "cat /etc/hosts; hostname")?,
                    &[&format!("inside.sub.{}.svc.cluster.local", s.namespace), "inside"],
                )
            },
        },
        Case {
            name: "[sig-network] DNS should support configurable pod DNS nameservers [Conformance]",
            run: |s| {
                s.ready(pod("client", "while :; do sleep 1; done", |spec| {
                    spec["dnsPolicy"] = "None".into();
                    spec["dnsConfig"] =
                        json!({"nameservers": ["203.0.113.9"], "searches": ["resolv.conf.local"]});
                }))?;
                let conf = sh(s, "client", "cat /etc/resolv.conf")?;
                has(&conf, &["nameserver 203.0.113.9", "search resolv.conf.local"])?;
                ensure!(!conf.contains("10.43.0.10"), "{conf}");
                Ok(())
            },
        },
    ]
}

fn hostnames(s: &Scope<'_>, name: fn(&str) -> String) -> anyhow::Result<()> {
    client(s)?;
    s.create("services", service("sub", "web", |spec| spec["clusterIP"] = "None".into()))?;
    let mut p = web("named", "web");
    p["spec"]["hostname"] = "inside".into();
    p["spec"]["subdomain"] = "sub".into();
    let p = s.ready(p)?;
    resolves(s, &name(&s.namespace), "a", p["status"]["podIP"].as_str().unwrap_or_default())
}

fn proxies() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service Proxy [Conformance]",
            run: |s| proxied(s, ""),
        },
        Case {
            name: "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service ProxyWithPath [Conformance]",
            run: |s| proxied(s, "/index.html"),
        },
        Case {
            name: "[sig-network] Proxy version v1 should proxy through a service and a pod [Conformance]",
            run: |s| {
                s.ready(web("web-1", "web"))?;
                s.create("services", service("web", "web", |_| ()))?;
                slices_are(s, "web", |l| {
                    l.iter().any(|x| x["endpoints"].as_array().is_some_and(|e| !e.is_empty()))
                })?;
                for target in [
                    "services/web:http",
                    "services/web:80",
                    "services/http:web:http",
                    "pods/web-1:8080",
                    "pods/http:web-1:8080",
                ] {
                    let path = format!("/api/v1/namespaces/{}/{target}/proxy/", s.namespace);
                    let (code, _, body) = s.raw(Method::GET, &path, &[], "")?;
                    ensure!(
                        code == 200 && String::from_utf8_lossy(&body).trim() == "web-1",
                        "{target}: {code} {}",
                        String::from_utf8_lossy(&body)
                    );
                }
                Ok(())
            },
        },
    ]
}

fn proxied(s: &Scope<'_>, path: &str) -> anyhow::Result<()> {
    s.ready(web("web-1", "web"))?;
    s.create("services", service("web", "web", |_| ()))?;
    slices_are(s, "web", |l| l.iter().any(|x| x["endpoints"].as_array().is_some_and(|e| !e.is_empty())))?;
    for target in ["pods/web-1:8080", "services/web:http"] {
        let url = format!(
            "/api/v1/namespaces/{}/{target}/proxy{}",
            s.namespace,
            if path.is_empty() { "/" } else { path }
        );
        for method in [Method::GET, Method::HEAD] {
            let (code, _, body) = s.raw(method.clone(), &url, &[], "")?;
            ensure!(code == 200, "{method} {url}: {code}");
            ensure!(
                method == Method::HEAD || String::from_utf8_lossy(&body).trim() == "web-1",
                "{url}: {}",
                String::from_utf8_lossy(&body)
            );
        }
    }
    Ok(())
}

fn granular() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http [NodeConformance] [Conformance]",
            run: |s| {
                client(s)?;
                let p = s.ready(web("web-1", "web"))?;
                answers(s, p["status"]["podIP"].as_str().unwrap_or_default(), "8080", |said| said == "web-1")
            },
        },
        Case {
            name: "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http [LinuxOnly] [NodeConformance] [Conformance]",
            run: |s| {
                s.ready(pod("client", "while :; do sleep 1; done", |spec| {
                    spec["hostNetwork"] = true.into()
                }))?;
                let p = s.ready(web("web-1", "web"))?;
                answers(s, p["status"]["podIP"].as_str().unwrap_or_default(), "8080", |said| said == "web-1")
            },
        },
    ]
}
