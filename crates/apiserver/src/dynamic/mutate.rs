//! The changing half: policies, then webhooks, one after the other, and some of them again when a later one
//! has changed the object.

use std::time::Instant;

use admission::dynamic::mutation::{self, Change};
use admission::dynamic::policy::{Binding, Report};
use admission::dynamic::webhook::{self, Hook};
use meta::Status;
use registry::admit::Attributes;
use serde_json::{Map, Value};

use super::Collected;
use super::call::ask;
use super::validate::{Body, Owned, owned};
use super::view::View;
use crate::server::Server;

/// Lets whoever is configured change the object.
pub async fn mutate(
    server: &Server,
    attributes: &Attributes<'_>,
    body: Body<'_>,
    object: &mut Map<String, Value>,
    old: Option<&Map<String, Value>>,
    collected: &Collected,
) -> Result<(), Status> {
    let dynamic = &server.dynamic;
    let (policies, configurations) = (dynamic.mutations.all.load_full(), dynamic.mutating.all.load_full());
    if policies.is_empty() && configurations.is_empty() {
        return Ok(());
    }
    let pass = Pass { server, attributes, body, old, collected };
    let before = object.clone();
    let observe = |name: &str, done: &Result<(), Status>, began: Instant| {
        server.metrics.plugins.observe(name, "admit", attributes.operation, done.is_err(), began.elapsed());
    };
    let began = Instant::now();
    let done = pass.policies(&policies, object, false);
    observe(crate::metrics::MUTATING_POLICY, &done, began);
    done?;
    let began = Instant::now();
    let done = pass.webhooks(&policies, &configurations, object).await;
    observe("MutatingAdmissionWebhook", &done, began);
    done?;
    if *object != before && body.is_none() {
        registry::decode::renew(attributes.def, object)?;
    }
    Ok(())
}
struct Pass<'a> {
    server: &'a Server,
    attributes: &'a Attributes<'a>,
    body: Body<'a>,
    old: Option<&'a Map<String, Value>>,
    collected: &'a Collected,
}

impl Pass<'_> {
    /// The webhooks in order, and again what wants to see what others changed after it.
    async fn webhooks(
        &self,
        policies: &[std::sync::Arc<mutation::Policy>],
        configurations: &[std::sync::Arc<Vec<Hook>>],
        object: &mut Map<String, Value>,
    ) -> Result<(), Status> {
        let after_policies = object.clone();
        let hooks: Vec<&Hook> = configurations.iter().flat_map(|c| c.iter()).collect();
        // For each webhook that was asked, what the object was when it had answered.
        let mut answered: Vec<(usize, Map<String, Value>)> = Vec::new();
        for (i, hook) in hooks.iter().enumerate() {
            if self.hook(hook, object).await? {
                answered.push((i, object.clone()));
            }
        }
        if *object != after_policies {
            self.policies(policies, object, true)?;
        }
        for (i, seen) in answered {
            if let Some(hook) = hooks.get(i).filter(|h| h.reinvoke && *object != seen) {
                self.hook(hook, object).await?;
            }
        }
        Ok(())
    }

    fn policies(
        &self,
        policies: &[std::sync::Arc<mutation::Policy>],
        object: &mut Map<String, Value>,
        again: bool,
    ) -> Result<(), Status> {
        let bindings: Vec<Binding> =
            self.server.dynamic.mutation_bindings.all.load().iter().map(|b| (**b).clone()).collect();
        for policy in policies.iter().filter(|p| !again || p.reinvoke) {
            for binding in bindings.iter().filter(|b| b.policy == policy.base.name) {
                self.policy(policy, binding, object)?;
            }
        }
        Ok(())
    }

    /// Every mutation of a policy under one binding, each seeing what the one before it did.
    fn policy(
        &self,
        policy: &mutation::Policy,
        binding: &Binding,
        object: &mut Map<String, Value>,
    ) -> Result<(), Status> {
        let view = View::new(self.server, self.attributes, self.body);
        let equivalents = view.equivalents();
        let (resource, params) = {
            let subject = view.subject(&equivalents, Some(object), self.old);
            if subject.beyond_policies() {
                return Ok(());
            }
            let refuse = |why: &str| match policy.base.ignore {
                true => Ok(()),
                false => Err(mutation::failed(&subject, &policy.base.name, &binding.name, why)),
            };
            let resource = match policy.base.matcher.matches(&subject, &view) {
                Ok(Some(resource)) => resource,
                Ok(None) => return Ok(()),
                Err(e) => return refuse(&e.message),
            };
            match binding.matches(&subject, &view) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(e) => return refuse(&e.message),
            }
            match policy.base.params(binding, &subject, &view) {
                Ok(params) => (owned(&resource), params),
                Err(why) => return refuse(&why),
            }
        };
        for param in &params {
            // A policy that does not compile fails once.
            for index in 0..policy.len().max(usize::from(!policy.base.errors.is_empty())) {
                let objects = view.versioned(&resource.borrowed(), Some(object), self.old);
                let subject = view.subject(&equivalents, Some(object), self.old);
                let change =
                    policy.change(index, &subject, &resource.borrowed(), &view, &objects, param.as_ref());
                let change = change
                    .map_err(|why| mutation::failed(&subject, &policy.base.name, &binding.name, &why))?;
                let (Some(change), Some(current)) = (change, objects.0) else { continue };
                let outcome = self.changed(current, change).map_err(|why| {
                    mutation::failed(&subject, &policy.base.name, &binding.name, &why.message)
                });
                match outcome {
                    Ok(next) => *object = view.back(&resource.borrowed(), next, object),
                    Err(_) if policy.base.ignore => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// The object with a change made.
    fn changed(&self, mut current: Map<String, Value>, change: Change) -> Result<Map<String, Value>, Status> {
        let def = self.attributes.def;
        match change {
            Change::Patch(patch) => {
                webhook::patch(&mut current, patch.to_string().as_bytes())?;
                Ok(current)
            }
            Change::Apply(mut config) => {
                for key in ["apiVersion", "kind"] {
                    if let Some(value) = current.get(key) {
                        config.insert(key.into(), value.clone());
                    }
                }
                // A merge without owners: nobody's fields are given up, nobody conflicts.
                let managed = registry::write::metadata(&mut current).remove("managedFields");
                let api_version = def.api_version();
                let writer = schema::apply::Writer {
                    manager: "admission",
                    api_version: &api_version,
                    subresource: "",
                    now: "",
                };
                let mut merged =
                    schema::apply::apply(&def.schema, def.ty, Some(&current), &config, &writer, true)?;
                registry::write::metadata(&mut merged).remove("managedFields");
                if let Some(managed) = managed {
                    registry::write::metadata(&mut merged).insert("managedFields".into(), managed);
                }
                Ok(merged)
            }
        }
    }

    /// Asks one webhook; whether it was asked.
    async fn hook(&self, hook: &Hook, object: &mut Map<String, Value>) -> Result<bool, Status> {
        let view = View::new(self.server, self.attributes, self.body);
        let equivalents = view.equivalents();
        let resource: Owned = {
            let subject = view.subject(&equivalents, Some(object), self.old);
            let convert =
                |r: &admission::dynamic::Resource<'_>| view.versioned(r, subject.object, subject.old);
            match hook.wants(&subject, &view, &convert)? {
                Some(resource) => owned(&resource),
                None => return Ok(false),
            }
        };
        let objects = view.versioned(&resource.borrowed(), Some(object), self.old);
        let answer = {
            let subject = view.subject(&equivalents, Some(object), self.old);
            ask(self.server, hook, &subject, &resource.borrowed(), &objects, true).await?
        };
        let Some(answer) = answer else { return Ok(true) };
        self.collected.add(Report {
            warnings: answer.warnings,
            annotations: answer.annotations,
            ..Report::default()
        });
        let (Some(patch), Some(mut current)) = (answer.patch, objects.0) else { return Ok(true) };
        webhook::patch(&mut current, &patch).map_err(Status::internal)?;
        *object = view.back(&resource.borrowed(), current, object);
        Ok(true)
    }
}
