//! \[sig-auth\]: certificates, service accounts and their tokens, reviews.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::{DeleteParams, EventKind, Patch, WatchParams};
use http::Method;
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

const CERTIFICATES: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [certificates(), accounts(), discovery(), mounts(), reviews()].concat()
}

/// The base64 of a request's PEM.
fn request(name: &str) -> anyhow::Result<String> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    Ok(STANDARD.encode(params.serialize_request(&rcgen::KeyPair::generate()?)?.pem()?))
}

fn certificates() -> Vec<Case> {
    vec![Case {
        name: "[sig-auth] Certificates API [Privileged:ClusterAdmin] should support CSR API operations [Conformance]",
        run: |s| {
            let listed = s.path("/apis/certificates.k8s.io/v1")?.to_string();
            has(
                &listed,
                &[
                    "\"certificatesigningrequests\"",
                    "certificatesigningrequests/approval",
                    "certificatesigningrequests/status",
                ],
            )?;
            // A signer of nobody's, so that nobody else acts on it.
            let signer = format!("example.com/e2e-{}", s.namespace);
            let make = |name: &str| -> anyhow::Result<Value> {
                Ok(json!({"metadata": {"generateName": "e2e-example-csr-", "labels": {"case": s.namespace}},
                    "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
                    "spec": {"request": request(name)?, "signerName": signer, "expirationSeconds": 3600,
                        "usages": ["digital signature", "key encipherment", "server auth"]}}))
            };
            let made = s.send(Method::POST, CERTIFICATES, &make("e2e")?)?;
            ensure!(made["spec"]["username"].is_string(), "who asks is noted: {made}");
            let name = made["metadata"]["name"].as_str().context("no name")?.to_owned();
            let own = format!("{CERTIFICATES}/{name}");
            ensure!(s.path(&own)?["spec"] == made["spec"], "get");
            let list = s.path(&format!(
                "{CERTIFICATES}?fieldSelector=spec.signerName%3D{}",
                signer.replace('/', "%2F")
            ))?;
            ensure!(list["items"].as_array().is_some_and(|i| i.len() == 1), "list: {list}");
            let mut events = s.watch(
                "certificatesigningrequests",
                &WatchParams {
                    resource_version: made["metadata"]["resourceVersion"].as_str().unwrap_or_default().into(),
                    label_selector: format!("case={}", s.namespace),
                    ..Default::default()
                },
            )?;
            let patch = Patch::Merge(json!({"metadata": {"annotations": {"patched": "true"}}}));
            let patched = s.patch("certificatesigningrequests", &name, "", &patch)?;
            ensure!(patched["metadata"]["annotations"]["patched"] == "true", "patch");
            let mut updated = patched.clone();
            updated["metadata"]["annotations"]["updated"] = "true".into();
            let updated = s.send(Method::PUT, &own, &updated)?;
            ensure!(updated["metadata"]["annotations"]["updated"] == "true", "update");
            for _ in 0..2 {
                let (event, object) = s.next(&mut events)?;
                ensure!(
                    event == EventKind::Modified && object["metadata"]["annotations"]["patched"] == "true"
                );
            }
            approval(s, &own, &name)?;
            status(s, &own, &name)?;
            s.delete("certificatesigningrequests", &name, &DeleteParams::default())?;
            s.wait_gone("certificatesigningrequests", &name)?;
            s.send(Method::POST, CERTIFICATES, &make("e2e-2")?)?;
            s.send(
                Method::DELETE,
                &format!("{CERTIFICATES}?labelSelector=case%3D{}", s.namespace),
                &json!({}),
            )?;
            let left = s.path(&format!("{CERTIFICATES}?labelSelector=case%3D{}", s.namespace))?;
            ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "deletecollection: {left}");
            Ok(())
        },
    }]
}

fn approval(s: &Scope<'_>, own: &str, name: &str) -> anyhow::Result<()> {
    let path = format!("{own}/approval");
    let mut read = s.path(&path)?;
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "Set from an e2e test"});
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"patchedapproval": "true"}},
        "status": {"conditions": [condition("ApprovalPatch")]}}));
    let patched = s.patch("certificatesigningrequests", name, "approval", &patch)?;
    ensure!(patched["status"]["conditions"][0]["type"] == "ApprovalPatch", "patch of approval: {patched}");
    read["metadata"]["resourceVersion"] = patched["metadata"]["resourceVersion"].clone();
    read["status"]["conditions"] = json!([patched["status"]["conditions"][0], condition("Approved")]);
    let approved = s.send(Method::PUT, &path, &read)?;
    ensure!(approved["status"]["conditions"][1]["type"] == "Approved", "{approved}");
    let denied =
        Patch::Merge(json!({"status": {"conditions": [condition("Approved"), condition("Denied")]}}));
    let refused = s.patch("certificatesigningrequests", name, "approval", &denied);
    let why = refused.err().context("approved and denied at once")?.to_string();
    has(&why, &["Approved and Denied conditions are mutually exclusive"])
}

fn status(s: &Scope<'_>, own: &str, name: &str) -> anyhow::Result<()> {
    let path = format!("{own}/status");
    let mut read = s.path(&path)?;
    let chain = |cn: &str| -> anyhow::Result<String> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, cn);
        Ok(STANDARD.encode(params.self_signed(&rcgen::KeyPair::generate()?)?.pem()))
    };
    read["status"]["certificate"] = chain("one")?.into();
    let issued = s.send(Method::PUT, &path, &read)?;
    ensure!(issued["status"]["certificate"] == read["status"]["certificate"], "{issued}");
    let again = Patch::Merge(json!({"status": {"certificate": chain("two")?}}));
    let why =
        s.patch("certificatesigningrequests", name, "status", &again).err().context("reset")?.to_string();
    has(&why, &["updates may not modify existing certificate content"])
}

fn accounts() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-auth] ServiceAccounts should run through the lifecycle of a ServiceAccount [Conformance]",
            run: |s| {
                let params = WatchParams {
                    resource_version: s
                        .page("serviceaccounts", &client::ListParams::default())?
                        .resource_version,
                    label_selector: "test-serviceaccount-static=true".into(),
                    ..Default::default()
                };
                let mut events = s.watch("serviceaccounts", &params)?;
                let labels = json!({"test-serviceaccount-static": "true"});
                s.create(
                    "serviceaccounts",
                    json!({"metadata": {"name": "testserviceaccount", "labels": labels}}),
                )?;
                let (event, added) = s.next(&mut events)?;
                ensure!(event == EventKind::Added && added["metadata"]["name"] == "testserviceaccount");
                let patch = Patch::Merge(json!({"automountServiceAccountToken": false}));
                let patched = s.patch("serviceaccounts", "testserviceaccount", "", &patch)?;
                ensure!(patched["automountServiceAccountToken"] == false, "{patched}");
                let listed = s.list("serviceaccounts", "test-serviceaccount-static=true")?;
                ensure!(
                    listed.len() == 1 && listed[0]["automountServiceAccountToken"] == false,
                    "{listed:?}"
                );
                s.delete_all("serviceaccounts", "test-serviceaccount-static=true")?;
                let (event, _) = s.next(&mut events)?;
                ensure!(event == EventKind::Modified, "{event:?}");
                let (event, _) = s.next(&mut events)?;
                ensure!(event == EventKind::Deleted, "{event:?}");
                Ok(())
            },
        },
        Case {
            name: "[sig-auth] ServiceAccounts should update a ServiceAccount [Conformance]",
            run: |s| {
                let mut made = s.create("serviceaccounts", json!({"metadata": {"name": "e2e-sa"}}))?;
                ensure!(made.get("automountServiceAccountToken").is_none(), "{made}");
                made["automountServiceAccountToken"] = true.into();
                let updated = s.update("serviceaccounts", &made)?;
                ensure!(updated["automountServiceAccountToken"] == true, "{updated}");
                Ok(())
            },
        },
        Case {
            name: "[sig-auth] ServiceAccounts should create a serviceAccountToken and ensure a successful TokenReview [Conformance]",
            run: |s| {
                s.create("serviceaccounts", json!({"metadata": {"name": "e2e-sa"}}))?;
                let path = format!("/api/v1/namespaces/{}/serviceaccounts/e2e-sa/token", s.namespace);
                let token = s.send(
                    Method::POST,
                    &path,
                    &json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}}),
                )?;
                let text = token["status"]["token"].as_str().filter(|t| !t.is_empty()).context("no token")?;
                let review =
                    s.create("tokenreviews", json!({"kind": "TokenReview", "spec": {"token": text}}))?;
                let status = &review["status"];
                ensure!(status["authenticated"] == true && status.get("error").is_none(), "{review}");
                ensure!(
                    status["user"]["username"] == format!("system:serviceaccount:{}:e2e-sa", s.namespace)
                );
                let wrong = s.create(
                    "tokenreviews",
                    json!({"kind": "TokenReview", "spec": {"token": text, "audiences": ["other"]}}),
                )?;
                ensure!(wrong["status"]["authenticated"] != true, "{wrong}");
                s.delete("serviceaccounts", "e2e-sa", &DeleteParams::default())?;
                let gone =
                    s.create("tokenreviews", json!({"kind": "TokenReview", "spec": {"token": text}}))?;
                ensure!(gone["status"]["authenticated"] != true, "the token outlives its account: {gone}");
                Ok(())
            },
        },
    ]
}

fn discovery() -> Vec<Case> {
    vec![Case {
        name: "[sig-auth] ServiceAccounts ServiceAccountIssuerDiscovery should support OIDC discovery of service account issuer [Conformance]",
        run: |s| {
            let (code, headers, body) = s.raw(Method::GET, "/openid/v1/jwks", &[], "")?;
            ensure!(code == 200 && headers["content-type"] == "application/jwk-set+json", "{headers:?}");
            let keys: Value = serde_json::from_slice(&body)?;
            let discovery = s.path("/.well-known/openid-configuration")?;
            let issuer = discovery["issuer"].as_str().context("no issuer")?;
            let kid = keys["keys"][0]["kid"].as_str().context("no key")?;
            // A workload may read both; who has no account may not.
            let workload = format!("system:serviceaccount:{}:default", s.namespace);
            for path in ["/openid/v1/jwks", "/.well-known/openid-configuration"] {
                let (code, ..) = s.raw(Method::GET, path, &[("impersonate-user", &workload)], "")?;
                let (refused, ..) = s.raw(Method::GET, path, &[("impersonate-user", "nobody")], "")?;
                ensure!((code, refused) == (200, 403), "{path}: {code} {refused}");
            }
            let out = s.script("oidc-discovery-validator", &format!("cat {MOUNT}/token"))?;
            let token = out.lines().rev().find(|l| l.matches('.').count() == 2).context("no token")?;
            use base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let part = |i: usize| -> anyhow::Result<Value> {
                let part = token.trim().split('.').nth(i).context("no part")?;
                Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
            };
            ensure!(part(0)?["kid"] == kid && part(1)?["iss"] == issuer, "{} {}", part(0)?, part(1)?);
            Ok(())
        },
    }]
}

fn mounts() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-auth] ServiceAccounts should allow opting out of API token automount [Conformance]",
            run: |s| {
                for (account, mounts) in [("default", None), ("mount", Some(true)), ("nomount", Some(false))]
                {
                    if account != "default" {
                        s.create(
                            "serviceaccounts",
                            json!({"metadata": {"name": account}, "automountServiceAccountToken": mounts}),
                        )?;
                    }
                    for wanted in [None, Some(true), Some(false)] {
                        let expected = wanted.or(mounts).unwrap_or(true);
                        let name =
                            format!("{account}-{}", wanted.map_or("default".into(), |w| w.to_string()));
                        let made = s.create(
                            "pods",
                            pod(&name, "true", |spec| {
                                spec["serviceAccountName"] = account.into();
                                if let Some(wanted) = wanted {
                                    spec["automountServiceAccountToken"] = wanted.into();
                                }
                            }),
                        )?;
                        let mounted =
                            made["spec"]["containers"][0]["volumeMounts"].to_string().contains(MOUNT);
                        ensure!(mounted == expected, "{name}: {}", made["spec"]);
                    }
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-auth] ServiceAccounts should mount projected service account token [Conformance]",
            run: |s| {
                let out = s.output(pod("projected", "cat /var/run/secrets/tokens/token", |spec| {
                    spec["volumes"] = json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken":
                        {"path": "token", "expirationSeconds": 7200, "audience": "vault"}}]}}]);
                    spec["containers"][0]["volumeMounts"] =
                        json!([{"name": "t", "mountPath": "/var/run/secrets/tokens"}]);
                }))?;
                let review = s.create(
                    "tokenreviews",
                    json!({"kind": "TokenReview",
                    "spec": {"token": out.trim(), "audiences": ["vault"]}}),
                )?;
                // Its pod has ended but is still there.
                ensure!(review["status"]["authenticated"] == true, "{review}");
                ensure!(review["status"]["audiences"] == json!(["vault"]), "{review}");
                Ok(())
            },
        },
    ]
}

fn reviews() -> Vec<Case> {
    vec![Case {
        name: "[sig-auth] SubjectReview should support SubjectReview API operations [Conformance]",
        run: |s| {
            s.create("serviceaccounts", json!({"metadata": {"name": "e2e"}}))?;
            let user = format!("system:serviceaccount:{}:e2e", s.namespace);
            let groups = json!([
                "system:authenticated",
                "system:serviceaccounts",
                format!("system:serviceaccounts:{}", s.namespace)
            ]);
            let local =
                format!("/apis/authorization.k8s.io/v1/namespaces/{}/localsubjectaccessreviews", s.namespace);
            let allowed_for = |verb: &str| -> anyhow::Result<[bool; 2]> {
                let spec = json!({"user": user, "groups": groups, "resourceAttributes":
                    {"verb": verb, "resource": "configmaps", "version": "v1", "namespace": s.namespace}});
                let review =
                    s.create("subjectaccessreviews", json!({"kind": "SubjectAccessReview", "spec": spec}))?;
                let own = json!({"kind": "LocalSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
                    "metadata": {"namespace": s.namespace}, "spec": spec});
                let own = s.send(Method::POST, &local, &own)?;
                Ok([review["status"]["allowed"] == true, own["status"]["allowed"] == true])
            };
            let call = || -> anyhow::Result<u16> {
                let path = format!("/api/v1/namespaces/{}/configmaps", s.namespace);
                Ok(s.raw(Method::GET, &path, &[("impersonate-user", &user)], "")?.0)
            };
            ensure!(allowed_for("list")? == [false, false] && call()? == 403, "nothing is granted yet");
            s.create(
                "roles",
                json!({"kind": "Role", "metadata": {"name": "r"}, "rules":
                [{"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]}),
            )?;
            s.create(
                "rolebindings",
                json!({"kind": "RoleBinding", "metadata": {"name": "b"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
                "subjects": [{"kind": "ServiceAccount", "name": "e2e", "namespace": s.namespace}]}),
            )?;
            ensure!(allowed_for("list")? == [true, true] && call()? == 200, "granted");
            ensure!(allowed_for("delete")? == [false, false], "not granted");
            Ok(())
        },
    }]
}
