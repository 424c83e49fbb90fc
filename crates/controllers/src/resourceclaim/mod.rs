//! `resourceclaim-controller`: makes claims from templates for the pods that name them, keeps reservations to pods that
//! still run, gives devices back when nobody uses a claim, and deletes what was made for pods that have ended.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::PodResourceClaim;
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use devices::claims;
use parking_lot::Mutex;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};
use serde_json::json;

use self::plan::Step;
use crate::pods;

const NAME: &str = "resource-claim-controller";
const WORKERS: usize = 10;
/// Who writes the names of claims into pods.
const FIELD_MANAGER: &str = "ResourceClaimController";
/// Index of pods by the claims they use.
const BY_CLAIM: &str = "device-claims";
/// Index of pods by the templates they name.
const BY_TEMPLATE: &str = "device-claim-templates";
/// Index of claims by the pod they were made for.
const BY_POD: &str = "pod-owner";
/// Keys of pods and of claims share one queue.
const POD: &str = "pod:";
const CLAIM: &str = "claim:";

/// The row of `resourceclaim-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<ResourceClaim>>,
    templates: Arc<Informer<ResourceClaimTemplate>>,
    /// Claims that were made and may not be seen yet: names by the pod's uid and the entry.
    made: Mutex<HashMap<(String, String), String>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.events.recorder(context.client_of(NAME), "resource_claim", ""),
        pods: context.informers.get::<Pod>(),
        claims: context.informers.get::<ResourceClaim>(),
        templates: context.informers.get::<ResourceClaimTemplate>(),
        made: Mutex::default(),
    });
    this.pods.store().add_index(BY_CLAIM, plan::claim_keys);
    this.pods.store().add_index(BY_TEMPLATE, plan::template_keys);
    this.claims
        .store()
        .add_index(BY_POD, |claim| plan::owner(claim).into_iter().map(|(_, uid)| uid.to_owned()).collect());
    let (to, it) = (queue.clone(), this.clone());
    this.pods.on_event(move |event| it.on_pod(event, &to));
    let (to, it) = (queue.clone(), this.clone());
    this.claims.on_event(move |event| {
        let key = event.object().key();
        if matches!(event, Event::Deleted(_)) {
            it.pods
                .store()
                .by_index(BY_CLAIM, &key)
                .iter()
                .for_each(|pod| to.add(format!("{POD}{}", pod.key())));
        }
        to.add(format!("{CLAIM}{key}"));
    });
    let (to, it) = (queue.clone(), this.clone());
    this.templates.on_event(move |event| {
        let waiting = it.pods.store().by_index(BY_TEMPLATE, &event.object().key());
        waiting.iter().for_each(|pod| to.add(format!("{POD}{}", pod.key())));
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.pods).after(&this.claims).after(&this.templates)
}

impl Loop {
    fn on_pod(&self, event: &Event<'_, Pod>, to: &WorkQueue) {
        let pod = event.object();
        if claims::of_pod(pod).is_empty() && claims::extended(pod).is_none() {
            return;
        }
        let gone = matches!(event, Event::Deleted(_));
        if gone {
            self.made.lock().retain(|(uid, _), _| uid != pod.uid());
        }
        if gone || plan::is_done(pod) {
            plan::claim_keys(pod).into_iter().for_each(|key| to.add(format!("{CLAIM}{key}")));
            let own = self.claims.store().by_index(BY_POD, pod.uid());
            own.iter().for_each(|claim| to.add(format!("{CLAIM}{}", claim.key())));
        } else {
            to.add(format!("{POD}{}", pod.key()));
        }
    }

    async fn sync_pod(&self, key: &str) -> Result<Action, ControlError> {
        let Some(pod) = self.pods.store().get(key) else { return Ok(Action::Wait) };
        if pod.is_terminating() || plan::is_done(&pod) {
            return Ok(Action::Wait);
        }
        let mut fresh = Vec::new();
        for entry in claims::of_pod(&pod) {
            match self.ensure(&pod, entry).await {
                Ok(Some(name)) => fresh.push((entry.name.clone(), name)),
                Ok(None) => {}
                Err(error) if error.is_namespace_terminating() => {}
                Err(error) => {
                    let message = format!("PodResourceClaim {}: {error}", entry.name);
                    self.recorder.warning(&*pod, "FailedResourceClaimCreation", message);
                    return Err(ControlError::Unfinished(error.to_string()));
                }
            }
        }
        if !fresh.is_empty() {
            self.note(&pod, &fresh).await?;
        }
        if pods::node_name(&pod).is_empty() {
            return Ok(Action::Wait);
        }
        // Bound by somebody who has not reserved what the pod needs.
        for entry in claims::of_pod(&pod) {
            let Ok(Some(reference)) = claims::reference(&pod, entry) else { continue };
            let Some(claim) = self.claims.store().get_in(pod.namespace(), &reference.name) else { continue };
            if reference.own && claims::check_owner(&pod, &claim).is_err() {
                continue;
            }
            if claims::allocation(&claim).is_some() && !claims::is_reserved_for(&claim, pod.uid()) {
                let mut claim = ResourceClaim::clone(&claim);
                let status = claim.status.get_or_insert_default();
                status.reserved_for.get_or_insert_default().push(claims::consumer(&pod));
                self.client.update_status_typed(&claim).await?;
            }
        }
        Ok(Action::Wait)
    }

    /// Makes the claim of an entry if there is none. Returns its name if the pod does not have it yet.
    async fn ensure(&self, pod: &Pod, entry: &PodResourceClaim) -> Result<Option<String>, Trouble> {
        match claims::reference(pod, entry) {
            Err(claims::Unnamed::NotYet(_)) => {}
            Err(why) => return Err(Trouble::Said(format!("checking for claim before creating it: {why}"))),
            Ok(None) => return Ok(None),
            Ok(Some(reference)) => {
                let found = self.claims.store().get_in(pod.namespace(), &reference.name);
                let made = self.made.lock().values().any(|name| *name == reference.name);
                let ours =
                    found.is_some_and(|claim| !reference.own || claims::check_owner(pod, &claim).is_ok());
                if ours || made {
                    return Ok(None);
                }
            }
        }
        let Some(template) = &entry.resource_claim_template_name else { return Ok(None) };
        // An earlier life may have made it and not come to say so.
        let known = self.claims.store().by_index(BY_POD, pod.uid());
        if let Some(claim) = known.iter().find(|claim| plan::is_for(claim, entry)) {
            return Ok(Some(claim.name().to_owned()));
        }
        let slot = (pod.uid().to_owned(), entry.name.clone());
        if let Some(name) = self.made.lock().get(&slot).cloned() {
            return Ok(Some(name));
        }
        let found = self.templates.store().get_in(pod.namespace(), template);
        let found = found.ok_or_else(|| {
            let why = format!("resourceclaimtemplate.resource.k8s.io {template:?} not found");
            Trouble::Said(format!("resource claim template {template:?}: {why}"))
        })?;
        let made =
            self.client.create_typed(&plan::claim(pod, entry, &found)).await.map_err(Trouble::Create)?;
        self.made.lock().insert(slot, made.name().to_owned());
        Ok(Some(made.name().to_owned()))
    }

    /// Writes the names of claims into the pod's status.
    async fn note(&self, pod: &Pod, fresh: &[(String, String)]) -> Result<(), ControlError> {
        let known = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
        let kept = known.filter(|status| !fresh.iter().any(|(entry, _)| *entry == status.name));
        let mut statuses: Vec<_> = kept
            .map(|status| match &status.resource_claim_name {
                Some(name) => json!({"name": status.name, "resourceClaimName": name}),
                None => json!({"name": status.name}),
            })
            .collect();
        statuses.extend(fresh.iter().map(|(entry, name)| json!({"name": entry, "resourceClaimName": name})));
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
            "status": {"resourceClaimStatuses": statuses}});
        let patch = Patch::Apply { object, manager: FIELD_MANAGER.into(), force: true };
        match self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn sync_claim(&self, key: &str) -> Result<Action, ControlError> {
        let Some(claim) = self.claims.store().get(key) else { return Ok(Action::Wait) };
        if plan::owner(&claim).is_some() {
            // It is seen now.
            self.made.lock().retain(|_, name| name != claim.name());
        }
        let mut valid = Vec::new();
        for user in claims::reserved_for(&claim) {
            if user.resource != "pods" || user.api_group.as_deref().is_some_and(|group| !group.is_empty()) {
                return Err(ControlError::Unfinished(format!("unsupported ReservedFor entry: {user:?}")));
            }
            if self.counts(claim.namespace(), &user.name, &user.uid).await? {
                valid.push(user.clone());
            }
        }
        let unused = valid.is_empty();
        let mut next = plan::step(&claim, valid, false);
        while let Some(step) = next.take() {
            match step {
                Step::Status(claim) => {
                    let written = self.client.update_status_typed(&*claim).await?;
                    let left = claims::reserved_for(&written).to_vec();
                    next = plan::step(&written, left, true).filter(|step| matches!(step, Step::Release(_)));
                }
                Step::Release(claim) => drop(self.client.update_typed(&*claim).await?),
            }
        }
        if unused {
            self.delete_unneeded(&claim).await?;
        }
        Ok(Action::Wait)
    }

    /// Whether a pod that a claim is reserved for may still use it.
    async fn counts(&self, namespace: &str, name: &str, uid: &str) -> Result<bool, ControlError> {
        if let Some(pod) = self.pods.store().get_in(namespace, name) {
            return Ok(pod.uid() == uid && !plan::is_done(&pod));
        }
        // It may be too new to be known here: taking its claim away would be wrong.
        match self.client.get_typed::<Pod>(namespace, name).await {
            Ok(pod) => Ok(pod.uid() == uid && !plan::is_done(&pod)),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a claim that was made for a pod that does not need it any more.
    async fn delete_unneeded(&self, claim: &ResourceClaim) -> Result<(), ControlError> {
        let Some((name, uid)) = plan::owner(claim).filter(|_| !claim.is_terminating()) else { return Ok(()) };
        let Some(pod) = self.pods.store().get_in(claim.namespace(), name) else {
            // Garbage collection will see to it.
            return Ok(());
        };
        if pod.uid() == uid && !plan::is_done(&pod) {
            return Ok(());
        }
        let params = DeleteParams::only_uid(claim.uid());
        match self.client.delete_typed::<ResourceClaim>(claim.namespace(), claim.name(), &params).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Why a claim could not be made.
#[derive(Debug)]
enum Trouble {
    Said(String),
    Create(client::Error),
}

impl Trouble {
    fn is_namespace_terminating(&self) -> bool {
        matches!(self, Trouble::Create(error) if error.is_namespace_terminating())
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Said(why) => f.write_str(why),
            // Its name is generated, so there is none to tell.
            Trouble::Create(error) => write!(f, "create ResourceClaim : {error}"),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(async move {
            match (key.strip_prefix(POD), key.strip_prefix(CLAIM)) {
                (Some(key), _) => self.sync_pod(key).await,
                (_, Some(key)) => self.sync_claim(key).await,
                _ => Ok(Action::Wait),
            }
        })
    }
}
