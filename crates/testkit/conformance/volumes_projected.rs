//! Trust bundles and certificates of pods in projected volumes, and what is mounted through containers.

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

use crate::volumes_claims::told;

fn authority(name: &str) -> anyhow::Result<(String, rcgen::Issuer<'static, rcgen::KeyPair>)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key)?.pem();
    Ok((certificate, rcgen::Issuer::new(params, key)))
}

/// A pod with a projected volume of one source at `/data`.
fn projecting(name: &str, script: &str, source: Value) -> Value {
    pod(name, script, |spec| {
        spec["volumes"] = json!([{"name": "data", "projected": {"sources": [source]}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    })
}

/// Bodies of a text's PEM blocks, sorted.
fn bodies(text: &str) -> Vec<String> {
    let lines: String = text.lines().map(str::trim).collect();
    let mut found: Vec<String> = lines
        .split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .filter_map(|rest| rest.split("-----END").next().map(String::from))
        .collect();
    found.sort();
    found
}

fn trust(s: &Scope<'_>) -> anyhow::Result<()> {
    let (one, _) = authority("one")?;
    let (two, _) = authority("two")?;
    let signer = format!("{}.example.com/signer", s.namespace);
    let bundle = |name: &str, signer: Option<&str>, text: &str| {
        let mut spec = json!({"trustBundle": text});
        if let Some(signer) = signer {
            spec["signerName"] = signer.into();
        }
        json!({"metadata": {"name": name, "labels": {"live": "yes"}}, "spec": spec})
    };
    let plain = format!("{}-plain", s.namespace);
    s.create("clustertrustbundles", bundle(&plain, None, &one))?;
    let missing =
        json!({"clusterTrustBundle": {"signerName": signer, "labelSelector": {}, "path": "ca.pem"}});
    s.create("pods", projecting("waits", "cat /data/ca.pem; sleep 1000", missing))?;
    has(
        &told(s, "waits", "FailedMount")?,
        &["combination of signerName and labelSelector matched zero ClusterTrustBundles"],
    )?;
    let optional = json!({"clusterTrustBundle": {"name": "none", "path": "ca.pem", "optional": true}});
    ensure!(s.output(projecting("none", "wc -c < /data/ca.pem", optional))?.trim() == "0", "not empty");
    let by_name = json!({"clusterTrustBundle": {"name": plain, "path": "ca.pem"}});
    let said = s.output(projecting("named", "cat /data/ca.pem", by_name))?;
    ensure!(bodies(&said) == bodies(&one), "{said}");
    let linked = format!("{}:one", signer.replace('/', ":"));
    s.create("clustertrustbundles", bundle(&linked, Some(&signer), &one))?;
    s.pod_ready("waits")?;
    let both = format!("{one}{two}");
    s.merge("clustertrustbundles", &linked, "", json!({"spec": {"trustBundle": both}}))?;
    let mut said = String::new();
    for _ in 0..100 {
        said = s.kubectl(&["exec", "waits", "--", "cat", "/data/ca.pem"])?;
        if bodies(&said) == bodies(&both) {
            break;
        }
        s.pause(std::time::Duration::from_millis(100));
    }
    ensure!(bodies(&said) == bodies(&both), "{said}");
    for name in [plain, linked] {
        s.delete("clustertrustbundles", &name, &DeleteParams::default())?;
    }
    Ok(())
}

/// Waits for a request of a pod that nobody has answered.
fn request(s: &Scope<'_>, pod: &str, but: &str) -> anyhow::Result<Value> {
    s.wait_any("podcertificaterequests", "", "a request", |r| {
        r["spec"]["podName"] == pod && r["status"]["conditions"].is_null() && r["metadata"]["name"] != but
    })
}

fn answer(s: &Scope<'_>, request: &Value, status: Value) -> anyhow::Result<()> {
    let name = request["metadata"]["name"].as_str().unwrap_or_default();
    s.merge("podcertificaterequests", name, "status", json!({"status": status}))?;
    Ok(())
}

fn certificates(s: &Scope<'_>) -> anyhow::Result<()> {
    let (_, issuer) = authority("signer")?;
    let signer = format!("{}.example.com/signer", s.namespace);
    let source = json!({"podCertificate": {"signerName": signer, "keyType": "ECDSAP256",
        "credentialBundlePath": "bundle.pem", "userAnnotations": {"example.com/colour": "red"}}});
    let pod = s.create("pods", projecting("p", "sleep 1000", source.clone()))?;
    let asked = request(s, "p", "")?;
    let spec = &asked["spec"];
    ensure!(
        spec["podUID"] == pod["metadata"]["uid"]
            && spec["signerName"] == *signer
            && spec["serviceAccountName"] == "default"
            && spec["serviceAccountUID"].as_str().is_some_and(|uid| !uid.is_empty())
            && spec["nodeUID"].as_str().is_some_and(|uid| !uid.is_empty())
            && spec["unverifiedUserAnnotations"]["example.com/colour"] == "red"
            && spec["maxExpirationSeconds"] == 86_400,
        "{asked}"
    );
    let issue = |request: &Value, refresh_in: i64| -> anyhow::Result<String> {
        let der = STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str().context("no request")?)?;
        let params = rcgen::CertificateSigningRequestParams::from_der(&der.as_slice().into())?;
        let chain = params.signed_by(&issuer)?.pem();
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())?;
        let at = |seconds: i64| (now + jiff::SignedDuration::from_secs(seconds)).to_string();
        let condition = json!({"type": "Issued", "status": "True", "reason": "Test", "message": "",
            "lastTransitionTime": at(0)});
        let status = json!({"conditions": [condition], "certificateChain": chain, "notBefore": at(-60),
            "beginRefreshAt": at(refresh_in), "notAfter": at(7200)});
        answer(s, request, status)?;
        Ok(chain)
    };
    let chain = issue(&asked, 3)?;
    s.pod_ready("p")?;
    let read = || s.kubectl(&["exec", "p", "--", "cat", "/data/bundle.pem"]);
    let first = read()?;
    ensure!(
        first.starts_with("-----BEGIN PRIVATE KEY-----\n") && bodies(&first) == bodies(&chain),
        "{first}"
    );
    // The signer wants it renewed soon: another key, another certificate.
    let again = request(s, "p", asked["metadata"]["name"].as_str().unwrap_or_default())?;
    let chain = issue(&again, 3600)?;
    let mut second = read()?;
    for _ in 0..100 {
        if bodies(&second) == bodies(&chain) {
            break;
        }
        s.pause(std::time::Duration::from_millis(100));
        second = read()?;
    }
    ensure!(bodies(&second) == bodies(&chain) && second != first, "{second}");
    // A signer that says no.
    s.create("pods", projecting("refused", "true", source))?;
    let asked = request(s, "refused", "")?;
    let condition = json!({"type": "Denied", "status": "True", "reason": "UnsupportedKeyType", "message": "ED25519",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    answer(s, &asked, json!({"conditions": [condition]}))?;
    s.wait_any("events", "", "the refusal", |e| {
        e["involvedObject"]["name"] == "refused"
            && e["message"].as_str().is_some_and(|m| {
                m.contains("was permanently denied; reason: \"UnsupportedKeyType\", message: \"ED25519\"")
            })
    })
    .map(drop)
}

/// Mounts that containers make are seen outside, and those made outside in containers, as their mounts allow.
fn propagation(s: &Scope<'_>) -> anyhow::Result<()> {
    let root = format!("/var/lib/ferry-propagation-{}", s.namespace);
    std::fs::create_dir_all(&root)?;
    let made = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs", &root]).status()?;
    let shared = std::process::Command::new("mount").args(["--make-rshared", &root]).status()?;
    let outcome = if made.success() && shared.success() {
        propagate(s, &root)
    } else {
        Err(anyhow::anyhow!("cannot make a shared mount"))
    };
    for path in [format!("{root}/inner"), format!("{root}/host"), root.clone()] {
        let _ = std::process::Command::new("umount").args(["-l", &path]).status();
    }
    let _ = std::fs::remove_dir(&root);
    outcome
}

fn propagate(s: &Scope<'_>, root: &str) -> anyhow::Result<()> {
    let with = |name: &str, mode: &str, script: &str| {
        pod(name, script, |spec| {
            spec["volumes"] = json!([{"name": "v", "hostPath": {"path": root}}]);
            spec["containers"][0]["volumeMounts"] =
                json!([{"name": "v", "mountPath": "/mnt/test", "mountPropagation": mode}]);
            spec["containers"][0]["securityContext"] = json!({"privileged": mode == "Bidirectional"});
        })
    };
    for (name, mode) in [("private", "None"), ("slave", "HostToContainer")] {
        s.ready(with(name, mode, "sleep 1000"))?;
    }
    let script = "mkdir -p /mnt/test/inner && mount -t tmpfs tmpfs /mnt/test/inner && echo in > /mnt/test/inner/file && sleep 1000";
    s.ready(with("master", "Bidirectional", script))?;
    std::fs::create_dir_all(format!("{root}/host"))?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs", &format!("{root}/host")])
        .status()?;
    ensure!(mounted.success(), "cannot mount on the node");
    std::fs::write(format!("{root}/host/file"), "host")?;
    let sees = |pod: &str, place: &str| {
        let path = format!("/mnt/test/{place}/file");
        s.kubectl(&["exec", pod, "--", "cat", &path]).is_ok()
    };
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !std::path::Path::new(&format!("{root}/inner/file")).exists() {
        ensure!(std::time::Instant::now() < until, "the node does not see the container's mount");
        s.pause(std::time::Duration::from_millis(50));
    }
    for (pod, inner, host) in [("private", false, false), ("slave", true, true), ("master", true, true)] {
        ensure!(sees(pod, "inner") == inner, "{pod} and the container's mount");
        ensure!(sees(pod, "host") == host, "{pod} and the node's mount");
    }
    Ok(())
}

/// Parts of projected volumes and of images.
fn parts(s: &Scope<'_>) -> anyhow::Result<()> {
    s.create("configmaps", json!({"metadata": {"name": "map"}, "data": {"a": "one", "b": "two"}}))?;
    let said = s.output(pod("p", "cat /part; cat /image/busybox >/dev/null && echo whole", |spec| {
        let image = spec["containers"][0]["image"].clone();
        let sources = json!([{"configMap": {"name": "map", "items": [{"key": "b", "path": "deep/b"}]}}]);
        spec["volumes"] = json!([{"name": "v", "projected": {"sources": sources}},
            {"name": "i", "image": {"reference": image}}]);
        spec["containers"][0]["volumeMounts"] = json!([
            {"name": "v", "mountPath": "/part", "subPath": "deep/b"},
            {"name": "i", "mountPath": "/image", "subPath": "bin"}]);
    }))?;
    ensure!(said.trim() == "twowhole", "{said}");
    Ok(())
}

/// NFS needs a client in the kernel; without one people are told.
fn nfs(s: &Scope<'_>) -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/filesystems")?;
    if table.lines().any(|line| line.ends_with("\tnfs4")) {
        return Ok(());
    }
    s.create(
        "pods",
        pod("p", "true", |spec| {
            spec["volumes"] = json!([{"name": "v", "nfs": {"server": "127.0.0.1", "path": "/export"}}]);
            spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        }),
    )?;
    let said = told(s, "p", "FailedMount")?;
    has(&said, &["MountVolume.SetUp failed for volume \"v\" : mount failed: unknown filesystem type 'nfs'"])
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-auth] [Feature:ClusterTrustBundle] [Feature:ClusterTrustBundleProjection] should be able to mount a single ClusterTrustBundle by name",
            run: trust,
        },
        Case { name: "[sig-auth] Projected PodCertificate", run: certificates },
        Case {
            name: "[sig-node] Mount propagation should propagate mounts within defined scopes",
            run: propagation,
        },
        Case { name: "Ferry: parts of projected volumes and images", run: parts },
        Case { name: "Ferry: NFS volumes say what they need", run: nfs },
    ]
}
