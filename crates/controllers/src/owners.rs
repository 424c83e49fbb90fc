//! Who controls what: owner references with `controller: true`, adoption of orphans and release of strays.

use std::sync::Arc;

use api::prelude::*;
use client::{Client, Patch};
use meta::{Gvk, LabelSelector};
use reconcile::{ControlError, Informer};
use serde_json::json;

/// Name of the index of objects without a controller, by namespace.
pub const ORPHANS: &str = "orphans";
/// Name of the index of objects by the uid of their controller.
pub const CONTROLLER: &str = "controller";

/// Index values of [`ORPHANS`].
pub fn index_orphans<T: Typed>(object: &T) -> Vec<String> {
    if controller_of(object.meta()).is_some() { Vec::new() } else { vec![object.namespace().to_owned()] }
}

/// Adds the indexes that [`claim`] reads.
pub fn add_indexes<T: Typed>(informer: &Informer<T>) {
    informer.store().add_index(CONTROLLER, reconcile::index_by_controller::<T>);
    informer.store().add_index(ORPHANS, index_orphans::<T>);
}

/// The reference to the controller of an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object's controller is the one with this uid.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The reference that makes the object of `meta` a controller.
pub fn controller_reference(gvk: &Gvk, meta: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: gvk.api_version(),
        kind: gvk.kind.to_string(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A label selector of the API, compiled.
///
/// # Errors
/// [`ControlError::Selector`] for an operator that does not exist.
pub fn compile(selector: &api::prelude::LabelSelector) -> Result<LabelSelector, ControlError> {
    let value = serde_json::to_value(selector).map_err(|e| ControlError::Selector(e.to_string()))?;
    LabelSelector::from_json(&value).map_err(|e| ControlError::Selector(e.to_string()))
}

/// Whether the labels of an object match.
pub fn matches(selector: &LabelSelector, meta: &ObjectMeta) -> bool {
    selector.matches_with(|key| meta.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str))
}

/// What is to be done about the objects a selector is about.
#[derive(Debug)]
pub struct Claims<T> {
    /// Controlled and matching.
    pub owned: Vec<Arc<T>>,
    /// Matching and without a controller.
    pub adopt: Vec<Arc<T>>,
    /// Controlled and no longer matching.
    pub release: Vec<Arc<T>>,
}

/// Sorts the objects in the cache by what they are to the controller `owner` with `selector`.
pub fn claims<T: Typed>(informer: &Informer<T>, owner: &ObjectMeta, selector: &LabelSelector) -> Claims<T> {
    let uid = owner.uid.as_deref().unwrap_or_default();
    let namespace = owner.namespace.as_deref().unwrap_or_default();
    let ours = informer.store().by_index(CONTROLLER, uid);
    let (owned, release) = ours.into_iter().partition(|object| matches(selector, object.meta()));
    let mut adopt = informer.store().by_index(ORPHANS, namespace);
    // An empty selector would take everything; who is being deleted takes and gives nothing.
    adopt.retain(|o| !selector.is_everything() && matches(selector, o.meta()) && !o.is_terminating());
    let mut claims = Claims { owned, adopt, release };
    if owner.deletion_timestamp.is_some() {
        claims.adopt.clear();
        claims.release.clear();
    }
    claims
}

/// Adopts and releases, and returns everything controlled afterwards. An owner that holds its objects by a
/// finalizer gives it to those it adopts.
///
/// # Errors
/// When the API refuses a patch; objects that are gone meanwhile are no error.
pub async fn claim<T: Typed>(
    client: &Client,
    informer: &Informer<T>,
    owner_gvk: &Gvk,
    owner: &ObjectMeta,
    selector: &LabelSelector,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<T>>, ControlError> {
    let Claims { mut owned, adopt, release } = claims(informer, owner, selector);
    let uid = owner.uid.as_deref().unwrap_or_default();
    for object in adopt {
        let reference = controller_reference(owner_gvk, owner);
        let mut metadata = json!({"uid": object.uid(), "ownerReferences": [reference]});
        if let Some(finalizer) = finalizer {
            metadata["finalizers"] = json!([finalizer]);
        }
        let patch = Patch::Strategic(json!({"metadata": metadata}));
        match client.patch_typed::<T>(object.namespace(), object.name(), "", &patch).await {
            Ok(adopted) => owned.push(Arc::new(adopted)),
            Err(error) if error.is_not_found() || error.is_invalid() => {}
            Err(error) => return Err(error.into()),
        }
    }
    for object in release {
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": object.uid(), "ownerReferences": [{"$patch": "delete", "uid": uid}]}
        }));
        match client.patch(&T::GVR, object.namespace(), object.name(), "", &patch).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() || error.is_invalid() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(owned)
}
