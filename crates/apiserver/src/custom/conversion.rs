//! Conversion of custom resources by a webhook: ConversionReview over HTTPS, and everything that can be wrong
//! with the answer.

use std::time::Duration;

use async_trait::async_trait;
use meta::Status;
use registry::custom::Convert;
use serde_json::{Map, Value, json};

use super::Definition;
use crate::server::Server;
use crate::webhook::{self, ClientConfig};

/// Longest wait for a conversion (upstream's).
const TIMEOUT: Duration = Duration::from_secs(30);

type Object = Map<String, Value>;

/// The conversion webhook of a definition.
pub struct Webhook {
    server: Server,
    group: String,
    kind: String,
    /// Where it is, or why that is unknown.
    config: Result<ClientConfig, String>,
    review: Option<&'static str>,
}

impl Webhook {
    /// The webhook, where the definition has one.
    pub fn of(server: &Server, crd: &Definition) -> Option<Webhook> {
        let conversion = &crd["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let accepted = conversion["webhook"]["conversionReviewVersions"].as_array();
        let review = accepted.into_iter().flatten().find_map(|v| match v.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        });
        Some(Webhook {
            server: server.clone(),
            group: crd["spec"]["group"].as_str().unwrap_or_default().to_owned(),
            kind: crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned(),
            config: ClientConfig::from_json(&conversion["webhook"]["clientConfig"])
                .map_err(|e| e.to_string()),
            review,
        })
    }

    async fn call(&self, objects: &[Object], to: &str) -> Result<Vec<Object>, String> {
        let version = self.review.ok_or("no supported conversion review versions")?;
        let config = self.config.as_ref().map_err(Clone::clone)?;
        let from = objects.first().map_or("", |o| text(o, "apiVersion"));
        let who = format!("conversion webhook for {from}, Kind={}", self.kind);
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects},
        });
        let answer = webhook::call(&self.server, config, TIMEOUT, review.to_string().into()).await;
        let answer = answer.map_err(|e| format!("{who} failed: {e}"))?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|e| format!("{who} failed: {e}"))?;
        let converted = converted(&answer, version, &uid).map_err(|e| format!("{who} failed: {e}"))?;
        if converted.len() != objects.len() {
            return Err(format!("{who} returned {} objects, expected {}", converted.len(), objects.len()));
        }
        let check = |(i, (original, converted)): (usize, (&Object, Value))| {
            checked(original, converted, to, &self.group)
                .map_err(|e| format!("{who} returned invalid converted object at index {i}: {e}"))
        };
        objects.iter().zip(converted).enumerate().map(check).collect()
    }
}

#[async_trait]
impl Convert for Webhook {
    async fn convert(&self, objects: Vec<Object>, to: &str) -> Result<Vec<Object>, Status> {
        self.call(&objects, to).await.map_err(|why| {
            // Go's plain error: an internal error without the prefix.
            Status::new(500, meta::Reason::Unknown, why)
        })
    }
}

fn text<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The objects of an answer that says it is a success.
fn converted(answer: &Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let response = &answer["response"];
    if version == "v1" {
        let (found, kind) =
            (answer["apiVersion"].as_str().unwrap_or_default(), answer["kind"].as_str().unwrap_or_default());
        if found != "apiextensions.k8s.io/v1" || kind != "ConversionReview" {
            return Err(format!(
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {found}, Kind={kind}"
            ));
        }
    }
    if !response.is_object() {
        return Err("no response provided".into());
    }
    let found = response["uid"].as_str().unwrap_or_default();
    if version == "v1" && found != uid {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let status = response["result"]["status"].as_str().unwrap_or_default();
    if status != "Success" {
        return Err(match response["result"]["message"].as_str().unwrap_or_default() {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    Ok(response["convertedObjects"].as_array().cloned().unwrap_or_default())
}

/// A converted object with the original's metadata; only labels and annotations may differ.
fn checked(original: &Object, converted: Value, to: &str, _group: &str) -> Result<Object, String> {
    let Value::Object(mut object) = converted else {
        return Err("unexpected type, expected an object".into());
    };
    let (version, kind) = (text(&object, "apiVersion"), text(&object, "kind"));
    if version != to {
        return Err(format!("invalid groupVersion (expected {to}, received {version})"));
    }
    if kind != text(original, "kind") {
        return Err(format!("invalid kind (expected {}, received {kind})", text(original, "kind")));
    }
    let metadata = |o: &Object, key: &str| registry::write::meta_text(o, key).to_owned();
    for (key, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (before, after) = (metadata(original, key), metadata(&object, key));
        if before != after {
            return Err(format!("must have the same {name}: {before} != {after}"));
        }
    }
    let Some(Value::Object(returned)) = object.remove("metadata") else {
        return Err("missing metadata in converted object".into());
    };
    let mut kept = original.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        match returned.get(key) {
            None | Some(Value::Null) => drop(kept.remove(key)),
            Some(Value::Object(map)) => {
                if let Some((k, _)) = map.iter().find(|(_, v)| !v.is_string()) {
                    return Err(format!("metadata.{key}[{k}] must be a string in converted object"));
                }
                kept.insert(key.into(), Value::Object(map.clone()));
            }
            Some(_) => return Err(format!("invalid metadata.{key} in converted object")),
        }
    }
    object.insert("metadata".into(), Value::Object(kept));
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn what_a_webhook_may_not_change() {
        let original = object(
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "uid": "u", "labels": {"a": "1"}, "generation": 1}}),
        );
        for (answer, wanted) in [
            (
                json!({"apiVersion": "g/v3", "kind": "K"}),
                "invalid groupVersion (expected g/v2, received g/v3)",
            ),
            (json!({"apiVersion": "g/v2", "kind": "X"}), "invalid kind (expected K, received X)"),
            (
                json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "m", "uid": "u"}}),
                "must have the same name: n != m",
            ),
            (
                json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "n", "uid": "x"}}),
                "must have the same UID: u != x",
            ),
        ] {
            assert_eq!(checked(&original, answer, "g/v2", "g").unwrap_err(), wanted);
        }
        let fine = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "n", "uid": "u", "labels": {"b": "2"}, "generation": 9}, "x": 1});
        let fine = checked(&original, fine, "g/v2", "g").unwrap();
        assert_eq!(fine["metadata"], json!({"name": "n", "uid": "u", "labels": {"b": "2"}, "generation": 1}));
    }

    #[test]
    fn answers_that_are_no_success() {
        let review = |response: Value| json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response});
        for (answer, wanted) in [
            (
                json!({"kind": "X"}),
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=X",
            ),
            (review(Value::Null), "no response provided"),
            (review(json!({"uid": "x"})), "expected response.uid=\"u\", got \"x\""),
            (review(json!({"uid": "u", "result": {"status": "Failed", "message": "boom"}})), "boom"),
            (
                review(json!({"uid": "u", "result": {"status": "Failed"}})),
                "response.result.status was 'Failed', not 'Success'",
            ),
        ] {
            assert_eq!(converted(&answer, "v1", "u").unwrap_err(), wanted);
        }
    }
}
