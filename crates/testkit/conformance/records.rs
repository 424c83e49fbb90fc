//! \[sig-instrumentation\] events and \[sig-scheduling\] limit ranges, as objects of the API.

use anyhow::ensure;
use client::{DeleteParams, Patch};
use serde_json::{Value, json};
use testkit::{Case, Scope};

fn event(s: &Scope<'_>, name: &str) -> Value {
    json!({"kind": "Event", "metadata": {"name": name, "labels": {"testevent-constant": "true"}},
        "reason": "Test", "message": "This is a test", "type": "Normal", "count": 1,
        "source": {"component": "e2e"},
        "involvedObject": {"kind": "Event", "name": "none", "namespace": s.namespace}})
}

fn new_event(s: &Scope<'_>, name: &str) -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": name, "namespace": s.namespace, "labels": {"testevent-constant": "true"}},
        "reason": "Test", "note": "This is a test", "type": "Normal", "action": "Do",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "test-controller", "reportingInstance": "test-node",
        "regarding": {"kind": "Pod", "name": "p", "namespace": s.namespace}})
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-instrumentation] Events should manage the lifecycle of an event [Conformance]",
            run: |s| {
                s.create("events", event(s, "e"))?;
                let all = s.path("/api/v1/events?labelSelector=testevent-constant%3Dtrue")?;
                ensure!(all["items"].as_array().is_some_and(|items| !items.is_empty()));
                s.merge("events", "e", "", json!({"message": "This is a test event - patched"}))?;
                let mut read = s.get("events", "e")?;
                ensure!(read["message"] == "This is a test event - patched");
                read["series"] = json!({"count": 100, "lastObservedTime": "2026-01-01T00:00:00.000000Z"});
                s.update("events", &read)?;
                ensure!(s.get("events", "e")?["series"]["count"] == 100);
                s.delete("events", "e", &DeleteParams::default())?;
                s.wait_gone("events", "e")
            },
        },
        Case {
            name: "[sig-instrumentation] Events should delete a collection of events [Conformance]",
            run: |s| {
                for name in ["a", "b", "c"] {
                    s.create("events", event(s, name))?;
                }
                ensure!(s.list("events", "testevent-constant=true")?.len() == 3);
                s.delete_all("events", "testevent-constant=true")?;
                ensure!(s.list("events", "testevent-constant=true")?.is_empty());
                Ok(())
            },
        },
        Case {
            name: "[sig-instrumentation] Events API should ensure that an event can be fetched, patched, deleted, and listed [Conformance]",
            run: |s| {
                let base = format!("/apis/events.k8s.io/v1/namespaces/{}/events", s.namespace);
                let one = format!("{base}/e");
                s.send(http::Method::POST, &base, &new_event(s, "e"))?;
                let field = format!("{base}?fieldSelector=reportingController%3Dtest-controller");
                ensure!(s.path(&field)?["items"].as_array().is_some_and(|items| items.len() == 1));
                // Both groups show one object, each with its own names of fields.
                let old = s.get("events", "e")?;
                ensure!(old["message"] == "This is a test" && old["involvedObject"]["name"] == "p", "{old}");
                s.patch(
                    "events",
                    "e",
                    "",
                    &Patch::Merge(
                        json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}}),
                    ),
                )?;
                let mut read = s.path(&one)?;
                ensure!(read["series"]["count"] == 2 && read["note"] == "This is a test", "{read}");
                read["series"]["count"] = 3.into();
                ensure!(s.send(http::Method::PUT, &one, &read)?["series"]["count"] == 3);
                s.send(http::Method::DELETE, &one, &json!({}))?;
                s.wait_gone("events", "e")
            },
        },
        Case {
            name: "[sig-instrumentation] Events API should delete a collection of events [Conformance]",
            run: |s| {
                let base = format!("/apis/events.k8s.io/v1/namespaces/{}/events", s.namespace);
                for name in ["a", "b", "c"] {
                    s.send(http::Method::POST, &base, &new_event(s, name))?;
                }
                let selected = format!("{base}?labelSelector=testevent-constant%3Dtrue");
                ensure!(s.path(&selected)?["items"].as_array().is_some_and(|items| items.len() == 3));
                s.send(http::Method::DELETE, &selected, &json!({}))?;
                ensure!(s.path(&selected)?["items"].as_array().is_some_and(Vec::is_empty));
                Ok(())
            },
        },
        Case {
            name: "[sig-scheduling] LimitRange should list, patch and delete a LimitRange by collection [Conformance]",
            run: |s| {
                let range = json!({"kind": "LimitRange", "metadata": {"name": "l", "labels": {"l": "r"}}, "spec": {
                    "limits": [{"type": "Container", "min": {"cpu": "50m"}, "defaultRequest": {"cpu": "50m"}}]}});
                s.create("limitranges", range)?;
                ensure!(s.list("limitranges", "l=r")?.len() == 1);
                let all = s.path("/api/v1/limitranges?labelSelector=l%3Dr")?;
                ensure!(all["items"].as_array().is_some_and(|items| items.len() == 1));
                let patch = json!({"metadata": {"labels": {"l": "patched"}}, "spec": {
                    "limits": [{"type": "Container", "min": {"cpu": "40m"}, "defaultRequest": {"cpu": "50m"}}]}});
                let patched = s.patch("limitranges", "l", "", &Patch::Strategic(patch))?;
                ensure!(patched["spec"]["limits"][0]["min"]["cpu"] == "40m", "{patched}");
                s.delete_all("limitranges", "l=patched")?;
                s.wait_gone("limitranges", "l")
            },
        },
    ]
}
