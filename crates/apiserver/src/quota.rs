//! ResourceQuota at admission: an object is charged before it is stored, or refused.
//!
//! The last step of the chain, so that nothing is charged that somebody else refuses. Charges of one namespace
//! are made one after the other. A charge whose object is then not stored after all is given back by the
//! resource quota controller, which adds up what is there.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use meta::{Status, UserInfo};
use quota::Quota;
use registry::admit::{AdmitAll, Attributes};
use registry::{FieldValidation, Patch, Target, WriteOptions};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use crate::server::Server;

/// Locks that namespaces share by hash: few enough to cost nothing, enough not to stand in each other's way.
const LOCKS: usize = 64;
/// Times a charge is tried again after somebody else has changed the quota.
const CONFLICT_RETRIES_MAX: usize = 8;
/// Who writes the charges down.
const MANAGER: &str = "kube-apiserver";

/// Makes charges of one namespace wait for each other.
pub struct Locks(Vec<Mutex<()>>);

impl Default for Locks {
    fn default() -> Self {
        Locks(std::iter::repeat_with(Mutex::default).take(LOCKS).collect())
    }
}

impl Locks {
    fn of(&self, namespace: &str) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        // The remainder is smaller than the number of locks.
        &self.0[hasher.finish() as usize % LOCKS]
    }
}

/// Charges a request to the quotas of its namespace.
pub async fn charge(
    server: &Server,
    attributes: &Attributes<'_>,
    object: Option<&Map<String, Value>>,
    old: Option<&Map<String, Value>>,
) -> Result<(), Status> {
    let def = attributes.def;
    let Some(object) = object.filter(|_| !attributes.namespace.is_empty()) else { return Ok(()) };
    if !quota::is_charged(&def.group, &def.resource, attributes.subresource, attributes.operation) {
        return Ok(());
    }
    let table = server.registry.table();
    let Some(quotas) = table.find("", "v1", "resourcequotas") else { return Ok(()) };
    let kind = server.registry.cacher().kind(&quotas.storage_prefix());
    if kind.snapshot(Some(attributes.namespace)).is_empty() {
        return Ok(());
    }
    let now = server.registry.clock().now();
    let new = quota::charge(&def.group, &def.resource, object, now);
    let before = old.map(|old| quota::charge(&def.group, &def.resource, old, now));

    let _one_at_a_time = server.quotas.of(attributes.namespace).lock().await;
    for _ in 0..CONFLICT_RETRIES_MAX {
        server.registry.cacher().fresh().await?;
        let mut charges = Vec::new();
        for current in kind.snapshot(Some(attributes.namespace)) {
            let value = current.to_value();
            let limits = Quota::of_status(&value);
            if attributes.operation == "CREATE"
                && let Some(problem) = limits.missing(object, &new.traits)
            {
                return Err(Status::forbidden(&def.group, &def.resource, attributes.name, &problem));
            }
            let mut more = limits.share(&new);
            if let Some(before) = &before {
                more = quota::difference(&more, &limits.share(before));
            }
            let more = quota::negative_to_zero(&more);
            if more.is_empty() {
                continue;
            }
            if let Some(problem) = limits.exceeded(&more) {
                return Err(Status::forbidden(&def.group, &def.resource, attributes.name, &problem));
            }
            charges.push((limits.name.clone(), current.revision, limits.with(&more)));
        }
        if attributes.dry_run || write_down(server, quotas, attributes.namespace, charges).await? {
            return Ok(());
        }
    }
    let problem = "status unknown for quota: its usage keeps changing; try again";
    Err(Status::forbidden(&def.group, &def.resource, attributes.name, problem))
}

/// Writes the new usage of each quota; false when one has changed meanwhile.
async fn write_down(
    server: &Server,
    quotas: &Arc<registry::ResourceDef>,
    namespace: &str,
    charges: Vec<(String, u64, quota::Amounts)>,
) -> Result<bool, Status> {
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions {
        user: &user,
        dry_run: false,
        field_manager: MANAGER.into(),
        field_validation: FieldValidation::Ignore,
        force: false,
    };
    for (name, revision, used) in charges {
        let used: Map<String, Value> = used.iter().map(|(k, v)| (k.clone(), v.to_string().into())).collect();
        let patch = json!({"metadata": {"resourceVersion": revision.to_string()}, "status": {"used": used}})
            .to_string();
        let target = Target { def: quotas, namespace, name: &name, subresource: "status" };
        match server.registry.patch(target, Patch::Merge(patch.as_bytes()), &options, &AdmitAll).await {
            Ok(_) => {}
            // Somebody was faster, or the quota is gone: look again.
            Err(status) if status.code == 409 || status.code == 404 => return Ok(false),
            Err(status) => return Err(status),
        }
    }
    Ok(true)
}
