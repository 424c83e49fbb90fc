//! Rules for CEL rules: they compile, have the right type, and cannot cost too much however large an object is.

use cel::Type;
use cel::structural::{SchemaSizes, max_elements, type_of};
use meta::FieldError;
use serde_json::Value;

use super::super::rules::environment;

/// Most that one rule may be estimated to cost (upstream's).
const RULE_COST_MAX: u64 = 10_000_000;
/// Most that all rules of a schema may be estimated to cost together.
const SCHEMA_COST_MAX: u64 = 100_000_000;
/// Rules named when all together cost too much.
const EXPENSIVE_MAX: usize = 4;

/// Every mistake in the rules of a schema that is valid otherwise. What was there before, unchanged, may
/// cost what it costs.
pub fn validate(schema: &Value, path: &str, unchanged: bool) -> Vec<FieldError> {
    let mut all = Check { errors: Vec::new(), costs: Vec::new(), unchanged };
    all.node(schema, path, &Context { root: true, count: 1, fixed: None });
    let total = all.costs.iter().fold(0u64, |sum, (_, cost)| sum.saturating_add(*cost));
    if total > SCHEMA_COST_MAX {
        all.costs.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (place, _) in all.costs.iter().take(EXPENSIVE_MAX) {
            let why =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            all.errors.push(FieldError::forbidden(place.clone(), why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        all.errors.push(FieldError::forbidden(path, &too_expensive(what, total, SCHEMA_COST_MAX)));
    }
    all.errors
}

fn too_expensive(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

struct Context {
    root: bool,
    /// How many values there may be.
    count: u64,
    /// What cannot be told from its old version, above or here.
    fixed: Option<String>,
}

struct Check {
    errors: Vec<FieldError>,
    costs: Vec<(String, u64)>,
    unchanged: bool,
}

impl Check {
    fn node(&mut self, schema: &Value, path: &str, context: &Context) {
        if !schema.is_object() {
            return;
        }
        let rules = schema["x-kubernetes-validations"].as_array();
        if let Some(rules) = rules.filter(|r| !r.is_empty()) {
            let resource = context.root || schema["x-kubernetes-embedded-resource"] == true;
            let ty = type_of(schema, resource).unwrap_or(Type::Dyn);
            for (i, rule) in rules.iter().enumerate() {
                self.rule(schema, &ty, rule, &format!("{path}.x-kubernetes-validations[{i}]"), context);
            }
        }
        let text = |key: &str| schema[key].as_str().unwrap_or_default();
        let uncorrelatable = |is: bool| match &context.fixed {
            Some(above) => Some(above.clone()),
            None => is.then(|| path.to_owned()),
        };
        let inside_map = uncorrelatable(text("x-kubernetes-map-type") == "atomic");
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let below = Context { root: false, count: context.count, fixed: inside_map.clone() };
            self.node(property, &format!("{path}.properties[{name}]"), &below);
        }
        let count = context.count.saturating_mul(max_elements(schema).max(1));
        let below = Context { root: false, count, fixed: context.fixed.clone() };
        self.node(&schema["additionalProperties"], &format!("{path}.additionalProperties"), &below);
        let below = Context { fixed: uncorrelatable(text("x-kubernetes-list-type") != "map"), ..below };
        self.node(&schema["items"], &format!("{path}.items"), &below);
    }

    fn cost(&mut self, what: &str, place: String, cost: u64) {
        if cost > RULE_COST_MAX && !self.unchanged {
            let why = too_expensive(what, cost, RULE_COST_MAX);
            self.errors.push(FieldError::forbidden(place.clone(), &why));
        }
        self.costs.push((place, cost));
    }

    fn rule(&mut self, schema: &Value, ty: &Type, rule: &Value, at: &str, context: &Context) {
        let text = |key: &str| rule[key].as_str().unwrap_or_default().trim();
        let optional = &rule["optionalOldSelf"];
        let sizes = SchemaSizes(schema);
        match environment(ty, *optional == true).compile(text("rule")) {
            Err(mistakes) => {
                let why = format!("compilation failed: {mistakes}");
                self.errors.push(FieldError::invalid(format!("{at}.rule"), rule, &why));
            }
            Ok(program) if !matches!(program.result_type(), Type::Bool) => {
                let why = "cel expression must evaluate to a bool";
                self.errors.push(FieldError::invalid(format!("{at}.rule"), rule, why));
            }
            Ok(program) => {
                let cost = program.estimate(&sizes).max.saturating_mul(context.count);
                self.cost("estimated rule cost", format!("{at}.rule"), cost);
                if program.uses("oldSelf") {
                    if let Some(part) = &context.fixed {
                        let why = format!(
                            "oldSelf cannot be used on the uncorrelatable portion of the schema within {part}"
                        );
                        self.errors.push(FieldError::invalid(
                            format!("{at}.rule"),
                            &text("rule").into(),
                            &why,
                        ));
                    }
                } else if !optional.is_null() {
                    let why = "may not be set if oldSelf is not used in rule";
                    self.errors.push(FieldError::invalid(format!("{at}.optionalOldSelf"), optional, why));
                }
            }
        }
        if text("messageExpression").is_empty() {
            return;
        }
        let place = format!("{at}.messageExpression");
        match environment(ty, false).compile(text("messageExpression")) {
            Err(mistakes) => {
                let why = format!("messageExpression compilation failed: {mistakes}");
                self.errors.push(FieldError::invalid(place, rule, &why));
            }
            Ok(program) if !matches!(program.result_type(), Type::String) => {
                self.errors.push(FieldError::invalid(
                    place,
                    rule,
                    "messageExpression must evaluate to a string",
                ));
            }
            Ok(program) => {
                let cost = program.estimate(&sizes).max;
                self.cost("estimated messageExpression cost", place, cost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: Value) -> Vec<String> {
        validate(&schema, "s", false).iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn rules_must_compile_and_stay_cheap() {
        let with = |field: Value, rule: &str| {
            let mut spec = json!({"type": "object", "properties": {"x": field}});
            spec["x-kubernetes-validations"] = json!([{"rule": rule}]);
            json!({"type": "object", "properties": {"spec": spec}})
        };
        let at = "s.properties[spec].x-kubernetes-validations[0].rule";
        assert!(errors(with(json!({"type": "integer"}), "self.x > 1")).is_empty());
        let found = errors(with(json!({"type": "integer"}), "self.y > 1"));
        assert!(found[0].starts_with(&format!("{at}: Invalid value: {{\"rule\":\"self.y > 1\"}}: compilation failed: ERROR: <input>:1:5: undefined field 'y'")), "{found:?}");
        assert_eq!(
            errors(with(json!({"type": "integer"}), "self.x")),
            [format!("{at}: Invalid value: {{\"rule\":\"self.x\"}}: cel expression must evaluate to a bool")]
        );
        let text = json!({"type": "array", "items": {"type": "string"}});
        let found = errors(with(text, "self.x.all(a, self.x.all(b, a.contains(b)))"));
        assert!(
            found[0].starts_with(&format!(
                "{at}: Forbidden: estimated rule cost exceeds budget by factor of more than 100x"
            )),
            "{found:?}"
        );
    }

    #[test]
    fn old_values_need_identity() {
        let item = json!({"type": "string", "maxLength": 5, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]});
        let schema =
            json!({"type": "object", "properties": {"x": {"type": "array", "maxItems": 5, "items": item}}});
        assert_eq!(
            errors(schema),
            [
                "s.properties[x].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[x]"
            ]
        );
    }
}
