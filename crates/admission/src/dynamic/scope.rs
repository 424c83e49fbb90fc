//! What expressions of webhooks and policies may refer to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::LazyLock;

use cel::{Activation, AuthorizationRequest, Authorizer, Env, EvalError, Host, Meter, Program, Type, Value};
use serde_json::{Map, Value as Json};

/// The environment of match conditions: the request, its objects, the authorizer.
pub fn env() -> Env {
    let kind = || {
        Type::object(
            "kubernetes.GroupVersionKind",
            [("group", Type::String), ("version", Type::String), ("kind", Type::String)],
        )
    };
    let resource = || {
        Type::object(
            "kubernetes.GroupVersionResource",
            [("group", Type::String), ("version", Type::String), ("resource", Type::String)],
        )
    };
    Env::new()
        .variable("object", Type::Dyn)
        .variable("oldObject", Type::Dyn)
        .variable(
            "request",
            Type::object(
                "kubernetes.AdmissionRequest",
                [
                    ("kind", kind()),
                    ("resource", resource()),
                    ("subResource", Type::String),
                    ("requestKind", kind()),
                    ("requestResource", resource()),
                    ("requestSubResource", Type::String),
                    ("name", Type::String),
                    ("namespace", Type::String),
                    ("operation", Type::String),
                    (
                        "userInfo",
                        Type::object(
                            "kubernetes.UserInfo",
                            [
                                ("username", Type::String),
                                ("uid", Type::String),
                                ("groups", Type::list(Type::String)),
                                ("extra", Type::map(Type::String, Type::list(Type::String))),
                            ],
                        ),
                    ),
                    ("dryRun", Type::Bool),
                    ("options", Type::Dyn),
                ],
            ),
        )
        .variable("authorizer", Type::Opaque("kubernetes.authorization.Authorizer"))
        .variable("authorizer.requestResource", Type::Opaque("kubernetes.authorization.ResourceCheck"))
}

/// What `namespaceObject` shows of a namespace.
static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    let metadata = Type::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", Type::String),
            ("generateName", Type::String),
            ("namespace", Type::String),
            ("labels", Type::map(Type::String, Type::String)),
            ("annotations", Type::map(Type::String, Type::String)),
            ("UID", Type::String),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", Type::String),
            ("finalizers", Type::list(Type::String)),
        ],
    );
    Type::object(
        "kubernetes.Namespace",
        [
            ("metadata", metadata),
            (
                "status",
                Type::object(
                    "kubernetes.NamespaceStatus",
                    [("phase", Type::String), ("conditions", Type::list(Type::Dyn))],
                ),
            ),
            ("spec", Type::object("kubernetes.NamespaceSpec", [("finalizers", Type::list(Type::String))])),
        ],
    )
});

/// The environment of policies: also the namespace, parameters if there are any, and variables.
pub fn policy_env(params: bool) -> Env {
    let env = env().variable("namespaceObject", NAMESPACE.clone());
    if params { env.variable("params", Type::Dyn) } else { env }
}

/// The variables of one policy, compiled in their order.
pub type Variables = Vec<(String, Program)>;

/// `env` with a variable `variables` of these.
pub fn with_variables(env: &Env, variables: &[(String, Program)]) -> Env {
    let fields: BTreeMap<String, Type> =
        variables.iter().map(|(n, p)| (n.clone(), p.result_type().clone())).collect();
    let object = cel::ObjectType { name: "kubernetes.variables".into(), fields: std::sync::Arc::new(fields) };
    env.clone().variable("variables", Type::Object(object))
}

/// What an evaluation sees.
pub struct Inputs<'a> {
    /// The object as it would be.
    pub object: Option<&'a Map<String, Json>>,
    /// The object as it is.
    pub old: Option<&'a Map<String, Json>>,
    /// `request`.
    pub request: &'a Map<String, Json>,
    /// The namespace, for policies.
    pub namespace: Option<&'a Json>,
    /// The parameter, for policies.
    pub params: Option<&'a Json>,
    /// Who decides about rights.
    pub authorizer: &'a dyn Authorizer,
    /// The policy's variables.
    pub variables: &'a [(String, Program)],
}

struct Inner<'a> {
    inputs: Inputs<'a>,
    computed: RefCell<BTreeMap<String, Result<Value<'a>, EvalError>>>,
}

/// The scope of one evaluation; variables are computed once, when they are first looked at.
#[derive(Clone)]
pub struct Scope<'a>(Rc<Inner<'a>>);

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("variables")
    }
}

impl<'a> Scope<'a> {
    /// A scope of these inputs.
    pub fn new(inputs: Inputs<'a>) -> Scope<'a> {
        Scope(Rc::new(Inner { inputs, computed: RefCell::default() }))
    }

    fn resource_check(&self) -> Value<'a> {
        let request = self.0.inputs.request;
        let text = |v: Option<&Json>| v.and_then(Json::as_str).unwrap_or_default().to_owned();
        let resource = request.get("requestResource");
        let question = AuthorizationRequest {
            group: text(resource.and_then(|r| r.get("group"))),
            resource: text(resource.and_then(|r| r.get("resource"))),
            subresource: text(request.get("requestSubResource")),
            namespace: text(request.get("namespace")),
            name: text(request.get("name")),
            ..Default::default()
        };
        cel::resource_check(self.0.inputs.authorizer, question)
    }
}

impl<'a> Activation<'a> for Scope<'a> {
    fn variable(&self, name: &str) -> Option<Value<'a>> {
        let inputs = &self.0.inputs;
        let object =
            |o: Option<&'a Map<String, Json>>| o.map_or(Value::Null, |o| Value::object(o, &Type::Dyn));
        let json = |v: Option<&'a Json>, ty: &Type| v.map_or(Value::Null, |v| Value::json(v, ty));
        Some(match name {
            "object" => object(inputs.object),
            "oldObject" => object(inputs.old),
            "request" => Value::object(inputs.request, &Type::Dyn),
            "namespaceObject" => json(inputs.namespace, &NAMESPACE),
            "params" => json(inputs.params, &Type::Dyn),
            "authorizer" => cel::authorizer(inputs.authorizer),
            "authorizer.requestResource" => self.resource_check(),
            "variables" => Value::Host(Rc::new(self.clone())),
            _ => return None,
        })
    }
}

impl<'a> Host<'a> for Scope<'a> {
    fn field(&self, name: &str, meter: &mut Meter) -> Option<Result<Value<'a>, EvalError>> {
        if let Some(known) = self.0.computed.borrow().get(name) {
            return Some(known.clone());
        }
        let (_, program) = self.0.inputs.variables.iter().find(|(n, _)| n == name)?;
        let value = program.evaluate(self, meter);
        self.0.computed.borrow_mut().insert(name.to_owned(), value.clone());
        Some(value)
    }
}
