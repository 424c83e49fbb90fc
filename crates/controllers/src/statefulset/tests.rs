//! Rounds of StatefulSets as tables: pods in, steps out.

use std::sync::Arc;

use api::prelude::*;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Plan, Revisions, Step, plan};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn set(spec: Value) -> StatefulSet {
    let mut full = json!({"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "serviceName": "svc",
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}});
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    StatefulSet::from_value(json!({"metadata": {"name": "web", "namespace": "n", "uid": "w"}, "spec": full}))
        .unwrap()
}

/// A pod from a short form: ordinal, revision and states: `r`eady, `p`ending, `u`nready, `f`ailed, `t`erminating.
fn pod(text: &str) -> Arc<Pod> {
    let mut parts = text.split(' ');
    let (ordinal, revision, state) =
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap_or("r"));
    let phase = match state.chars().next() {
        Some('p') => "Pending",
        Some('f') => "Failed",
        _ => "Running",
    };
    let ready = state.starts_with('r');
    let mut metadata = json!({"name": format!("web-{ordinal}"), "namespace": "n", "uid": format!("{ordinal}"),
        "labels": {"controller-revision-hash": revision, "apps.kubernetes.io/pod-index": ordinal,
            "statefulset.kubernetes.io/pod-name": format!("web-{ordinal}")}});
    if state.ends_with('t') {
        metadata["deletionTimestamp"] = at(0).to_string().into();
    }
    let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" },
        "lastTransitionTime": at(0).to_string()});
    let status = json!({"phase": phase, "conditions": [condition]});
    Arc::new(Pod::from_value(json!({"metadata": metadata, "status": status})).unwrap())
}

fn round(spec: Value, pods: &[&str]) -> Plan {
    let pods: Vec<Arc<Pod>> = pods.iter().map(|p| pod(p)).collect();
    plan(&set(spec), &pods, Revisions { current: "old", update: "new" }, &|_| None, at(100))
}

/// The steps in short: `+2n` makes number two anew, `-1` deletes, `~1` replaces, `c0` makes claims, `m0` mends.
fn steps(spec: Value, pods: &[&str]) -> String {
    let number = |pod: &Pod| pod.name().trim_start_matches("web-").to_owned();
    let show = |step: &Step| match step {
        Step::Create { ordinal, updated } => format!("+{ordinal}{}", if *updated { "n" } else { "o" }),
        Step::Claims(ordinal) => format!("c{ordinal}"),
        Step::Delete(pod) => format!("-{}", number(pod)),
        Step::Replace(pod) => format!("~{}", number(pod)),
        Step::Mend(pod) => format!("m{}", number(pod)),
        Step::Own(claim) => format!("o{}", claim.name()),
    };
    round(spec, pods).steps.iter().map(show).collect::<Vec<_>>().join(" ")
}

#[test]
fn pods_come_in_order() {
    let ordered = || json!({});
    assert_eq!(steps(ordered(), &[]), "+0n");
    assert_eq!(steps(ordered(), &["0 new p"]), "");
    assert_eq!(steps(ordered(), &["0 new u"]), "");
    assert_eq!(steps(ordered(), &["0 new"]), "+1n");
    assert_eq!(steps(ordered(), &["0 new rt", "1 new"]), "");
    assert_eq!(steps(ordered(), &["0 new", "2 new"]), "+1n");
    assert_eq!(steps(ordered(), &["0 new f"]), "~0");
    assert_eq!(steps(ordered(), &["0 new ft"]), "");
    assert_eq!(steps(json!({"ordinals": {"start": 5}}), &["5 new"]), "+6n");
    assert_eq!(steps(json!({"minReadySeconds": 200}), &["0 new"]), "");
    assert!(round(json!({"minReadySeconds": 200}), &["0 new"]).wait.unwrap().as_secs() >= 100);
}

#[test]
fn pods_come_at_once() {
    let parallel = |replicas: i32| json!({"podManagementPolicy": "Parallel", "replicas": replicas});
    assert_eq!(steps(parallel(3), &[]), "+0n +1n +2n");
    assert_eq!(steps(parallel(3), &["1 new u"]), "+0n +2n");
    assert_eq!(steps(parallel(1), &["0 new u", "1 new u", "2 new"]), "-2 -1");
}

#[test]
fn pods_go_from_the_highest_down() {
    let to = |replicas: i32| json!({"replicas": replicas});
    assert_eq!(steps(to(1), &["0 new", "1 new", "2 new"]), "-2");
    assert_eq!(steps(to(1), &["0 new", "1 new", "2 new rt"]), "");
    // An unhealthy pod that stays holds up the rest; one that goes only when it is the first unhealthy one.
    assert_eq!(steps(to(1), &["0 new u", "1 new", "2 new"]), "");
    assert_eq!(steps(to(1), &["0 new", "1 new", "2 new u"]), "-2");
    assert_eq!(steps(to(1), &["0 new", "1 new u", "2 new u"]), "");
    assert_eq!(steps(to(0), &["0 new"]), "-0");
    assert_eq!(steps(json!({"replicas": 1, "ordinals": {"start": 1}}), &["0 new", "1 new"]), "-0");
}

#[test]
fn updates_respect_partition_and_budget() {
    let with =
        |rolling: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
    let all_old = ["0 old", "1 old", "2 old"];
    assert_eq!(steps(json!({}), &all_old), "-2");
    assert_eq!(steps(json!({}), &["0 old", "1 old", "2 new"]), "-1");
    assert_eq!(steps(json!({}), &["0 old", "1 old", "2 new u"]), "");
    assert_eq!(steps(with(json!({"partition": 3})), &all_old), "");
    assert_eq!(steps(with(json!({"partition": 2})), &["0 old", "1 old", "2 new"]), "");
    assert_eq!(steps(with(json!({"partition": 2})), &["1 old", "2 new"]), "+0o");
    assert_eq!(steps(with(json!({"partition": 2})), &["0 old", "1 old"]), "+2n");
    assert_eq!(steps(with(json!({"partition": 0, "maxUnavailable": 2})), &all_old), "-2 -1");
    assert_eq!(steps(with(json!({"partition": 0, "maxUnavailable": "70%"})), &all_old), "-2 -1");
    assert_eq!(steps(with(json!({"partition": 0, "maxUnavailable": "10%"})), &all_old), "-2");
    assert_eq!(steps(json!({"updateStrategy": {"type": "OnDelete"}}), &all_old), "");
    assert_eq!(steps(json!({"updateStrategy": {"type": "OnDelete"}}), &["0 old", "1 old"]), "+2n");
    // Where nothing has to be ordered, a broken pod of the old revision goes whatever the budget.
    let parallel = json!({"podManagementPolicy": "Parallel"});
    assert_eq!(steps(parallel, &["0 old u", "1 old", "2 new"]), "-0");
}

#[test]
fn claims_and_labels_are_mended() {
    let claims = json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
    assert_eq!(steps(claims, &["0 new p"]), "c0");
    let mut bare = Pod::clone(&pod("0 new"));
    bare.metadata.labels.as_mut().unwrap().remove("apps.kubernetes.io/pod-index");
    let set = set(json!({"replicas": 1}));
    let revisions = Revisions { current: "new", update: "new" };
    let plan = plan(&set, &[Arc::new(bare)], revisions, &|_| None, at(0));
    assert!(matches!(plan.steps.as_slice(), [Step::Mend(pod)] if **pod == *super::tests::pod("0 new")));
}

#[test]
fn status_counts_and_completes() {
    let status = round(json!({}), &["0 old", "1 old p", "2 new rt"]).status;
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (3, Some(2), Some(2)));
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), None));
    assert_eq!(status.current_revision.as_deref(), Some("old"));
    let done = round(json!({}), &["0 new", "1 new", "2 new"]).status;
    assert_eq!((done.current_revision.as_deref(), done.current_replicas), (Some("new"), Some(3)));
}

#[test]
fn pods_have_their_place() {
    let claims =
        json!({"volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"x": "y"}}, "spec": {}}]});
    let set = set(claims);
    let mut template = set.spec.template.clone();
    template.spec.as_mut().unwrap().volumes =
        serde_json::from_value(json!([{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]))
            .unwrap();
    let pod = super::pod::new(&set, &template, "web-1", 2).encode();
    assert_eq!(pod["metadata"]["name"], "web-2");
    assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "2");
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("web-2"), &json!("svc")));
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-2"}}, {"name": "tmp", "emptyDir": {}}])
    );
    let claim = &super::pod::claims(&set, 2)[0];
    assert_eq!(json!(claim.metadata.labels), json!({"a": "b", "x": "y"}));
    let named = |name: &str| Pod::from_value(json!({"metadata": {"name": name}})).unwrap();
    let ordinal = |name: &str| super::pod::ordinal(&set, &named(name));
    assert_eq!(
        (ordinal("web-7"), ordinal("web-x-7"), ordinal("other-7"), ordinal("web-")),
        (Some(7), None, None, None)
    );
}
