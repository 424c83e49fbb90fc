//! ControllerRevisions: the templates a DaemonSet or a StatefulSet has had, numbered, so that it can update
//! step by step and go back.

use std::sync::Arc;

use api::k8s_openapi::api::apps::v1::ControllerRevision;
use api::prelude::*;
use client::{Client, DeleteParams};
use meta::Gvk;
use reconcile::{ControlError, Informer};
use serde_json::{Value, json};

use crate::deployment::template_hash;
use crate::owners;

/// Names tried for one template until a free one is found: collisions of a 32 bit hash are rare.
const NAMES_MAX: i32 = 16;

/// Whose history is kept, and of what.
pub struct Owner<'a> {
    /// Kind of the owner.
    pub gvk: Gvk,
    /// The owner.
    pub meta: &'a ObjectMeta,
    /// Its present template.
    pub template: &'a PodTemplateSpec,
    /// Collisions of names so far.
    pub collisions: Option<i32>,
    /// Label that carries the hash of the template.
    pub hash_label: &'static str,
}

/// The revision of the present template and how many names have collided.
pub struct Latest {
    /// The revision, with the highest number of all.
    pub revision: Arc<ControllerRevision>,
    /// For the owner's status.
    pub collisions: Option<i32>,
}

/// What a revision keeps of a template: a strategic patch of the owner.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The revisions of an owner, its own and those it has just adopted.
///
/// # Errors
/// When the API refuses an adoption.
pub async fn claim(
    client: &Client,
    revisions: &Informer<ControllerRevision>,
    gvk: &Gvk,
    meta: &ObjectMeta,
    selector: &meta::LabelSelector,
) -> Result<Vec<Arc<ControllerRevision>>, ControlError> {
    owners::claim(client, revisions, gvk, meta, selector, None).await
}

/// Sees to it that there is a revision of the present template and that it has the highest number.
///
/// # Errors
/// When the API refuses a write.
pub async fn latest(
    client: &Client,
    known: &[Arc<ControllerRevision>],
    owner: &Owner<'_>,
) -> Result<Latest, ControlError> {
    let wanted = data(owner.template);
    let highest = known.iter().filter_map(|r| r.revision).max().unwrap_or(0);
    let same = known.iter().filter(|r| r.data.0 == wanted).max_by_key(|r| r.revision);
    let collisions = owner.collisions;
    match same {
        Some(present) if present.revision == Some(highest) => {
            Ok(Latest { revision: present.clone(), collisions })
        }
        Some(present) => {
            let mut raised = ControllerRevision::clone(present);
            raised.revision = Some(highest + 1);
            Ok(Latest { revision: Arc::new(client.update_typed(&raised).await?), collisions })
        }
        None => create(client, owner, &wanted, highest + 1).await,
    }
}

async fn create(
    client: &Client,
    owner: &Owner<'_>,
    data: &Value,
    number: i64,
) -> Result<Latest, ControlError> {
    let namespace = owner.meta.namespace.as_deref().unwrap_or_default();
    let uid = owner.meta.uid.as_deref().unwrap_or_default();
    let mut collisions = owner.collisions;
    loop {
        let hash = template_hash(owner.template, collisions);
        let name = format!("{}-{hash}", owner.meta.name.as_deref().unwrap_or_default());
        let mut labels = owner.template.metadata.clone().and_then(|m| m.labels).unwrap_or_default();
        labels.insert(owner.hash_label.into(), hash);
        let body = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": {"name": name, "namespace": namespace, "labels": labels,
                "annotations": owner.meta.annotations,
                "ownerReferences": [owners::controller_reference(&owner.gvk, owner.meta)]},
            "data": data, "revision": number,
        });
        match client.create(&ControllerRevision::GVR, namespace, &body).await {
            Ok(created) => {
                return Ok(Latest {
                    revision: Arc::new(ControllerRevision::from_value(created)?),
                    collisions,
                });
            }
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            Err(error) => {
                let present = client.get_typed::<ControllerRevision>(namespace, &name).await?;
                if present.data.0 == *data && owners::is_controlled_by(&present.metadata, uid) {
                    return Ok(Latest { revision: Arc::new(present), collisions });
                }
                let next = collisions.unwrap_or(0) + 1;
                if next - owner.collisions.unwrap_or(0) > NAMES_MAX {
                    return Err(error.into());
                }
                collisions = Some(next);
            }
        }
    }
}

/// Deletes the oldest revisions beyond the limit that are not in use.
///
/// # Errors
/// When the API refuses a deletion.
pub async fn expire(
    client: &Client,
    known: &[Arc<ControllerRevision>],
    in_use: impl Fn(&ControllerRevision) -> bool,
    limit: Option<i32>,
) -> Result<(), ControlError> {
    let mut old: Vec<_> = known.iter().filter(|r| !in_use(r)).collect();
    old.sort_by_key(|r| r.revision);
    let excess = old.len().saturating_sub(usize::try_from(limit.unwrap_or(10)).unwrap_or(0));
    for revision in old.iter().take(excess) {
        let (namespace, name) = (revision.namespace(), revision.name());
        match client.delete_typed::<ControllerRevision>(namespace, name, &DeleteParams::default()).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_comes_back_from_its_revision() {
        let template: PodTemplateSpec = serde_json::from_value(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}),
        )
        .unwrap();
        let data = data(&template);
        assert_eq!(data["spec"]["template"]["$patch"], "replace");
        let revision = ControllerRevision {
            data: api::k8s_openapi::apimachinery::pkg::runtime::RawExtension(data),
            ..Default::default()
        };
        assert_eq!(template_of(&revision), Some(template));
    }
}
