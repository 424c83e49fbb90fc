//! Every operation of the API, called on a real server with all versions switched on: each must answer with
//! the right code and the right kind, and the published documents must list exactly these operations.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::{Map, Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;

const OPERATIONS: &str = include_str!("../data/operations.txt");
const SAMPLES: &str = include_str!("../data/samples.json");
/// Times an object is written back before its controllers are too busy with it.
const REPLACES_MAX: usize = 8;
/// Name of the object each resource gets.
const NAME: &str = "sample";

/// Operations of the published document that are not called, with the reason.
const ABSENT: &[(&str, &str)] = &[
    ("logFileListHandler", "served only with --enable-logs-handler, which is deprecated"),
    ("logFileHandler", "served only with --enable-logs-handler, which is deprecated"),
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Operation {
    method: &'static str,
    path: &'static str,
    action: &'static str,
    id: &'static str,
    /// Group, version, kind.
    kind: Option<(&'static str, &'static str, &'static str)>,
}

fn operations() -> Vec<Operation> {
    let lines = OPERATIONS.lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split(' ');
            let mut next = || words.next();
            let (method, path, action, id, kind) = (next()?, next()?, next()?, next()?, next()?);
            let mut parts = kind.splitn(3, '/');
            let kind = match (parts.next(), parts.next(), parts.next()) {
                (Some(g), Some(v), Some(k)) => Some((if g == "-" { "" } else { g }, v, k)),
                _ => None,
            };
            Some(Operation { method, path, action, id, kind })
        })
        .filter(|o| !ABSENT.iter().any(|(id, _)| *id == o.id))
        .collect()
}

/// The smallest valid object of a kind.
fn sample(samples: &Map<String, Value>, kind: (&str, &str, &str), namespace: &str) -> Option<Value> {
    let (g, v, k) = kind;
    let found = samples.get(&format!("{g}/{v}/{k}")).or_else(|| samples.get(&format!("{g}/{k}")))?;
    let mut object: Value =
        serde_json::from_str(&found.to_string().replace("\"NS\"", &format!("{namespace:?}"))).ok()?;
    object["apiVersion"] = if g.is_empty() { v.into() } else { format!("{g}/{v}").into() };
    object["kind"] = k.into();
    if object["metadata"]["name"].is_null() && !k.ends_with("Review") {
        object["metadata"]["name"] = NAME.into();
    }
    Some(object)
}

struct Caller<'a> {
    scope: &'a Scope<'a>,
    samples: Map<String, Value>,
    problems: Vec<String>,
    calls: usize,
}

impl Caller<'_> {
    fn call(
        &self,
        o: &Operation,
        name: &str,
        content_type: &str,
        body: &Value,
    ) -> anyhow::Result<(u16, Value)> {
        let path = o
            .path
            .replace("{namespace}", &self.scope.namespace)
            .replace("{name}", name)
            .replace("{path}", "x");
        let query = if matches!(o.action, "watch" | "watchlist") { "?timeoutSeconds=5" } else { "" };
        let method: Method = o.method.parse()?;
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("content-type", content_type), ("accept", "application/json")];
        let (code, _, answer) = self.scope.raw(method, &format!("{path}{query}"), &headers, text)?;
        let first = serde_json::Deserializer::from_slice(&answer).into_iter::<Value>().next();
        Ok((code, first.and_then(Result::ok).unwrap_or_default()))
    }

    fn expect(
        &mut self,
        o: &Operation,
        name: &str,
        (content_type, body): (&str, &Value),
        codes: &[u16],
        kind: (&str, &str, &str),
    ) -> Option<Value> {
        self.calls += 1;
        let checked = self.call(o, name, content_type, body).and_then(|(code, answer)| {
            ensure!(codes.contains(&code), "answered {code}: {answer}");
            let object = if o.action.starts_with("watch") { &answer["object"] } else { &answer };
            let api_version =
                if kind.0.is_empty() { kind.1.to_owned() } else { format!("{}/{}", kind.0, kind.1) };
            ensure!(
                object["kind"] == kind.2 && object["apiVersion"] == api_version.as_str(),
                "answered {} {} instead of {kind:?}: {answer}",
                object["apiVersion"],
                object["kind"]
            );
            Ok(answer)
        });
        checked.map_err(|e| self.problems.push(format!("{} {}: {e:#}", o.id, o.path))).ok()
    }

    /// A resource from its creation to its end, every operation on the way.
    fn resource(&mut self, all: &[Operation]) {
        let status = ("", "v1", "Status");
        let find = |action: &'static str| {
            all.iter().filter(move |o| o.action == action && !o.path.contains("{name}/"))
        };
        let Some(kind) = all.iter().find(|o| !o.path.contains("{name}/")).and_then(|o| o.kind) else {
            return;
        };
        let list = format!("{}List", kind.2);
        let list_kind = (kind.0, kind.1, list.as_str());
        let none = ("", &Value::Null);
        let json = "application/json";
        let made = match sample(&self.samples, kind, &self.scope.namespace) {
            Some(object) => object,
            None if matches!(kind.2, "ComponentStatus" | "Binding" | "NodeMetrics" | "PodMetrics") => {
                Value::Null
            }
            None => return self.problems.push(format!("{kind:?} has no sample")),
        };
        let mut name = made["metadata"]["name"].as_str().unwrap_or(NAME).to_owned();
        let is_review = find("get").next().is_none();
        for o in find("post") {
            if kind.2 == "Binding" {
                let body = json!({"metadata": {"name": "absent"}, "target": {"kind": "Node", "name": "n"}});
                self.expect(o, "", (json, &body), &[404], status);
            } else {
                self.expect(o, "", (json, &made), &[201], kind);
            }
        }
        if kind.2 == "ComponentStatus" {
            "scheduler".clone_into(&mut name);
        }
        let actions: [(&'static str, _); 3] = [("watchlist", kind), ("watch", kind), ("get", kind)];
        for o in find("list") {
            self.expect(o, "", none, &[200], list_kind);
        }
        for (action, kind) in actions {
            for o in find(action) {
                // Nothing runs here whose use could be measured.
                if kind.0 == "metrics.k8s.io" {
                    self.expect(o, &name, none, &[404], status);
                    continue;
                }
                self.expect(o, &name, none, &[200], kind);
            }
        }
        for o in find("put") {
            match kind.2 {
                "Namespace" => drop(self.expect(o, &name, (json, &made), &[200], kind)),
                _ => self.replace(o, &name, kind),
            }
        }
        let patch = json!({"metadata": {"labels": {"patched": "yes"}}});
        for o in find("patch") {
            self.expect(o, &name, ("application/merge-patch+json", &patch), &[200], kind);
        }
        for o in all.iter().filter(|o| o.path.contains("{name}/")) {
            self.subresource(o, kind, &name, &patch);
        }
        if is_review {
            return;
        }
        // The answer is the object where there is something left to do or the kind says so.
        for o in find("delete") {
            self.calls += 1;
            let deleted = self.call(o, &name, "", &Value::Null);
            match deleted {
                Ok((200 | 202, answer)) if answer["kind"] == "Status" || answer["kind"] == kind.2 => {}
                other => self.problems.push(format!("{} {}: {other:?}", o.id, o.path)),
            }
        }
        for o in find("deletecollection") {
            self.expect(o, "", none, &[200], list_kind);
        }
    }

    /// Writes back what was read, again when a controller was faster.
    fn replace(&mut self, o: &Operation, name: &str, kind: (&str, &str, &str)) {
        let read = Operation { method: "GET", ..o.clone() };
        for _ in 0..REPLACES_MAX {
            let body = self.expect(&read, name, ("", &Value::Null), &[200], kind).unwrap_or_default();
            self.calls += 1;
            match self.call(o, name, "application/json", &body) {
                Ok((409, _)) => {}
                Ok((200, answer)) if answer["kind"] == kind.2 => return,
                other => return self.problems.push(format!("{} {}: {other:?}", o.id, o.path)),
            }
        }
        self.problems.push(format!("{} {}: always too late", o.id, o.path));
    }

    fn subresource(&mut self, o: &Operation, owner: (&str, &str, &str), name: &str, patch: &Value) {
        let (json, status) = ("application/json", ("", "v1", "Status"));
        let kind = o.kind.unwrap_or(status);
        let sub = o.path.rsplit("{name}/").next().unwrap_or_default();
        match (o.action, sub) {
            // There is nothing to connect to, and the answer must say just that.
            ("connect", _) => {
                let connected = self.call(o, "absent", "", &Value::Null);
                self.calls += 1;
                let plural = format!("{}s \"absent\" not found", owner.2.to_lowercase());
                match connected {
                    Ok((404, answer)) if o.method == "HEAD" || answer["message"] == plural.as_str() => {}
                    other => self.problems.push(format!("{} {}: {other:?}", o.id, o.path)),
                }
            }
            (_, "log") => drop(self.expect(o, "absent", ("", &Value::Null), &[404], status)),
            ("get", _) => drop(self.expect(o, name, ("", &Value::Null), &[200], kind)),
            ("patch", "ephemeralcontainers") => {
                let patch = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "busybox"}]}});
                self.expect(o, name, ("application/strategic-merge-patch+json", &patch), &[200], kind);
            }
            ("patch", "resize") => {
                let patch = json!({"spec": {"containers": [{"name": "c"}]}});
                self.expect(o, name, ("application/strategic-merge-patch+json", &patch), &[200], kind);
            }
            ("patch", "scale") => {
                let patch = json!({"spec": {"replicas": 0}});
                self.expect(o, name, ("application/merge-patch+json", &patch), &[200], kind);
            }
            ("patch", _) => drop(self.expect(o, name, ("application/merge-patch+json", patch), &[200], kind)),
            ("put", "finalize") => {
                let read = Operation { method: "GET", path: "/api/v1/namespaces/{name}", ..o.clone() };
                let body = self.expect(&read, name, ("", &Value::Null), &[200], kind).unwrap_or_default();
                self.expect(o, name, (json, &body), &[200], kind);
            }
            ("put", _) => self.replace(o, name, kind),
            ("post", "binding") => {
                let body = json!({"target": {"kind": "Node", "name": "n"}});
                self.expect(o, "absent", (json, &body), &[404], status);
            }
            ("post", "eviction") => {
                let body =
                    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "absent"}});
                self.expect(o, "absent", (json, &body), &[404], status);
            }
            ("post", _) => {
                let body = json!({"spec": {"audiences": [], "expirationSeconds": 3600}});
                self.expect(o, name, (json, &body), &[201], kind);
            }
            _ => self.problems.push(format!("{} {}: nobody knows how to call it", o.id, o.path)),
        }
    }

    fn plain(&mut self, o: &Operation) {
        let kind = match o.path {
            "/api/" => Some("APIVersions"),
            "/apis/" => Some("APIGroupList"),
            p if p.starts_with("/apis/") && p.matches('/').count() == 3 => Some("APIGroup"),
            p if p.starts_with("/api") => Some("APIResourceList"),
            _ => None,
        };
        self.calls += 1;
        match self.call(o, "", "", &Value::Null) {
            Ok((200, answer)) if kind.is_none_or(|k| answer["kind"] == k) && answer.is_object() => {}
            other => self.problems.push(format!("{} {}: {other:?}", o.id, o.path)),
        }
    }
}

/// `/apis/apps/v1/.../deployments/{name}/scale` belongs to `apis/apps/v1 deployments`.
fn resource_of(path: &str) -> String {
    let words: Vec<&str> = path.split('/').filter(|w| !w.is_empty()).collect();
    let (root, rest) = words.split_at(if words[0] == "api" { 2 } else { 3 });
    let rest = if rest[0] == "watch" { &rest[1..] } else { rest };
    let rest =
        if rest.len() > 2 && rest[0] == "namespaces" && rest[1] == "{namespace}" { &rest[2..] } else { rest };
    format!("{} {}", root.join("/"), rest[0])
}

/// Operation ids of a published document by method and path.
fn published(document: &Value) -> BTreeMap<(String, String), String> {
    let mut out = BTreeMap::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten().filter(|(m, _)| *m != "parameters")
        {
            let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
            out.insert((method.to_uppercase(), path.clone()), id);
        }
    }
    out
}

fn documents(scope: &Scope<'_>, all: &[Operation]) -> anyhow::Result<()> {
    let wanted: BTreeMap<(String, String), String> =
        all.iter().map(|o| ((o.method.to_owned(), o.path.to_owned()), o.id.to_owned())).collect();
    let compare = |what: &str, found: &BTreeMap<(String, String), String>| -> anyhow::Result<()> {
        let missing: Vec<_> = wanted.iter().filter(|(k, v)| found.get(*k) != Some(*v)).take(5).collect();
        // Ferry's own groups go beyond upstream's operations.
        let own = |path: &str| path.split('/').nth(2).is_some_and(|group| group.ends_with(".ferry.dev"));
        let extra =
            found.iter().filter(|((m, p), _)| !own(p) && !wanted.contains_key(&(m.clone(), p.clone())));
        let extra: Vec<_> = extra.take(5).collect();
        ensure!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, extra {extra:?}");
        Ok(())
    };
    let v2 = scope.path("/openapi/v2")?;
    compare("openapi/v2", &published(&v2))?;
    let mut v3 = BTreeMap::new();
    for (name, part) in scope.path("/openapi/v3")?["paths"].as_object().context("no index")? {
        let url = part["serverRelativeURL"].as_str().unwrap_or_default();
        ensure!(url.starts_with(&format!("/openapi/v3/{name}?hash=")), "{url}");
        v3.extend(published(&scope.path(url)?));
    }
    compare("openapi/v3", &v3)?;
    let ids: BTreeSet<&String> = wanted.values().collect();
    ensure!(ids.len() == wanted.len(), "identifiers are not unique");
    // Whatever is referred to must be there.
    let text = v2.to_string();
    for piece in text.split("\"#/definitions/").skip(1) {
        let name = piece.split('"').next().unwrap_or_default();
        ensure!(v2["definitions"][name].is_object(), "{name} is not defined");
    }
    Ok(())
}

#[test]
fn every_operation_answers_as_documented() -> anyhow::Result<()> {
    // The default class brings custom resources (snapshots), which no list of upstream's has.
    let cluster = Cluster::start_with(&["--runtime-config", "api/all=true", "--disable", "local-storage"])?;
    let scope = cluster.namespace("operations")?;
    let Value::Object(samples) = serde_json::from_str(SAMPLES)? else { bail!("samples are no object") };
    let mut caller = Caller { scope: &scope, samples, problems: Vec::new(), calls: 0 };
    let all = operations();
    documents(&scope, &all)?;
    let mut by_resource: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
    for o in &all {
        match o.kind {
            None => caller.plain(o),
            Some(_) => by_resource.entry(resource_of(o.path)).or_default().push(o.clone()),
        }
    }
    for operations in by_resource.values() {
        caller.resource(operations);
    }
    println!("{} operations, {} calls", all.len(), caller.calls);
    ensure!(
        caller.problems.is_empty(),
        "{} problems:\n{}",
        caller.problems.len(),
        caller.problems.join("\n")
    );
    Ok(())
}
