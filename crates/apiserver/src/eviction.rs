//! Evictions: deletions of pods that respect disruption budgets.
//!
//! Whether a pod may go ([`verdict`]) and what an eviction takes from a budget ([`spend`]) are functions of the
//! objects; the rest is the order of writes: the budget is charged first, then the pod is marked and deleted.

use std::sync::atomic::{AtomicBool, Ordering};

use meta::{Reason, Status};
use registry::write::meta_text;
use registry::{DeleteOptions, Target};
use serde_json::{Map, Value, json};

use crate::body::{self, Answer};
use crate::server::Server;
use crate::subresource::{admit, decode_as};
use crate::verbs::Call;

/// Evictions of one budget that have not become deletions yet: more would make its object too big.
const DISRUPTED_MAX: usize = 2000;
/// Seconds after which a budget that was just changed has been looked at.
const UNOBSERVED_RETRY_SECONDS: i32 = 10;
/// What a refused eviction says.
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// What is to be done about a pod that is to be evicted.
#[derive(Debug, PartialEq)]
enum Verdict<'a> {
    /// The pod does not work yet or any more: nothing is disrupted.
    Idle,
    /// No budget has a say.
    Free,
    /// The pod does not serve; it may go as long as it is as it was seen.
    FreeIfUnchanged,
    /// This budget has to pay.
    Charge(&'a Value),
}

/// Evicts a pod where its disruption budgets allow it.
pub async fn evict(server: &Server, call: &Call<'_>, body: bytes::Bytes) -> Result<Answer, Status> {
    let eviction = decode_as("policy", "v1", "Eviction", call, &body)?;
    let eviction = admit(server, call, ("policy", "v1", "Eviction"), eviction).await?;
    let named = meta_text(&eviction, "name");
    if !named.is_empty() && named != call.info.name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {named} != {}",
            call.info.name
        )));
    }
    let mut delete: DeleteOptions = match eviction.get("deleteOptions") {
        Some(options) => {
            serde_json::from_value(options.clone()).map_err(|e| Status::bad_request(e.to_string()))?
        }
        None => DeleteOptions::default(),
    };
    let mut options = call.write_options()?;
    options.dry_run |= delete.dry_run.iter().any(|d| d == "All");
    let pod = server.registry.get(call.def, &call.info.namespace, &call.info.name, "").await?.to_value();
    let budgets = budgets(server, call)?;
    let verdict = verdict(&pod, &budgets)?;
    let disrupts = verdict != Verdict::Idle && !options.dry_run;
    match verdict {
        Verdict::Idle | Verdict::Free => {}
        Verdict::FreeIfUnchanged => {
            let seen = pod["metadata"]["resourceVersion"].as_str().map(String::from);
            delete
                .preconditions
                .get_or_insert_default()
                .resource_version
                .get_or_insert(seen.unwrap_or_default());
        }
        Verdict::Charge(budget) => charge(server, call, budget, options.dry_run).await?,
    }
    if disrupts {
        mark(server, call, &mut delete).await?;
    }
    let target = Target { subresource: "", ..call.target() };
    server.registry.delete(target, &delete, &options, &server.admission()).await?;
    Ok(body::json(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Every budget of the namespace.
fn budgets(server: &Server, call: &Call<'_>) -> Result<Vec<Value>, Status> {
    let table = server.registry.table();
    let budgets = table.find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::path_not_found)?;
    let all = server.registry.cacher().kind(&budgets.storage_prefix()).snapshot(Some(&call.info.namespace));
    Ok(all.iter().map(|o| o.to_value()).collect())
}

/// Finds out which budget has a say about a pod.
fn verdict<'a>(pod: &Value, budgets: &'a [Value]) -> Result<Verdict<'a>, Status> {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed" | "Pending") || pod["metadata"]["deletionTimestamp"].is_string()
    {
        return Ok(Verdict::Idle);
    }
    let covers = |budget: &&Value| {
        let selector = &budget["spec"]["selector"];
        meta::LabelSelector::from_json(selector)
            .is_ok_and(|s| selector.is_object() && s.matches_with(|k| pod["metadata"]["labels"][k].as_str()))
    };
    let mut covering = budgets.iter().filter(covers);
    let Some(budget) = covering.next() else { return Ok(Verdict::Free) };
    if covering.next().is_some() {
        return Err(Status::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
    if !ready {
        let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
        let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if always || (healthy >= desired && desired > 0) {
            return Ok(Verdict::FreeIfUnchanged);
        }
    }
    Ok(Verdict::Charge(budget))
}

fn refusal(message: String, retry_after_seconds: i32) -> Status {
    let cause = meta::status::Cause { reason: "DisruptionBudget".into(), message, field: String::new() };
    let details = meta::status::Details { causes: vec![cause], retry_after_seconds, ..Default::default() };
    Status { details: Some(Box::new(details)), ..Status::new(429, Reason::TooManyRequests, REFUSED) }
}

/// Takes one disruption for the pod `name` from a budget.
fn spend(budget: &mut Map<String, Value>, name: &str, now: &str) -> Result<(), Status> {
    let own = meta_text(budget, "name").to_owned();
    let generation = budget.get("metadata").map_or(0, |m| m["generation"].as_i64().unwrap_or(0));
    let status = budget.get("status").cloned().unwrap_or_default();
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let forbidden = |why: &str| Err(Status::forbidden("policy", "poddisruptionbudget", &own, why));
    if number("observedGeneration") < generation {
        let why = format!("The disruption budget {own} is still being processed by the server.");
        return Err(refusal(why, UNOBSERVED_RETRY_SECONDS));
    }
    let left = number("disruptionsAllowed");
    if left < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > DISRUPTED_MAX) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if left == 0 {
        let conditions = status["conditions"].as_array();
        let failed = conditions.and_then(|c| c.iter().find(|c| c["reason"] == "SyncFailed"));
        return Err(refusal(
            match failed.and_then(|c| c["message"].as_str()).filter(|m| !m.is_empty()) {
                Some(why) => format!(
                    "The disruption budget {own} does not allow evicting pods currently because it failed sync: {why}"
                ),
                None => format!(
                    "The disruption budget {own} needs {} healthy pods and has {} currently",
                    number("desiredHealthy"),
                    number("currentHealthy")
                ),
            },
            0,
        ));
    }
    let status = registry::child(budget, "status");
    status.insert("disruptionsAllowed".into(), (left - 1).into());
    registry::child(status, "disruptedPods").insert(name.to_owned(), now.into());
    if left == 1 {
        used_up(status, now);
    }
    Ok(())
}

/// Says in the condition that nothing is left.
fn used_up(status: &mut Map<String, Value>, now: &str) {
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        if condition["type"] == "DisruptionAllowed" && condition["status"] != "False" {
            condition["status"] = "False".into();
            condition["reason"] = "InsufficientPods".into();
            condition["lastTransitionTime"] = now.into();
        }
    }
}

async fn charge(server: &Server, call: &Call<'_>, budget: &Value, dry_run: bool) -> Result<(), Status> {
    let now = schema::time::seconds(server.registry.clock().now());
    let mut copy = budget.as_object().cloned().unwrap_or_default();
    if dry_run {
        return spend(&mut copy, &call.info.name, &now);
    }
    let table = server.registry.table();
    let def = table.find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::path_not_found)?;
    let change = |budget: &mut Map<String, Value>| spend(budget, &call.info.name, &now).map(|()| true);
    server.registry.modify(def, &call.info.namespace, meta_text(&copy, "name"), &change).await.map(drop)
}

/// Says in the pod's status why it is about to go. Where the deletion is for one version of the pod, it is
/// for the marked one from now on.
async fn mark(server: &Server, call: &Call<'_>, delete: &mut DeleteOptions) -> Result<(), Status> {
    let now = schema::time::seconds(server.registry.clock().now());
    let wanted = delete.preconditions.clone().unwrap_or_default();
    let marked = AtomicBool::new(false);
    let change = |pod: &mut Map<String, Value>| {
        let is = |key: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| meta_text(pod, key) == wanted)
        };
        // Another pod, or another version of it, is the deletion's to refuse.
        if !is("uid", &wanted.uid) || !is("resourceVersion", &wanted.resource_version) {
            return Ok(false);
        }
        marked.store(true, Ordering::Relaxed);
        let status = registry::child(pod, "status");
        let conditions = status.entry("conditions").or_insert_with(|| json!([]));
        let Some(conditions) = conditions.as_array_mut() else { return Ok(false) };
        conditions.retain(|c| c["type"] != "DisruptionTarget");
        conditions
            .push(json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now}));
        Ok(true)
    };
    match server.registry.modify(call.def, &call.info.namespace, &call.info.name, &change).await {
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
        Ok(_) if !marked.load(Ordering::Relaxed) => Ok(()),
        Ok(bytes) => {
            let marked: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let version = marked["metadata"]["resourceVersion"].as_str().map(String::from);
            let seen = delete.preconditions.as_mut().and_then(|p| p.resource_version.as_mut());
            if let Some((seen, version)) = seen.zip(version) {
                *seen = version;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, ready: bool) -> Value {
        json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    fn budget(policy: Value, healthy: i64, desired: i64, allowed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 1},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "unhealthyPodEvictionPolicy": policy},
            "status": {"currentHealthy": healthy, "desiredHealthy": desired, "disruptionsAllowed": allowed,
                "observedGeneration": 1, "conditions": [{"type": "DisruptionAllowed", "status": "True"}]}})
    }

    #[test]
    fn who_has_a_say() {
        let one = [budget(Value::Null, 1, 1, 0)];
        assert_eq!(verdict(&pod("Pending", false), &one).unwrap(), Verdict::Idle);
        assert_eq!(verdict(&pod("Failed", false), &one).unwrap(), Verdict::Idle);
        assert_eq!(verdict(&pod("Running", true), &[]).unwrap(), Verdict::Free);
        assert_eq!(verdict(&pod("Running", true), &one).unwrap(), Verdict::Charge(&one[0]));
        assert_eq!(verdict(&pod("Running", false), &one).unwrap(), Verdict::FreeIfUnchanged);
        let short = [budget(Value::Null, 0, 1, 0)];
        assert_eq!(verdict(&pod("Running", false), &short).unwrap(), Verdict::Charge(&short[0]));
        let always = [budget("AlwaysAllow".into(), 0, 1, 0)];
        assert_eq!(verdict(&pod("Running", false), &always).unwrap(), Verdict::FreeIfUnchanged);
        let two = [one[0].clone(), one[0].clone()];
        assert_eq!(verdict(&pod("Running", true), &two).unwrap_err().code, 500);
    }

    #[test]
    fn budgets_pay() {
        let spent = |mut budget: Value| -> Result<Value, Status> {
            spend(budget.as_object_mut().unwrap(), "p", "now").map(|()| budget.clone())
        };
        let paid = spent(budget(Value::Null, 2, 1, 1)).unwrap();
        assert_eq!(paid["status"]["disruptedPods"], json!({"p": "now"}));
        assert_eq!(paid["status"]["disruptionsAllowed"], 0);
        assert_eq!(paid["status"]["conditions"][0]["reason"], "InsufficientPods");
        let refused = spent(budget(Value::Null, 1, 1, 0)).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (429, REFUSED));
        assert_eq!(
            refused.details.unwrap().causes[0].message,
            "The disruption budget b needs 1 healthy pods and has 1 currently"
        );
        assert_eq!(spent(budget(Value::Null, 1, 1, -1)).unwrap_err().code, 403);
        let mut fresh = budget(Value::Null, 2, 1, 1);
        fresh["metadata"]["generation"] = 2.into();
        assert_eq!(spent(fresh).unwrap_err().details.unwrap().retry_after_seconds, 10);
    }
}
