//! Options of the verbs and how they go into the query string (meta/v1 ListOptions, DeleteOptions, ...).

use serde_json::{Value, json};

/// Options of a list, or the filter of a collection delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListParams {
    /// Label selector as text; empty selects all.
    pub label_selector: String,
    /// Field selector as text; empty selects all.
    pub field_selector: String,
    /// Largest number of items per page; 0 for all at once.
    pub limit: u32,
    /// Token of the next page.
    pub continue_token: String,
    /// Resource version the answer must have reached; empty for the most recent state.
    pub resource_version: String,
    /// `Exact` or `NotOlderThan`; empty for the default meaning.
    pub resource_version_match: String,
    /// Ask for `PartialObjectMetadata` instead of whole objects.
    pub metadata_only: bool,
}

/// Options of a watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchParams {
    /// Label selector as text.
    pub label_selector: String,
    /// Field selector as text.
    pub field_selector: String,
    /// Where to start; empty starts with the present objects as synthetic `ADDED` events.
    pub resource_version: String,
    /// `NotOlderThan`, required together with `send_initial_events`.
    pub resource_version_match: String,
    /// Ask for bookmarks, so that a restart finds a recent resource version.
    pub bookmarks: bool,
    /// Stream the present state first, closed by a bookmark (KEP-3157).
    pub send_initial_events: bool,
    /// How long the server keeps the watch open, in seconds; 0 leaves it to the server.
    pub timeout_seconds: u32,
    /// Ask for `PartialObjectMetadata` instead of whole objects.
    pub metadata_only: bool,
}

/// Options of create, update and patch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteParams {
    /// Run the whole chain without storing.
    pub dry_run: bool,
    /// Name that `managedFields` records; empty leaves it to the user agent.
    pub field_manager: String,
    /// `Strict`, `Warn` or `Ignore`; empty for the server's default.
    pub field_validation: String,
}

/// What becomes of dependents (meta/v1 DeletionPropagation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents go first.
    Foreground,
    /// Dependents go after the owner.
    Background,
    /// Dependents stay.
    Orphan,
}

/// Options of a delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteParams {
    /// Seconds the object may take; `None` for the kind's default.
    pub grace_period_seconds: Option<i64>,
    /// What becomes of dependents; `None` for the kind's default.
    pub propagation: Option<Propagation>,
    /// Delete only the object of this uid.
    pub uid: Option<String>,
    /// Delete only the object of this resource version.
    pub resource_version: Option<String>,
    /// Run the whole chain without storing.
    pub dry_run: bool,
}

/// A patch document with its kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge patch.
    Strategic(Value),
    /// Server-side apply.
    Apply {
        /// The whole intent of the manager.
        object: Value,
        /// Name of the manager.
        manager: String,
        /// Take fields over from other managers.
        force: bool,
    },
}

impl Patch {
    /// The document.
    pub fn document(&self) -> &Value {
        match self {
            Patch::Json(v) | Patch::Merge(v) | Patch::Strategic(v) => v,
            Patch::Apply { object, .. } => object,
        }
    }

    /// The media type that names the kind of patch.
    pub fn content_type(&self) -> &'static str {
        match self {
            Patch::Json(_) => "application/json-patch+json",
            Patch::Merge(_) => "application/merge-patch+json",
            Patch::Strategic(_) => "application/strategic-merge-patch+json",
            Patch::Apply { .. } => "application/apply-patch+yaml",
        }
    }
}

/// Builds a query string, escaping values.
#[derive(Debug, Default)]
pub struct Query(String);

impl Query {
    /// Adds a parameter unless its value is empty.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0.push_str(name);
            self.0.push('=');
            escape_into(&mut self.0, value);
        }
        self
    }

    /// Adds `name=true` if it is.
    pub fn flag(self, name: &str, value: bool) -> Self {
        if value { self.text(name, "true") } else { self }
    }

    /// Adds a number unless it is 0.
    pub fn number(self, name: &str, value: u32) -> Self {
        if value == 0 { self } else { self.text(name, &value.to_string()) }
    }

    /// The query with its question mark, or nothing.
    pub fn finish(self) -> String {
        self.0
    }
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub fn escape_into(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)] as char);
            out.push(HEX[usize::from(byte & 15)] as char);
        }
    }
}

impl ListParams {
    /// The options as a query string.
    pub fn query(&self) -> String {
        Query::default()
            .text("labelSelector", &self.label_selector)
            .text("fieldSelector", &self.field_selector)
            .number("limit", self.limit)
            .text("continue", &self.continue_token)
            .text("resourceVersion", &self.resource_version)
            .text("resourceVersionMatch", &self.resource_version_match)
            .finish()
    }
}

impl WatchParams {
    /// The options as a query string.
    pub fn query(&self) -> String {
        Query::default()
            .flag("watch", true)
            .text("labelSelector", &self.label_selector)
            .text("fieldSelector", &self.field_selector)
            .text("resourceVersion", &self.resource_version)
            .text("resourceVersionMatch", &self.resource_version_match)
            .flag("allowWatchBookmarks", self.bookmarks)
            .flag("sendInitialEvents", self.send_initial_events)
            .number("timeoutSeconds", self.timeout_seconds)
            .finish()
    }
}

impl WriteParams {
    /// The options as a query string; `force` and the manager of an apply patch are added by the caller.
    pub fn query(&self) -> Query {
        Query::default()
            .text("dryRun", if self.dry_run { "All" } else { "" })
            .text("fieldManager", &self.field_manager)
            .text("fieldValidation", &self.field_validation)
    }
}

impl DeleteParams {
    /// Options that make dependents follow as `propagation` says.
    pub fn propagating(propagation: Propagation) -> Self {
        DeleteParams { propagation: Some(propagation), ..Default::default() }
    }

    /// Deletes only the object of this uid.
    pub fn only_uid(uid: &str) -> Self {
        DeleteParams { uid: Some(uid.to_owned()), ..Default::default() }
    }

    /// The options as a request body (meta/v1 DeleteOptions).
    pub fn body(&self) -> Value {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(seconds) = self.grace_period_seconds {
            options["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(propagation) = self.propagation {
            options["propagationPolicy"] = match propagation {
                Propagation::Foreground => "Foreground",
                Propagation::Background => "Background",
                Propagation::Orphan => "Orphan",
            }
            .into();
        }
        if let Some(uid) = &self.uid {
            options["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(version) = &self.resource_version {
            options["preconditions"]["resourceVersion"] = version.as_str().into();
        }
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped_and_sparse() {
        assert_eq!(ListParams::default().query(), "");
        let list = ListParams {
            label_selector: "a in (b,c)".into(),
            limit: 5,
            resource_version: "0".into(),
            ..Default::default()
        };
        assert_eq!(list.query(), "?labelSelector=a%20in%20%28b%2Cc%29&limit=5&resourceVersion=0");
        let watch = WatchParams { resource_version: "7".into(), bookmarks: true, ..Default::default() };
        assert_eq!(watch.query(), "?watch=true&resourceVersion=7&allowWatchBookmarks=true");
    }

    #[test]
    fn delete_options() {
        let params = DeleteParams {
            propagation: Some(Propagation::Foreground),
            uid: Some("u".into()),
            grace_period_seconds: Some(0),
            ..Default::default()
        };
        assert_eq!(
            params.body(),
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
                   "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}})
        );
    }
}
