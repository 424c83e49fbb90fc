//! Questions to the authorizer, put together step by step.

use std::fmt;
use std::rc::Rc;

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, Opaque, text};
use crate::value::Value;

/// What may be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorizationRequest {
    /// Whose rights; the requester's if absent. Namespace and name of an account.
    pub service_account: Option<(String, String)>,
    /// A path that is no resource.
    pub path: String,
    /// API group.
    pub group: String,
    /// Resource; empty for a path.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Verb.
    pub verb: String,
}

/// What the authorizer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// What went wrong while deciding.
    pub error: String,
}

/// The host's authorizer.
pub trait Authorizer {
    /// Decides for the requester, or for the account named.
    fn authorize(&self, request: &AuthorizationRequest) -> Decision;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

/// A question as far as it has been put.
#[derive(Clone)]
pub struct Check<'a> {
    stage: Stage,
    request: AuthorizationRequest,
    authorizer: Option<&'a dyn Authorizer>,
}

impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?})", self.stage, self.request)
    }
}

impl Check<'_> {
    pub(super) fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }
}

/// The variable `authorizer`.
pub fn authorizer<'a>(authorizer: &'a dyn Authorizer) -> Value<'a> {
    let check = Check { stage: Stage::Authorizer, request: Default::default(), authorizer: Some(authorizer) };
    Value::Opaque(Opaque::Check(Rc::new(check)))
}

/// The variable `authorizer.requestResource`.
pub fn resource_check<'a>(authorizer: &'a dyn Authorizer, request: AuthorizationRequest) -> Value<'a> {
    let check = Check { stage: Stage::Resource, request, authorizer: Some(authorizer) };
    Value::Opaque(Opaque::Check(Rc::new(check)))
}

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("path", |a| put(a, Stage::Authorizer, Stage::Path, |r, s| r.path = s)),
    ("group", |a| put(a, Stage::Authorizer, Stage::Group, |r, s| r.group = s)),
    ("resource", |a| put(a, Stage::Group, Stage::Resource, |r, s| r.resource = s)),
    ("subresource", |a| put(a, Stage::Resource, Stage::Resource, |r, s| r.subresource = s)),
    ("namespace", |a| put(a, Stage::Resource, Stage::Resource, |r, s| r.namespace = s)),
    ("name", |a| put(a, Stage::Resource, Stage::Resource, |r, s| r.name = s)),
    // No authorizer of ours looks at selectors: RBAC and the node authorizer ignore them, as upstream's do.
    ("fieldSelector", |a| put(a, Stage::Resource, Stage::Resource, |_, _| {})),
    ("labelSelector", |a| put(a, Stage::Resource, Stage::Resource, |_, _| {})),
    ("serviceAccount", service_account),
    ("check", check),
    ("allowed", |a| decided(a, |d| Value::Bool(d.allowed))),
    ("reason", |a| decided(a, |d| text(d.reason.as_str()))),
    ("error", |a| decided(a, |d| text(d.error.as_str()))),
    ("errored", |a| decided(a, |d| Value::Bool(!d.error.is_empty()))),
];

fn put<'a>(a: &[Value<'a>], from: Stage, to: Stage, f: fn(&mut AuthorizationRequest, String)) -> Outcome<'a> {
    match a {
        [Value::Opaque(Opaque::Check(check)), Value::String(s)] if check.stage == from => {
            let mut next = Check { stage: to, ..(**check).clone() };
            f(&mut next.request, s.to_string());
            Ok(Value::Opaque(Opaque::Check(Rc::new(next))))
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn service_account<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Opaque(Opaque::Check(check)), Value::String(namespace), Value::String(name)] = a else {
        return Err(EvalError::no_overload());
    };
    if check.stage != Stage::Authorizer {
        return Err(EvalError::no_overload());
    }
    if meta::names::subdomain_problem(name).is_some() {
        return Err(EvalError::failed("Invalid service account name"));
    }
    if meta::names::label_problem(namespace).is_some() {
        return Err(EvalError::failed("Invalid service account namespace"));
    }
    let mut next = (**check).clone();
    next.request.service_account = Some((namespace.to_string(), name.to_string()));
    Ok(Value::Opaque(Opaque::Check(Rc::new(next))))
}

fn check<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Opaque(Opaque::Check(check)), Value::String(verb)]
            if matches!(check.stage, Stage::Path | Stage::Resource) =>
        {
            let request = AuthorizationRequest { verb: verb.to_string(), ..check.request.clone() };
            let decision = check.authorizer.map(|a| a.authorize(&request)).unwrap_or_default();
            Ok(Value::Opaque(Opaque::Decision(Rc::new(decision))))
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn decided<'a>(a: &[Value<'a>], f: fn(&Decision) -> Value<'a>) -> Outcome<'a> {
    match a {
        [Value::Opaque(Opaque::Decision(decision))] => Ok(f(decision)),
        _ => Err(EvalError::no_overload()),
    }
}
