//! `persistentvolume-attach-detach-controller`: VolumeAttachments for volumes of drivers that have to be attached
//! before a node can use them.
//!
//! Flow: pod, claim, driver, attachment and node events -> key `VOLUME@NODE` -> [`plan::step`] -> a VolumeAttachment,
//! which the driver's attacher carries out -> the node's list of attached volumes, events of pods.

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::{AttachedVolume, CSIPersistentVolumeSource};
use api::k8s_openapi::api::storage::v1::{VolumeAttachmentSource, VolumeAttachmentSpec};
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use jiff::Timestamp;
use parking_lot::Mutex;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};
use serde_json::json;
use stdx::Clock;

use self::plan::{Facts, Step};
use crate::pods;

const NAME: &str = "attachdetach-controller";
const WORKERS: usize = 4;
/// Index of pods with a node by the claims they use.
const BY_CLAIM: &str = "claims-on-nodes";
/// Prefix of keys of nodes, whose lists of attached volumes are written.
const NODE: &str = "node:";
/// Taint of a node that will not come back by itself.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The row of `persistentvolume-attach-detach-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    queue: Arc<WorkQueue>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    drivers: Arc<Informer<CSIDriver>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    nodes: Arc<Informer<Node>>,
    clock: Arc<dyn Clock>,
    /// Since when volumes are to be let go, by key.
    letting_go: Mutex<HashMap<String, Timestamp>>,
}

fn csi(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

fn claims_of(pod: &Pod) -> Vec<String> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if pods::node_name(pod).is_empty() || matches!(phase, Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    volumes::claim_names(pod).into_iter().map(|(name, _)| format!("{}/{name}", pod.namespace())).collect()
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        queue: WorkQueue::new(),
        pods: context.informers.get::<Pod>(),
        claims: context.informers.get::<PersistentVolumeClaim>(),
        volumes: context.informers.get::<PersistentVolume>(),
        drivers: context.informers.get::<CSIDriver>(),
        attachments: context.informers.get::<VolumeAttachment>(),
        nodes: context.informers.get::<Node>(),
        clock: context.clock.clone(),
        letting_go: Mutex::default(),
    });
    this.pods.store().add_index(BY_CLAIM, claims_of);
    let it = this.clone();
    this.pods.on_event(move |event| {
        let pod = event.object();
        let node = pods::node_name(pod);
        // Of a pod that has ended its claims are still looked at: it was the last one, perhaps.
        if !node.is_empty() {
            for (claim, _) in volumes::claim_names(pod) {
                it.look_at(&format!("{}/{claim}", pod.namespace()), Some(node));
            }
        }
    });
    let it = this.clone();
    this.claims.on_event(move |event| it.look_at(&event.object().key(), None));
    let it = this.clone();
    this.drivers.on_event(move |event| {
        let name = event.object().name();
        for volume in it.volumes.store().list() {
            if csi(&volume).is_some_and(|source| source.driver == name) {
                it.look_at_volume(&volume);
            }
        }
    });
    let it = this.clone();
    this.attachments.on_event(move |event| it.on_attachment(event));
    let it = this.clone();
    this.nodes.on_event(move |event| {
        let same = |old: &Node, new: &Node| {
            let in_use = |n: &Node| n.status.as_ref().and_then(|s| s.volumes_in_use.clone());
            let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
            in_use(old) == in_use(new) && taints(old) == taints(new) && is_well(old) == is_well(new)
        };
        if matches!(event, Event::Updated { old, new } if same(old, new)) {
            return;
        }
        let node = event.object().name();
        for attachment in it.attachments.store().list().iter().filter(|a| a.spec.node_name == node) {
            let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
            it.queue.add(format!("{volume}@{node}"));
        }
    });
    Controller::new(this.queue.clone(), this.clone(), WORKERS)
        .after(&this.pods)
        .after(&this.claims)
        .after(&this.volumes)
        .after(&this.drivers)
        .after(&this.attachments)
        .after(&this.nodes)
}

impl Loop {
    fn look_at(&self, claim: &str, node: Option<&str>) {
        let Some(found) = self.claims.store().get(claim) else { return };
        let named = found.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let Some(volume) = self.volumes.store().get(&named).filter(|v| csi(v).is_some()) else { return };
        match node {
            Some(node) => self.queue.add(format!("{}@{node}", volume.name())),
            None => self.look_at_volume(&volume),
        }
    }

    fn look_at_volume(&self, volume: &PersistentVolume) {
        for pod in self.users(volume) {
            self.queue.add(format!("{}@{}", volume.name(), pods::node_name(&pod)));
        }
    }

    /// Pods on nodes that use a volume.
    fn users(&self, volume: &PersistentVolume) -> Vec<Arc<Pod>> {
        let to = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()).unwrap_or_default();
        let key = format!("{}/{}", to.namespace.unwrap_or_default(), to.name.unwrap_or_default());
        let bound = self.claims.store().get(&key).is_some_and(|claim| {
            let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
            named == Some(volume.name())
                && claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
        });
        if bound { self.pods.store().by_index(BY_CLAIM, &key) } else { Vec::new() }
    }

    fn on_attachment(&self, event: &Event<'_, VolumeAttachment>) {
        let attachment = event.object();
        let name = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let node = &attachment.spec.node_name;
        let Some(volume) = self.volumes.store().get(name) else { return };
        self.queue.add(format!("{NODE}{node}"));
        self.queue.add(format!("{name}@{node}"));
        if matches!(event, Event::Deleted(_)) {
            // Others may have waited for it to go.
            self.look_at_volume(&volume);
        }
        let state = |a: &VolumeAttachment| {
            let status = a.status.as_ref();
            let error = status.and_then(|s| s.attach_error.as_ref()).and_then(|e| e.message.clone());
            (status.is_some_and(|s| s.attached), error)
        };
        let (now, before) = match event {
            Event::Updated { old, new } => (state(new), state(old)),
            Event::Added(_) | Event::Deleted(_) => return,
        };
        let users = self.users(&volume);
        let users = users.iter().filter(|pod| pods::node_name(pod) == node.as_str());
        match now {
            (true, _) if !before.0 => users.for_each(|pod| {
                let message = format!("AttachVolume.Attach succeeded for volume {name:?} ");
                self.recorder.normal(&**pod, "SuccessfulAttachVolume", message);
            }),
            (false, Some(error)) if before.1.as_ref() != Some(&error) => users.for_each(|pod| {
                let message = format!("AttachVolume.Attach failed for volume {name:?} : {error}");
                self.recorder.warning(&**pod, "FailedAttachVolume", message);
            }),
            _ => {}
        }
    }

    async fn sync(&self, name: &str, node: &str) -> Result<Action, ControlError> {
        let Some(volume) = self.volumes.store().get(name) else { return Ok(Action::Wait) };
        let Some(source) = csi(&volume) else { return Ok(Action::Wait) };
        let attachment_name = plan::attachment_name(&source.volume_handle, &source.driver, node);
        let attachment = self.attachments.store().get(&attachment_name);
        let object = self.nodes.store().get(node);
        let unique = plan::unique_name(&source.driver, &source.volume_handle);
        let users = self.users(&volume);
        let here: Vec<_> = users.iter().filter(|pod| pods::node_name(pod) == node).collect();
        let required = self.drivers.store().get(&source.driver).and_then(|d| d.spec.attach_required);
        let attachments = self.attachments.store().list();
        let others = attachments.iter().filter(|a| {
            a.spec.source.persistent_volume_name.as_deref() == Some(name) && a.spec.node_name != node
        });
        let wanted = !here.is_empty() && required != Some(false) && object.is_some();
        let leaving = attachment.as_ref().is_some_and(|a| a.is_terminating());
        let forced_at = self.forced_at(name, node, !wanted && attachment.is_some() && !leaving);
        let now = self.clock.now();
        let facts = Facts {
            wanted,
            attached: attachment.is_some(),
            leaving,
            in_use: object.as_ref().is_some_and(|n| in_use(n, &unique)),
            node_lost: object.as_ref().is_none_or(|n| out_of_service(n)),
            overdue: forced_at.is_some_and(|at| now >= at),
            elsewhere: plan::is_exclusive(&volume) && others.count() > 0,
        };
        match plan::step(facts) {
            Step::Rest => {
                let left = forced_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
                return Ok(left.map_or(Action::Wait, Action::RequeueAfter));
            }
            Step::Conflict => {
                let message = format!(
                    "Multi-Attach error for volume {name:?} Volume is already exclusively attached to one node and \
                     can't be attached to another"
                );
                here.iter().for_each(|pod| {
                    self.recorder.warning(&***pod, "FailedAttachVolume", message.clone());
                });
            }
            Step::Attach => {
                let attachment = VolumeAttachment {
                    metadata: ObjectMeta { name: Some(attachment_name), ..ObjectMeta::default() },
                    spec: VolumeAttachmentSpec {
                        attacher: source.driver.clone(),
                        node_name: node.to_owned(),
                        source: VolumeAttachmentSource {
                            persistent_volume_name: Some(name.to_owned()),
                            inline_volume_spec: None,
                        },
                    },
                    status: None,
                };
                match self.client.create_typed(&attachment).await {
                    Err(error) if !error.is_already_exists() => return Err(error.into()),
                    _ => {}
                }
            }
            Step::Detach => {
                let params = DeleteParams::default();
                match self.client.delete_typed::<VolumeAttachment>("", &attachment_name, &params).await {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(Action::Wait)
    }

    /// When a volume is taken from a node by force; notes since when it is to let go.
    fn forced_at(&self, name: &str, node: &str, is_to_go: bool) -> Option<Timestamp> {
        let key = format!("{name}@{node}");
        let mut letting_go = self.letting_go.lock();
        if !is_to_go {
            letting_go.remove(&key);
            return None;
        }
        let since = *letting_go.entry(key).or_insert_with(|| self.clock.now());
        let well = self.nodes.store().get(node).is_some_and(|n| is_well(&n));
        plan::forced_at(since, well)
    }

    /// Writes what is attached to a node into its status.
    async fn report(&self, name: &str) -> Result<(), ControlError> {
        let Some(node) = self.nodes.store().get(name) else { return Ok(()) };
        let mut attached = Vec::new();
        for attachment in self.attachments.store().list() {
            let there =
                attachment.spec.node_name == name && attachment.status.as_ref().is_some_and(|s| s.attached);
            let volume = attachment.spec.source.persistent_volume_name.as_deref().filter(|_| there);
            let volume = volume.and_then(|volume| self.volumes.store().get(volume));
            let source = volume.as_ref().and_then(|v| csi(v));
            attached.extend(source.map(|s| AttachedVolume {
                name: plan::unique_name(&s.driver, &s.volume_handle),
                device_path: String::new(),
            }));
        }
        attached.sort_by(|a, b| a.name.cmp(&b.name));
        let known = node.status.as_ref().and_then(|s| s.volumes_attached.clone()).unwrap_or_default();
        if known == attached {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"status": {"volumesAttached": attached}}));
        match self.client.patch(&Node::GVR, "", name, "status", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn in_use(node: &Node, volume: &str) -> bool {
    let status = node.status.as_ref();
    status.is_some_and(|s| s.volumes_in_use.iter().flatten().any(|name| name == volume))
}

fn is_well(node: &Node) -> bool {
    crate::nodelifecycle::plan::ready_status(node) == "True"
}

fn out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(async move {
            match (key.strip_prefix(NODE), key.split_once('@')) {
                (Some(node), _) => self.report(node).await.map(|()| Action::Wait),
                (None, Some((volume, node))) => self.sync(volume, node).await,
                _ => Ok(Action::Wait),
            }
        })
    }
}
