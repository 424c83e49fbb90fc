//! Which names a definition gets, and its conditions: a pure function of all definitions.

use std::collections::BTreeMap;

use registry::strategy::crd::{approval, condition, is_protected_group, is_true, set_condition};
use serde_json::{Map, Value, json};

use super::Definition;

/// Every definition with the status that it should have.
pub fn plan(found: &BTreeMap<String, Definition>, now: &str) -> BTreeMap<String, Definition> {
    let mut planned = found.clone();
    // The oldest has the first word: what is accepted already stays, and names that become free are given
    // to those who wait.
    let mut order: Vec<String> = found.keys().cloned().collect();
    let age = |name: &String| {
        let crd = &found[name];
        (registry::write::meta_text(crd, "creationTimestamp").to_owned(), name.clone())
    };
    order.sort_by_key(age);
    for name in order {
        let Some(mut crd) = planned.remove(&name) else { continue };
        accept_names(&mut crd, &planned, now);
        if is_protected_group(text(&crd["spec"], "group")) {
            let (reason, message) = approval(&crd);
            let status = if reason == "ApprovedAnnotation" { "True" } else { "False" };
            set_condition(&mut crd, "KubernetesAPIApprovalPolicyConformant", status, reason, &message, now);
        }
        planned.insert(name, crd);
    }
    planned
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

/// Names that other definitions of the group have: those of resources, and those of kinds.
fn taken(group: &str, others: &BTreeMap<String, Definition>) -> (Vec<String>, Vec<String>) {
    let (mut resources, mut kinds) = (Vec::new(), Vec::new());
    for other in others.values().filter(|o| text(&o["spec"], "group") == group) {
        let names = other.get("status").map(|s| s["acceptedNames"].clone()).unwrap_or_default();
        resources.extend(["plural", "singular"].map(|k| text(&names, k).to_owned()));
        resources.extend(list(&names, "shortNames"));
        kinds.extend(["kind", "listKind"].map(|k| text(&names, k).to_owned()));
    }
    (resources, kinds)
}

fn accept_names(crd: &mut Definition, others: &BTreeMap<String, Definition>, now: &str) {
    let wanted = crd["spec"]["names"].clone();
    let had = crd.get("status").map(|s| s["acceptedNames"].clone()).unwrap_or_default();
    if wanted == had && condition(crd, "NamesAccepted").is_some() {
        return;
    }
    let (resources, kinds) = taken(text(&crd["spec"], "group"), others);
    let mut accepted: Map<String, Value> = had.as_object().cloned().unwrap_or_default();
    let mut conflict: Option<(&str, String)> = None;
    for (key, reason, used) in [
        ("plural", "PluralConflict", &resources),
        ("singular", "SingularConflict", &resources),
        ("kind", "KindConflict", &kinds),
        ("listKind", "ListKindConflict", &kinds),
    ] {
        let name = text(&wanted, key);
        if name != text(&had, key) && used.iter().any(|u| u == name) {
            conflict = Some((reason, format!("{name:?} is already in use")));
        } else {
            accepted.insert(key.into(), name.into());
        }
    }
    let own = list(&had, "shortNames");
    let short = list(&wanted, "shortNames");
    let clashes: Vec<String> = (short.iter())
        .filter(|s| !own.contains(s) && resources.contains(s))
        .map(|s| format!("{s:?} is already in use"))
        .collect();
    match clashes.as_slice() {
        [] => set_list(&mut accepted, "shortNames", &short),
        [one] => conflict = Some(("ShortNamesConflict", one.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    set_list(&mut accepted, "categories", &list(&wanted, "categories"));
    let status = crd.entry("status").or_insert_with(|| json!({}));
    status["acceptedNames"] = Value::Object(accepted);
    let established = is_true(crd, "Established");
    match conflict {
        None => {
            set_condition(crd, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now);
            if !established {
                let message = "the initial names have been accepted";
                set_condition(crd, "Established", "True", "InitialNamesAccepted", message, now);
            }
        }
        Some((reason, message)) => {
            set_condition(crd, "NamesAccepted", "False", reason, &message, now);
            if !established {
                set_condition(crd, "Established", "False", "NotAccepted", "not all names are accepted", now);
            }
        }
    }
}

fn set_list(names: &mut Map<String, Value>, key: &str, list: &[String]) {
    if list.is_empty() {
        names.remove(key);
    } else {
        names.insert(key.into(), json!(list));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(plural: &str, kind: &str, created: &str) -> (String, Definition) {
        let name = format!("{plural}.example.com");
        let value = json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"group": "example.com",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": ["f"]}}});
        (name, value.as_object().cloned().unwrap())
    }

    #[test]
    fn the_first_gets_the_names() {
        let found = BTreeMap::from([
            crd("foos", "Foo", "2026-01-02T00:00:00Z"),
            crd("bars", "Foo", "2026-01-01T00:00:00Z"),
        ]);
        let planned = plan(&found, "2026-01-03T00:00:00Z");
        let (first, second) = (&planned["bars.example.com"], &planned["foos.example.com"]);
        assert!(is_true(first, "NamesAccepted") && is_true(first, "Established"));
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        assert!(!is_true(second, "Established"));
        let refused = condition(second, "NamesAccepted").unwrap();
        assert_eq!(
            (&refused["reason"], &refused["message"]),
            (&json!("ShortNamesConflict"), &json!("\"f\" is already in use"))
        );
        assert_eq!(second["status"]["acceptedNames"]["plural"], "foos");
        // Nothing changes any more, until the first one goes.
        assert_eq!(plan(&planned, "2026-01-04T00:00:00Z"), planned);
        let mut alone = planned.clone();
        alone.remove("bars.example.com");
        assert!(is_true(&plan(&alone, "2026-01-05T00:00:00Z")["foos.example.com"], "Established"));
    }
}
