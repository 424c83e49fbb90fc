//! Reading: get, list and watch, with resourceVersion semantics (API concepts, "Resource versions").

use std::sync::Arc;

use base64::Engine;
use meta::{FieldError, FieldSelector, LabelSelector, Object, Reason, Status};
use serde::{Deserialize, Serialize};
use store::{Range, Revision};

use crate::cache::{Filter, Start, Watch};
use crate::resource::ResourceDef;
use crate::{Registry, error};

/// Query parameters of a list or watch.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// `labelSelector`.
    pub label_selector: String,
    /// `fieldSelector`.
    pub field_selector: String,
    /// `resourceVersion`.
    pub resource_version: String,
    /// `resourceVersionMatch`.
    pub resource_version_match: String,
    /// `limit`; 0 means all.
    pub limit: usize,
    /// `continue`.
    pub continue_token: String,
    /// `sendInitialEvents`.
    pub send_initial_events: Option<bool>,
    /// `allowWatchBookmarks`.
    pub allow_bookmarks: bool,
}

/// A consistent list.
pub struct List {
    /// Objects in key order.
    pub items: Vec<Arc<Object>>,
    /// Revision of the list.
    pub revision: Revision,
    /// Token for the next page; empty on the last.
    pub continue_token: String,
    /// Objects after this page, where that is known.
    pub remaining: Option<u64>,
}

/// Where the next page begins.
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    /// Revision of the snapshot; [`INCONSISTENT`] for whatever is there.
    rv: i64,
    start: String,
}

/// Stands for the revision of a list whose snapshot is gone.
const INCONSISTENT: i64 = -1;

fn encode_token(token: &Continue) -> String {
    let json = serde_json::to_vec(token).unwrap_or_default();
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
}

fn decode_token(text: &str) -> Result<Continue, Status> {
    let invalid = || Status::bad_request("continue key is not valid: illegal base64 data or unknown version");
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
    let token: Continue = serde_json::from_slice(&json).map_err(|_| invalid())?;
    if token.v == "meta.k8s.io/v1" && !token.start.starts_with('/') { Ok(token) } else { Err(invalid()) }
}

fn parse_revision(text: &str) -> Result<Option<Revision>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let problem = format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        );
        Status::bad_request(problem)
    })
}

impl ListOptions {
    fn invalid(&self, errors: &[FieldError]) -> Status {
        Status::invalid("meta.k8s.io", "ListOptions", "", errors)
    }

    /// Checks the combination of parameters and builds the filter.
    pub fn filter(&self, def: &ResourceDef, namespace: &str, name: &str) -> Result<Filter, Status> {
        let labels =
            LabelSelector::parse(&self.label_selector).map_err(|e| Status::bad_request(e.to_string()))?;
        let mut fields =
            FieldSelector::parse(&self.field_selector).map_err(|e| Status::bad_request(e.to_string()))?;
        for r in &fields.0 {
            let known = matches!(r.field.as_str(), "metadata.name" | "metadata.namespace")
                || def.selectable.iter().any(|f| **f == *r.field);
            if !known {
                // Kinds without fields of their own have the words of the generic rule.
                return Err(Status::bad_request(match def.selectable.is_empty() {
                    true => format!(
                        "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        r.field
                    ),
                    false => format!("field label not supported: {}", r.field),
                }));
            }
        }
        fields.0.iter_mut().for_each(|r| r.field = crate::convert::stored_field(def, &r.field));
        if !name.is_empty() {
            fields.0.push(meta::selector::FieldRequirement {
                field: "metadata.name".into(),
                value: name.into(),
                equal: true,
            });
        }
        let namespace = (def.namespaced && !namespace.is_empty()).then(|| namespace.into());
        let mut late = FieldSelector::default();
        if def.custom.as_ref().is_some_and(|c| c.converter.is_some()) {
            // Objects may be stored in a version that has other fields.
            let (common, own) = fields.0.into_iter().partition(|r| r.field.starts_with("metadata."));
            (fields.0, late.0) = (common, own);
        }
        Ok(Filter { namespace, labels, fields, late })
    }

    fn check_list(&self) -> Result<(), Status> {
        if self.send_initial_events.is_some() {
            return Err(self.invalid(&[FieldError::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            )]));
        }
        let rvm = self.resource_version_match.as_str();
        let mut errors = Vec::new();
        if !rvm.is_empty() {
            if self.resource_version.is_empty() {
                errors.push(FieldError::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                errors.push(FieldError::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if !matches!(rvm, "Exact" | "NotOlderThan") {
                errors.push(FieldError::not_supported(
                    "resourceVersionMatch",
                    &rvm.into(),
                    &["Exact", "NotOlderThan", ""],
                ));
            }
            if rvm == "Exact" && self.resource_version == "0" {
                errors.push(FieldError::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(self.invalid(&errors)) }
    }

    fn check_watch(&self) -> Result<(), Status> {
        let rvm = self.resource_version_match.as_str();
        let mut errors = Vec::new();
        match self.send_initial_events {
            Some(_) if rvm != "NotOlderThan" => errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
            None if !rvm.is_empty() => errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
            _ => {}
        }
        if errors.is_empty() { Ok(()) } else { Err(self.invalid(&errors)) }
    }
}

impl Registry {
    /// One object at its newest version, or not older than `resource_version` where that is given.
    pub async fn get(
        &self,
        def: &ResourceDef,
        namespace: &str,
        name: &str,
        resource_version: &str,
    ) -> Result<Arc<Object>, Status> {
        match parse_revision(resource_version)? {
            None => {
                self.cacher.fresh().await?;
            }
            Some(revision) => self.cacher.wait_for(revision).await?,
        }
        self.current(def, namespace, name).ok_or_else(|| Status::not_found(&def.group, &def.resource, name))
    }

    /// The cached version of an object.
    pub fn current(&self, def: &ResourceDef, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let kind = self.cacher.kind(&def.storage_prefix());
        if def.namespaced { kind.get(&format!("{namespace}/{name}")) } else { kind.get(name) }
    }

    /// A list of a namespace (all when empty).
    pub async fn list(
        &self,
        def: &ResourceDef,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List, Status> {
        options.check_list()?;
        let filter = options.filter(def, namespace, "")?;
        let late = filter.late.clone();
        let mut list = self.list_stored(def, filter, options).await?;
        if !late.is_everything() {
            let items = std::mem::take(&mut list.items);
            let selected = crate::convert::selected(def, &late, &items).await?;
            list.items = items.into_iter().zip(selected).filter(|(_, s)| *s).map(|(o, _)| o).collect();
        }
        Ok(list)
    }

    /// A list by what the stored objects say.
    async fn list_stored(
        &self,
        def: &ResourceDef,
        filter: Filter,
        options: &ListOptions,
    ) -> Result<List, Status> {
        let asked = parse_revision(&options.resource_version)?;
        if !options.continue_token.is_empty() {
            if asked.is_some_and(|rv| rv > 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = decode_token(&options.continue_token)?;
            let Ok(revision) = Revision::try_from(token.rv) else {
                let now = self.cacher.fresh().await?;
                return self.list_at(def, &filter, now, &token.start, options.limit).await;
            };
            let page = self.list_at(def, &filter, revision, &token.start, options.limit).await;
            return page.map_err(|status| match status.reason {
                Reason::Expired => expired_page(&token.start),
                _ => status,
            });
        }
        let exact = options.resource_version_match == "Exact"
            || (options.limit > 0
                && asked.is_some_and(|rv| rv > 0)
                && options.resource_version_match.is_empty());
        if let (Some(revision), true) = (asked, exact) {
            return self.list_at(def, &filter, revision, "", options.limit).await;
        }
        match asked {
            None => drop(self.cacher.fresh().await?),
            Some(0) => {}
            Some(revision) => self.cacher.wait_for(revision).await?,
        }
        // Read before the snapshot: everything up to this revision is in it.
        let revision = self.cacher.applied();
        let kind = self.cacher.kind(&def.storage_prefix());
        let namespace = filter.namespace.as_deref();
        let (all, total) = match options.limit {
            limit if limit > 0 && filter.labels.is_everything() && filter.fields.is_everything() => {
                kind.first(namespace, limit)
            }
            _ => {
                let all = kind.snapshot(namespace);
                let total = all.len();
                (all, total)
            }
        };
        let mut items = Vec::with_capacity(if options.limit > 0 { options.limit.min(total) } else { total });
        let mut taken = 0;
        for object in all {
            if options.limit > 0 && items.len() == options.limit {
                break;
            }
            taken += 1;
            if filter.matches(&object) {
                items.push(object);
            }
        }
        let more = taken < total;
        let continue_token = match items.last() {
            Some(last) if more => encode_token(&next_page(def, last, revision)),
            _ => String::new(),
        };
        let unselective = filter.labels.is_everything() && filter.fields.is_everything();
        let remaining = (more && unselective).then_some((total - taken) as u64);
        Ok(List { items, revision, continue_token, remaining })
    }

    /// A page of a snapshot at an earlier revision, from the store's history.
    async fn list_at(
        &self,
        def: &ResourceDef,
        filter: &Filter,
        revision: Revision,
        start: &str,
        limit: usize,
    ) -> Result<List, Status> {
        let prefix = match &filter.namespace {
            Some(ns) => format!("{}{ns}/", def.storage_prefix()),
            None => def.storage_prefix(),
        };
        let mut from =
            if start.is_empty() { prefix.clone() } else { format!("{}{start}", def.storage_prefix()) };
        let reader = self.cacher.kind(&def.storage_prefix()).reader();
        let mut items: Vec<Arc<Object>> = Vec::new();
        loop {
            let range = Range {
                start: from.clone(),
                end: store::prefix_end(&prefix),
                limit: if limit > 0 { limit - items.len() } else { 0 },
                at: Some(revision),
                keys_only: false,
            };
            let page = self.store.range(range).await.map_err(|e| match &e {
                store::Error::FutureRevision { requested, current } => {
                    error::too_large_resource_version(*requested, *current)
                }
                other => error::status(other),
            })?;
            for item in &page.items {
                let object = reader.read(&item.value, item.mod_revision);
                items.extend(object.filter(|o| filter.matches(o)).map(Arc::new));
            }
            let Some(last) = page.items.last().filter(|_| page.more) else {
                return Ok(List { items, revision, continue_token: String::new(), remaining: None });
            };
            from = format!("{}\0", last.key);
            if limit > 0 && items.len() >= limit {
                let start = from.strip_prefix(&def.storage_prefix()).unwrap_or(&from).to_owned();
                let token = Continue { v: "meta.k8s.io/v1".into(), rv: signed(revision), start };
                let unselective = filter.labels.is_everything() && filter.fields.is_everything();
                let remaining = unselective.then_some(page.remaining_count);
                return Ok(List { items, revision, continue_token: encode_token(&token), remaining });
            }
        }
    }

    /// Begins a watch of a namespace (all when empty), or of one object.
    pub async fn watch(
        &self,
        def: &ResourceDef,
        namespace: &str,
        name: &str,
        options: &ListOptions,
    ) -> Result<Watch, Status> {
        options.check_watch()?;
        let filter = options.filter(def, namespace, name)?;
        let start = match (parse_revision(&options.resource_version)?, options.send_initial_events) {
            (asked, Some(true)) => {
                match asked {
                    None => drop(self.cacher.fresh().await?),
                    Some(revision) => self.cacher.wait_for(revision).await?,
                }
                Start::Now
            }
            (None, Some(false)) => Start::After(self.cacher.fresh().await?),
            (None, None) => {
                self.cacher.fresh().await?;
                Start::Now
            }
            (Some(0), Some(false)) => Start::After(self.cacher.applied()),
            (Some(0), None) => Start::Now,
            (Some(revision), _) => {
                self.cacher.wait_for(revision).await?;
                Start::After(revision)
            }
        };
        self.cacher.watch(&def.storage_prefix(), filter, start).await
    }
}

fn next_page(def: &ResourceDef, last: &Object, revision: Revision) -> Continue {
    let key = if def.namespaced {
        format!("{}/{}\0", last.namespace, last.name)
    } else {
        format!("{}\0", last.name)
    };
    Continue { v: "meta.k8s.io/v1".into(), rv: signed(revision), start: key }
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// The refusal of a page whose snapshot is gone, with a token for the rest as it is now.
fn expired_page(start: &str) -> Status {
    let token = Continue { v: "meta.k8s.io/v1".into(), rv: INCONSISTENT, start: start.to_owned() };
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.details =
        Some(Box::new(meta::status::Details { continue_token: encode_token(&token), ..Default::default() }));
    status
}
