//! Warnings as data: what of an object is deprecated or does nothing (`data/warnings.txt`).

use std::collections::HashMap;
use std::sync::OnceLock;

use meta::Quantity;
use serde_json::{Map, Value};

use crate::resource::ResourceDef;

/// Labels of nodes that were renamed, and since when.
const NODE_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
];
/// Resources that are counted in bytes.
const BYTES: [&str; 3] = ["ephemeral-storage", "memory", "storage"];

#[derive(Clone, Copy)]
struct Rule {
    path: &'static str,
    test: Test,
    text: &'static str,
}

#[derive(Clone, Copy)]
enum Test {
    Set,
    Is(&'static str),
    Has(&'static str),
    Starts(&'static str),
    Renamed,
    Null,
    Fraction,
    Negative,
}

#[derive(Default)]
struct Table {
    kinds: HashMap<(&'static str, &'static str), Vec<Rule>>,
    /// Where kinds have pods.
    pods: HashMap<(&'static str, &'static str), &'static str>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| parse(include_str!("../../data/warnings.txt")))
}

fn kind(text: &'static str) -> (&'static str, &'static str) {
    let (group, kind) = text.split_once('/').unwrap_or(("", text));
    (if group == "-" { "" } else { group }, kind)
}

fn parse(text: &'static str) -> Table {
    let mut table = Table::default();
    let mut current = ("", "");
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(rest) = line.strip_prefix("pods ") {
            let (of, prefix) = rest.split_once(' ').unwrap_or((rest, ""));
            table.pods.insert(kind(of), prefix);
        } else if let Some(rule) = line.strip_prefix("  ") {
            table.kinds.entry(current).or_default().extend(rule_of(rule));
        } else {
            current = kind(line);
        }
    }
    table
}

fn rule_of(line: &'static str) -> Option<Rule> {
    let (path, rest) = line.split_once(' ')?;
    let (test, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let with_argument = |make: fn(&'static str) -> Test| {
        let (argument, text) = text.split_once(' ')?;
        Some((make(argument), text))
    };
    let (test, text) = match test {
        "set" => (Test::Set, text),
        "is" => with_argument(Test::Is)?,
        "has" => with_argument(Test::Has)?,
        "starts" => with_argument(Test::Starts)?,
        "names" => (Test::Renamed, text),
        "null" => (Test::Null, text),
        "fraction" => (Test::Fraction, text),
        "negative" => (Test::Negative, text),
        _ => return None,
    };
    Some(Rule { path, test, text })
}

/// Everything of an object that its author should be told of.
pub fn of(def: &ResourceDef, object: &Map<String, Value>) -> Vec<String> {
    let mut out = Vec::new();
    let key = (&*def.group, &*def.kind);
    if let Some(prefix) = table().pods.get(&key) {
        for rule in table().kinds.get(&("", "@pod")).into_iter().flatten() {
            look(object, prefix, rule, &mut out);
        }
    }
    for rule in table().kinds.get(&key).into_iter().flatten() {
        look(object, "", rule, &mut out);
    }
    out
}

fn look(object: &Map<String, Value>, prefix: &str, rule: &Rule, out: &mut Vec<String>) {
    let steps: Vec<&str> = prefix.split('.').chain(rule.path.split('.')).filter(|s| !s.is_empty()).collect();
    let Some((first, rest)) = steps.split_first() else { return };
    step(object, String::new(), first, rest, rule, out);
}

/// Goes down one member, into every item where the step says so.
fn step(
    owner: &Map<String, Value>,
    path: String,
    name: &str,
    rest: &[&str],
    rule: &Rule,
    out: &mut Vec<String>,
) {
    let (name, each) = name.strip_suffix("[*]").map_or((name, false), |name| (name, true));
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let value = owner.get(name).filter(|value| !value.is_null());
    let Some((next, rest)) = rest.split_first() else { return test(&path, value, rule, out) };
    match value {
        Some(Value::Array(items)) if each => {
            for (place, item) in items.iter().enumerate() {
                if let Value::Object(item) = item {
                    step(item, format!("{path}[{place}]"), next, rest, rule, out);
                }
            }
        }
        Some(Value::Object(inner)) => step(inner, path, next, rest, rule, out),
        _ => {}
    }
}

fn test(path: &str, value: Option<&Value>, rule: &Rule, out: &mut Vec<String>) {
    let text = rule.text;
    let keys = || value.and_then(Value::as_object).into_iter().flat_map(|map| map.keys());
    match rule.test {
        Test::Set => {
            let there = value.is_some_and(|v| v.as_str() != Some(""));
            out.extend(there.then(|| format!("{path}: {text}")));
        }
        Test::Is(wanted) => {
            let is = value.and_then(Value::as_str) == Some(wanted);
            out.extend(is.then(|| format!("{path}: {text}")));
        }
        Test::Has(wanted) => {
            out.extend(keys().filter(|key| *key == wanted).map(|key| format!("{path}[{key}]: {text}")));
        }
        Test::Starts(prefix) => {
            out.extend(
                keys().filter(|key| key.starts_with(prefix)).map(|key| format!("{path}[{key}]: {text}")),
            );
        }
        Test::Renamed => {
            let key = value.and_then(Value::as_str).unwrap_or_default();
            let renamed = NODE_LABELS.iter().filter(|(old, ..)| *old == key);
            out.extend(renamed.map(|(old, since, new)| {
                format!("{path}: {old} is deprecated since {since}; use \"{new}\" instead")
            }));
        }
        Test::Null => out.extend(value.is_none().then(|| format!("{path}: {text}"))),
        Test::Fraction => out.extend(fractions(path, value)),
        Test::Negative => {
            let below = value.and_then(Value::as_i64).is_some_and(|n| n < 0);
            out.extend(below.then(|| format!("{path}: {text}")));
        }
    }
}

/// Amounts of bytes that are no whole numbers.
fn fractions(path: &str, value: Option<&Value>) -> Vec<String> {
    let amounts = value.and_then(Value::as_object).into_iter().flatten();
    let bytes = amounts.filter(|(key, _)| BYTES.contains(&key.as_str()));
    let broken = bytes.filter_map(|(key, amount)| {
        let text = amount.as_str()?;
        let whole = Quantity::parse(text).ok()?.is_integer();
        (!whole)
            .then(|| format!("{path}[{key}]: fractional byte value {text:?} is invalid, must be an integer"))
    });
    broken.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::ResourceTable;
    use serde_json::json;

    fn told(group: &str, resource: &str, object: Value) -> Vec<String> {
        let table = ResourceTable::builtin().unwrap();
        let def = table.find(group, "v1", resource).unwrap();
        of(def, object.as_object().unwrap())
    }

    #[test]
    fn every_rule_is_understood() {
        let text = include_str!("../../data/warnings.txt");
        for line in text.lines().filter_map(|line| line.strip_prefix("  ")) {
            assert!(rule_of(line).is_some(), "{line}");
        }
    }

    #[test]
    fn pods_and_templates() {
        let spec = json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}, "volumes": [{"name": "a"},
            {"name": "g", "gitRepo": {"repository": "x"}}],
            "containers": [{"name": "c", "resources": {"limits": {"memory": "4m", "cpu": "4m"}}}],
            "topologySpreadConstraints": [{"topologyKey": "failure-domain.beta.kubernetes.io/zone"}]});
        let wanted = [
            "nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
            "topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
            "volumes[1].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
            "containers[0].resources.limits[memory]: fractional byte value \"4m\" is invalid, must be an integer",
        ];
        let at = |prefix: &str| wanted.map(|text| format!("{prefix}.{text}")).to_vec();
        assert_eq!(told("", "pods", json!({"spec": spec})), at("spec"));
        let job = json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}});
        assert_eq!(told("batch", "cronjobs", job), at("spec.jobTemplate.spec.template.spec"));
    }

    #[test]
    fn other_kinds() {
        let volume = json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/mount-options": "x"}},
            "spec": {"persistentVolumeReclaimPolicy": "Recycle"}});
        let found = told("", "persistentvolumes", volume);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(told("", "pods", json!({"spec": {"containers": []}})).is_empty());
        let node = json!({"spec": {"externalID": "x", "configSource": {}}});
        assert_eq!(told("", "nodes", node).len(), 2);
    }
}
