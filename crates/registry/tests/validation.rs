//! What is refused and why: objects of every group with the causes that upstream reports for them.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::{Status, UserInfo};
use registry::admit::AdmitAll;
use registry::{Config, FieldValidation, Patch, Registry, Target, WriteOptions};
use serde_json::{Value, json};
use stdx::{SeededRandom, SystemClock};

struct Fixture {
    registry: Arc<Registry>,
    user: UserInfo,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = store::disk::DiskStore::open(dir.path(), store::disk::Options::default()).unwrap();
        let config = Config {
            service_cidr: "10.43.0.0/24".into(),
            node_ports: 30_000..=30_010,
            runtime: Default::default(),
        };
        let random = Arc::new(SeededRandom::new(1));
        let registry =
            Registry::start(Arc::new(store), &config, SystemClock::shared(), random).await.unwrap();
        Fixture { registry, user: UserInfo::authenticated("tester", &["a"]), _dir: dir }
    }

    fn options(&self) -> WriteOptions<'_> {
        WriteOptions {
            user: &self.user,
            dry_run: false,
            field_manager: "tester".into(),
            field_validation: FieldValidation::Strict,
            force: false,
        }
    }

    async fn create(&self, place: &str, mut object: Value) -> Result<Value, Status> {
        let table = self.registry.table();
        let (group, resource) = place.split_once('/').unwrap();
        let row = table.rows().iter().find(|r| &*r.group == group && &*r.resource == resource).unwrap();
        if object["metadata"].is_null() {
            object["metadata"] = json!({"name": "x"});
        }
        let mut warnings = Vec::new();
        let text = object.to_string();
        let decoded =
            registry::decode::decode_body(row, text.as_bytes(), FieldValidation::Strict, &mut warnings)?;
        let namespace = if row.namespaced { "default" } else { "" };
        let target = Target { def: row, namespace, name: "", subresource: "" };
        let written = self.registry.create(target, decoded, &self.options(), &AdmitAll, warnings).await?;
        Ok(serde_json::from_slice(&written.bytes).unwrap())
    }

    async fn patch(&self, place: &str, sub: &str, patch: Value) -> Result<Value, Status> {
        let table = self.registry.table();
        let (group, resource) = place.split_once('/').unwrap();
        let row = table.rows().iter().find(|r| &*r.group == group && &*r.resource == resource).unwrap();
        let namespace = if row.namespaced { "default" } else { "" };
        let target = Target { def: row, namespace, name: "x", subresource: sub };
        let text = patch.to_string();
        let written =
            self.registry.patch(target, Patch::Merge(text.as_bytes()), &self.options(), &AdmitAll).await?;
        Ok(serde_json::from_slice(&written.bytes).unwrap())
    }
}

/// The causes as `field: message`.
fn causes(result: Result<Value, Status>) -> Vec<String> {
    match result {
        Ok(object) => vec![format!("accepted: {object}")],
        Err(status) => {
            let details = status.details.clone().unwrap_or_default();
            if details.causes.is_empty() {
                return vec![status.message];
            }
            details.causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
        }
    }
}

async fn refused(rows: &[(&str, Value, &[&str])]) {
    let f = Fixture::new().await;
    for (place, object, expected) in rows {
        assert_eq!(causes(f.create(place, object.clone()).await), *expected, "{place} {object}");
    }
}

#[tokio::test]
async fn networking() {
    let path = |p: Value| json!({"spec": {"rules": [{"http": {"paths": [p]}}]}});
    let service = json!({"service": {"name": "s", "port": {"number": 80}}});
    refused(&[
        ("networking.k8s.io/ingresses", json!({"spec": {}}), &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]),
        ("networking.k8s.io/ingresses", json!({"spec": {"defaultBackend": {}}}), &["spec.defaultBackend: Required value: resource or service backend is required"]),
        ("networking.k8s.io/ingresses", json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {}}}}}), &["spec.defaultBackend.service.port: Required value: port name or number is required"]),
        ("networking.k8s.io/ingresses", path(json!({"path": "/", "pathType": "Loose", "backend": service})), &["spec.rules[0].http.paths[0].pathType: Unsupported value: \"Loose\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\""]),
        ("networking.k8s.io/ingresses", path(json!({"path": "a", "pathType": "Prefix", "backend": service})), &["spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path"]),
        ("networking.k8s.io/ingresses", json!({"spec": {"rules": [{"host": "1.2.3.4"}]}}), &["spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address"]),
        ("networking.k8s.io/ingressclasses", json!({"spec": {"controller": "x"}}), &["spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")"]),
        ("networking.k8s.io/networkpolicies", json!({"spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}}), &["spec.ingress[0].from[0]: Required value: must specify a peer"]),
        ("networking.k8s.io/networkpolicies", json!({"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80, "endPort": 70}]}]}}), &["spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`"]),
        ("networking.k8s.io/networkpolicies", json!({"spec": {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}}), &["spec.egress[0].to[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]),
        ("networking.k8s.io/networkpolicies", json!({"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": "http", "endPort": 70}, {"endPort": 7}]}]}}), &["spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is non-numeric", "spec.ingress[0].ports[1].endPort: Invalid value: 7: may not be specified when `port` is not specified"]),
        ("networking.k8s.io/networkpolicies", json!({"spec": {"podSelector": {}, "egress": [{"to": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}}]}]}}), &["spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer", "spec.egress[0].to[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"]),
        ("networking.k8s.io/servicecidrs", json!({"spec": {}}), &["spec.cidrs: Required value: at least one CIDR required"]),
    ])
    .await;
}

#[tokio::test]
async fn policy_and_autoscaling() {
    let target = json!({"kind": "Deployment", "name": "d"});
    refused(&[
        ("policy/poddisruptionbudgets", json!({"spec": {"minAvailable": 1, "maxUnavailable": 1}}), &["spec: Invalid value: {\"maxUnavailable\":1,\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set"]),
        ("policy/poddisruptionbudgets", json!({"spec": {"minAvailable": "101%"}}), &["spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"]),
        ("policy/poddisruptionbudgets", json!({"spec": {"maxUnavailable": -1}}), &["spec.maxUnavailable: Invalid value: -1: must be greater than or equal to 0"]),
        ("autoscaling/horizontalpodautoscalers", json!({"spec": {"maxReplicas": 0, "minReplicas": 1, "scaleTargetRef": target}}), &["spec.maxReplicas: Invalid value: 0: must be greater than 0", "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`"]),
        ("autoscaling/horizontalpodautoscalers", json!({"spec": {"maxReplicas": 2, "minReplicas": 0, "scaleTargetRef": target}}), &["spec.minReplicas: Invalid value: 0: must be greater than or equal to 1"]),
        ("autoscaling/horizontalpodautoscalers", json!({"spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "", "name": ""}}}), &["spec.scaleTargetRef.kind: Required value", "spec.scaleTargetRef.name: Required value"]),
    ])
    .await;
}

#[tokio::test]
async fn what_autoscalers_go_by() {
    let with = |member: &str, value: Value| {
        let mut spec = json!({"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d"}});
        spec[member] = value;
        ("autoscaling/horizontalpodautoscalers", json!({"spec": spec}))
    };
    let target = json!({"type": "AverageValue", "averageValue": "1"});
    let rows: Vec<((&str, Value), &[&str])> = vec![
        (
            with("metrics", json!([{"type": "Pods"}])),
            &["spec.metrics[0].pods: Required value: must populate information for the given metric source"],
        ),
        (
            with(
                "metrics",
                json!([{"type": "Pods", "pods": {"metric": {"name": "m"}, "target": target}, "resource": {"name": "cpu", "target": target}}]),
            ),
            &["spec.metrics[0].resource: Forbidden: must populate the given metric source only"],
        ),
        (
            with(
                "metrics",
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]),
            ),
            &[
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
            ],
        ),
        (
            with(
                "metrics",
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Some", "averageUtilization": 0}}}]),
            ),
            &[
                "spec.metrics[0].resource.target.type: Invalid value: \"Some\": must be either Utilization, Value, or AverageValue",
                "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
            ],
        ),
        (
            with(
                "metrics",
                json!([{"type": "External", "external": {"metric": {"name": "a/b"}, "target": {"type": "Value", "value": "1", "averageValue": "1"}}}]),
            ),
            &[
                "spec.metrics[0].external.metric.name: Invalid value: \"a/b\": may not contain '/'",
                "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
            ],
        ),
        (
            with(
                "metrics",
                json!([{"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "-1"}}}]),
            ),
            &[
                "spec.metrics[0].pods.target.averageValue: Invalid value: \"-1\": must be positive",
                "spec.metrics[0].pods.target.averageValue: Required value: must specify a positive target averageValue",
            ],
        ),
        (
            with(
                "behavior",
                json!({"scaleUp": {"stabilizationWindowSeconds": 3601, "policies": [{"type": "Pods", "value": 0, "periodSeconds": 1801}]}}),
            ),
            &[
                "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
                "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
            ],
        ),
    ];
    let rows: Vec<(&str, Value, &[&str])> = rows.into_iter().map(|((p, o), e)| (p, o, e)).collect();
    refused(&rows).await;
}

#[tokio::test]
async fn flow_control() {
    let (schemas, levels) = (
        "flowcontrol.apiserver.k8s.io/flowschemas",
        "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations",
    );
    let schema =
        |rule: Value| json!({"spec": {"priorityLevelConfiguration": {"name": "p"}, "rules": [rule]}});
    let user = json!([{"kind": "User", "user": {"name": "u"}}]);
    let resources = |rule: Value| schema(json!({"subjects": user, "resourceRules": [rule]}));
    let paths = |verbs: Value, urls: Value| {
        schema(json!({"subjects": user, "nonResourceRules": [{"verbs": verbs, "nonResourceURLs": urls}]}))
    };
    let limited =
        |response: Value| json!({"spec": {"type": "Limited", "limited": {"limitResponse": response}}});
    let queues = |queues: u32, hand: u32| {
        limited(
            json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 5}}),
        )
    };
    refused(&[
        (schemas, json!({"spec": {"priorityLevelConfiguration": {"name": "p"}, "matchingPrecedence": 1}}), &["spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1"]),
        (schemas, schema(json!({"subjects": user})), &["spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty"]),
        (schemas, schema(json!({"subjects": [{"kind": "Group", "user": {"name": "u"}}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})), &["spec.rules[0].subjects[0].group: Required value: group is required when subject kind is 'Group'", "spec.rules[0].subjects[0].user: Forbidden: user is forbidden when subject kind is not 'User'"]),
        (schemas, resources(json!({"verbs": ["*", "get"], "apiGroups": ["*"], "resources": ["*"]})), &["spec.rules[0].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify other verbs", "spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace"]),
        (schemas, resources(json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["A"]})), &["spec.rules[0].resourceRules[0].namespaces[0]: Invalid value: \"A\": each member of this list must be '*' or a DNS-1123 label; a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]),
        (schemas, paths(json!(["get"]), json!(["/a*b"])), &["spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/a*b\": wildcard can only do suffix matching"]),
        (levels, json!({"spec": {"type": "Exempt"}}), &["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'"]),
        (levels, json!({"spec": {"type": "Limited"}}), &["spec.limited: Required value: must not be empty when type is Limited"]),
        (levels, limited(json!({"type": "Queue"})), &["spec.limited.limitResponse.queuing: Required value: must not be empty if limited.limitResponse.type is Limited"]),
        (levels, queues(4, 5), &["spec.limited.limitResponse.queuing.handSize: Invalid value: 5: should not be greater than queues (4)"]),
        (levels, queues(512, 8), &["spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60"]),
        (levels, json!({"metadata": {"name": "catch-all"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 6, "limitResponse": {"type": "Reject"}}}}), &["spec: Invalid value: {\"limited\":{\"lendablePercent\":0,\"limitResponse\":{\"type\":\"Reject\"},\"nominalConcurrencyShares\":6},\"type\":\"Limited\"}: spec of 'catch-all' must equal the fixed value"]),
    ])
    .await;
    let f = Fixture::new().await;
    f.create(
        schemas,
        resources(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["*"]})),
    )
    .await
    .unwrap();
    f.create(levels, queues(64, 6)).await.unwrap();
    f.create(levels, json!({"metadata": {"name": "exempt"}, "spec": {"type": "Exempt", "exempt": {"lendablePercent": 50}}})).await.unwrap();
}

#[tokio::test]
async fn storage() {
    let volume = |extra: Value| {
        let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
        for (k, v) in extra.as_object().unwrap() {
            spec[k] = v.clone();
        }
        json!({"spec": spec})
    };
    refused(&[
        ("/persistentvolumes", volume(json!({})), &["spec: Required value: must specify a volume type"]),
        ("/persistentvolumes", volume(json!({"hostPath": {"path": "/a"}, "nfs": {"server": "s", "path": "/"}})), &["spec.nfs: Forbidden: may not specify more than 1 volume type"]),
        ("/persistentvolumes", volume(json!({"hostPath": {"path": "/a"}, "accessModes": ["Any"]})), &["spec.accessModes[0]: Unsupported value: \"Any\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\""]),
        ("/persistentvolumeclaims", json!({"spec": {}}), &["spec.accessModes: Required value: at least 1 access mode is required", "spec.resources[storage]: Required value"]),
        ("/persistentvolumeclaims", json!({"spec": {"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}}}), &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"]),
        ("storage.k8s.io/storageclasses", json!({"provisioner": "p", "volumeBindingMode": "Later"}), &["volumeBindingMode: Unsupported value: \"Later\": supported values: \"Immediate\", \"WaitForFirstConsumer\""]),
        ("storage.k8s.io/volumeattachments", json!({"spec": {"attacher": "a", "nodeName": "n", "source": {}}}), &["spec.source: Invalid value: {}: must specify exactly one of inlineVolumeSpec and persistentVolumeName"]),
        ("storage.k8s.io/csinodes", json!({"spec": {"drivers": [{"name": "a.b", "nodeID": "1"}, {"name": "a.b", "nodeID": "1"}]}}), &["spec.drivers[1].name: Duplicate value: \"a.b\""]),
        ("storage.k8s.io/volumeattributesclasses", json!({"driverName": "a.b"}), &["parameters: Required value: must contain at least one key/value pair"]),
    ])
    .await;
}

#[tokio::test]
async fn quotas_classes_and_the_rest() {
    let limits = |l: Value| json!({"spec": {"limits": [l]}});
    refused(&[
        ("/resourcequotas", json!({"spec": {"hard": {"pods": "-1"}}}), &["spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"]),
        ("/limitranges", limits(json!({"type": "Container", "min": {"cpu": "3"}, "max": {"cpu": "2"}})), &["spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2"]),
        ("scheduling.k8s.io/priorityclasses", json!({"value": 1_000_000_001}), &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]),
        ("scheduling.k8s.io/priorityclasses", json!({"metadata": {"name": "system-x"}, "value": 1}), &["metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"]),
        ("node.k8s.io/runtimeclasses", json!({"handler": "A_B"}), &["handler: Invalid value: \"A_B\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]),
        ("apiregistration.k8s.io/apiservices", json!({"spec": {"group": "g.example", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}}), &["metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.g.example\""]),
        ("flowcontrol.apiserver.k8s.io/flowschemas", json!({"spec": {"priorityLevelConfiguration": {"name": "p"}, "matchingPrecedence": 10_001}}), &["spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000"]),
        ("resource.k8s.io/resourceclaims", json!({"spec": {"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "d"}}, {"name": "a", "exactly": {"deviceClassName": "d"}}]}}}), &["spec.devices.requests[1].name: Duplicate value: \"a\""]),
    ])
    .await;
}

#[tokio::test]
async fn what_must_not_change() {
    let f = Fixture::new().await;
    let rows: Vec<(&str, Value, Value, &[&str])> = vec![
        (
            "storage.k8s.io/storageclasses",
            json!({"provisioner": "a.b/c"}),
            json!({"provisioner": "x.y/z", "parameters": {"a": "b"}}),
            &[
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden.",
            ],
        ),
        (
            "scheduling.k8s.io/priorityclasses",
            json!({"value": 1}),
            json!({"value": 2}),
            &["value: Forbidden: may not be changed in an update."],
        ),
        (
            "node.k8s.io/runtimeclasses",
            json!({"handler": "a"}),
            json!({"handler": "b"}),
            &["handler: Invalid value: \"b\": field is immutable"],
        ),
        (
            "networking.k8s.io/ingressclasses",
            json!({"spec": {"controller": "a.b/c"}}),
            json!({"spec": {"controller": "a.b/d"}}),
            &["spec.controller: Invalid value: \"a.b/d\": field is immutable"],
        ),
        (
            "/persistentvolumes",
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/a"}}}),
            json!({"spec": {"hostPath": {"path": "/b"}}}),
            &[
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
            ],
        ),
        (
            "/persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
            json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}),
            &[
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ],
        ),
    ];
    for (place, object, patch, expected) in rows {
        f.create(place, object).await.unwrap();
        assert_eq!(causes(f.patch(place, "", patch).await), expected, "{place}");
    }
    // Labels may change, and a bound claim may grow.
    for place in ["storage.k8s.io/storageclasses", "/persistentvolumes", "/persistentvolumeclaims"] {
        f.patch(place, "", json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    }
    f.patch("/persistentvolumeclaims", "status", json!({"status": {"phase": "Bound"}})).await.unwrap();
    f.patch("/persistentvolumeclaims", "", json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_the_server_fills_in() {
    let f = Fixture::new().await;
    let hpa = json!({"spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
    let made = f.create("autoscaling/horizontalpodautoscalers", hpa).await.unwrap();
    assert_eq!(made["spec"]["minReplicas"], 1);
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    let made = f.create("scheduling.k8s.io/priorityclasses", json!({"value": 1})).await.unwrap();
    assert_eq!(made["preemptionPolicy"], "PreemptLowerPriority");
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::default();
    let request = STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap());
    let chain = STANDARD.encode(params.self_signed(&key).unwrap().pem());
    let csr = json!({"spec": {"request": request, "signerName": "a.example/b", "usages": ["client auth"], "username": "forged"}});
    let made = f.create("certificates.k8s.io/certificatesigningrequests", csr).await.unwrap();
    assert_eq!(made["spec"]["username"], "tester");
    // Approvals have a way of their own.
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}});
    let place = "certificates.k8s.io/certificatesigningrequests";
    let refused = f.patch(place, "status", approve.clone()).await.unwrap_err();
    assert!(refused.message.contains("updates may not add a condition of type \"Approved\""), "{refused}");
    let after = f.patch(place, "approval", approve).await.unwrap();
    assert_eq!(after["status"]["conditions"][0]["type"], "Approved");
    let after = f.patch(place, "status", json!({"status": {"certificate": chain}})).await.unwrap();
    assert_eq!(
        (&after["status"]["certificate"], &after["status"]["conditions"][0]["type"]),
        (&json!(chain), &json!("Approved"))
    );
}

#[tokio::test]
async fn defaults_that_depend_on_neighbours() {
    let f = Fixture::new().await;
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let rule = json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]});
    let spec = json!({"completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
        "podFailurePolicy": {"rules": [rule]}, "template": template});
    let job = f.create("batch/jobs", json!({"spec": spec})).await.unwrap();
    assert_eq!(job["spec"]["backoffLimit"], i32::MAX);
    assert_eq!(job["spec"]["podReplacementPolicy"], "Failed");
    assert_eq!(job["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["status"], "True");
}

#[tokio::test]
async fn what_says_nothing_is_not_stored() {
    let f = Fixture::new().await;
    let metadata = json!({"name": "x", "finalizers": [], "ownerReferences": [], "annotations": {}});
    let object = json!({"metadata": metadata, "data": {}, "binaryData": {}, "immutable": false});
    let made = f.create("/configmaps", object).await.unwrap();
    for gone in ["finalizers", "ownerReferences", "annotations"] {
        assert!(made["metadata"].get(gone).is_none(), "{made}");
    }
    assert!(made.get("data").is_none() && made["immutable"] == false, "{made}");
    let emptied = f.patch("/configmaps", "", json!({"metadata": {"labels": {}}})).await.unwrap();
    assert!(emptied["metadata"].get("labels").is_none(), "{emptied}");
}
