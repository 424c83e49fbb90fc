//! The refusing half: policies, then all webhooks at once.

use std::time::Instant;

use admission::dynamic::policy::{Binding, Report};
use admission::dynamic::webhook::Hook;
use admission::dynamic::{Resource, policy::Versioned};
use futures_util::future::join_all;
use meta::Status;
use registry::admit::Attributes;
use serde_json::{Map, Value};

use super::Collected;
use super::call::ask;
use super::view::View;
use crate::server::Server;

/// Kind of a body that is not the resource's own.
pub type Body<'a> = Option<(&'a str, &'a str, &'a str)>;

/// Asks whoever is configured.
pub async fn validate(
    server: &Server,
    attributes: &Attributes<'_>,
    body: Body<'_>,
    object: Option<&Map<String, Value>>,
    old: Option<&Map<String, Value>>,
    collected: &Collected,
) -> Result<(), Status> {
    let dynamic = &server.dynamic;
    let (policies, configurations) = (dynamic.policies.all.load_full(), dynamic.validating.all.load_full());
    if policies.is_empty() && configurations.is_empty() {
        return Ok(());
    }
    let asked = {
        // Values of expressions stay on this thread: this block must not wait.
        let view = View::new(server, attributes, body);
        let equivalents = view.equivalents();
        let subject = view.subject(&equivalents, object, old);
        let convert = |r: &Resource<'_>| view.versioned(r, object, old);
        let began = Instant::now();
        let observe = |rejected| {
            let (plugins, name) = (&server.metrics.plugins, crate::metrics::VALIDATING_POLICY);
            plugins.observe(name, "validate", attributes.operation, rejected, began.elapsed());
        };
        if !policies.is_empty() && !subject.beyond_policies() {
            let bindings: Vec<Binding> = dynamic.bindings.all.load().iter().map(|b| (**b).clone()).collect();
            for policy in policies.iter() {
                let mut report = Report::default();
                let outcome = policy.review(&bindings, &subject, &view, &convert, &mut report);
                server.metrics.checks.observe(std::mem::take(&mut report.checks), began.elapsed());
                collected.add(report);
                if let Err(status) = outcome {
                    observe(true);
                    return Err(status);
                }
            }
        }
        observe(false);
        let mut asked: Vec<(&Hook, Resource<'_>, Versioned)> = Vec::new();
        for hook in configurations.iter().flat_map(|c| c.iter()) {
            if let Some(resource) = hook.wants(&subject, &view, &convert)? {
                asked.push((hook, resource, convert(&resource)));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        asked
            .iter()
            .map(|(hook, resource, objects)| ((*hook).clone(), owned(resource), objects.clone()))
            .collect::<Vec<_>>()
    };
    let view = View::new(server, attributes, body);
    let equivalents = view.equivalents();
    let subject = view.subject(&equivalents, object, old);
    let calls = asked.iter().map(|(hook, resource, objects)| {
        let subject = &subject;
        async move { ask(server, hook, subject, &resource.borrowed(), objects, false).await }
    });
    let (mut outcome, began) = (Ok(()), Instant::now());
    for answer in join_all(calls).await {
        match answer {
            Ok(Some(answer)) => {
                collected.add(Report {
                    warnings: answer.warnings,
                    annotations: answer.annotations,
                    ..Report::default()
                });
            }
            Ok(None) => {}
            Err(status) => outcome = outcome.and(Err(status)),
        }
    }
    let (plugins, took) = (&server.metrics.plugins, began.elapsed());
    plugins.observe("ValidatingAdmissionWebhook", "validate", attributes.operation, outcome.is_err(), took);
    outcome
}

/// A resource that outlives the view it was found in.
pub struct Owned([String; 6]);

/// Copies a resource's names.
pub fn owned(r: &Resource<'_>) -> Owned {
    Owned([r.group, r.version, r.resource, r.kind.0, r.kind.1, r.kind.2].map(String::from))
}

impl Owned {
    /// The resource again.
    pub fn borrowed(&self) -> Resource<'_> {
        let [group, version, resource, kind_group, kind_version, kind] = &self.0;
        Resource { group, version, resource, kind: (kind_group, kind_version, kind) }
    }
}
