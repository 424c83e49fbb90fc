//! The verbs over a real store: what every kind gets from the one generic path.

use std::sync::Arc;

use meta::{Status, UserInfo};
use registry::admit::{Admit, AdmitAll, Attributes};
use registry::read::ListOptions;
use registry::{
    Config, DeleteOptions, FieldValidation, Patch, Registry, ResourceDef, Target, WriteOptions, Written,
};
use serde_json::{Map, Value, json};
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
        Fixture { registry, user: UserInfo::authenticated("tester", &[]), _dir: dir }
    }

    fn def(&self, group: &str, resource: &str) -> Arc<ResourceDef> {
        self.registry.table().find(group, "v1", resource).unwrap().clone()
    }

    fn options(&self, manager: &str) -> WriteOptions<'_> {
        WriteOptions {
            user: &self.user,
            dry_run: false,
            field_manager: manager.into(),
            field_validation: FieldValidation::Strict,
            force: false,
        }
    }

    async fn create(&self, def: &ResourceDef, object: Value) -> Result<Value, Status> {
        let mut warnings = Vec::new();
        let text = object.to_string();
        let decoded =
            registry::decode::decode_body(def, text.as_bytes(), FieldValidation::Strict, &mut warnings)?;
        let namespace = if def.namespaced { "default" } else { "" };
        let target = Target { def, namespace, name: "", subresource: "" };
        let written =
            self.registry.create(target, decoded, &self.options("tester"), &AdmitAll, warnings).await?;
        Ok(value(&written))
    }

    fn target<'a>(&self, def: &'a ResourceDef, name: &'a str) -> Target<'a> {
        Target { def, namespace: if def.namespaced { "default" } else { "" }, name, subresource: "" }
    }
}

fn value(written: &Written) -> Value {
    serde_json::from_slice(&written.bytes).unwrap()
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"n": name}}, "data": {"k": "v"}})
}

#[tokio::test]
async fn create_sets_what_the_server_sets_and_refuses_what_is_taken() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    let made = f.create(&maps, config_map("a")).await.unwrap();
    for key in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
        assert!(!made["metadata"][key].is_null(), "{key} in {made}");
    }
    let taken = f.create(&maps, config_map("a")).await.unwrap_err();
    assert_eq!((taken.code, taken.message.as_str()), (409, "configmaps \"a\" already exists"));
    let generated = f.create(&maps, json!({"metadata": {"generateName": "g-"}})).await.unwrap();
    let name = generated["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("g-") && name.len() == 7, "{name}");
    let bad = f.create(&maps, json!({"metadata": {"name": "A"}, "data": {"/": ""}})).await.unwrap_err();
    assert_eq!(bad.code, 422);
    assert_eq!(bad.details.unwrap().causes.len(), 2);
    let unknown = f.create(&maps, json!({"metadata": {"name": "b"}, "dada": {}})).await.unwrap_err();
    assert!(unknown.message.contains("strict decoding error: unknown field \"dada\""), "{}", unknown.message);
}

#[tokio::test]
async fn pages_belong_to_one_snapshot() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    for i in 0..5 {
        f.create(&maps, config_map(&format!("m{i}"))).await.unwrap();
    }
    let options = ListOptions { limit: 2, ..Default::default() };
    let first = f.registry.list(&maps, "default", &options).await.unwrap();
    assert_eq!((first.items.len(), first.remaining), (2, Some(3)));
    f.create(&maps, config_map("m2a")).await.unwrap();
    let (mut names, mut token) = (Vec::new(), first.continue_token);
    while !token.is_empty() {
        let options = ListOptions { limit: 2, continue_token: token, ..Default::default() };
        let page = f.registry.list(&maps, "default", &options).await.unwrap();
        assert_eq!(page.revision, first.revision);
        names.extend(page.items.iter().map(|o| o.name.to_string()));
        token = page.continue_token;
    }
    assert_eq!(names, ["m2", "m3", "m4"]);
    let selected = ListOptions { label_selector: "n in (m1,m4)".into(), ..Default::default() };
    assert_eq!(f.registry.list(&maps, "default", &selected).await.unwrap().items.len(), 2);
    let broken = ListOptions { continue_token: "x".into(), ..Default::default() };
    assert_eq!(f.registry.list(&maps, "default", &broken).await.err().unwrap().code, 400);
}

#[tokio::test]
async fn watches_see_every_change_and_selections_end_as_deletions() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    let made = f.create(&maps, config_map("a")).await.unwrap();
    let from = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let options = ListOptions { resource_version: from, label_selector: "n=a".into(), ..Default::default() };
    let mut watch = f.registry.watch(&maps, "default", "", &options).await.unwrap();
    let patch = |text: &'static str| Patch::Merge(text.as_bytes());
    for text in [r#"{"data":{"k":"w"}}"#, r#"{"metadata":{"labels":{"n":"other"}}}"#] {
        f.registry.patch(f.target(&maps, "a"), patch(text), &f.options("tester"), &AdmitAll).await.unwrap();
    }
    let first = watch.events.recv().await.unwrap();
    assert_eq!((first.change.as_str(), &*first.event.object.name), ("MODIFIED", "a"));
    assert_eq!(watch.events.recv().await.unwrap().change.as_str(), "DELETED");
}

#[tokio::test]
async fn stale_updates_conflict_and_no_changes_write_nothing() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    let made = f.create(&maps, config_map("a")).await.unwrap();
    let update = |object: Value| {
        let decoded = object.as_object().unwrap().clone();
        let (f, maps) = (&f, &maps);
        async move {
            f.registry.update(f.target(maps, "a"), decoded, &f.options("tester"), &AdmitAll, Vec::new()).await
        }
    };
    let mut next = made.clone();
    next["data"]["k"] = "w".into();
    let second = value(&update(next.clone()).await.unwrap());
    assert_ne!(second["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let stale = update(next).await.unwrap_err();
    assert!(
        stale.is_conflict() && stale.message.contains("the object has been modified"),
        "{}",
        stale.message
    );
    let same = value(&update(second.clone()).await.unwrap());
    assert_eq!(same["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn finalizers_hold_objects_until_they_are_gone() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    f.create(&maps, json!({"metadata": {"name": "a", "finalizers": ["x.io/f"]}})).await.unwrap();
    let gone = |dry_run| {
        let options = WriteOptions { dry_run, ..f.options("tester") };
        let (f, maps) = (&f, &maps);
        async move { f.registry.delete(f.target(maps, "a"), &DeleteOptions::default(), &options, &AdmitAll).await }
    };
    assert!(matches!(gone(true).await.unwrap(), registry::delete::Deleted::Pending(_)));
    let current = f.registry.get(&maps, "default", "a", "").await.unwrap().to_value();
    assert!(current["metadata"]["deletionTimestamp"].is_null(), "a dry run stores nothing");
    assert!(matches!(gone(false).await.unwrap(), registry::delete::Deleted::Pending(_)));
    let patch = Patch::Merge(br#"{"metadata":{"finalizers":null}}"#);
    f.registry.patch(f.target(&maps, "a"), patch, &f.options("tester"), &AdmitAll).await.unwrap();
    assert!(f.registry.get(&maps, "default", "a", "").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let f = Fixture::new().await;
    let sets = f.def("apps", "replicasets");
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    let made = f
        .create(&sets, json!({"metadata": {"name": "r"}, "spec": spec, "status": {"replicas": 9}}))
        .await
        .unwrap();
    assert_eq!((made["status"].clone(), made["metadata"]["generation"].clone()), (json!({}), json!(1)));
    let status = Target { subresource: "status", ..f.target(&sets, "r") };
    let both = Patch::Merge(br#"{"status":{"replicas":3},"spec":{"replicas":7}}"#);
    let after = value(&f.registry.patch(status, both, &f.options("tester"), &AdmitAll).await.unwrap());
    assert_eq!((&after["status"]["replicas"], &after["spec"]["replicas"]), (&json!(3), &json!(1)));
    let after =
        value(&f.registry.patch(f.target(&sets, "r"), both, &f.options("tester"), &AdmitAll).await.unwrap());
    assert_eq!((&after["spec"]["replicas"], &after["metadata"]["generation"]), (&json!(7), &json!(2)));
}

#[tokio::test]
async fn services_get_addresses_of_their_own() {
    let f = Fixture::new().await;
    let services = f.def("", "services");
    let ports = json!([{"port": 80}]);
    let mut seen = std::collections::HashSet::new();
    for i in 0..5 {
        let service =
            json!({"metadata": {"name": format!("s{i}")}, "spec": {"type": "NodePort", "ports": ports}});
        let made = f.create(&services, service).await.unwrap();
        assert!(seen.insert(made["spec"]["clusterIP"].to_string()));
        assert!(seen.insert(made["spec"]["ports"][0]["nodePort"].to_string()));
    }
    let taken = json!({"metadata": {"name": "t"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_000}]}});
    let first = f.create(&services, taken.clone()).await;
    let mut again = taken;
    again["metadata"]["name"] = "u".into();
    let second = f.create(&services, again).await;
    assert!(first.is_err() || second.is_err(), "one port was given twice");
}

#[tokio::test]
async fn appliers_own_fields() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    let apply = |manager: &'static str, text: &'static str| {
        let (f, maps) = (&f, &maps);
        async move {
            f.registry
                .patch(f.target(maps, "a"), Patch::Apply(text.as_bytes()), &f.options(manager), &AdmitAll)
                .await
        }
    };
    let made = apply(
        "one",
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"1","y":"1"}}"#,
    )
    .await
    .unwrap();
    assert!(made.created);
    let refused =
        apply("two", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"2"}}"#)
            .await
            .unwrap_err();
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"one\": .data.x");
    let less =
        apply("one", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"1"}}"#)
            .await
            .unwrap();
    assert_eq!(value(&less)["data"], json!({"x": "1"}));
}

/// Adds a label, as admission adds tolerations and volumes.
struct Labeller;

#[async_trait::async_trait]
impl Admit for Labeller {
    async fn mutate(
        &self,
        _: &Attributes<'_>,
        object: &mut Map<String, Value>,
        _: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        object["metadata"]["labels"]["added"] = "by-admission".into();
        Ok(())
    }
    async fn validate(
        &self,
        _: &Attributes<'_>,
        _: Option<&Map<String, Value>>,
        _: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        Ok(())
    }
}

#[tokio::test]
async fn what_admission_adds_belongs_to_nobody() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    let config = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","labels":{"n":"a"}}}"#;
    let Value::Object(object) = serde_json::from_str(config).unwrap() else { unreachable!() };
    let target = Target { def: &maps, namespace: "default", name: "", subresource: "" };
    let made = f.registry.create(target, object, &f.options("cli"), &Labeller, Vec::new()).await.unwrap();
    let owned = value(&made)["metadata"]["managedFields"][0]["fieldsV1"].to_string();
    assert!(owned.contains("f:n") && !owned.contains("f:added"), "{owned}");
    // Neither an update nor an applier takes it away or owns it.
    let merge = br#"{"data":{"k":"v"}}"#;
    let target = f.target(&maps, "a");
    let merged = f.registry.patch(target, Patch::Merge(merge), &f.options("cli"), &Labeller).await.unwrap();
    assert!(!value(&merged)["metadata"]["managedFields"].to_string().contains("f:added"));
    let apply = Patch::Apply(config.as_bytes());
    let applied = f.registry.patch(target, apply, &f.options("applier"), &AdmitAll).await.unwrap();
    assert_eq!(value(&applied)["metadata"]["labels"]["added"], "by-admission");
}

#[tokio::test]
async fn some_kinds_are_only_replaced_by_who_has_seen_them() {
    let f = Fixture::new().await;
    let accounts = f.def("", "serviceaccounts");
    let made = f.create(&accounts, json!({"metadata": {"name": "a"}})).await.unwrap();
    let put = async |name: &str, mut object: Value| {
        object["metadata"]["name"] = name.into();
        let object = object.as_object().unwrap().clone();
        let target = f.target(&accounts, name);
        f.registry.update(target, object, &f.options("tester"), &AdmitAll, Vec::new()).await
    };
    let mut blind = made.clone();
    blind["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let refused = put("a", blind.clone()).await.unwrap_err();
    assert_eq!(
        refused.message,
        "ServiceAccount \"a\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
    );
    assert!(put("b", blind).await.unwrap_err().is_not_found());
    put("a", made).await.unwrap();
}

#[tokio::test]
async fn a_configuration_of_another_type_is_not_applied() {
    let f = Fixture::new().await;
    let maps = f.def("", "configmaps");
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"},
        "data": {"k": 1}, "more": {}});
    let text = body.to_string();
    let patch = Patch::Apply(text.as_bytes());
    let refused =
        f.registry.patch(f.target(&maps, "a"), patch, &f.options("m"), &AdmitAll).await.unwrap_err();
    assert_eq!(refused.code, 500);
    assert_eq!(
        refused.message,
        "failed to create typed patch object (default/a; /v1, Kind=ConfigMap): errors:\n  .data.k: expected string, got &value.valueUnstructured{Value:1}\n  .more: field not declared in schema"
    );
}
