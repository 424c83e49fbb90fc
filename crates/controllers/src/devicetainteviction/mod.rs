//! `device-taint-eviction-controller`: deletes pods whose devices have `NoExecute` taints that their claims do not
//! tolerate, or no longer, and tells in the status of the rules that taint devices how far that is.
//!
//! Flow: events of pods, claims, slices and rules -> keys of pods -> [`plan::eviction`] -> a timer or a deletion; what
//! happens to pods because of a rule, and rules' own events -> keys of rules -> [`plan::condition`].

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use devices::{Eviction, Slices, claims};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Key, Reconcile, Recorder,
    WorkQueue,
};
use serde_json::json;
use stdx::Clock;

use crate::nodelifecycle::plan::until;
use crate::pods;

const WORKERS: usize = 8;
const NAME: &str = "device-taint-eviction-controller";
/// How often at most a rule's status is written: counting its pods looks at all there are.
const STATUS_PERIOD: Duration = Duration::from_secs(10);
const CONDITION: &str = "EvictionInProgress";
const REASON: &str = "DeviceTaintManagerEviction";
/// Claims by the pools of their devices.
const BY_POOL: &str = "pool";
const POD: &str = "pod:";
const RULE: &str = "rule:";

/// The row of `device-taint-eviction-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

/// What the loop has noted.
#[derive(Default)]
struct Notes {
    slices: Slices,
    /// Pods that have to go, since when that is known. Tells a cancellation from nothing to do.
    leaving: HashMap<Key, Timestamp>,
    /// Pods that were made to go, by the uid of the rule.
    evicted: HashMap<String, usize>,
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<ResourceClaim>>,
    slices: Arc<Informer<ResourceSlice>>,
    rules: Arc<Informer<DeviceTaintRule>>,
    notes: Mutex<Notes>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.events.recorder(context.client_of(NAME), NAME, ""),
        clock: context.clock.clone(),
        pods: context.informers.get(),
        claims: context.informers.get(),
        slices: context.informers.get(),
        rules: context.informers.get(),
        notes: Mutex::default(),
        queue: WorkQueue::new(),
    });
    this.claims.store().add_index(BY_POOL, |claim| {
        let mut pools: Vec<String> = devices::results(claim).map(|r| pool_key(&r.driver, &r.pool)).collect();
        pools.dedup();
        pools
    });
    follow_users(&this);
    follow_devices(&this);
    let controller = Controller::new(this.queue.clone(), this.clone(), WORKERS);
    controller.after(&this.pods).after(&this.claims).after(&this.slices).after(&this.rules)
}

fn pool_key(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

/// Pods and claims.
fn follow_users(this: &Arc<Loop>) {
    let it = this.clone();
    this.pods.on_event(move |event| {
        let pod = event.object();
        let same = |old: &Pod| {
            let known = |p: &Pod| p.status.as_ref().and_then(|s| s.resource_claim_statuses.clone());
            pods::node_name(old) == pods::node_name(pod)
                && known(old) == known(pod)
                && claims::extended(old) == claims::extended(pod)
                && old.is_terminating() == pod.is_terminating()
        };
        let has = !claims::of_pod(pod).is_empty() || claims::extended(pod).is_some();
        let relevant = match event {
            Event::Updated { old, .. } => has && !same(old),
            _ => has,
        };
        if relevant {
            it.queue.add(format!("{POD}{}", pod.key()));
        }
    });
    let it = this.clone();
    this.claims.on_event(move |event| {
        if let Event::Updated { old, .. } = event {
            it.add_users(old);
        }
        it.add_users(event.object());
    });
}

/// Slices and rules.
fn follow_devices(this: &Arc<Loop>) {
    let it = this.clone();
    this.slices.on_event(move |event| {
        let slice = event.object();
        {
            let known = &mut it.notes.lock().slices;
            match event {
                Event::Deleted(_) => known.remove(slice.name()),
                _ => known.set(slice.clone()),
            }
        }
        let pool = pool_key(&slice.spec.driver, &slice.spec.pool.name);
        it.claims.store().by_index(BY_POOL, &pool).iter().for_each(|claim| it.add_users(claim));
    });
    let it = this.clone();
    this.rules.on_event(move |event| {
        let rule = event.object();
        {
            let mut notes = it.notes.lock();
            match event {
                Event::Deleted(_) => {
                    notes.slices.remove_rule(rule.name());
                    notes.evicted.remove(rule.uid());
                }
                _ => notes.slices.set_rule(rule.clone()),
            }
        }
        if matches!(event, Event::Updated { old, new } if old.spec == new.spec && old.uid() == new.uid()) {
            return;
        }
        it.queue.add(format!("{RULE}{}", rule.name()));
        it.claims.store().list().iter().for_each(|claim| it.add_users(claim));
    });
}

impl Loop {
    fn add_users(&self, claim: &ResourceClaim) {
        let users = claims::reserved_for(claim).iter().filter(|user| user.resource == "pods");
        users.for_each(|user| self.queue.add(format!("{POD}{}/{}", claim.namespace(), user.name)));
    }

    fn eviction(&self, slices: &Slices, pod: &Pod) -> Option<Eviction> {
        plan::eviction(slices, pod, |namespace, name| self.claims.store().get_in(namespace, name))
    }

    async fn sync_pod(&self, key: &str) -> Result<Action, ControlError> {
        let now = self.clock.now();
        let found = self.pods.store().get(key).and_then(|pod| {
            let mut notes = self.notes.lock();
            let eviction = self.eviction(&notes.slices, &pod)?;
            let since = *notes.leaving.entry(key.into()).or_insert(now);
            Some((eviction.at.unwrap_or(since), eviction.rules, pod))
        });
        let Some((at, rules, pod)) = found else {
            self.settle(key);
            return Ok(Action::Wait);
        };
        rules.iter().for_each(|rule| self.queue.add(format!("{RULE}{rule}")));
        if at > now {
            return Ok(Action::RequeueAfter(until(at, now)));
        }
        self.recorder.normal(&*pod, REASON, "Marking for deletion".to_owned());
        if self.evict(&pod, now).await? {
            let mut notes = self.notes.lock();
            for rule in &rules {
                if let Some(rule) = self.rules.store().get(rule) {
                    *notes.evicted.entry(rule.uid().to_owned()).or_default() += 1;
                }
            }
        }
        self.notes.lock().leaving.remove(key);
        // Not at once: the cache does not know yet that the pod goes.
        rules.iter().for_each(|rule| self.queue.add_after(format!("{RULE}{rule}"), STATUS_PERIOD));
        Ok(Action::Wait)
    }

    /// The pod need not go, or is gone.
    fn settle(&self, key: &str) {
        let had_to = self.notes.lock().leaving.remove(key).is_some();
        if let Some(pod) = self.pods.store().get(key).filter(|pod| had_to && !pod.is_terminating()) {
            self.recorder.normal(&*pod, REASON, "Cancelling deletion".to_owned());
        }
    }

    /// Deletes a pod; tells whether it was there.
    async fn evict(&self, pod: &Pod, now: Timestamp) -> Result<bool, ControlError> {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByDeviceTaintManager",
            "message": "Device Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now),
        });
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}
        }));
        match self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await {
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let params = DeleteParams::only_uid(pod.uid());
        match self.client.delete_typed::<Pod>(pod.namespace(), pod.name(), &params).await {
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(true),
        }
    }

    async fn sync_rule(&self, name: &str) -> Result<Action, ControlError> {
        let Some(rule) = self.rules.store().get(name) else { return Ok(Action::Wait) };
        let generation = rule.metadata.generation.unwrap_or_default();
        let conditions = rule.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let known = conditions.into_iter().find(|condition| condition.type_ == CONDITION);
        let now = self.clock.now();
        if let Some(known) = known.filter(|known| known.observed_generation == Some(generation)) {
            let next = known.last_transition_time.0.checked_add(STATUS_PERIOD).unwrap_or(Timestamp::MAX);
            if next > now {
                return Ok(Action::RequeueAfter(until(next, now)));
            }
        }
        let counts = self.count(&rule);
        let (going, reason, message) = plan::condition(&rule.spec.taint.effect, &counts);
        let status = if going { "True" } else { "False" };
        let same = known.is_some_and(|known| {
            known.observed_generation == Some(generation)
                && (known.status.as_str(), known.reason.as_str()) == (status, reason)
                && known.message == message
        });
        if same {
            return Ok(Action::Wait);
        }
        let object = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule",
            "metadata": {"name": rule.name(), "uid": rule.uid()},
            "status": {"conditions": [{"type": CONDITION, "status": status, "reason": reason, "message": message,
                "observedGeneration": generation, "lastTransitionTime": Time(now)}]}});
        let patch = Patch::Apply { object, manager: NAME.into(), force: true };
        match self.client.patch(&DeviceTaintRule::GVR, "", rule.name(), "status", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Action::Wait),
        }
    }

    fn count(&self, rule: &DeviceTaintRule) -> plan::Counts {
        let effect = rule.spec.taint.effect.as_str();
        let (mut slices, evicted) = {
            let notes = self.notes.lock();
            (notes.slices.clone(), notes.evicted.get(rule.uid()).copied().unwrap_or_default())
        };
        let mut counts = plan::Counts { evicted, ..plan::Counts::default() };
        if !matches!(effect, "NoExecute" | "None") {
            return counts;
        }
        if effect == "None" {
            // What would be if it had an effect.
            let mut effective = rule.clone();
            effective.spec.taint.effect = "NoExecute".into();
            let claims = self.claims.store().list();
            let all = claims.iter().map(|claim| &**claim);
            (counts.published, counts.allocated) = devices::selected(&slices, rule, all);
            slices.set_rule(Arc::new(effective));
        }
        let pods = self.pods.store().list();
        let evictions = pods.iter().filter_map(|pod| Some((&**pod, self.eviction(&slices, pod)?)));
        let (pending, namespaces) = plan::pending(rule.name(), evictions);
        (counts.pending, counts.namespaces) = (pending, namespaces.len());
        counts
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(async move {
            match (key.strip_prefix(POD), key.strip_prefix(RULE)) {
                (Some(key), _) => self.sync_pod(key).await,
                (_, Some(name)) => self.sync_rule(name).await,
                _ => Ok(Action::Wait),
            }
        })
    }
}
