//! `volumeattributesclass-protection-controller`: a class of volumes' attributes is not deleted while claims or volumes
//! have it. Each class gets a finalizer, which goes once deletion has begun and nobody has the class any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, WorkQueue,
};

use crate::protection::{is_held, release, settle};

const NAME: &str = "volumeattributesclass-protection-controller";
const FINALIZER: &str = "kubernetes.io/vac-protection";
const WORKERS: usize = 1;
/// Index of claims and volumes by the classes they have.
const BY_CLASS: &str = "attributes-class";

/// The row of `volumeattributesclass-protection-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

/// The classes a claim has: the one it asks for, the one its volume has, and the one that is being tried.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let asked = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let tried = status.and_then(|status| status.modify_volume_status.as_ref());
    let tried = tried.and_then(|tried| tried.target_volume_attributes_class_name.clone());
    let all: BTreeSet<String> = [asked, current, tried].into_iter().flatten().collect();
    all.into_iter().filter(|name| !name.is_empty()).collect()
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    let name = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    name.filter(|name| !name.is_empty()).into_iter().collect()
}

/// What is to be written of a class; `None` for nothing.
fn next(class: &VolumeAttributesClass, is_used: bool) -> Option<VolumeAttributesClass> {
    let mut changed = class.clone();
    if is_held(&class.metadata, FINALIZER) {
        release(&mut changed.metadata, FINALIZER);
        return (!is_used).then_some(changed);
    }
    let finalizers = changed.metadata.finalizers.get_or_insert_default();
    if class.is_terminating() || finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return None;
    }
    finalizers.push(FINALIZER.to_owned());
    Some(changed)
}

struct Loop {
    client: Client,
    classes: Arc<Informer<VolumeAttributesClass>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        classes: context.informers.get(),
        claims: context.informers.get(),
        volumes: context.informers.get(),
    });
    this.claims.store().add_index(BY_CLASS, of_claim);
    this.volumes.store().add_index(BY_CLASS, of_volume);
    let to = queue.clone();
    this.classes.on_event(move |event| to.add(event.object().key()));
    let to = queue.clone();
    this.claims.on_event(move |event| left(event, of_claim).into_iter().for_each(|name| to.add(name)));
    let to = queue.clone();
    this.volumes.on_event(move |event| left(event, of_volume).into_iter().for_each(|name| to.add(name)));
    let controller = Controller::new(queue, this.clone(), WORKERS);
    controller.after(&this.classes).after(&this.claims).after(&this.volumes)
}

/// The classes that an object had before something happened to it.
fn left<T>(event: &Event<'_, T>, of: fn(&T) -> Vec<String>) -> Vec<String> {
    match event {
        Event::Added(_) => Vec::new(),
        Event::Updated { old, .. } => of(old),
        Event::Deleted(object) => of(object),
    }
}

impl Loop {
    async fn sync(&self, name: &str) -> Result<Action, ControlError> {
        let Some(class) = self.classes.store().get(name) else { return Ok(Action::Wait) };
        let is_used = !self.claims.store().by_index(BY_CLASS, name).is_empty()
            || !self.volumes.store().by_index(BY_CLASS, name).is_empty();
        match next(&class, is_used) {
            Some(changed) => settle(self.client.update_typed(&changed).await),
            None => Ok(Action::Wait),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn classes_are_kept_while_they_are_used() {
        let class = |finalizers: Value, deleted: bool| {
            let mut metadata = json!({"name": "gold", "finalizers": finalizers});
            if deleted {
                metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            VolumeAttributesClass::from_value(json!({"metadata": metadata, "driverName": "d"})).unwrap()
        };
        let own = || json!(["x/y", FINALIZER]);
        let table = [
            (class(json!(["x/y"]), false), false, Some(vec!["x/y", FINALIZER])),
            (class(own(), false), false, None),
            (class(own(), true), true, None),
            (class(own(), true), false, Some(vec!["x/y"])),
            // Once it goes without a finalizer it gets none.
            (class(json!(["x/y"]), true), true, None),
        ];
        for (class, is_used, want) in table {
            let changed = next(&class, is_used).map(|c| c.metadata.finalizers.unwrap_or_default());
            let want = want.map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(changed, want, "{:?} used: {is_used}", class.metadata);
        }
    }

    #[test]
    fn claims_have_up_to_three() {
        let claim = |spec: Value, status: Value| {
            let claim = json!({"metadata": {"name": "c"}, "spec": spec, "status": status});
            of_claim(&PersistentVolumeClaim::from_value(claim).unwrap())
        };
        assert_eq!(claim(json!({"volumeAttributesClassName": ""}), json!({})), Vec::<String>::new());
        let status = json!({"currentVolumeAttributesClassName": "b",
            "modifyVolumeStatus": {"status": "InProgress", "targetVolumeAttributesClassName": "c"}});
        assert_eq!(claim(json!({"volumeAttributesClassName": "b"}), status), ["b", "c"]);
    }
}
