//! OpenAPI v2 and v3: what is served, derived from the resource table and the type table.
//!
//! Descriptions come from the typed structs (crate `api`), everything else from `schema`. Documents are
//! made when first asked for and kept until the table changes.

use std::collections::{BTreeSet, HashMap};

use meta::Status;
use registry::{ResourceDef, ResourceTable};
use schema::types::{Field, ListKind};
use schema::{Schema, Shape, TypeId};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::body::{self, Answer};
use crate::server::Server;

/// Where references point in each version of OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V2,
    V3,
}

impl Version {
    fn reference(self, name: &str) -> Value {
        let root = match self {
            Version::V2 => "#/definitions/",
            Version::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{root}{name}")})
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// Collects the definitions that a document needs.
struct Builder<'a> {
    version: Version,
    schema: &'a Schema,
    described: HashMap<String, api::descriptions::Described>,
    wanted: BTreeSet<String>,
    done: Map<String, Value>,
}

impl<'a> Builder<'a> {
    fn new(version: Version, schema: &'a Schema) -> Self {
        Builder {
            version,
            schema,
            described: api::descriptions::load(),
            wanted: BTreeSet::new(),
            done: Map::new(),
        }
    }

    fn refer(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            self.wanted.insert(name.to_owned());
        }
        self.version.reference(name)
    }

    /// Definitions of everything referred to, and of what those refer to.
    fn finish(mut self) -> Map<String, Value> {
        while let Some(name) = self.wanted.pop_first() {
            let definition = self.definition(&name);
            self.done.insert(name, definition);
        }
        self.done
    }

    fn definition(&mut self, name: &str) -> Value {
        match name {
            QUANTITY => return json!({"type": "string"}),
            INT_OR_STRING => return json!({"type": "string", "format": "int-or-string"}),
            TIME | MICRO_TIME => return json!({"type": "string", "format": "date-time"}),
            PATCH => return json!({"type": "object"}),
            _ => {}
        }
        let Some(s) = self.schema.named(name).and_then(|ty| self.schema.as_struct(ty)) else {
            return json!({"type": "object"});
        };
        self.done.insert(name.to_owned(), Value::Null);
        let described = self.described.get(name).cloned();
        let mut properties = Map::new();
        for field in &s.fields {
            let mut property = self.property(field);
            if let Some(text) = described.as_ref().and_then(|d| d.fields.get(&*field.name)) {
                property = self.with_description(property, text);
            }
            properties.insert(field.name.to_string(), property);
        }
        let mut out = json!({"type": "object"});
        if let Some(text) = described.and_then(|d| d.text) {
            out["description"] = text.into();
        }
        if !properties.is_empty() {
            out["properties"] = Value::Object(properties);
        }
        let required: Vec<&str> = s.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
        if !required.is_empty() {
            out["required"] = json!(required);
        }
        if s.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some((g, v, k)) = &s.gvk {
            out["x-kubernetes-group-version-kind"] = json!([{"group": g, "version": v, "kind": k}]);
        }
        out
    }

    /// A description beside a reference needs `allOf` in v3; v2 tools read it beside the reference.
    fn with_description(&self, mut property: Value, text: &str) -> Value {
        if self.version == Version::V3 && property.get("$ref").is_some() {
            return json!({"allOf": [property], "description": text});
        }
        property["description"] = text.into();
        property
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut out = self.of_type(field.ty);
        match self.schema.shape(field.ty) {
            Shape::List { kind, .. } => match kind {
                ListKind::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
                ListKind::Set => out["x-kubernetes-list-type"] = "set".into(),
                ListKind::Map(keys) => {
                    out["x-kubernetes-list-type"] = "map".into();
                    out["x-kubernetes-list-map-keys"] = json!(keys);
                }
            },
            Shape::Map { atomic: true, .. } => out["x-kubernetes-map-type"] = "atomic".into(),
            _ => {}
        }
        let strategic = &field.strategic;
        let names: Vec<&str> = [(strategic.merge, "merge"), (strategic.retain_keys, "retainKeys")]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, n)| *n)
            .collect();
        if !names.is_empty() {
            if let Some(reference) = out.as_object_mut().and_then(|o| o.remove("$ref")) {
                out["allOf"] = json!([{"$ref": reference}]);
            }
            out["x-kubernetes-patch-strategy"] = names.join(",").into();
            if let Some(key) = &strategic.merge_key {
                out["x-kubernetes-patch-merge-key"] = (**key).into();
            }
        }
        if let Some(default) = &field.default {
            // A default beside a reference would be ignored by readers, and v2 cannot have it.
            if out.get("$ref").is_none() && self.version == Version::V3 {
                out["default"] = default.clone();
            }
        }
        out
    }

    fn of_type(&mut self, ty: TypeId) -> Value {
        match self.schema.shape(ty) {
            Shape::String => json!({"type": "string"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Quantity => self.refer(QUANTITY),
            Shape::IntOrString => self.refer(INT_OR_STRING),
            Shape::Time => self.refer(TIME),
            Shape::MicroTime => self.refer(MICRO_TIME),
            Shape::Any | Shape::Free => {
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
            }
            Shape::List { item, .. } => json!({"type": "array", "items": self.of_type(*item)}),
            Shape::Map { item, .. } => json!({"type": "object", "additionalProperties": self.of_type(*item)}),
            Shape::Struct(at) => {
                let name = self.schema.struct_at(*at).name.to_string();
                self.refer(&name)
            }
        }
    }

    fn response(&mut self, name: &str) -> Value {
        let schema = self.refer(name);
        match self.version {
            Version::V2 => json!({"description": "OK", "schema": schema}),
            Version::V3 => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
        }
    }

    fn parameter(&self, name: &str, ty: &str, place: &str) -> Value {
        match self.version {
            Version::V2 => {
                json!({"name": name, "in": place, "type": ty, "uniqueItems": true, "required": place == "path"})
            }
            Version::V3 => {
                json!({"name": name, "in": place, "schema": {"type": ty, "uniqueItems": true}, "required": place == "path"})
            }
        }
    }

    fn operation(&mut self, def: &ResourceDef, verb: &Verb, kind: (&str, &str, &str), sub: &str) -> Value {
        let name = type_name(self.schema, kind).unwrap_or_else(|| STATUS.to_owned());
        let answer = match verb.action {
            "list" | "watchlist" => format!("{name}List"),
            "delete" | "deletecollection" => STATUS.to_owned(),
            _ => name.clone(),
        };
        let mut parameters: Vec<Value> =
            verb.query.iter().map(|(n, t)| self.parameter(n, t, "query")).collect();
        let mut out = json!({
            "operationId": operation_id(def, verb.action, sub),
            "tags": [tag(def)],
            "x-kubernetes-action": verb.action,
            "x-kubernetes-group-version-kind": {"group": kind.0, "version": kind.1, "kind": kind.2},
        });
        let body = match verb.body {
            Carries::Nothing => None,
            Carries::Object => Some((name, vec!["application/json", "application/yaml"])),
            Carries::Patch => Some((
                PATCH.to_owned(),
                vec![
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                    "application/apply-patch+yaml",
                ],
            )),
            Carries::DeleteOptions => Some((DELETE_OPTIONS.to_owned(), vec!["application/json"])),
        };
        if let Some((body, media)) = body {
            let schema = self.refer(&body);
            match self.version {
                Version::V2 => {
                    parameters
                        .push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
                    out["consumes"] = json!(media);
                }
                Version::V3 => {
                    let content: Map<String, Value> =
                        media.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect();
                    out["requestBody"] = json!({"required": true, "content": content});
                }
            }
        }
        out["parameters"] = json!(parameters);
        out["responses"] = json!({"200": self.response(&answer), "401": {"description": "Unauthorized"}});
        if self.version == Version::V2 {
            out["produces"] = json!(["application/json", "application/yaml"]);
            out["schemes"] = json!(["https"]);
        }
        out
    }

    fn paths(&mut self, def: &ResourceDef, paths: &mut Map<String, Value>) {
        let root = match &*def.group {
            "" => format!("/api/{}", def.version),
            group => format!("/apis/{group}/{}", def.version),
        };
        let base = if def.namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", def.resource)
        } else {
            format!("{root}/{}", def.resource)
        };
        let kind = (&*def.group, &*def.version, &*def.kind);
        let collection = ["list", "post", "deletecollection"];
        self.add(paths, def, &base, false, kind, "", |m| collection.contains(&m) && def.serves(m));
        self.add(paths, def, &format!("{base}/{{name}}"), true, kind, "", |m| {
            !collection.contains(&m) && def.serves(m)
        });
        if def.namespaced && def.serves("list") {
            self.add(paths, def, &format!("{root}/{}", def.resource), false, kind, "", |m| m == "list");
        }
        for sub in &def.subresources {
            let kind = sub.kind.as_ref().map_or(kind, |(g, v, k)| (&**g, &**v, &**k));
            let path = format!("{base}/{{name}}/{}", sub.name);
            self.add(paths, def, &path, true, kind, &sub.name, |m| sub.methods.iter().any(|s| &**s == m));
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one path item of a document; the arguments are its parts")]
    fn add(
        &mut self,
        paths: &mut Map<String, Value>,
        def: &ResourceDef,
        path: &str,
        named: bool,
        kind: (&str, &str, &str),
        sub: &str,
        serves: impl Fn(&str) -> bool,
    ) {
        let mut item = Map::new();
        for verb in VERBS.iter().filter(|v| serves(v.method)) {
            let http = match verb.method {
                "list" => "get",
                "deletecollection" => "delete",
                m => m,
            };
            item.insert(http.to_owned(), self.operation(def, verb, kind, sub));
        }
        if item.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        if named {
            parameters.push(self.parameter("name", "string", "path"));
        }
        if path.contains("{namespace}") {
            parameters.push(self.parameter("namespace", "string", "path"));
        }
        item.insert("parameters".into(), json!(parameters));
        paths.insert(path.to_owned(), Value::Object(item));
    }
}

enum Carries {
    Nothing,
    Object,
    Patch,
    DeleteOptions,
}

struct Verb {
    method: &'static str,
    action: &'static str,
    body: Carries,
    query: &'static [(&'static str, &'static str)],
}

const WRITE: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("pretty", "string")];
const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("pretty", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
    ("pretty", "string"),
];
const PATCH_QUERY: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
    ("force", "boolean"),
    ("pretty", "string"),
];

const VERBS: &[Verb] = &[
    Verb { method: "list", action: "list", body: Carries::Nothing, query: LIST },
    Verb { method: "post", action: "post", body: Carries::Object, query: WRITE },
    Verb {
        method: "deletecollection",
        action: "deletecollection",
        body: Carries::DeleteOptions,
        query: DELETE,
    },
    Verb { method: "get", action: "get", body: Carries::Nothing, query: &[("pretty", "string")] },
    Verb { method: "put", action: "put", body: Carries::Object, query: WRITE },
    Verb { method: "patch", action: "patch", body: Carries::Patch, query: PATCH_QUERY },
    Verb { method: "delete", action: "delete", body: Carries::DeleteOptions, query: DELETE },
];

fn type_name(schema: &Schema, (g, v, k): (&str, &str, &str)) -> Option<String> {
    let ty = schema.kind(g, v, k)?;
    schema.as_struct(ty).map(|s| s.name.to_string())
}

fn tag(def: &ResourceDef) -> String {
    let group = def.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    format!("{group}_{}", def.version)
}

fn operation_id(def: &ResourceDef, action: &str, sub: &str) -> String {
    let mut id = String::from(action);
    for word in [tag(def).as_str(), if def.namespaced { "namespaced" } else { "" }, &def.kind, sub] {
        let mut letters = word.chars().filter(|c| *c != '_');
        if let Some(first) = letters.next() {
            id.extend(first.to_uppercase().chain(letters));
        }
    }
    id
}

fn document(table: &ResourceTable, version: Version, only: Option<(&str, &str)>) -> Value {
    let mut builder = Builder::new(version, Schema::builtin());
    let mut paths = Map::new();
    for def in table.rows() {
        if only.is_none_or(|(g, v)| *def.group == *g && *def.version == *v) {
            builder.paths(def, &mut paths);
        }
    }
    let definitions = Value::Object(builder.finish());
    let info = json!({"title": "Kubernetes", "version": crate::endpoints::GIT_VERSION});
    match version {
        Version::V2 => json!({"swagger": "2.0", "info": info, "paths": paths, "definitions": definitions}),
        Version::V3 => {
            json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": definitions}})
        }
    }
}

/// `/openapi/v2`.
pub fn v2(server: &Server) -> Result<Answer, Status> {
    let table = server.registry.table();
    let make = || document(&table, Version::V2, None).to_string().into();
    Ok(body::json_bytes(200, server.discovery.get(&table, "openapi/v2", make)))
}

/// `/openapi/v3`: one entry per group and version, with a hash that changes with the document.
pub fn index(server: &Server) -> Answer {
    let table = server.registry.table();
    let mut paths = Map::new();
    for (group, versions) in table.groups() {
        for version in versions {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let rows = table.rows().iter().filter(|r| *r.group == *group && *r.version == *version);
            let mut hash = Sha256::new();
            hash.update(env!("CARGO_PKG_VERSION"));
            rows.for_each(|r| hash.update(format!("{r:?}")));
            let hex: String = hash.finalize().iter().map(|b| format!("{b:02X}")).collect();
            paths
                .insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hex}")}));
        }
    }
    body::json(200, &json!({"paths": paths}))
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/G/V`.
pub fn v3(server: &Server, path: &str) -> Result<Answer, Status> {
    let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => (String::new(), (*version).to_owned()),
        ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
        _ => return Err(Status::path_not_found()),
    };
    let table = server.registry.table();
    if !table.rows().iter().any(|r| *r.group == *group && *r.version == *version) {
        return Err(Status::path_not_found());
    }
    let make = || document(&table, Version::V3, Some((&group, &version))).to_string().into();
    Ok(body::json_bytes(200, server.discovery.get(&table, &format!("openapi/v3/{path}"), make)))
}
