//! `persistentvolume-binder-controller`: brings claims and volumes together, and says what becomes of volumes whose
//! claims are gone.
//!
//! Flow: claim, volume, class and pod events -> key -> [`plan::claim`] or [`plan::volume`] -> both halves of the
//! binding, phases, events. Making and deleting volumes is for provisioners, which are told by annotations.

pub mod expand;
pub mod plan;

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Recorder, WorkQueue,
};
use stdx::Clock;
use volumes::{annotate, annotated, annotation};

use self::plan::{ClaimStep, Note, View, VolumeStep};

const NAME: &str = "persistent-volume-binder";
/// One worker: two claims in work at once would be given the same volume.
const WORKERS: usize = 1;
/// Index of pods and claims by the claims and volumes they name.
const BY_CLAIM: &str = "claim-names";
const CLAIM: &str = "claim:";
const VOLUME: &str = "volume:";

/// The row of `persistentvolume-binder-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    queue: Arc<WorkQueue>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    pods: Arc<Informer<Pod>>,
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Key of the claim a volume is promised to.
fn claim_key(volume: &PersistentVolume) -> Option<String> {
    let to = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(format!("{}/{}", to.namespace.as_deref()?, to.name.as_deref()?))
}

fn waiting_claims(pod: &Pod) -> Vec<String> {
    if pod.spec.as_ref().is_none_or(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty())) {
        return Vec::new();
    }
    volumes::claim_names(pod).into_iter().map(|(name, _)| format!("{}/{name}", pod.namespace())).collect()
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.events.recorder(context.client_of(NAME), "persistentvolume-controller", ""),
        clock: context.clock.clone(),
        queue: queue.clone(),
        claims: context.informers.get::<PersistentVolumeClaim>(),
        volumes: context.informers.get::<PersistentVolume>(),
        classes: context.informers.get::<StorageClass>(),
        pods: context.informers.get::<Pod>(),
    });
    this.pods.store().add_index(BY_CLAIM, waiting_claims);
    let it = this.clone();
    this.claims.on_event(move |event| {
        let claim = event.object();
        it.queue.add(format!("{CLAIM}{}", claim.key()));
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        let volume = it.volumes.store().get(named);
        // A volume may be promised to a claim that does not know it yet.
        if let Some(volume) = volume.filter(|_| !named.is_empty()) {
            it.queue.add(format!("{VOLUME}{}", volume.name()));
        }
    });
    let it = this.clone();
    this.volumes.on_event(move |event| {
        let volume = event.object();
        it.queue.add(format!("{VOLUME}{}", volume.name()));
        match claim_key(volume) {
            Some(key) => it.queue.add(format!("{CLAIM}{key}")),
            None => it.offer(|_| true),
        }
    });
    let it = this.clone();
    this.classes.on_event(move |event| {
        let name = event.object().name().to_owned();
        it.offer(|claim| claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref()) == Some(&name));
    });
    let it = this.clone();
    this.pods.on_event(move |event| {
        for key in waiting_claims(event.object()) {
            it.queue.add(format!("{CLAIM}{key}"));
        }
    });
    Controller::new(queue, this.clone(), WORKERS)
        .after(&this.claims)
        .after(&this.volumes)
        .after(&this.classes)
        .after(&this.pods)
}

impl Loop {
    /// Looks again at the claims that wait and might care.
    fn offer(&self, cares: impl Fn(&PersistentVolumeClaim) -> bool) {
        let waiting = self.claims.store().list();
        for claim in waiting.iter().filter(|c| phase_of(c) != "Bound" && cares(c)) {
            self.queue.add(format!("{CLAIM}{}", claim.key()));
        }
    }

    fn say<T: Typed>(&self, about: &T, note: &Note) {
        match note.warning {
            true => self.recorder.warning(about, note.reason, note.message.clone()),
            false => self.recorder.normal(about, note.reason, note.message.clone()),
        }
    }

    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<Result<Arc<StorageClass>, String>> {
        let name = claim.spec.as_ref()?.storage_class_name.as_deref().filter(|n| !n.is_empty())?;
        let found = self.classes.store().get(name);
        Some(found.ok_or_else(|| format!("storageclass.storage.k8s.io {name:?} not found")))
    }

    async fn sync_claim(&self, key: &str) -> Result<(), ControlError> {
        let Some(claim) = self.claims.store().get(key) else {
            // Volumes that were promised to it are released.
            for volume in self.volumes.store().list() {
                if claim_key(&volume).as_deref() == Some(key) {
                    self.queue.add(format!("{VOLUME}{}", volume.name()));
                }
            }
            return Ok(());
        };
        let waiting = self.pods.store().by_index(BY_CLAIM, key);
        let view = View {
            volumes: &self.volumes.store().list(),
            class: self.class_of(&claim),
            waiting_pod: waiting.iter().find(|p| !p.is_terminating()).map(|p| p.name().to_owned()),
        };
        match plan::claim(&claim, &view) {
            ClaimStep::Bind(volume) => self.bind(&claim, &volume).await,
            ClaimStep::Wait(note) => {
                note.iter().for_each(|note| self.say(&*claim, note));
                self.set_phase(&claim, "Pending", None).await
            }
            ClaimStep::Lose(note) => {
                let news = phase_of(&claim) != "Lost";
                self.set_phase(&claim, "Lost", None).await?;
                if news {
                    self.say(&*claim, &note);
                }
                Ok(())
            }
            ClaimStep::Provision(by) => self.ask_for(&claim, &by).await,
        }
    }

    /// Tells the provisioner of a claim.
    async fn ask_for(&self, claim: &PersistentVolumeClaim, by: &str) -> Result<(), ControlError> {
        let mut asked = claim.clone();
        let changed = [annotation::STORAGE_PROVISIONER_BETA, annotation::STORAGE_PROVISIONER]
            .map(|name| annotate(&mut asked.metadata, name, by));
        if changed.contains(&true) {
            self.client.update_typed(&asked).await?;
        }
        self.say(claim, &plan::provisioning(by));
        self.set_phase(claim, "Pending", None).await
    }

    /// Binds both sides; each step is skipped where it has been done, so that a crash in between is no harm.
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), ControlError> {
        let mut volume = volume.clone();
        if let Some(bound) = volumes::bind_volume(&volume, claim) {
            volume = self.client.update_typed(&bound).await?;
        }
        self.set_volume_phase(&volume, "Bound", None).await?;
        let mut claim = claim.clone();
        if let Some(bound) = volumes::bind_claim(&claim, volume.name()) {
            claim = self.client.update_typed(&bound).await?;
        }
        self.set_phase(&claim, "Bound", Some(&volume)).await
    }

    async fn set_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), ControlError> {
        let mut new = claim.clone();
        let status = new.status.get_or_insert_default();
        let first = phase_of(claim) != phase;
        status.phase = Some(phase.to_owned());
        match volume.and_then(|v| v.spec.as_ref()) {
            Some(spec) => {
                status.access_modes = spec.access_modes.clone();
                // Later changes of capacity are for those who make volumes larger.
                if first || status.capacity.is_none() {
                    status.capacity = spec.capacity.clone();
                }
                if status.current_volume_attributes_class_name.is_none() {
                    status.current_volume_attributes_class_name = spec.volume_attributes_class_name.clone();
                }
            }
            None if phase == "Pending" => {
                status.access_modes = None;
                status.capacity = None;
            }
            None => {}
        }
        if new.status != claim.status {
            self.client.update_status_typed(&new).await?;
        }
        Ok(())
    }

    async fn set_volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<(), ControlError> {
        let mut new = volume.clone();
        let status = new.status.get_or_insert_default();
        status.message = message.map(String::from);
        if status.phase.as_deref() != Some(phase) {
            status.phase = Some(phase.to_owned());
            status.last_phase_transition_time = Some(Time(self.clock.now()));
        }
        if new.status != volume.status {
            self.client.update_status_typed(&new).await?;
        }
        Ok(())
    }

    async fn sync_volume(&self, name: &str) -> Result<(), ControlError> {
        let Some(volume) = self.volumes.store().get(name) else { return Ok(()) };
        let key = claim_key(&volume);
        let mut claim = key.as_deref().and_then(|key| self.claims.store().get(key)).map(|c| (*c).clone());
        if let (None, Some(to)) = (&claim, volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref())) {
            // Nothing is released on the word of a cache that may be behind.
            let (namespace, name) = (to.namespace.as_deref().unwrap_or_default(), to.name.as_deref());
            claim = match self.client.get_typed(namespace, name.unwrap_or_default()).await {
                Ok(found) => Some(found),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.into()),
            };
        }
        match plan::volume(&volume, claim.as_ref()) {
            VolumeStep::Phase(phase) => self.set_volume_phase(&volume, phase, None).await,
            VolumeStep::Claim => {
                key.iter().for_each(|key| self.queue.add(format!("{CLAIM}{key}")));
                Ok(())
            }
            VolumeStep::Unbind => {
                let free = volumes::unbind_volume(&volume);
                if free != *volume {
                    let free = self.client.update_typed(&free).await?;
                    self.set_volume_phase(&free, "Available", None).await?;
                }
                Ok(())
            }
            VolumeStep::Release => self.release(&volume).await,
        }
    }

    async fn release(&self, volume: &PersistentVolume) -> Result<(), ControlError> {
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if phase == "Failed" {
            return Ok(());
        }
        if phase != "Released" {
            self.set_volume_phase(volume, "Released", None).await?;
            return Ok(());
        }
        if let Some(note) = plan::stranded(volume) {
            self.set_volume_phase(volume, "Failed", Some(&note.message)).await?;
            self.say(volume, &note);
        }
        Ok(())
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(async move {
            let outcome = match (key.strip_prefix(CLAIM), key.strip_prefix(VOLUME)) {
                (Some(key), _) => self.sync_claim(key).await,
                (_, Some(name)) => self.sync_volume(name).await,
                _ => Ok(()),
            };
            match outcome {
                Err(error) if error.api().is_some_and(client::Error::is_not_found) => Ok(Action::Wait),
                other => other.map(|()| Action::Wait),
            }
        })
    }
}

/// Whether a claim's volume is to be made by this provisioner, now.
pub(crate) fn is_asked(claim: &PersistentVolumeClaim, provisioner: &str) -> bool {
    let asked = annotated(&claim.metadata, annotation::STORAGE_PROVISIONER)
        .or_else(|| annotated(&claim.metadata, annotation::STORAGE_PROVISIONER_BETA));
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    asked == Some(provisioner) && named.is_empty() && !claim.is_terminating()
}
