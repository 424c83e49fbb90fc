//! The table of resources: one row per resource from which discovery, routes, storage keys, tables, RBAC
//! names and OpenAPI derive. Built-in rows come from `data/resources.txt`; a custom resource makes the same
//! [`ResourceDef`] at run time.

use std::collections::HashMap;
use std::sync::Arc;

use schema::{Schema, TypeId};

use crate::columns::{self, Column};
use crate::custom::Custom;
use crate::runtime::{RuntimeConfig, RuntimeConfigError};
use crate::strategy::{self, StrategyRef};

/// One subresource of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// Name, e.g. `status`.
    pub name: Box<str>,
    /// HTTP methods, lower case.
    pub methods: Vec<Box<str>>,
    /// Group, version, kind where it is not the resource's own.
    pub kind: Option<(Box<str>, Box<str>, Box<str>)>,
}

/// One served resource: a row of the table.
pub struct ResourceDef {
    /// API group, empty for the core group.
    pub group: Box<str>,
    /// API version.
    pub version: Box<str>,
    /// Plural name.
    pub resource: Box<str>,
    /// Singular name.
    pub singular: Box<str>,
    /// Kind.
    pub kind: Box<str>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Short names for the command line.
    pub short_names: Vec<Box<str>>,
    /// Groups of resources it is shown in, e.g. `all`.
    pub categories: Vec<Box<str>>,
    /// Served HTTP methods in lower case, `list` and `deletecollection` for the collection.
    pub methods: Vec<Box<str>>,
    /// Subresources sorted by name.
    pub subresources: Vec<Subresource>,
    /// Whether `metadata.generation` counts changes of the spec.
    pub counts_generation: bool,
    /// Whether a PUT has to say which version it replaces.
    pub guards_updates: bool,
    /// Kind of its lists.
    pub list_kind: Box<str>,
    /// Fields that field selectors may use besides name and namespace.
    pub selectable: Vec<Arc<str>>,
    /// Version and group that objects are stored in, where it is another row.
    pub stored_as: Option<(Box<str>, Box<str>, Box<str>)>,
    /// Columns of tables.
    pub columns: Vec<Column>,
    /// Type of the kind.
    pub ty: TypeId,
    /// The types.
    pub schema: Arc<Schema>,
    /// What is particular to the kind.
    pub strategy: StrategyRef,
    /// What only custom resources have.
    pub custom: Option<Arc<Custom>>,
}

impl std::fmt::Debug for ResourceDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.api_version(), self.resource)
    }
}

impl ResourceDef {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        meta::gvk::join_api_version(&self.group, &self.version)
    }

    /// Whether objects are stored (rather than reviews that are answered and forgotten).
    pub fn is_stored(&self) -> bool {
        self.custom.is_some() || (self.serves("get") && self.serves("post"))
    }

    /// Whether a completed deletion answers with the object instead of a Status.
    pub fn returns_deleted(&self) -> bool {
        match &*self.group {
            "" => RETURNED_CORE.contains(&&*self.resource),
            "storage.k8s.io" => &*self.resource != "csistoragecapacities",
            group => group == "resource.k8s.io",
        }
    }

    /// Whether an HTTP method (or `list`, `deletecollection`) is served.
    pub fn serves(&self, method: &str) -> bool {
        self.methods.iter().any(|m| &**m == method)
    }

    /// The subresource called `name`.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| &*s.name == name)
    }

    /// Kubernetes' verbs, in alphabetical order as discovery lists them.
    pub fn verbs(&self) -> Vec<&'static str> {
        let mut verbs: Vec<&str> = self.methods.iter().flat_map(|m| verbs_of(m).iter().copied()).collect();
        verbs.sort_unstable();
        verbs
    }

    /// Prefix of its keys in the store, with a slash at the end.
    pub fn storage_prefix(&self) -> String {
        let (group, resource) = match &self.stored_as {
            Some((group, _, resource)) => (group, resource),
            None => (&self.group, &self.resource),
        };
        let dot = if group.is_empty() { "" } else { "." };
        format!("{ROOT}{resource}{dot}{group}/")
    }

    /// Key of one object in the store.
    pub fn storage_key(&self, namespace: &str, name: &str) -> String {
        let mut key = self.storage_prefix();
        if self.namespaced {
            key.push_str(namespace);
            key.push('/');
        }
        key.push_str(name);
        key
    }
}

/// Resources of the core group whose deletion answers with the object.
const RETURNED_CORE: [&str; 7] = [
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
];

/// Prefix of all keys of objects.
pub const ROOT: &str = "/registry/";

/// The Kubernetes verbs that an HTTP method of a row stands for.
fn verbs_of(method: &str) -> &'static [&'static str] {
    match method {
        "post" => &["create"],
        "put" => &["update"],
        "list" => &["list", "watch"],
        "get" => &["get"],
        "patch" => &["patch"],
        "delete" => &["delete"],
        "deletecollection" => &["deletecollection"],
        _ => &[],
    }
}

/// Verbs of a subresource in discovery.
pub fn subresource_verbs(sub: &Subresource) -> Vec<&'static str> {
    let verb = |m: &str| match m {
        "post" => "create",
        "put" => "update",
        "get" => "get",
        "patch" => "patch",
        "delete" => "delete",
        _ => "",
    };
    let mut verbs: Vec<&str> = sub.methods.iter().map(|m| verb(m)).filter(|v| !v.is_empty()).collect();
    verbs.sort_unstable();
    verbs
}

/// A line of the resource data cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("resource data, line {line}: {problem}")]
pub struct TableError {
    line: usize,
    problem: String,
}

/// All served resources.
#[derive(Debug, Default)]
pub struct ResourceTable {
    rows: Vec<Arc<ResourceDef>>,
    by_name: HashMap<(Box<str>, Box<str>, Box<str>), usize>,
}

impl ResourceTable {
    /// The built-in resources.
    pub fn builtin() -> Result<ResourceTable, TableError> {
        Self::parse(include_str!("../data/resources.txt"))
    }

    /// The rows that are served under a configuration.
    pub fn served(&self, config: &RuntimeConfig) -> Result<ResourceTable, RuntimeConfigError> {
        config.check(self.rows.iter().map(|r| &*r.group))?;
        let mut table = ResourceTable::default();
        for row in self.rows.iter().filter(|r| config.serves(r)) {
            let key = (row.group.clone(), row.version.clone(), row.resource.clone());
            table.by_name.insert(key, table.rows.len());
            table.rows.push(row.clone());
        }
        Ok(table)
    }

    /// Rows in order: groups and versions by preference, then resources by name.
    pub fn rows(&self) -> &[Arc<ResourceDef>] {
        &self.rows
    }

    /// The row that serves a resource.
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<ResourceDef>> {
        self.by_name.get(&(group.into(), version.into(), resource.into())).map(|at| &self.rows[*at])
    }

    /// The same built-in rows with other custom ones, which come last.
    pub fn with_custom(&self, custom: Vec<Arc<ResourceDef>>) -> ResourceTable {
        let rows: Vec<_> = self.rows.iter().filter(|r| r.custom.is_none()).cloned().chain(custom).collect();
        let key = |r: &ResourceDef| (r.group.clone(), r.version.clone(), r.resource.clone());
        let mut by_name = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            // Built-in resources cannot be replaced.
            by_name.entry(key(row)).or_insert(at);
        }
        ResourceTable { rows, by_name }
    }

    /// The row that serves a kind (the resource itself, not a subresource).
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<ResourceDef>> {
        self.rows.iter().find(|r| (&*r.group, &*r.version, &*r.kind) == (group, version, kind))
    }

    /// Groups with their versions, both in order of preference.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|(g, _)| *g == &*row.group) {
                Some((_, versions)) => {
                    if !versions.contains(&&*row.version) {
                        versions.push(&row.version);
                    }
                }
                None => groups.push((&row.group, vec![&row.version])),
            }
        }
        groups
    }

    fn parse(text: &'static str) -> Result<ResourceTable, TableError> {
        let mut table = ResourceTable::default();
        let mut columns = columns::builtin();
        let (mut group, mut version) = ("", "");
        for (i, line) in text.lines().enumerate() {
            let fail = |problem: String| TableError { line: i + 1, problem };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(rest) = line.strip_prefix("group ") {
                (group, version) = rest.split_once(' ').ok_or_else(|| fail("no version".into()))?;
                group = if group == "-" { "" } else { group };
                continue;
            }
            let mut row = parse_row(group, version, line).map_err(fail)?;
            if let Some(found) = columns.remove(&format!("{group}/{}", row.kind)) {
                columns.insert(format!("{group}/{}", row.kind), found.clone());
                row.columns = found;
            }
            let key = (row.group.clone(), row.version.clone(), row.resource.clone());
            table.by_name.insert(key, table.rows.len());
            table.rows.push(Arc::new(row));
        }
        Ok(table)
    }
}

const ALL_METHODS: [&str; 7] = ["delete", "deletecollection", "get", "list", "patch", "post", "put"];

fn parse_row(group: &str, version: &str, line: &'static str) -> Result<ResourceDef, String> {
    let mut words = line.split(' ');
    let resource = words.next().unwrap_or_default();
    let kind = words.next().ok_or("no kind")?;
    let schema = Schema::builtin();
    let mut row = ResourceDef {
        group: group.into(),
        version: version.into(),
        resource: resource.into(),
        singular: kind.to_lowercase().into(),
        kind: kind.into(),
        namespaced: false,
        short_names: Vec::new(),
        categories: Vec::new(),
        methods: ALL_METHODS.map(Box::from).to_vec(),
        subresources: Vec::new(),
        counts_generation: false,
        guards_updates: false,
        selectable: Vec::new(),
        list_kind: format!("{kind}List").into(),
        stored_as: None,
        columns: columns::standard(),
        ty: schema.kind(group, version, kind).ok_or_else(|| format!("no type for {kind}"))?,
        schema: schema.clone(),
        strategy: StrategyRef::Builtin(strategy::of(group, kind)),
        custom: None,
    };
    for word in words {
        match word.split_once('=') {
            None if word == "namespaced" => row.namespaced = true,
            None if word == "generation" => row.counts_generation = true,
            None if word == "guarded" => row.guards_updates = true,
            Some(("short", names)) => row.short_names = names.split(',').map(Box::from).collect(),
            Some(("in", name)) => row.categories.push(name.into()),
            Some(("verbs", methods)) => row.methods = methods.split(',').map(Box::from).collect(),
            Some(("fields", fields)) => row.selectable = fields.split(',').map(Arc::from).collect(),
            Some(("stored", gvr)) => row.stored_as = Some(parse_triple(gvr).ok_or("stored")?),
            Some(("sub", subs)) => {
                row.subresources = subs.split(',').map(parse_sub).collect::<Option<_>>().ok_or("sub")?;
            }
            _ => return Err(format!("unknown word {word:?}")),
        }
    }
    Ok(row)
}

fn parse_triple(text: &str) -> Option<(Box<str>, Box<str>, Box<str>)> {
    let mut parts = text.splitn(3, '/');
    let group = parts.next()?;
    Some((if group == "-" { "" } else { group }.into(), parts.next()?.into(), parts.next()?.into()))
}

fn parse_sub(text: &str) -> Option<Subresource> {
    let mut parts = text.splitn(3, ':');
    let name = parts.next()?;
    let methods = parts.next().unwrap_or("get+patch+put").split('+').map(Box::from).collect();
    let kind = match parts.next() {
        Some(kind) => Some(parse_triple(kind)?),
        None => None,
    };
    Some(Subresource { name: name.into(), methods, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_table_loads() {
        let table = ResourceTable::builtin().unwrap();
        let pods = table.find("", "v1", "pods").unwrap();
        assert_eq!(
            pods.verbs(),
            ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        );
        assert_eq!(pods.storage_key("ns", "p"), "/registry/pods/ns/p");
        assert_eq!(
            pods.subresource("eviction").unwrap().kind,
            Some(("policy".into(), "v1".into(), "Eviction".into()))
        );
        let events = table.find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(events.storage_prefix(), "/registry/events/");
        assert!(!table.find("authorization.k8s.io", "v1", "subjectaccessreviews").unwrap().is_stored());
        assert_eq!(table.groups()[0], ("", vec!["v1"]));
    }

    #[test]
    fn every_row_that_shares_storage_names_another_row() {
        let table = ResourceTable::builtin().unwrap();
        for row in table.rows() {
            if let Some((g, v, r)) = &row.stored_as {
                assert!(table.find(g, v, r).is_some_and(|t| t.stored_as.is_none()), "{row:?}");
            }
        }
    }
}
