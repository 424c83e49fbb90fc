use super::*;

fn deployment() -> (&'static Schema, TypeId) {
    let schema = Schema::builtin();
    (schema, schema.kind("apps", "v1", "Deployment").unwrap())
}

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, api_version: "apps/v1", subresource: "", now: "2026-01-01T00:00:00Z" }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn apply_as(
    live: Option<&Map<String, Value>>,
    config: Value,
    manager: &str,
    force: bool,
) -> Result<Map<String, Value>, Status> {
    let (schema, ty) = deployment();
    apply(schema, ty, live, &object(config), &writer(manager), force)
}

fn config(replicas: Option<i64>, containers: Value) -> Value {
    let mut v = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "1"}},
        "spec": {"template": {"spec": {"containers": containers}}}});
    if let Some(n) = replicas {
        v["spec"]["replicas"] = n.into();
    }
    v
}

#[test]
fn applying_again_without_a_field_removes_it() {
    let first = apply_as(
        None,
        config(Some(3), json!([{"name": "a", "image": "x"}, {"name": "b", "image": "y"}])),
        "m",
        false,
    )
    .unwrap();
    let mut live = first.clone();
    live["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = "Always".into();
    let second =
        apply_as(Some(&live), config(None, json!([{"name": "a", "image": "x"}])), "m", false).unwrap();
    assert_eq!(second["spec"].get("replicas"), None);
    assert_eq!(second["spec"]["template"]["spec"]["containers"], json!([{"name": "a", "image": "x"}]));
    assert_eq!(second["metadata"]["labels"], json!({"a": "1"}));
}

#[test]
fn conflicts_name_the_manager_and_the_field() {
    let live = apply_as(None, config(Some(3), json!([{"name": "a", "image": "x"}])), "one", false).unwrap();
    let e = apply_as(Some(&live), config(Some(5), json!([{"name": "a", "image": "x"}])), "two", false)
        .unwrap_err();
    assert_eq!(e.message, "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    assert_eq!(e.details.as_ref().unwrap().causes[0].reason, "FieldManagerConflict");
    let forced =
        apply_as(Some(&live), config(Some(5), json!([{"name": "a", "image": "x"}])), "two", true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    // The first manager no longer owns the field, so leaving it out does not remove it.
    let third =
        apply_as(Some(&forced), config(None, json!([{"name": "a", "image": "x"}])), "one", false).unwrap();
    assert_eq!(third["spec"]["replicas"], 5);
}

#[test]
fn updates_take_ownership() {
    let (schema, ty) = deployment();
    let live = apply_as(None, config(Some(3), json!([{"name": "a", "image": "x"}])), "one", false).unwrap();
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 7.into();
    track_update(schema, ty, Some(&live), &mut scaled, &writer("hpa"));
    let e = apply_as(Some(&scaled), config(Some(3), json!([{"name": "a", "image": "x"}])), "one", false)
        .unwrap_err();
    assert!(
        e.message.contains("conflict with \"hpa\" using apps/v1 at 2026-01-01T00:00:00Z: .spec.replicas"),
        "{}",
        e.message
    );
    let without =
        apply_as(Some(&scaled), config(None, json!([{"name": "a", "image": "x"}])), "one", false).unwrap();
    assert_eq!(without["spec"]["replicas"], 7);
}

#[test]
fn an_update_that_changes_nothing_leaves_no_trace() {
    let (schema, ty) = deployment();
    let live = apply_as(None, config(Some(3), json!([{"name": "a"}])), "one", false).unwrap();
    let mut same = live.clone();
    track_update(schema, ty, Some(&live), &mut same, &writer("other"));
    assert_eq!(same, live);
}

#[test]
fn two_appliers_share_an_object() {
    let live = apply_as(None, config(None, json!([{"name": "a", "image": "x"}])), "one", false).unwrap();
    let both =
        apply_as(Some(&live), config(None, json!([{"name": "b", "image": "y"}])), "two", false).unwrap();
    let names = |o: &Map<String, Value>| -> Vec<String> {
        o["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(names(&both).len(), 2);
    let gone = apply_as(Some(&both), config(None, json!([])), "one", false).unwrap();
    assert_eq!(names(&gone), ["b"]);
}
