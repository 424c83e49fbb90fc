//! Keeps flow control and its objects in step: the chain follows what is written, the default objects are put
//! right, and every FlowSchema says whether its level exists. Nothing polls: each change wakes the one task.

use std::sync::Arc;
use std::time::Duration;

use meta::Status;
use registry::{Change, ResourceDef};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::defaults::{self, AUTOUPDATE, Default as Kept};
use crate::server::Server;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Pause before trying again what failed.
const RETRY: Duration = Duration::from_millis(500);

fn row(server: &Server, resource: &str) -> Option<Arc<ResourceDef>> {
    server.registry.table().find(GROUP, "v1", resource).cloned()
}

/// Writes the default objects and follows all of them for as long as the server runs.
pub async fn run(server: &Server) -> Result<(), Status> {
    let (Some(levels), Some(schemas)) =
        (row(server, "prioritylevelconfigurations"), row(server, "flowschemas"))
    else {
        return Ok(());
    };
    let changed = Arc::new(Notify::new());
    for (def, is_level) in [(&levels, true), (&schemas, false)] {
        let (wake, flow) = (changed.clone(), server.flow.clone());
        server.registry.cacher().kind(&def.storage_prefix()).observe(move |event| {
            let object = &event.object;
            let value = (event.change != Change::Deleted).then(|| object.to_value());
            match is_level {
                true => flow.set_level(&object.name, value.as_ref()),
                false => flow.set_schema(&object.name, value.as_ref()),
            }
            wake.notify_one();
        });
    }
    turn(server, &levels, &schemas).await?;
    let (server, stop) = (server.clone(), server.shutdown.clone());
    let flow = server.flow.clone();
    let ended = stop.clone();
    tokio::spawn(async move {
        tokio::select! { () = ended.cancelled() => {}, () = flow.lend() => {} }
    });
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => {}
            }
            if let Err(error) = turn(&server, &levels, &schemas).await {
                tracing::warn!(%error, "flow control's objects");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => changed.notify_one(),
                }
            }
        }
    });
    Ok(())
}

/// One look at everything.
async fn turn(server: &Server, levels: &ResourceDef, schemas: &ResourceDef) -> Result<(), Status> {
    for (def, kept) in [(levels, defaults::levels()), (schemas, defaults::schemas())] {
        for kept in kept {
            ensure(server, def, kept).await?;
        }
    }
    let exist = server.registry.cacher().kind(&levels.storage_prefix()).snapshot(None);
    let all = server.registry.cacher().kind(&schemas.storage_prefix()).snapshot(None);
    for schema in all {
        let value = schema.to_value();
        let level =
            value["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default().to_owned();
        let there = exist.iter().any(|l| *l.name == *level);
        let now = schema::time::seconds(server.registry.clock().now());
        if let Some(status) = dangling(&value["status"], &level, there, &now) {
            let change = |current: &mut Map<String, Value>| {
                current.insert("status".into(), status.clone());
                Ok(true)
            };
            match server.registry.modify(schemas, "", &schema.name, &change).await {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The status of a schema whose level is (not) there; `None` if it says so already.
fn dangling(status: &Value, level: &str, there: bool, now: &str) -> Option<Value> {
    let wanted = if there { "False" } else { "True" };
    let (reason, words) = match there {
        true => ("Found", "and it exists"),
        false => ("NotFound", "but there is no such object"),
    };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {words}");
    let mut conditions = status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let known = conditions.iter().find(|c| c["type"] == "Dangling");
    if known
        .is_some_and(|c| c["status"] == wanted && c["reason"] == reason && c["message"] == message.as_str())
    {
        return None;
    }
    let since = known.filter(|c| c["status"] == wanted).and_then(|c| c["lastTransitionTime"].as_str());
    let condition = json!({"type": "Dangling", "status": wanted, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or(now)});
    conditions.retain(|c| c["type"] != "Dangling");
    conditions.push(condition);
    Some(json!({"conditions": conditions}))
}

/// Creates a default object, or puts its spec right where that is ours to say.
async fn ensure(server: &Server, def: &ResourceDef, kept: Kept) -> Result<(), Status> {
    let found = crate::bootstrap::ensure(server, &def.group, &def.resource, kept.object.clone()).await?;
    let Some(found) = found else { return Ok(()) };
    if !is_ours(&found, kept.mandatory) || covers(&found["spec"], &kept.object["spec"]) {
        return Ok(());
    }
    let name = found["metadata"]["name"].as_str().unwrap_or_default();
    let change = |current: &mut Map<String, Value>| {
        current.insert("spec".into(), kept.object["spec"].clone());
        Ok(true)
    };
    match server.registry.modify(def, "", name, &change).await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

/// Whether the spec of a default object follows the server: always for what must be so; otherwise as the
/// annotation says, or as long as nobody has changed it.
fn is_ours(found: &Value, mandatory: bool) -> bool {
    let metadata = &found["metadata"];
    mandatory
        || match metadata.get("annotations").and_then(|a| a.get(AUTOUPDATE)).and_then(Value::as_str) {
            Some(says) => says == "true",
            None => metadata["generation"] == 1,
        }
}

/// Whether everything that `wanted` says is so in `found`, and lists are the same.
fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(f), Value::Object(w)) => w.iter().all(|(k, v)| f.get(k).is_some_and(|f| covers(f, v))),
        (Value::Array(f), Value::Array(w)) => {
            f.len() == w.len() && f.iter().zip(w).all(|(f, w)| covers(f, w))
        }
        (f, w) => f == w,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_change_a_default() {
        let with = |annotation: Value, generation: u64| json!({"metadata": {"annotations": {AUTOUPDATE: annotation}, "generation": generation}});
        assert!(is_ours(&with(json!("false"), 3), true));
        assert!(is_ours(&with(json!("true"), 3), false));
        assert!(!is_ours(&with(json!("false"), 1), false));
        assert!(is_ours(&json!({"metadata": {"generation": 1}}), false));
        assert!(!is_ours(&json!({"metadata": {"generation": 2}}), false));
        assert!(covers(&json!({"a": [{"b": 1, "c": 2}]}), &json!({"a": [{"b": 1}]})));
        assert!(!covers(&json!({"a": [1, 2]}), &json!({"a": [1]})));
    }

    #[test]
    fn schemas_without_a_level_dangle() {
        let status = dangling(&Value::Null, "x", false, "t1").unwrap();
        assert_eq!(
            status["conditions"][0]["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"x\" but there is no such object"
        );
        assert_eq!(dangling(&status, "x", false, "t2"), None);
        let status = dangling(&status, "x", true, "t2").unwrap();
        assert_eq!(
            (&status["conditions"][0]["status"], &status["conditions"][0]["lastTransitionTime"]),
            (&json!("False"), &json!("t2"))
        );
    }
}
