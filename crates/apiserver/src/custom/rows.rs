//! Rows of the resource table from a definition: one for each served version.

use std::cmp::Ordering;
use std::sync::Arc;

use registry::columns::{self, Column, Source};
use registry::custom::{Convert, Custom, Scale};
use registry::jsonpath::JsonPath;
use registry::strategy::StrategyRef;
use registry::strategy::crd::versions;
use registry::strategy::custom::CustomStrategy;
use registry::{ResourceDef, Subresource};
use schema::structural::{Props, types};
use serde_json::{Value, json};

use super::Definition;
use super::conversion::Webhook;
use crate::server::Server;

const METHODS: [&str; 7] = ["delete", "deletecollection", "get", "list", "patch", "post", "put"];
/// What a definition that is being deleted still serves.
const METHODS_TERMINATING: [&str; 4] = ["delete", "deletecollection", "get", "list"];

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn texts(value: &Value) -> Vec<Box<str>> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(Box::from).collect()
}

/// The rows of an established definition.
pub fn build(server: &Server, crd: &Definition) -> Vec<Arc<ResourceDef>> {
    let storage = versions(crd).find(|v| v["storage"] == true).cloned().unwrap_or_default();
    let storage_props = Arc::new(Props::parse(&storage["schema"]["openAPIV3Schema"]));
    let converter = Webhook::of(server, crd).map(|w| Arc::new(w) as Arc<dyn Convert>);
    let served = versions(crd).filter(|v| v["served"] == true);
    served
        .map(|version| {
            let shared =
                Shared { crd, storage: &storage, storage_props: &storage_props, converter: &converter };
            Arc::new(shared.row(version))
        })
        .collect()
}

struct Shared<'a> {
    crd: &'a Definition,
    storage: &'a Value,
    storage_props: &'a Arc<Props>,
    converter: &'a Option<Arc<dyn Convert>>,
}

impl Shared<'_> {
    fn row(&self, version: &Value) -> ResourceDef {
        let spec = &self.crd["spec"];
        let names = self.crd.get("status").map(|s| s["acceptedNames"].clone()).unwrap_or_default();
        let (group, name, kind) = (text(spec, "group"), text(version, "name"), text(&names, "kind"));
        let terminating = self.crd.get("metadata").is_some_and(|m| m.get("deletionTimestamp").is_some());
        let methods: &[&str] = if terminating { &METHODS_TERMINATING } else { &METHODS };
        let props = Props::parse(&version["schema"]["openAPIV3Schema"]);
        let shared_props = Arc::new(props.clone());
        let (schema, ty) = types::build(props, group, name, kind);
        let scale = scale(&version["subresources"]["scale"]);
        let deprecation =
            (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
                Some(warning) => warning.to_owned(),
                None => format!("{group}/{name} {kind} is deprecated"),
            });
        ResourceDef {
            group: group.into(),
            version: name.into(),
            resource: text(&names, "plural").into(),
            singular: text(&names, "singular").into(),
            kind: kind.into(),
            list_kind: text(&names, "listKind").into(),
            namespaced: text(spec, "scope") == "Namespaced",
            short_names: texts(&names["shortNames"]),
            categories: texts(&names["categories"]),
            methods: methods.iter().map(|m| Box::from(*m)).collect(),
            subresources: subresources(version),
            counts_generation: true,
            guards_updates: true,
            selectable: selectable(version),
            stored_as: None,
            columns: columns(&version["additionalPrinterColumns"]),
            ty,
            schema: Arc::new(schema),
            strategy: StrategyRef::Custom(Box::new(CustomStrategy {
                props: shared_props.clone(),
                scale: scale.clone(),
                rules: registry::strategy::rules::compile(&version["schema"]["openAPIV3Schema"], true),
            })),
            custom: Some(Arc::new(Custom {
                definition: registry::write::meta_text(self.crd, "name").into(),
                api_version: format!("{group}/{name}"),
                storage_api_version: format!("{group}/{}", text(self.storage, "name")),
                props: shared_props,
                storage_props: self.storage_props.clone(),
                open_api: version["schema"]["openAPIV3Schema"].clone(),
                scale,
                warning: deprecation.map(String::into_boxed_str),
                terminating,
                converter: self.converter.clone(),
            })),
        }
    }
}

fn scale(found: &Value) -> Option<Scale> {
    found.is_object().then(|| Scale {
        spec: text(found, "specReplicasPath").into(),
        status: text(found, "statusReplicasPath").into(),
        selector: found["labelSelectorPath"].as_str().filter(|p| !p.is_empty()).map(Box::from),
    })
}

fn subresources(version: &Value) -> Vec<Subresource> {
    let found = &version["subresources"];
    let methods = || ["get", "patch", "put"].map(Box::from).to_vec();
    let mut out = Vec::new();
    if found["status"].is_object() {
        out.push(Subresource { name: "status".into(), methods: methods(), kind: None });
    }
    if found["scale"].is_object() {
        let kind = Some(("autoscaling".into(), "v1".into(), "Scale".into()));
        out.push(Subresource { name: "scale".into(), methods: methods(), kind });
    }
    out
}

fn selectable(version: &Value) -> Vec<Arc<str>> {
    let list = version["selectableFields"].as_array();
    list.into_iter().flatten().map(|f| Arc::from(text(f, "jsonPath").trim_start_matches('.'))).collect()
}

/// The columns of a table; one that cannot be read shows nothing, as upstream's does.
fn columns(found: &Value) -> Vec<Column> {
    let age = json!([{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "CreationTimestamp is a timestamp representing the server time when this object was created."}]);
    let list = found.as_array().filter(|l| !l.is_empty()).or(age.as_array());
    let mut out = vec![columns::name_column()];
    for column in list.into_iter().flatten() {
        let path = text(column, "jsonPath");
        let Ok(parsed) = JsonPath::parse(path) else { continue };
        let description = match text(column, "description") {
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            given => given.to_owned(),
        };
        out.push(Column {
            name: text(column, "name").into(),
            ty: text(column, "type").into(),
            format: text(column, "format").into(),
            description: description.into(),
            priority: column["priority"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
            source: Source::JsonPath(parsed),
        });
    }
    out
}

/// `v2` is newer than `v1`, stable versions than betas, betas than alphas; anything else comes last.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// Stability, major and minor number.
fn parse_version(text: &str) -> Option<(u8, u32, u32)> {
    let rest = text.strip_prefix('v')?;
    let number = |t: &str| t.bytes().all(|c| c.is_ascii_digit()).then(|| t.parse().ok()).flatten();
    for (word, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, number(major)?, number(minor)?));
        }
    }
    Some((2, number(rest)?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order_of_preference() {
        let mut all = vec!["foo1", "v1alpha1", "v10", "v2", "v1beta2", "v11alpha2", "foo10", "v1", "v3beta1"];
        all.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(all, ["v10", "v2", "v1", "v3beta1", "v1beta2", "v11alpha2", "v1alpha1", "foo1", "foo10"]);
    }

    #[test]
    fn tables_have_the_columns_of_the_definition_or_the_age() {
        let names = |v: Value| columns(&v).iter().map(|c| c.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(Value::Null), ["Name", "Age"]);
        assert_eq!(
            names(json!([{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}])),
            ["Name", "Size"]
        );
    }
}
