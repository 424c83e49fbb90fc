//! `x-kubernetes-validations`: the CEL rules of custom resources, compiled once per version of a definition and
//! run over objects within upstream's budgets.

use std::rc::Rc;

use cel::{Env, Meter, Program, Type};
use meta::FieldError;
use schema::structural::{Props, Rule, value::old_item};
use serde_json::Value;

/// A rule with its programs.
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    uses_old: bool,
    message: Option<Program>,
}

/// The rules of a schema and of what is inside of it; absent where there are none.
pub struct Rules {
    ty: Type,
    /// JSON type, as errors show it.
    shown: Box<str>,
    own: Vec<Compiled>,
    properties: Vec<(Box<str>, Rules)>,
    items: Option<Box<Rules>>,
    values: Option<Box<Rules>>,
    /// How lists correspond to their old version.
    list: Props,
    atomic: bool,
}

/// An environment for the rules of values of a type.
pub fn environment(ty: &Type, optional_old: bool) -> Env {
    let old = if optional_old { Type::Optional(ty.clone().into()) } else { ty.clone() };
    Env::new().variable("self", ty.clone()).variable("oldSelf", old)
}

/// Compiles the rules of a schema; `None` where neither it nor anything inside has any.
pub fn compile(schema: &Value, root: bool) -> Option<Rules> {
    if !schema.is_object() {
        return None;
    }
    let resource = root || schema["x-kubernetes-embedded-resource"] == true;
    let props = Props { rules: Vec::new(), ..Props::parse(&shallow(schema)) };
    let inner = |key: &str| compile(&schema[key], false).map(Box::new);
    let properties: Vec<(Box<str>, Rules)> = (schema["properties"].as_object().into_iter().flatten())
        .filter_map(|(name, p)| Some((name.as_str().into(), compile(p, false)?)))
        .collect();
    let (items, values) = (inner("items"), inner("additionalProperties"));
    let wanted =
        Props::parse(&serde_json::json!({"x-kubernetes-validations": schema["x-kubernetes-validations"]}))
            .rules;
    if wanted.is_empty() && properties.is_empty() && items.is_none() && values.is_none() {
        return None;
    }
    let ty = cel::structural::type_of(schema, resource).unwrap_or(Type::Dyn);
    let own = wanted.into_iter().map(|rule| compiled(rule, &ty)).collect();
    let atomic = props.is_atomic_map();
    Some(Rules { ty, shown: props.ty.clone(), own, properties, items, values, list: props, atomic })
}

/// A schema without what is inside of it.
fn shallow(schema: &Value) -> Value {
    let keys = ["type", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type"];
    keys.iter().filter_map(|k| Some(((*k).to_owned(), schema.get(*k)?.clone()))).collect()
}

fn compiled(rule: Rule, ty: &Type) -> Compiled {
    let env = environment(ty, rule.optional_old_self == Some(true));
    let program = env.compile(&rule.rule).map_err(|e| format!("compilation failed: {e}"));
    let message = (!rule.message_expression.trim().is_empty())
        .then(|| environment(ty, false).compile(&rule.message_expression).ok())
        .flatten();
    let uses_old = program.as_ref().is_ok_and(|p| p.uses("oldSelf"));
    Compiled { rule, program, uses_old, message }
}

/// Reasons that keep rules from being run: they rely on what the schema promises.
const BLOCKING: [&str; 5] = [
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
];

impl Rules {
    /// Adds what the rules say of a whole object, unless it is too broken for them.
    pub fn check(&self, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        if errors.iter().any(|e| BLOCKING.contains(&e.reason)) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid("<nil>", &"null".into(), why));
            return;
        }
        let mut run = Run { left: cel::RUNTIME_BUDGET, over: false, errors };
        run.node(self, new, old, "");
    }
}

/// One run over an object.
struct Run<'e> {
    left: u64,
    over: bool,
    errors: &'e mut Vec<FieldError>,
}

fn shown(path: &str) -> String {
    if path.is_empty() { "<nil>".into() } else { path.to_owned() }
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Run<'_> {
    fn node(&mut self, rules: &Rules, new: &Value, old: Option<&Value>, path: &str) {
        if new.is_null() {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        for rule in &rules.own {
            if self.over {
                return;
            }
            self.rule(rules, rule, new, old, path);
        }
        match new {
            Value::Object(map) => {
                let before = old.filter(|_| !rules.atomic);
                for (name, inner) in &rules.properties {
                    if let Some(value) = map.get(&**name) {
                        self.node(inner, value, before.and_then(|o| o.get(&**name)), &child(path, name));
                    }
                }
                if let Some(inner) = &rules.values {
                    for (name, value) in map {
                        self.node(inner, value, before.and_then(|o| o.get(name)), &format!("{path}[{name}]"));
                    }
                }
            }
            Value::Array(list) => {
                let Some(inner) = &rules.items else { return };
                for (i, item) in list.iter().enumerate() {
                    self.node(inner, item, old_item(&rules.list, item, old), &format!("{path}[{i}]"));
                }
            }
            _ => {}
        }
    }

    /// Everything ends: the budget is used up.
    fn exhausted(&mut self, rules: &Rules, path: &str, why: &str) {
        self.errors.push(FieldError::invalid(shown(path), &(&*rules.shown).into(), why));
        self.over = true;
    }

    fn rule(&mut self, rules: &Rules, rule: &Compiled, new: &Value, old: Option<&Value>, path: &str) {
        let name = match rule.rule.message.trim() {
            "" => rule.rule.rule.trim(),
            message => message,
        };
        let program = match &rule.program {
            Ok(program) => program,
            Err(why) => {
                let why = format!("rule compile error: {why}");
                return self.errors.push(FieldError::invalid(shown(path), &(&*rules.shown).into(), &why));
            }
        };
        let optional = rule.rule.optional_old_self == Some(true);
        if rule.uses_old && old.is_none() && !optional {
            return;
        }
        let see = |v| cel::Value::json(v, &rules.ty);
        let mut variables = vec![("self", see(new))];
        if optional {
            variables.push(("oldSelf", cel::Value::Optional(old.map(|o| Rc::new(see(o))))));
        } else if let Some(old) = old {
            variables.push(("oldSelf", see(old)));
        }
        let mut meter = Meter::new(cel::PER_CALL_LIMIT);
        let result = program.evaluate(&variables, &mut meter);
        if meter.used() > self.left {
            let why = "validation failed due to running out of cost budget, no further validation rules will be run";
            return self.exhausted(rules, path, why);
        }
        self.left -= meter.used();
        let why = match result {
            Ok(cel::Value::Bool(true)) => return,
            Ok(_) => {
                if !rule.uses_old && old == Some(new) {
                    return;
                }
                return self.broken(rules, rule, new, &variables, path);
            }
            Err(cel::EvalError::CostExceeded) => {
                let why = format!(
                    "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {name}",
                    cel::EvalError::CostExceeded
                );
                return self.exhausted(rules, path, &why);
            }
            Err(error) if error.to_string().starts_with("no such overload") => format!(
                "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {name}"
            ),
            Err(error) => format!("{error} evaluating rule: {name}"),
        };
        self.errors.push(FieldError::invalid(shown(path), &(&*rules.shown).into(), &why));
    }

    fn broken<'v>(
        &mut self,
        rules: &Rules,
        rule: &Compiled,
        new: &Value,
        variables: &dyn cel::Activation<'v>,
        path: &str,
    ) {
        let field = match rule.rule.field_path.trim() {
            "" => shown(path),
            below => child(path, below.trim_start_matches('.')),
        };
        let mut detail = match rule.rule.message.trim() {
            "" => format!("failed rule: {}", rule.rule.rule.trim()),
            message => message.to_owned(),
        };
        if let Some(program) = &rule.message {
            let mut meter = Meter::new(cel::PER_CALL_LIMIT.min(self.left));
            let made = program.evaluate(variables, &mut meter);
            self.left = self.left.saturating_sub(meter.used());
            // A text that cannot be made, is empty or has line breaks gives way to the default.
            if let Ok(Ok(Value::String(text))) = made.map(|m| m.to_json())
                && !text.trim().is_empty()
                && !text.contains(['\n', '\r'])
            {
                detail = text;
            }
        }
        let structured = matches!(&*rules.shown, "object" | "array");
        self.errors.push(match rule.rule.reason.as_deref() {
            Some("FieldValueForbidden") => FieldError::forbidden(field, &detail),
            Some("FieldValueRequired") => FieldError::required(field, &detail),
            Some("FieldValueDuplicate") if structured => {
                FieldError { reason: "FieldValueDuplicate", field, message: "Duplicate value".into() }
            }
            Some("FieldValueDuplicate") => FieldError::duplicate(field, new),
            _ if structured => {
                FieldError { reason: "FieldValueInvalid", field, message: format!("Invalid value: {detail}") }
            }
            _ => FieldError::invalid(field, new, &detail),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: Value, new: Value, old: Option<Value>) -> Vec<String> {
        let mut errors = Vec::new();
        if let Some(rules) = compile(&schema, true) {
            rules.check(&new, old.as_ref(), &mut errors);
        }
        errors.iter().map(|e| e.to_string()).collect()
    }

    fn spec(rules: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": rules, "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string",
                "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]}}}}})
    }

    #[test]
    fn rules_messages_and_transitions() {
        let ordered = json!([{"rule": "self.min <= self.max"}]);
        let named = json!([{"rule": "self.min <= self.max", "message": "min first", "reason": "FieldValueForbidden", "fieldPath": ".min"}]);
        let made =
            json!([{"rule": "self.min <= self.max", "messageExpression": "'at most ' + string(self.max)"}]);
        let bad = json!({"spec": {"min": 2, "max": 1}});
        for (rules, new, old, wanted) in [
            (&ordered, json!({"spec": {"min": 1, "max": 1}}), None, vec![]),
            (&ordered, bad.clone(), None, vec!["spec: Invalid value: failed rule: self.min <= self.max"]),
            (&named, bad.clone(), None, vec!["spec.min: Forbidden: min first"]),
            (&made, bad.clone(), None, vec!["spec: Invalid value: at most 1"]),
            (&ordered, bad.clone(), Some(bad.clone()), vec![]),
            (
                &ordered,
                json!({"spec": {"min": 1}}),
                None,
                vec![
                    "spec: Invalid value: \"object\": no such key: max evaluating rule: self.min <= self.max",
                ],
            ),
            (
                &json!([]),
                json!({"spec": {"name": "b"}}),
                Some(json!({"spec": {"name": "a"}})),
                vec!["spec.name: Invalid value: \"b\": is immutable"],
            ),
            (&json!([]), json!({"spec": {"name": "b"}}), None, vec![]),
        ] {
            assert_eq!(errors(spec(rules.clone()), new, old), wanted);
        }
        let once = json!([{"rule": "!oldSelf.hasValue() || oldSelf.value().min == self.min", "optionalOldSelf": true, "message": "min is fixed"}]);
        assert!(errors(spec(once.clone()), json!({"spec": {"min": 1}}), None).is_empty());
        let changed = errors(spec(once), json!({"spec": {"min": 2}}), Some(json!({"spec": {"min": 1}})));
        assert_eq!(changed, ["spec: Invalid value: min is fixed"]);
    }
}
