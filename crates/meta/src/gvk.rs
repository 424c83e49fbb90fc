//! Names of kinds and resources.

use std::borrow::Cow;
use std::fmt;

/// Group, version and kind of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// API group, empty for the core group.
    pub group: Cow<'static, str>,
    /// API version, e.g. `v1`.
    pub version: Cow<'static, str>,
    /// Kind in CamelCase.
    pub kind: Cow<'static, str>,
}

impl Gvk {
    /// A kind known at compile time.
    pub const fn new(group: &'static str, version: &'static str, kind: &'static str) -> Self {
        Gvk { group: Cow::Borrowed(group), version: Cow::Borrowed(version), kind: Cow::Borrowed(kind) }
    }

    /// The kind named by an object's `apiVersion` and `kind` fields.
    pub fn from_type_meta(api_version: &str, kind: &str) -> Self {
        let (group, version) = split_api_version(api_version);
        Gvk {
            group: Cow::Owned(group.to_owned()),
            version: Cow::Owned(version.to_owned()),
            kind: Cow::Owned(kind.to_owned()),
        }
    }

    /// `apiVersion` as objects carry it: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        join_api_version(&self.group, &self.version)
    }
}

impl fmt::Display for Gvk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Kind={}", self.api_version(), self.kind)
    }
}

/// Group, version and resource: what a URL names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvr {
    /// API group, empty for the core group.
    pub group: Cow<'static, str>,
    /// API version.
    pub version: Cow<'static, str>,
    /// Plural resource name, e.g. `deployments`.
    pub resource: Cow<'static, str>,
}

impl Gvr {
    /// A resource known at compile time.
    pub const fn new(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Gvr {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            resource: Cow::Borrowed(resource),
        }
    }

    /// `apiVersion` of the group and version.
    pub fn api_version(&self) -> String {
        join_api_version(&self.group, &self.version)
    }

    /// The URL of the collection, in `namespace` or (for cluster scope and all namespaces) without.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api/" } else { "/apis/" };
        let namespace = namespace.map(|ns| format!("/namespaces/{ns}")).unwrap_or_default();
        format!("{root}{}{namespace}/{}", self.api_version(), self.resource)
    }
}

impl fmt::Display for Gvr {
    /// `resource.group` as messages name it: `pods`, `deployments.apps`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_group_resource(f, &self.group, &self.resource)
    }
}

/// Writes `resource.group`, without the dot for the core group.
fn write_group_resource(f: &mut fmt::Formatter<'_>, group: &str, resource: &str) -> fmt::Result {
    if group.is_empty() { f.write_str(resource) } else { write!(f, "{resource}.{group}") }
}

/// Splits `apps/v1` into group and version; the core group is empty.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Joins group and version as `apiVersion` has them.
pub fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names() {
        let gvr = Gvr::new("apps", "v1", "deployments");
        assert_eq!(gvr.path(Some("default")), "/apis/apps/v1/namespaces/default/deployments");
        assert_eq!(Gvr::new("", "v1", "nodes").path(None), "/api/v1/nodes");
        assert_eq!(gvr.to_string(), "deployments.apps");
        assert_eq!(Gvk::from_type_meta("apps/v1", "Deployment"), Gvk::new("apps", "v1", "Deployment"));
    }
}
