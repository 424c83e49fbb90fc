//! The roles and bindings every cluster starts with: `data/bootstrap.rbac`, read into objects.

use serde_json::{Value, json};

use crate::rules::{Rule, aggregated_rules};

/// The notation is explained at the top of the file.
const DATA: &str = include_str!("../data/bootstrap.rbac");

/// Label keys that make a role part of an aggregated one end in these.
const AGGREGATE_LABEL: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// The objects, by kind, in the order of creation.
#[derive(Debug, Default, Clone)]
pub struct Bootstrap {
    /// ClusterRole objects; aggregating ones have their rules already.
    pub cluster_roles: Vec<Value>,
    /// ClusterRoleBinding objects.
    pub cluster_role_bindings: Vec<Value>,
    /// Role objects.
    pub roles: Vec<Value>,
    /// RoleBinding objects.
    pub role_bindings: Vec<Value>,
}

/// Everything a cluster starts with.
pub fn objects() -> Bootstrap {
    let mut bootstrap = parse(DATA);
    // Roles aggregate roles that aggregate: view into edit into admin.
    for _ in 0..3 {
        let all = bootstrap.cluster_roles.clone();
        for role in &mut bootstrap.cluster_roles {
            if let Some(rules) = aggregated_rules(role, &all) {
                role["rules"] = json!(rules);
            }
        }
    }
    bootstrap
}

fn parse(text: &str) -> Bootstrap {
    let mut bootstrap = Bootstrap::default();
    let mut target: Option<Value> = None;
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rule) = line.strip_prefix("  ") {
            if let Some(rules) = target.as_mut().and_then(|role| role["rules"].as_array_mut()) {
                rules.push(json!(parse_rule(rule)));
            }
            continue;
        }
        bootstrap.finish(target.take());
        let (keyword, rest) = line.split_once(' ').unwrap_or((line, ""));
        match keyword {
            "role" => target = Some(parse_role(rest)),
            "controller" => {
                let name = format!("system:controller:{rest}");
                bootstrap.bind(&format!("{name} = {name} : sa:kube-system/{rest}"));
                target = Some(parse_role(&name));
            }
            "bind" => bootstrap.bind(rest),
            _ => {}
        }
    }
    bootstrap.finish(target);
    bootstrap
}

impl Bootstrap {
    fn finish(&mut self, role: Option<Value>) {
        match role {
            Some(role) if role["kind"] == "Role" => self.roles.push(role),
            Some(role) => self.cluster_roles.push(role),
            None => {}
        }
    }

    /// `NAME = ROLE : SUBJECT SUBJECT`
    fn bind(&mut self, line: &str) {
        let (name, rest) = line.split_once(" = ").unwrap_or((line, ""));
        let (role, subjects) = rest.split_once(" :").unwrap_or((rest, ""));
        let (metadata, namespaced) = metadata(name.trim());
        let subjects: Vec<Value> = subjects.split_whitespace().filter_map(parse_subject).collect();
        let mut object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": if namespaced { "RoleBinding" } else { "ClusterRoleBinding" },
            "metadata": metadata,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": if namespaced { "Role" } else { "ClusterRole" },
                "name": role.trim(),
            },
        });
        if !subjects.is_empty() {
            object["subjects"] = subjects.into();
        }
        if namespaced { &mut self.role_bindings } else { &mut self.cluster_role_bindings }.push(object);
    }
}

/// Metadata of `NAME` or `NAMESPACE/NAME`, with the marks of what upstream reconciles; whether a namespace
/// was named.
fn metadata(name: &str) -> (Value, bool) {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    match name.split_once('/') {
        Some((namespace, name)) => {
            metadata["name"] = name.into();
            metadata["namespace"] = namespace.into();
            (metadata, true)
        }
        None => (metadata, false),
    }
}

/// `NAME [label:SUFFIX...] [aggregate:SUFFIX]`
fn parse_role(line: &str) -> Value {
    let mut words = line.split_whitespace();
    let (mut metadata, namespaced) = metadata(words.next().unwrap_or_default());
    let mut aggregation = None;
    for word in words {
        if let Some(suffix) = word.strip_prefix("label:") {
            metadata["labels"][format!("{AGGREGATE_LABEL}{suffix}")] = "true".into();
        } else if let Some(suffix) = word.strip_prefix("aggregate:") {
            let key = format!("{AGGREGATE_LABEL}{suffix}");
            aggregation = Some(json!({"clusterRoleSelectors": [{"matchLabels": {key: "true"}}]}));
        }
    }
    let kind = if namespaced { "Role" } else { "ClusterRole" };
    let mut role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata, "rules": [],
    });
    if let Some(aggregation) = aggregation {
        role["aggregationRule"] = aggregation;
    }
    role
}

fn parse_subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    Some(match kind {
        "sa" => {
            let (namespace, name) = name.split_once('/')?;
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        kind => {
            let kind = if kind == "user" { "User" } else { "Group" };
            json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name})
        }
    })
}

/// `VERBS GROUPS RESOURCES [names:A,B]`, `VERBS url:PATH,PATH` or `events`. Lists come out sorted.
fn parse_rule(line: &str) -> Rule {
    let line = if line.trim() == "events" { "create,patch,update core,events.k8s.io events" } else { line };
    let mut words = line.split_whitespace();
    let mut rule = Rule { verbs: expand_verbs(words.next().unwrap_or_default()), ..Rule::default() };
    let list = |text: &str| {
        let mut items: Vec<String> = text.split(',').map(str::to_owned).collect();
        items.sort();
        items
    };
    let Some(second) = words.next() else { return rule };
    if let Some(paths) = second.strip_prefix("url:") {
        rule.non_resource_urls = list(paths);
        return rule;
    }
    rule.api_groups = list(second);
    for group in &mut rule.api_groups {
        if group == "core" {
            group.clear();
        }
    }
    rule.api_groups.sort();
    rule.resources = list(words.next().unwrap_or_default());
    if let Some(names) = words.next().and_then(|word| word.strip_prefix("names:")) {
        rule.resource_names = list(names);
    }
    rule
}

fn expand_verbs(text: &str) -> Vec<String> {
    const READ: &[&str] = &["get", "list", "watch"];
    const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
    let mut verbs: Vec<&str> = Vec::new();
    for word in text.split(',') {
        match word {
            "read" => verbs.extend(READ),
            "write" => verbs.extend(WRITE),
            "all" => verbs.extend(READ.iter().chain(WRITE)),
            "readupdate" => verbs.extend(READ.iter().chain(&["patch", "update"])),
            verb => verbs.push(verb),
        }
    }
    verbs.sort_unstable();
    verbs.dedup();
    verbs.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbac::{Attributes, Kind, RbacIndex};
    use meta::UserInfo;

    fn loaded() -> RbacIndex {
        let index = RbacIndex::new();
        let all = objects();
        for (kind, objects) in [
            (Kind::ClusterRole, all.cluster_roles),
            (Kind::ClusterRoleBinding, all.cluster_role_bindings),
            (Kind::Role, all.roles),
            (Kind::RoleBinding, all.role_bindings),
        ] {
            for object in &objects {
                index.upsert_value(kind, object).unwrap();
            }
        }
        index
    }

    #[test]
    fn every_line_is_understood() {
        for (number, line) in DATA.lines().enumerate() {
            let known = line.is_empty()
                || line.starts_with('#')
                || ["role ", "bind ", "controller "].iter().any(|keyword| line.starts_with(keyword));
            if known {
                continue;
            }
            let rule = parse_rule(line.strip_prefix("  ").unwrap_or_else(|| panic!("line {}", number + 1)));
            let complete =
                !rule.verbs.is_empty() && (rule.resources.is_empty() != rule.non_resource_urls.is_empty());
            assert!(complete, "line {}: {line}", number + 1);
        }
    }

    #[test]
    fn bindings_name_roles_that_exist() {
        let all = objects();
        let named = |roles: &[Value], name: &Value, namespace: &Value| {
            roles
                .iter()
                .any(|role| &role["metadata"]["name"] == name && &role["metadata"]["namespace"] == namespace)
        };
        for binding in &all.cluster_role_bindings {
            assert!(named(&all.cluster_roles, &binding["roleRef"]["name"], &Value::Null), "{binding}");
        }
        for binding in &all.role_bindings {
            let namespace = &binding["metadata"]["namespace"];
            assert!(named(&all.roles, &binding["roleRef"]["name"], namespace), "{binding}");
        }
        assert!(all.cluster_roles.len() > 65, "{}", all.cluster_roles.len());
    }

    #[test]
    fn what_the_default_roles_allow() {
        let index = loaded();
        index
            .upsert_value(
                Kind::RoleBinding,
                &json!({"metadata": {"name": "v", "namespace": "d"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
                        "subjects": [{"kind": "User", "name": "viewer"}]}),
            )
            .unwrap();
        index
            .upsert_value(
                Kind::RoleBinding,
                &json!({"metadata": {"name": "a", "namespace": "d"}, "roleRef": {"kind": "ClusterRole", "name": "admin"},
                        "subjects": [{"kind": "User", "name": "admin"}]}),
            )
            .unwrap();
        let dc = "system:serviceaccount:kube-system:deployment-controller";
        let cases = [
            ("viewer", "list", "", "pods", "d", true),
            ("viewer", "get", "", "secrets", "d", false),
            ("viewer", "create", "", "pods", "d", false),
            ("admin", "get", "", "secrets", "d", true),
            ("admin", "list", "", "pods", "d", true),
            ("admin", "create", "rbac.authorization.k8s.io", "roles", "d", true),
            ("admin", "create", "", "pods", "other", false),
            (dc, "create", "apps", "replicasets", "d", true),
            (dc, "create", "", "events", "d", true),
            (dc, "delete", "", "secrets", "d", false),
            ("system:kube-scheduler", "create", "", "bindings", "d", true),
            ("anyone", "create", "authorization.k8s.io", "selfsubjectaccessreviews", "", true),
        ];
        for (username, verb, group, resource, namespace, expected) in cases {
            let user = UserInfo::authenticated(username, &[]);
            let attributes = Attributes {
                user: &user,
                verb,
                api_group: group,
                api_version: "v1",
                resource,
                subresource: "",
                name: "",
                namespace,
                path: "",
                resource_request: true,
                field_selector: None,
                label_selector: None,
            };
            let allowed = index.authorize(&attributes).is_allowed();
            assert_eq!(allowed, expected, "{username} {verb} {resource} in {namespace:?}");
        }
    }
}
