//! What the scheduler knows of storage: claims, volumes, classes, and what it has decided about them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::prelude::*;

/// What is to happen to a pod's claims before it is bound to its node.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Volumes to be promised to claims.
    pub bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// Claims whose volumes are to be made for the node.
    pub provision: Vec<Arc<PersistentVolumeClaim>>,
}

impl Work {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }
}

/// A piece of news.
#[derive(Debug, Clone)]
pub enum Change {
    /// A claim as it is now.
    Claim(Arc<PersistentVolumeClaim>),
    /// A claim is gone.
    ClaimGone(String),
    /// A volume as it is now.
    Volume(Arc<PersistentVolume>),
    /// A volume is gone.
    VolumeGone(String),
    /// A class as it is now.
    Class(Arc<StorageClass>),
    /// A class is gone.
    ClassGone(String),
    /// What a node has of drivers.
    Drivers(Arc<CSINode>),
    /// Nothing is known of a node's drivers any more.
    DriversGone(String),
    /// An attachment as it is now.
    Attachment(Arc<VolumeAttachment>),
    /// An attachment is gone.
    AttachmentGone(String),
    /// A driver as it is now.
    Driver(Arc<CSIDriver>),
    /// A driver is gone.
    DriverGone(String),
    /// How much room a driver has for a class somewhere, as it is now.
    Capacity(Arc<CSIStorageCapacity>),
    /// Nothing is known any more of such room.
    CapacityGone(String),
}

/// Room for volumes of a class on some nodes.
#[derive(Debug)]
pub struct Room {
    class: String,
    /// Largest volume.
    most: Option<meta::Quantity>,
    /// Labels of its nodes; `None` for none of them.
    nodes: Option<meta::LabelSelector>,
}

impl Room {
    fn of(capacity: &CSIStorageCapacity) -> Room {
        let most = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
        let nodes = capacity.node_topology.as_ref().and_then(|selector| serde_json::to_value(selector).ok());
        Room {
            class: capacity.storage_class_name.clone(),
            most: most.and_then(|most| meta::Quantity::parse(&most.0).ok()),
            nodes: nodes.and_then(|selector| meta::LabelSelector::from_json(&selector).ok()),
        }
    }

    /// Whether a node has it.
    pub fn is_on(&self, node: &Node) -> bool {
        let labels = node.metadata.labels.as_ref();
        let value = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        self.nodes.as_ref().is_some_and(|nodes| nodes.matches_with(value))
    }
}

impl Change {
    /// Key of the one claim that the news is about.
    pub fn claim(&self) -> Option<String> {
        match self {
            Change::Claim(claim) => Some(claim.key()),
            Change::ClaimGone(key) => Some(key.clone()),
            _ => None,
        }
    }
}

/// The picture.
#[derive(Debug, Default)]
pub struct Storage {
    /// Claims by key.
    pub claims: HashMap<String, Arc<PersistentVolumeClaim>>,
    /// Volumes by name.
    pub volumes: HashMap<String, Arc<PersistentVolume>>,
    /// Classes by name.
    pub classes: HashMap<String, Arc<StorageClass>>,
    /// What nodes have of drivers, by node.
    pub drivers: HashMap<String, Arc<CSINode>>,
    /// Attachments by name.
    pub attachments: HashMap<String, Arc<VolumeAttachment>>,
    /// Drivers that say where they have how much room.
    measured: HashSet<String>,
    /// That room, by key.
    rooms: HashMap<String, Arc<Room>>,
    /// Volumes that pods in work have been promised, by the pod's uid.
    assumed: HashMap<String, HashSet<String>>,
}

impl Storage {
    /// Takes news in. True if they may help a pod that waits.
    pub fn take_in(&mut self, change: Change) -> bool {
        match change {
            Change::Claim(claim) => {
                let old = self.claims.insert(claim.key(), claim.clone());
                old.is_none_or(|old| {
                    old.spec != claim.spec || old.metadata.annotations != claim.metadata.annotations
                })
            }
            Change::ClaimGone(key) => {
                self.claims.remove(&key);
                false
            }
            Change::Volume(volume) => {
                let old = self.volumes.insert(volume.name().to_owned(), volume.clone());
                old.is_none_or(|old| old.spec != volume.spec || old.status != volume.status)
            }
            Change::VolumeGone(name) => {
                self.volumes.remove(&name);
                false
            }
            Change::Class(class) => {
                self.classes.insert(class.name().to_owned(), class);
                true
            }
            Change::ClassGone(name) => {
                self.classes.remove(&name);
                false
            }
            Change::Drivers(node) => {
                let old = self.drivers.insert(node.name().to_owned(), node.clone());
                old.is_none_or(|old| old.spec != node.spec)
            }
            Change::DriversGone(name) => {
                self.drivers.remove(&name);
                false
            }
            Change::Attachment(attachment) => {
                self.attachments.insert(attachment.name().to_owned(), attachment);
                false
            }
            // There is room for another.
            Change::AttachmentGone(name) => self.attachments.remove(&name).is_some(),
            Change::Driver(driver) if driver.spec.storage_capacity == Some(true) => {
                self.measured.insert(driver.name().to_owned());
                false
            }
            // What is not measured is enough.
            Change::Driver(driver) => self.measured.remove(driver.name()),
            Change::DriverGone(name) => self.measured.remove(&name),
            Change::Capacity(capacity) => {
                self.rooms.insert(capacity.key(), Arc::new(Room::of(&capacity)));
                true
            }
            Change::CapacityGone(key) => {
                self.rooms.remove(&key);
                false
            }
        }
    }

    /// The class of a claim.
    pub fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<&Arc<StorageClass>> {
        self.classes.get(claim.spec.as_ref()?.storage_class_name.as_deref()?)
    }

    /// Where there is room for a volume of a class that a claim could have; `None` where that is not asked.
    pub fn rooms_for(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<Vec<Arc<Room>>> {
        if !self.measured.contains(&class.provisioner) {
            return None;
        }
        let size = volumes::storage(claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref())?;
        let fits = |room: &&Arc<Room>| {
            room.class == class.name() && room.most.as_ref().is_some_and(|most| *most >= size)
        };
        Some(self.rooms.values().filter(fits).cloned().collect())
    }

    /// Promises the volumes of a pod's work to it.
    pub fn assume(&mut self, pod: &str, work: &Work) {
        if !work.bind.is_empty() {
            let names = work.bind.iter().map(|(volume, _)| volume.name().to_owned()).collect();
            self.assumed.insert(pod.to_owned(), names);
        }
    }

    /// A pod's work is done, or has failed.
    pub fn settle(&mut self, pod: &str) {
        self.assumed.remove(pod);
    }

    /// Volumes promised to other pods than this one.
    pub fn taken_from(&self, pod: &str) -> HashSet<String> {
        let others = self.assumed.iter().filter(|(uid, _)| *uid != pod);
        others.flat_map(|(_, names)| names.iter().cloned()).collect()
    }
}
