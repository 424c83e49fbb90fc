//! Every operation that is served, as values: the one list from which both versions of the document are
//! written. A row of the resource table gives its operations; discovery and version paths come beside them.

use registry::{ResourceDef, ResourceTable, Subresource};
use schema::Schema;

/// A parameter of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Name.
    pub name: &'static str,
    /// JSON type.
    pub ty: &'static str,
    /// `query` or `path`.
    pub place: &'static str,
    /// Sentence for people.
    pub text: &'static str,
}

/// What an operation answers with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// An object of a type.
    Type(String),
    /// Text.
    Text,
    /// Nothing that could be described.
    Nothing,
}

/// What a request carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carries {
    /// Full type name.
    pub ty: String,
    /// Whether it must be there.
    pub required: bool,
}

/// One operation: a method on a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Path template.
    pub path: String,
    /// HTTP method in lower case.
    pub method: &'static str,
    /// Kubernetes action; empty for what is not about a resource.
    pub action: &'static str,
    /// Unique name.
    pub id: String,
    /// Tag; groups operations by API version.
    pub tag: String,
    /// Sentence for people.
    pub text: String,
    /// Group, version and kind it works on.
    pub kind: Option<(String, String, String)>,
    /// Its query parameters.
    pub query: Vec<Parameter>,
    /// Its body.
    pub body: Option<Carries>,
    /// Media types of its body; empty for none.
    pub consumes: &'static [&'static str],
    /// Media types of its answer.
    pub produces: &'static [&'static str],
    /// Answers by status code.
    pub answers: Vec<(u16, Answers)>,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const OBJECT: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAM: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const LOG: &[&str] =
    &["text/plain", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
/// Nobody knows how custom resources would merge strategically, and clients look here before they try.
const PATCHES_CUSTOM: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const ANYTHING: &[&str] = &["*/*"];

const fn query(name: &'static str, ty: &'static str, text: &'static str) -> Parameter {
    Parameter { name, ty, place: "query", text }
}

const PRETTY: Parameter = query("pretty", "string", "If 'true', the answer is indented.");
const DRY_RUN: Parameter =
    query("dryRun", "string", "With 'All' the request runs through every stage, but nothing is kept.");
const MANAGER: Parameter = query(
    "fieldManager",
    "string",
    "Name of the actor that makes the change; at most 128 printable characters.",
);
const VALIDATION: Parameter = query(
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore drops them, Warn (the default) drops them with a warning, Strict refuses the request.",
);
const FORCE: Parameter =
    query("force", "boolean", "An apply request takes over fields that other managers own.");
const UNSAFE_DELETE: Parameter = query(
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "boolean",
    "Deletes an object that can no longer be read, without finalizers and preconditions.",
);
const GRACE: Parameter =
    query("gracePeriodSeconds", "integer", "Seconds until the object is deleted; 0 deletes at once.");
const ORPHAN: Parameter = query("orphanDependents", "boolean", "Deprecated: use propagationPolicy.");
const PROPAGATION: Parameter =
    query("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground.");
const BOOKMARKS: Parameter = query(
    "allowWatchBookmarks",
    "boolean",
    "A watch may send BOOKMARK events that carry only a resource version.",
);
const CONTINUE: Parameter =
    query("continue", "string", "The token of the page before: asks for the next page.");
const FIELDS: Parameter =
    query("fieldSelector", "string", "Selects objects by their fields. Everything by default.");
const LABELS: Parameter =
    query("labelSelector", "string", "Selects objects by their labels. Everything by default.");
const LIMIT: Parameter = query("limit", "integer", "Most items of one page.");
const VERSION: Parameter =
    query("resourceVersion", "string", "Constrains the versions that may serve the request.");
const VERSION_MATCH: Parameter = query(
    "resourceVersionMatch",
    "string",
    "How resourceVersion is applied to a list: Exact or NotOlderThan.",
);
const INITIAL: Parameter =
    query("sendInitialEvents", "boolean", "A watch begins with the current objects, followed by a bookmark.");
const TIMEOUT: Parameter = query("timeoutSeconds", "integer", "Longest duration of a list or watch.");
const WATCH: Parameter = query("watch", "boolean", "Streams the changes instead of listing the objects.");

const LIST_QUERY: &[Parameter] =
    &[BOOKMARKS, CONTINUE, FIELDS, LABELS, LIMIT, PRETTY, VERSION, VERSION_MATCH, INITIAL, TIMEOUT, WATCH];
const WRITE_QUERY: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION, PRETTY];
const PATCH_QUERY: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION, FORCE, PRETTY];
const DELETE_QUERY: &[Parameter] = &[DRY_RUN, GRACE, UNSAFE_DELETE, ORPHAN, PROPAGATION, PRETTY];
const DELETE_ALL_QUERY: &[Parameter] = &[
    CONTINUE,
    DRY_RUN,
    FIELDS,
    GRACE,
    UNSAFE_DELETE,
    LABELS,
    LIMIT,
    ORPHAN,
    PROPAGATION,
    VERSION,
    VERSION_MATCH,
    INITIAL,
    TIMEOUT,
    PRETTY,
];
const CONTAINER: Parameter = query("container", "string", "The container; the only one by default.");
const LOG_QUERY: &[Parameter] = &[
    CONTAINER,
    query("follow", "boolean", "Keeps streaming as the log grows."),
    query("insecureSkipTLSVerifyBackend", "boolean", "Does not verify the kubelet's serving certificate."),
    query("limitBytes", "integer", "Most bytes of the log."),
    PRETTY,
    query("previous", "boolean", "The log of the container before its last restart."),
    query("sinceSeconds", "integer", "Only lines of the last so many seconds."),
    query("stream", "string", "All, Stdout or Stderr."),
    query("tailLines", "integer", "Only so many lines from the end."),
    query("timestamps", "boolean", "Puts the time before every line."),
];
const STREAMS: [Parameter; 4] = [
    query("stderr", "boolean", "Connects standard error."),
    query("stdin", "boolean", "Connects standard input."),
    query("stdout", "boolean", "Connects standard output."),
    query("tty", "boolean", "The process gets a terminal."),
];
const ATTACH_QUERY: &[Parameter] = &[CONTAINER, STREAMS[0], STREAMS[1], STREAMS[2], STREAMS[3]];
const EXEC_QUERY: &[Parameter] = &[
    query("command", "string", "The command and its arguments, without a shell."),
    CONTAINER,
    STREAMS[0],
    STREAMS[1],
    STREAMS[2],
    STREAMS[3],
];
const FORWARD_QUERY: &[Parameter] = &[query("ports", "integer", "Ports to forward.")];
const PROXY_QUERY: &[Parameter] = &[query("path", "string", "Path of the request behind the proxy.")];

/// `CoreV1`, `RbacAuthorizationV1`: the group and version inside identifiers.
fn group_word(group: &str) -> String {
    let base = group.strip_suffix(".k8s.io").unwrap_or(group);
    let base = if base.is_empty() { "core" } else { base };
    base.split('.').map(capital).collect()
}

/// With the first letter in upper case.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn tag(group: &str, version: &str) -> String {
    let word = group_word(group);
    let mut letters = word.chars();
    let word: String = letters.next().map_or_else(String::new, |f| f.to_lowercase().chain(letters).collect());
    if version.is_empty() { word } else { format!("{word}_{version}") }
}

/// `a Pod`, `an Ingress`; what is plural itself has no article.
fn with_article(kind: &str) -> String {
    if kind.ends_with('s') && !kind.ends_with("ss") {
        return kind.to_owned();
    }
    let vowel = kind.starts_with(['A', 'E', 'I', 'O', 'U']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// Full name of a kind's type.
pub fn type_name(schema: &Schema, (g, v, k): (&str, &str, &str)) -> Option<String> {
    let ty = schema.kind(g, v, k)?;
    schema.as_struct(ty).map(|s| s.name.to_string())
}

/// What is the same for all operations of one row.
struct Row<'a> {
    def: &'a ResourceDef,
    /// `/api/v1`.
    root: String,
    /// `CoreV1`.
    word: String,
    tag: String,
    /// Full name of the kind's type.
    ty: String,
    /// The list's type, where there is one.
    list: String,
}

impl<'a> Row<'a> {
    fn new(def: &'a ResourceDef) -> Self {
        let root = match &*def.group {
            "" => format!("/api/{}", def.version),
            group => format!("/apis/{group}/{}", def.version),
        };
        let kind = (&*def.group, &*def.version, &*def.kind);
        let ty = def.schema.as_struct(def.ty).map_or_else(
            || {
                format!(
                    "{}.{}.{}",
                    def.group.split('.').rev().collect::<Vec<_>>().join("."),
                    def.version,
                    def.kind
                )
            },
            |s| s.name.to_string(),
        );
        let list = type_name(&def.schema, (kind.0, kind.1, &format!("{}List", kind.2)));
        Row {
            def,
            root,
            word: group_word(&def.group) + &capital(&def.version),
            tag: tag(&def.group, &def.version),
            list: list.unwrap_or_else(|| format!("{ty}List")),
            ty,
        }
    }

    fn scope(&self) -> &'static str {
        if self.def.namespaced { "Namespaced" } else { "" }
    }

    fn base(&self, watch: bool) -> String {
        let watch = if watch { "/watch" } else { "" };
        let namespace = if self.def.namespaced { "/namespaces/{namespace}" } else { "" };
        format!("{}{watch}{namespace}/{}", self.root, self.def.resource)
    }

    fn operation(&self, method: &'static str, action: &'static str, path: String, id: String) -> Operation {
        Operation {
            path,
            method,
            action,
            id,
            tag: self.tag.clone(),
            text: String::new(),
            kind: Some((self.def.group.to_string(), self.def.version.to_string(), self.def.kind.to_string())),
            query: vec![PRETTY],
            body: None,
            consumes: ANYTHING,
            produces: OBJECT,
            answers: vec![(200, Answers::Type(self.ty.clone()))],
        }
    }

    /// The collection, by namespace and across namespaces, and the old watch paths.
    fn reads(&self, out: &mut Vec<Operation>) {
        let (kind, word, scope) = (&self.def.kind, &self.word, self.scope());
        let watched = self.def.verbs().contains(&"watch") && self.def.is_stored();
        let list = |path: String, id: String| Operation {
            text: format!("{} objects of kind {kind}", if watched { "list or watch" } else { "list" }),
            query: LIST_QUERY.to_vec(),
            produces: STREAM,
            answers: vec![(200, Answers::Type(self.list.clone()))],
            ..self.operation("get", "list", path, id)
        };
        let watch = |action, path: String, id: String, text: String| Operation {
            text,
            query: LIST_QUERY.to_vec(),
            produces: STREAM,
            answers: vec![(200, Answers::Type(format!("{META}WatchEvent")))],
            ..self.operation("get", action, path, id)
        };
        let every = format!(
            "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
        );
        out.push(list(self.base(false), format!("list{word}{scope}{kind}")));
        if watched {
            let one = format!(
                "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
            );
            let base = self.base(true);
            out.push(watch(
                "watchlist",
                base.clone(),
                format!("watch{word}{scope}{kind}List"),
                every.clone(),
            ));
            out.push(watch("watch", format!("{base}/{{name}}"), format!("watch{word}{scope}{kind}"), one));
        }
        if self.def.namespaced {
            let (root, resource) = (&self.root, &self.def.resource);
            out.push(list(format!("{root}/{resource}"), format!("list{word}{kind}ForAllNamespaces")));
            if watched {
                let id = format!("watch{word}{kind}ListForAllNamespaces");
                out.push(watch("watchlist", format!("{root}/watch/{resource}"), id, every));
            }
        }
    }

    fn writes(&self, out: &mut Vec<Operation>) {
        let (kind, word, scope) = (&self.def.kind, &self.word, self.scope());
        let base = self.base(false);
        if self.def.serves("post") {
            out.push(Operation {
                text: format!("create {}", with_article(kind)),
                ..self.write("post", "post", base.clone(), format!("create{word}{scope}{kind}"), &self.ty)
            });
        }
        if self.def.serves("deletecollection") {
            let id = format!("delete{word}Collection{scope}{kind}");
            out.push(Operation {
                text: format!("delete collection of {kind}"),
                query: DELETE_ALL_QUERY.to_vec(),
                body: Some(Carries { ty: format!("{META}DeleteOptions"), required: false }),
                answers: vec![(200, Answers::Type(format!("{META}Status")))],
                ..self.operation("delete", "deletecollection", base.clone(), id)
            });
        }
        let one = format!("{base}/{{name}}");
        if self.def.serves("get") {
            let id = format!("read{word}{scope}{kind}");
            out.push(Operation {
                text: format!("read the specified {kind}"),
                ..self.operation("get", "get", one.clone(), id)
            });
        }
        if self.def.serves("put") {
            let id = format!("replace{word}{scope}{kind}");
            out.push(Operation {
                text: format!("replace the specified {kind}"),
                ..self.write("put", "put", one.clone(), id, &self.ty)
            });
        }
        if self.def.serves("patch") {
            let id = format!("patch{word}{scope}{kind}");
            out.push(Operation {
                text: format!("partially update the specified {kind}"),
                ..self.write("patch", "patch", one.clone(), id, &self.ty)
            });
        }
        if self.def.serves("delete") {
            let answer = if self.def.returns_deleted() { self.ty.clone() } else { format!("{META}Status") };
            out.push(Operation {
                text: format!("delete {}", with_article(kind)),
                query: DELETE_QUERY.to_vec(),
                body: Some(Carries { ty: format!("{META}DeleteOptions"), required: false }),
                answers: vec![(200, Answers::Type(answer.clone())), (202, Answers::Type(answer))],
                ..self.operation("delete", "delete", one, format!("delete{word}{scope}{kind}"))
            });
        }
    }

    /// POST, PUT or PATCH of a type.
    fn write(
        &self,
        method: &'static str,
        action: &'static str,
        path: String,
        id: String,
        ty: &str,
    ) -> Operation {
        let codes: &[u16] = if method == "post" { &[200, 201, 202] } else { &[200, 201] };
        let patch = method == "patch";
        let body = if patch { format!("{META}Patch") } else { ty.to_owned() };
        Operation {
            query: if patch { PATCH_QUERY } else { WRITE_QUERY }.to_vec(),
            body: Some(Carries { ty: body, required: true }),
            consumes: match (patch, self.def.custom.is_some()) {
                (true, true) => PATCHES_CUSTOM,
                (true, false) => PATCHES,
                _ => ANYTHING,
            },
            answers: codes.iter().map(|code| (*code, Answers::Type(ty.to_owned()))).collect(),
            ..self.operation(method, action, path, id)
        }
    }

    fn subresource(&self, sub: &Subresource, out: &mut Vec<Operation>) {
        let (kind, word, scope) = (&self.def.kind, &self.word, self.scope());
        let path = format!("{}/{{name}}/{}", self.base(false), sub.name);
        let connect = match &*sub.name {
            "attach" => Some(ATTACH_QUERY),
            "exec" => Some(EXEC_QUERY),
            "portforward" => Some(FORWARD_QUERY),
            "proxy" => Some(PROXY_QUERY),
            _ => None,
        };
        if let Some(query) = connect {
            return self.connect(sub, &path, query, out);
        }
        let gvk = match &sub.kind {
            Some((g, v, k)) => (g.to_string(), v.to_string(), k.to_string()),
            None => (self.def.group.to_string(), self.def.version.to_string(), kind.to_string()),
        };
        let ty = type_name(Schema::builtin(), (&gvk.0, &gvk.1, &gvk.2)).unwrap_or_else(|| self.ty.clone());
        let suffix = capital(&sub.name);
        for method in &sub.methods {
            let id = |action: &str| format!("{action}{word}{scope}{kind}{suffix}");
            let name = &sub.name;
            let operation = match &**method {
                "get" => Operation {
                    text: format!("read {name} of the specified {kind}"),
                    answers: vec![(200, Answers::Type(ty.clone()))],
                    ..self.operation("get", "get", path.clone(), id("read"))
                },
                "put" => Operation {
                    text: format!("replace {name} of the specified {kind}"),
                    ..self.write("put", "put", path.clone(), id("replace"), &ty)
                },
                "patch" => Operation {
                    text: format!("partially update {name} of the specified {kind}"),
                    ..self.write("patch", "patch", path.clone(), id("patch"), &ty)
                },
                _ => Operation {
                    text: format!("create {name} of {}", with_article(kind)),
                    ..self.write("post", "post", path.clone(), id("create"), &ty)
                },
            };
            out.push(match &*sub.name {
                "log" => Operation {
                    query: LOG_QUERY.to_vec(),
                    produces: LOG,
                    answers: vec![(200, Answers::Text)],
                    ..operation
                },
                _ => Operation { kind: Some(gvk.clone()), ..operation },
            });
        }
    }

    fn connect(&self, sub: &Subresource, path: &str, query: &[Parameter], out: &mut Vec<Operation>) {
        let (kind, word, scope) = (&self.def.kind, &self.word, self.scope());
        for method in &sub.methods {
            let Some(method) = METHODS.iter().copied().find(|m| *m == &**method) else { continue };
            let id = format!("connect{word}{}{scope}{kind}{}", capital(method), capital(&sub.name));
            let operation = Operation {
                text: format!("connect {} requests to {} of {kind}", method.to_uppercase(), sub.name),
                query: query.to_vec(),
                produces: ANYTHING,
                answers: vec![(200, Answers::Text)],
                ..self.operation(method, "connect", path.to_owned(), id.clone())
            };
            if &*sub.name == "proxy" {
                out.push(Operation {
                    path: format!("{path}/{{path}}"),
                    id: format!("{id}WithPath"),
                    ..operation.clone()
                });
            }
            out.push(operation);
        }
    }
}

const METHODS: &[&str] = &["get", "put", "post", "delete", "options", "head", "patch"];

/// The operations of one row.
pub fn of_row(def: &ResourceDef) -> Vec<Operation> {
    let (row, mut out) = (Row::new(def), Vec::new());
    if def.serves("list") {
        row.reads(&mut out);
    }
    row.writes(&mut out);
    def.subresources.iter().for_each(|sub| row.subresource(sub, &mut out));
    out
}

fn plain(path: String, id: String, tag: String, text: &str, ty: Option<&str>) -> Operation {
    Operation {
        path,
        method: "get",
        action: "",
        id,
        tag,
        text: text.into(),
        kind: None,
        query: Vec::new(),
        body: None,
        consumes: OBJECT,
        produces: OBJECT,
        answers: vec![(200, ty.map_or(Answers::Text, |t| Answers::Type(t.into())))],
    }
}

/// The discovery document of one version.
pub fn of_version(group: &str, version: &str) -> Operation {
    let path =
        if group.is_empty() { format!("/api/{version}/") } else { format!("/apis/{group}/{version}/") };
    let id = format!("get{}{}APIResources", group_word(group), capital(version));
    let ty = format!("{META}APIResourceList");
    plain(path, id, tag(group, version), "get available resources", Some(&ty))
}

/// The discovery document of one group.
pub fn of_group(group: &str) -> Operation {
    let id = format!("get{}APIGroup", group_word(group));
    let ty = format!("{META}APIGroup");
    plain(format!("/apis/{group}/"), id, tag(group, ""), "get information of a group", Some(&ty))
}

/// The paths that belong to no group, with the part of the v3 document that has them.
pub fn of_server() -> Vec<(&'static str, Operation)> {
    let meta = |name: &str| format!("{META}{name}");
    let versions = "get available API versions";
    let json = |operation: Operation, media: &'static [&'static str]| Operation {
        consumes: &[],
        produces: media,
        ..operation
    };
    vec![
        (
            "api",
            plain(
                "/api/".into(),
                "getCoreAPIVersions".into(),
                "core".into(),
                versions,
                Some(&meta("APIVersions")),
            ),
        ),
        (
            "apis",
            plain(
                "/apis/".into(),
                "getAPIVersions".into(),
                "apis".into(),
                versions,
                Some(&meta("APIGroupList")),
            ),
        ),
        (
            "version",
            Operation {
                consumes: &["application/json"],
                produces: &["application/json"],
                ..plain(
                    "/version/".into(),
                    "getCodeVersion".into(),
                    "version".into(),
                    "get the version information for this server",
                    Some("io.k8s.apimachinery.pkg.version.Info"),
                )
            },
        ),
        (
            ".well-known/openid-configuration",
            json(
                plain(
                    "/.well-known/openid-configuration/".into(),
                    "getServiceAccountIssuerOpenIDConfiguration".into(),
                    "WellKnown".into(),
                    "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
                    None,
                ),
                &["application/json"],
            ),
        ),
        (
            "openid/v1/jwks",
            json(
                plain(
                    "/openid/v1/jwks/".into(),
                    "getServiceAccountIssuerOpenIDKeyset".into(),
                    "openid".into(),
                    "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
                    None,
                ),
                &["application/jwk-set+json"],
            ),
        ),
    ]
}

/// Everything that is served.
pub fn all(table: &ResourceTable) -> Vec<Operation> {
    let mut out: Vec<Operation> = of_server().into_iter().map(|(_, o)| o).collect();
    for (group, versions) in table.groups() {
        if !group.is_empty() {
            out.push(of_group(group));
        }
        out.extend(versions.iter().map(|version| of_version(group, version)));
    }
    table.rows().iter().for_each(|def| out.extend(of_row(def)));
    out
}
