//! MutatingAdmissionPolicies: expressions that give an apply configuration or a JSON patch.

use cel::{Meter, Program, RUNTIME_BUDGET, Type};
use meta::Status;
use serde_json::{Map, Value};

use super::conditions::Verdict;
use super::policy::{Base, Versioned, compile};
use super::scope::{Inputs, Scope};
use super::{Resource, Subject, World, items, review, text};

/// A compiled mutating policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What it shares with validating ones.
    pub base: Base,
    /// Whether it runs again when a later one changed the object.
    pub reinvoke: bool,
    mutations: Vec<Mutation>,
}

#[derive(Debug, Clone)]
struct Mutation {
    source: String,
    patch: bool,
    program: Program,
}

/// What a mutation wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Merge this in, as server-side apply would.
    Apply(Map<String, Value>),
    /// Apply this JSON patch.
    Patch(Value),
}

/// `Object`, `Object.spec` and so on with fields of any type; `JSONPatch` with its own.
fn structures(name: &str) -> Option<Type> {
    if name == "JSONPatch" {
        return Some(Type::object(
            "JSONPatch",
            [("op", Type::String), ("path", Type::String), ("from", Type::String), ("value", Type::Dyn)],
        ));
    }
    struct Any;
    impl cel::Fields for Any {
        fn field(&self, _: &str) -> Option<Type> {
            Some(Type::Dyn)
        }
    }
    (name == "Object" || name.starts_with("Object."))
        .then(|| Type::Object(cel::ObjectType { name: name.into(), fields: std::sync::Arc::new(Any) }))
}

impl Policy {
    /// Compiles a policy.
    pub fn compile(policy: &Value) -> Policy {
        let (mut base, env) = Base::compile(policy);
        let env = env.structures(structures);
        let mut mutations = Vec::new();
        for (i, m) in items(&policy["spec"], "mutations").iter().enumerate() {
            let (key, patch) = match text(m, "patchType") {
                "JSONPatch" => ("jsonPatch", true),
                _ => ("applyConfiguration", false),
            };
            let at = format!("spec.mutations[{i}].{key}.expression");
            if let Some(program) = compile(&env, &m[key], "expression", &at, &mut base.errors) {
                let fits = match (program.result_type(), patch) {
                    (Type::Dyn | Type::List(..), true) => true,
                    (Type::Object(o), false) => &*o.name == "Object",
                    (Type::Dyn, false) => true,
                    _ => false,
                };
                if !fits {
                    let wanted = if patch { "list(JSONPatch)" } else { "Object" };
                    base.errors.push(format!("{at}: must evaluate to {wanted}"));
                    continue;
                }
                mutations.push(Mutation {
                    source: text(&m[key], "expression").trim().to_owned(),
                    patch,
                    program,
                });
            }
        }
        let reinvoke = text(&policy["spec"], "reinvocationPolicy") == "IfNeeded";
        Policy { base, reinvoke, mutations }
    }

    /// How many mutations it makes.
    pub fn len(&self) -> usize {
        self.mutations.len()
    }

    /// Whether it makes none.
    pub fn is_empty(&self) -> bool {
        self.mutations.is_empty()
    }

    /// What one of its mutations wants; `None` if the policy does not apply or fails and is ignored.
    pub fn change(
        &self,
        index: usize,
        subject: &Subject<'_>,
        resource: &Resource<'_>,
        world: &dyn World,
        objects: &Versioned,
        params: Option<&Value>,
    ) -> Result<Option<Change>, String> {
        let fail = |why: String| if self.base.ignore { Ok(None) } else { Err(why) };
        if let Some(error) = self.base.errors.first() {
            return fail(error.clone());
        }
        let Some(mutation) = self.mutations.get(index) else { return Ok(None) };
        let request = review::request(subject, resource);
        let namespace = match subject.asked.kind {
            ("", "v1", "Namespace") => None,
            _ => Some(subject.namespace).filter(|n| !n.is_empty()).and_then(|n| world.namespace(n)),
        };
        let scope = Scope::new(Inputs {
            object: objects.0.as_ref(),
            old: objects.1.as_ref(),
            request: &request,
            namespace: namespace.as_ref(),
            params,
            authorizer: world.authorizer(),
            variables: &self.base.variables,
        });
        match self.base.conditions.evaluate(&scope) {
            Verdict::Match => {}
            Verdict::NoMatch => return Ok(None),
            Verdict::Failed(why) => return fail(why),
        }
        let mut meter = Meter::new(RUNTIME_BUDGET);
        let value = mutation.program.evaluate(&scope, &mut meter).and_then(|v| v.to_json());
        match value {
            Ok(Value::Object(map)) if !mutation.patch => Ok(Some(Change::Apply(map))),
            Ok(patch @ Value::Array(_)) if mutation.patch => Ok(Some(Change::Patch(patch))),
            Ok(other) => fail(format!("unexpected result of expression '{}': {other}", mutation.source)),
            Err(e) => fail(format!("expression '{}' resulted in error: {e}", mutation.source)),
        }
    }
}

/// The refusal of a policy that failed.
pub fn failed(subject: &Subject<'_>, policy: &str, binding: &str, why: &str) -> Status {
    subject.forbid(&format!("policy '{policy}' with binding '{binding}' denied request: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(mutation: Value) -> Vec<String> {
        Policy::compile(&json!({"metadata": {"name": "p"}, "spec": {"mutations": [mutation]}})).base.errors
    }

    #[test]
    fn results_must_be_changes() {
        let apply =
            |e: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": e}});
        let patch = |e: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": e}});
        assert!(errors(apply("Object{metadata: Object.metadata{labels: {'a': 'b'}}}")).is_empty());
        assert!(errors(patch("[JSONPatch{op: 'add', path: '/metadata/labels/a', value: 'b'}]")).is_empty());
        assert!(errors(apply("1"))[0].ends_with("must evaluate to Object"));
        assert!(errors(patch("[JSONPatch{bogus: 'x'}]"))[0].contains("undefined field 'bogus'"));
    }
}
