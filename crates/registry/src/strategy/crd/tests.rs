use super::*;

fn crd(version: Value) -> Object {
    let object = json!({
        "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"}, "versions": [version]},
    });
    let mut object = crate::write::into_map(object);
    Definition.default(&mut object);
    object
}

fn version(schema: Value) -> Value {
    json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}})
}

fn errors(object: &Object) -> Vec<String> {
    Definition.validate_create(object).unwrap_or_default().iter().map(|e| e.to_string()).collect()
}

#[test]
fn defaults_of_a_definition() {
    let object = crd(version(json!({"type": "object"})));
    assert_eq!(object["spec"]["names"]["singular"], "foo");
    assert_eq!(object["spec"]["names"]["listKind"], "FooList");
    assert_eq!(object["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(errors(&object), Vec::<String>::new());
}

/// A schema and everything that is wrong with it.
#[test]
fn schemas() {
    let at = "spec.validation.openAPIV3Schema";
    for (schema, wanted) in [
        (json!({"type": "string"}), vec![".type: Invalid value: \"string\": must be object at the root"]),
        (
            json!({"type": "object", "properties": {"a": {}}}),
            vec![".properties[a].type: Required value: must not be empty for specified object fields"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            vec![".properties[a].items: Required value: must be specified"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"type": "string"}]}}}),
            vec![".properties[a].anyOf[0].type: Forbidden: must be empty to be structural"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}),
            vec![],
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"x": {"minimum": 1}}}]}),
            vec![
                ".properties[x]: Required value: because it is defined in spec.validation.openAPIV3Schema.anyOf[0].properties[x]",
            ],
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            vec![
                ".properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            vec![
                ".properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "default": {"b": 1}}}}),
            vec![".properties[a].default: Invalid value: {\"b\":1}: must not have unknown fields"],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true, "items": {"type": "string"}}}}),
            vec![
                ".properties[a].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}}),
            vec![
                ".properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "banana"}}}),
            vec![
                ".properties[a].type: Unsupported value: \"banana\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
            ],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
            vec![
                ".properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error parsing regexp: unclosed group",
            ],
        ),
    ] {
        let wanted: Vec<String> = wanted.into_iter().map(|w| format!("{at}{w}")).collect();
        assert_eq!(errors(&crd(version(schema.clone()))), wanted, "{schema}");
    }
}

#[test]
fn names_versions_and_the_rest() {
    let change = |path: &str, value: Value| {
        let mut object = Value::Object(crd(version(json!({"type": "object"}))));
        *object.pointer_mut(path).expect(path) = value;
        errors(&crate::write::into_map(object))
    };
    for (path, value, wanted) in [
        (
            "/metadata/name",
            json!("x.example.com"),
            "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            "/spec/scope",
            json!("Moon"),
            "spec.scope: Unsupported value: \"Moon\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            "/spec/names/listKind",
            json!("Foo"),
            "spec.names.listKind: Invalid value: \"Foo\": kind and listKind may not be the same",
        ),
        (
            "/spec/versions/0/storage",
            json!(false),
            "spec.versions: Invalid value: [\"v1\"]: must have exactly one version marked as storage version",
        ),
        ("/spec/versions/0/schema", json!(null), "spec.versions[0].schema.openAPIV3Schema: Required value"),
        (
            "/spec/conversion",
            json!({"strategy": "Webhook"}),
            "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
        ),
    ] {
        let found = change(path, value);
        assert!(found.iter().any(|e| e == wanted), "{path}: {found:?}");
    }
    let scaled = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
        "subresources": {"scale": {"specReplicasPath": ".status.n", "statusReplicasPath": ".status.n"}},
        "additionalPrinterColumns": [{"name": "A", "type": "moon", "jsonPath": "x"}], "selectableFields": [{"jsonPath": ".spec.x"}]});
    assert_eq!(
        errors(&crd(scaled)),
        [
            "spec.subresources.scale.specReplicasPath: Invalid value: \".status.n\": should be a json path under .spec",
            "spec.additionalPrinterColumns[0].type: Invalid value: \"moon\": must be one of boolean,date,integer,number,string",
            "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"x\": must be a simple json path starting with .",
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.x\": is an invalid path: does not refer to a valid field",
        ]
    );
}

#[test]
fn groups_of_kubernetes_need_approval() {
    let mut object = crd(version(json!({"type": "object"})));
    object["spec"]["group"] = "foo.k8s.io".into();
    object["metadata"]["name"] = "foos.foo.k8s.io".into();
    assert!(errors(&object)[0].starts_with(
        "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have"
    ));
    object["metadata"]["annotations"] = json!({APPROVAL: "https://github.com/kubernetes/kubernetes/pull/1"});
    assert!(errors(&object).is_empty());
}

#[test]
fn deletion_leaves_a_finalizer() {
    let mut object = crd(version(json!({"type": "object"})));
    object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    Definition.begin_deletion(&mut object);
    assert_eq!(object["metadata"]["finalizers"], json!([CLEANUP_FINALIZER]));
    assert!(is_true(&object, "Terminating"));
}
