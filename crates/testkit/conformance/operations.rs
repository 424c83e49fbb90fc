//! Every verb of a resource's API, in the order of the official cases: discovery, create, get, list, watch,
//! patch, update, status, delete, delete of a collection. One routine, a row per case.

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::{Case, Scope};

const SAMPLES: &str = include_str!("../data/samples.json");
/// Objects that each case makes.
const OBJECTS: usize = 3;

/// A request with a JSON body; the answer must have the code.
fn call(s: &Scope<'_>, method: Method, path: &str, body: &Value, code: u16) -> anyhow::Result<Value> {
    let content_type =
        if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let said = format!("{method} {path}");
    let headers = [("content-type", content_type), ("accept", "application/json")];
    let (found, _, answer) = s.raw(method, path, &headers, text)?;
    let first = serde_json::Deserializer::from_slice(&answer).into_iter::<Value>().next();
    let value = first.and_then(Result::ok).unwrap_or_default();
    ensure!(found == code, "{said} answered {found}: {value}");
    Ok(value)
}

/// The object number `i` of a case.
fn object(s: &Scope<'_>, api_version: &str, kind: &str, i: usize) -> anyhow::Result<Value> {
    let samples: Value = serde_json::from_str(SAMPLES)?;
    let group = api_version.split_once('/').map_or("", |(g, _)| g);
    let found = &samples[format!("{group}/{kind}")];
    ensure!(found.is_object(), "{kind} has no sample");
    let mut object: Value =
        serde_json::from_str(&found.to_string().replace("\"NS\"", &format!("{:?}", s.namespace)))?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    object["metadata"] = json!({"name": format!("{}-{i}", s.namespace), "labels": {"case": s.namespace}});
    match kind {
        "IPAddress" => object["metadata"]["name"] = format!("192.0.2.{}", 10 + i).into(),
        "ServiceCIDR" => object["spec"]["cidrs"] = json!([format!("198.51.100.{}/28", i * 16)]),
        _ => {}
    }
    Ok(object)
}

/// Reads, annotates and puts an object. Controllers may be faster: what was read is then read anew.
fn replace(s: &Scope<'_>, path: &str, annotation: &str) -> anyhow::Result<Value> {
    crate::crd::eventually("an undisturbed update", || {
        let mut next = call(s, Method::GET, path, &Value::Null, 200)?;
        next["metadata"]["annotations"][annotation] = "true".into();
        call(s, Method::PUT, path, &next, 200)
    })
}

/// Runs through every verb of `resource`.
fn operations(
    s: &Scope<'_>,
    api_version: &str,
    resource: &str,
    kind: &str,
    namespaced: bool,
) -> anyhow::Result<()> {
    let root = if api_version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{api_version}") };
    let found = s.path(&root)?;
    let rows: Vec<&Value> = found["resources"].as_array().into_iter().flatten().collect();
    let named = |name: &str| rows.iter().any(|r| r["name"] == name);
    ensure!(named(resource), "{resource} is not in {found}");
    let everywhere = format!("{root}/{resource}");
    let base =
        if namespaced { format!("{root}/namespaces/{}/{resource}", s.namespace) } else { everywhere.clone() };
    let selector = format!("labelSelector=case%3D{}", s.namespace);
    for i in 0..OBJECTS {
        let made = object(s, api_version, kind, i)?;
        let answer = call(s, Method::POST, &base, &made, 201)?;
        ensure!(answer["metadata"]["uid"].is_string(), "{answer}");
        call(s, Method::POST, &base, &made, 409)?;
    }
    let name = object(s, api_version, kind, 0)?["metadata"]["name"].as_str().context("no name")?.to_owned();
    let one = format!("{base}/{name}");
    call(s, Method::GET, &one, &Value::Null, 200)?;
    for path in [&base, &everywhere] {
        let list = call(s, Method::GET, &format!("{path}?{selector}"), &Value::Null, 200)?;
        let n = list["items"].as_array().map_or(0, Vec::len);
        ensure!(
            n == OBJECTS && list["kind"] == format!("{kind}List").as_str(),
            "{n} in {path}: {}",
            list["kind"]
        );
    }
    let watch = format!("{base}?watch=true&timeoutSeconds=30&{selector}");
    ensure!(call(s, Method::GET, &watch, &Value::Null, 200)?["type"] == "ADDED", "no ADDED event");
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
    let patched = call(s, Method::PATCH, &one, &patch, 200)?;
    ensure!(patched["metadata"]["annotations"]["patched"] == "true", "{patched}");
    let version = patched["metadata"]["resourceVersion"].as_str().context("no version")?.to_owned();
    let updated = replace(s, &one, "updated")?;
    ensure!(updated["metadata"]["annotations"]["updated"] == "true", "{updated}");
    let since = format!("{base}?watch=true&timeoutSeconds=30&{selector}&resourceVersion={version}");
    let event = call(s, Method::GET, &since, &Value::Null, 200)?;
    ensure!(event["type"] == "MODIFIED" && event["object"]["metadata"]["name"] == name.as_str(), "{event}");
    for sub in ["status", "approval"].iter().filter(|sub| named(&format!("{resource}/{sub}"))) {
        let path = format!("{one}/{sub}");
        call(s, Method::GET, &path, &Value::Null, 200)?;
        let patch = json!({"metadata": {"annotations": {format!("patched-{sub}"): "true"}}});
        let patched = call(s, Method::PATCH, &path, &patch, 200)?;
        ensure!(patched["metadata"]["annotations"][format!("patched-{sub}")] == "true", "{patched}");
        let updated = replace(s, &path, &format!("updated-{sub}"))?;
        ensure!(updated["metadata"]["annotations"][format!("updated-{sub}")] == "true", "{updated}");
    }
    call(s, Method::DELETE, &one, &Value::Null, 200)?;
    call(s, Method::DELETE, &format!("{base}?{selector}"), &Value::Null, 200)?;
    // Finalizers of some kinds are their controllers' to remove.
    let deadline = std::time::Instant::now() + testkit::cluster::WAIT_MAX;
    loop {
        let list = call(s, Method::GET, &format!("{base}?{selector}"), &Value::Null, 200)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        if items.iter().all(|i| !i["metadata"]["deletionTimestamp"].is_null()) {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "still there: {items:?}");
        // The next event of any of them is a reason to look again.
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let next = format!("{base}?watch=true&timeoutSeconds=30&{selector}&resourceVersion={version}");
        call(s, Method::GET, &next, &Value::Null, 200)?;
    }
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    let mut all = platform();
    all.extend(network());
    all.extend(storage());
    all.extend(devices());
    all.extend(protocol());
    all
}

fn platform() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] API priority and fairness should support FlowSchema API operations [Conformance]",
            run: |s| operations(s, "flowcontrol.apiserver.k8s.io/v1", "flowschemas", "FlowSchema", false),
        },
        Case {
            name: "[sig-api-machinery] API priority and fairness should support PriorityLevelConfiguration API operations [Conformance]",
            run: |s| {
                operations(
                    s,
                    "flowcontrol.apiserver.k8s.io/v1",
                    "prioritylevelconfigurations",
                    "PriorityLevelConfiguration",
                    false,
                )
            },
        },
        Case {
            name: "[sig-apps] CronJob should support CronJob API operations [Conformance]",
            run: |s| operations(s, "batch/v1", "cronjobs", "CronJob", true),
        },
        Case {
            name: "[sig-apps] DisruptionController Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets [Conformance]",
            run: |s| operations(s, "policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", true),
        },
        Case {
            name: "[sig-node] ConfigMap should run through a ConfigMap lifecycle [Conformance]",
            run: |s| operations(s, "v1", "configmaps", "ConfigMap", true),
        },
        Case {
            name: "[sig-node] PodTemplates should run the lifecycle of PodTemplates [Conformance]",
            run: |s| operations(s, "v1", "podtemplates", "PodTemplate", true),
        },
        Case {
            name: "[sig-node] RuntimeClass should support RuntimeClasses API operations [Conformance]",
            run: |s| operations(s, "node.k8s.io/v1", "runtimeclasses", "RuntimeClass", false),
        },
        Case {
            name: "[sig-scheduling] SchedulerPreemption [Serial] PriorityClass endpoints verify PriorityClass endpoints can be operated with different HTTP methods [Conformance]",
            run: |s| operations(s, "scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", false),
        },
    ]
}

fn network() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] EndpointSlice should support creating EndpointSlice API operations [Conformance]",
            run: |s| operations(s, "discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
        },
        Case {
            name: "[sig-network] Ingress API should support creating Ingress API operations [Conformance]",
            run: |s| operations(s, "networking.k8s.io/v1", "ingresses", "Ingress", true),
        },
        Case {
            name: "[sig-network] IngressClass API should support creating IngressClass API operations [Conformance]",
            run: |s| operations(s, "networking.k8s.io/v1", "ingressclasses", "IngressClass", false),
        },
        Case {
            name: "[sig-network] ServiceCIDR and IPAddress API should support IPAddress API operations [Conformance]",
            run: |s| operations(s, "networking.k8s.io/v1", "ipaddresses", "IPAddress", false),
        },
        Case {
            name: "[sig-network] ServiceCIDR and IPAddress API should support ServiceCIDR API operations [Conformance]",
            run: |s| operations(s, "networking.k8s.io/v1", "servicecidrs", "ServiceCIDR", false),
        },
    ]
}

fn storage() -> Vec<Case> {
    const GV: &str = "storage.k8s.io/v1";
    vec![
        Case {
            name: "[sig-storage] CSIInlineVolumes should run through the lifecycle of a CSIDriver [Conformance]",
            run: |s| operations(s, GV, "csidrivers", "CSIDriver", false),
        },
        Case {
            name: "[sig-storage] CSINodes CSI Conformance should run through the lifecycle of a csinode [Conformance]",
            run: |s| operations(s, GV, "csinodes", "CSINode", false),
        },
        Case {
            name: "[sig-storage] CSIStorageCapacity should support CSIStorageCapacities API operations [Conformance]",
            run: |s| operations(s, GV, "csistoragecapacities", "CSIStorageCapacity", true),
        },
        Case {
            name: "[sig-storage] StorageClasses CSI Conformance should run through the lifecycle of a StorageClass [Conformance]",
            run: |s| operations(s, GV, "storageclasses", "StorageClass", false),
        },
        Case {
            name: "[sig-storage] VolumeAttachment Conformance should run through the lifecycle of a VolumeAttachment [Conformance]",
            run: |s| operations(s, GV, "volumeattachments", "VolumeAttachment", false),
        },
        Case {
            name: "[sig-storage] VolumeAttributesClass [FeatureGate:VolumeAttributesClass] should run through the lifecycle of a VolumeAttributesClass [Conformance]",
            run: |s| operations(s, GV, "volumeattributesclasses", "VolumeAttributesClass", false),
        },
    ]
}

fn devices() -> Vec<Case> {
    const GV: &str = "resource.k8s.io/v1";
    vec![
        Case {
            name: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 DeviceClass [Conformance]",
            run: |s| operations(s, GV, "deviceclasses", "DeviceClass", false),
        },
        Case {
            name: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaim [Conformance]",
            run: |s| operations(s, GV, "resourceclaims", "ResourceClaim", true),
        },
        Case {
            name: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaimTemplate [Conformance]",
            run: |s| operations(s, GV, "resourceclaimtemplates", "ResourceClaimTemplate", true),
        },
        Case {
            name: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceSlice [Conformance]",
            run: |s| operations(s, GV, "resourceslices", "ResourceSlice", false),
        },
    ]
}

fn protocol() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] Servers with support for Table transformation should return a 406 for a backend which does not implement metadata [Conformance]",
            run: |s| {
                let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                    "spec": {"resourceAttributes": {"namespace": s.namespace, "verb": "get", "resource": "pods"}}});
                let headers = [
                    ("content-type", "application/json"),
                    ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
                ];
                let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
                let (code, ..) = s.raw(Method::POST, path, &headers, review.to_string())?;
                ensure!(code == 406, "answered {code}");
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Servers with support for API chunking should return chunks of results for list calls [Conformance]",
            run: |s| {
                const ALL: usize = 400;
                const PAGE: usize = 17;
                let base = format!("/api/v1/namespaces/{}/podtemplates", s.namespace);
                for i in 0..ALL {
                    let mut made = object(s, "v1", "PodTemplate", i)?;
                    made["metadata"]["name"] = format!("template-{i:04}").into();
                    call(s, Method::POST, &base, &made, 201)?;
                }
                let (mut seen, mut token, mut version) = (0, String::new(), Value::Null);
                loop {
                    let list = call(
                        s,
                        Method::GET,
                        &format!("{base}?limit={PAGE}&continue={token}"),
                        &Value::Null,
                        200,
                    )?;
                    let items = list["items"].as_array().context("no items")?;
                    ensure!(items.len() <= PAGE, "{} items", items.len());
                    for item in items {
                        ensure!(item["metadata"]["name"] == format!("template-{seen:04}").as_str(), "{seen}");
                        seen += 1;
                    }
                    let metadata = &list["metadata"];
                    ensure!(version.is_null() || version == metadata["resourceVersion"], "another version");
                    version = metadata["resourceVersion"].clone();
                    metadata["continue"].as_str().unwrap_or_default().clone_into(&mut token);
                    let left = metadata["remainingItemCount"].as_u64().unwrap_or(0) as usize;
                    ensure!(left == ALL - seen, "{left} remaining after {seen}");
                    if token.is_empty() {
                        break;
                    }
                }
                ensure!(seen == ALL, "{seen} seen");
                let whole = call(s, Method::GET, &format!("{base}?limit={}", ALL + 1), &Value::Null, 200)?;
                ensure!(whole["items"].as_array().is_some_and(|i| i.len() == ALL), "the whole list differs");
                Ok(())
            },
        },
    ]
}
