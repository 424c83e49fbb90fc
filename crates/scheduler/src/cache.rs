//! The scheduler's picture of the cluster: nodes with their pods, bound and assumed.

use std::collections::HashMap;
use std::sync::Arc;

use api::prelude::*;

use crate::labels::LabelSets;
use crate::node_info::{NodeInfo, Placed};
use crate::pod_info::PodInfo;

/// Where a pod is.
#[derive(Debug, Clone)]
struct Place {
    node: String,
    info: Arc<PodInfo>,
    /// Decided by us and not yet seen bound.
    assumed: bool,
}

/// Nodes and pods. A cycle works on it directly; it is never copied as a whole.
#[derive(Debug, Default)]
pub struct Cache {
    /// Nodes, in no particular order.
    pub nodes: Vec<NodeInfo>,
    /// Numbers of label sets in use.
    pub sets: LabelSets,
    /// Namespaces, for namespace selectors.
    pub namespaces: HashMap<String, Arc<Namespace>>,
    /// Nodes by the names of images on them: how many have each.
    pub image_spread: HashMap<String, usize>,
    /// Number of pods on nodes that have terms about other pods; 0 lets cycles skip looking for them.
    pub pods_with_terms: usize,
    /// Claims, volumes and classes.
    pub storage: crate::storage::Storage,
    /// Claims of devices, slices and classes.
    pub devices: crate::devices::Devices,
    index: HashMap<String, usize>,
    places: HashMap<Arc<str>, Place>,
    /// Pods bound to nodes that have not been seen yet.
    homeless: HashMap<String, Vec<Arc<PodInfo>>>,
}

impl Cache {
    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|place| &self.nodes[*place])
    }

    /// Position of a node in [`Cache::nodes`].
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The namespace of this name.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.get(name).cloned()
    }

    /// A node is new or has changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.name().to_owned();
        match self.index.get(&name).copied() {
            Some(place) => {
                self.count_images(place, false);
                self.nodes[place].set_node(node);
                self.count_images(place, true);
            }
            None => {
                let place = self.nodes.len();
                self.index.insert(name.clone(), place);
                self.nodes.push(NodeInfo::new(node));
                self.count_images(place, true);
                for info in self.homeless.remove(&name).unwrap_or_default() {
                    self.place(&name, info, false);
                }
            }
        }
    }

    /// A node is gone. Its pods are remembered in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        let Some(place) = self.index.remove(name) else { return };
        self.count_images(place, false);
        let node = self.nodes.swap_remove(place);
        if let Some(moved) = self.nodes.get(place) {
            self.index.insert(moved.name().to_owned(), place);
        }
        for placed in node.pods {
            self.sets.release(placed.labels);
            self.pods_with_terms -= usize::from(placed.info.has_pod_terms());
            self.homeless.entry(name.to_owned()).or_default().push(placed.info);
        }
    }

    fn count_images(&mut self, place: usize, present: bool) {
        for name in self.nodes[place].images.keys() {
            let count = self.image_spread.entry(name.clone()).or_default();
            *count = if present { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    fn place(&mut self, node: &str, info: Arc<PodInfo>, assumed: bool) {
        let place = Place { node: node.to_owned(), info: info.clone(), assumed };
        self.places.insert(info.uid.clone(), place);
        match self.index.get(node) {
            Some(index) => {
                let labels = self.sets.acquire(info.labels.clone());
                self.pods_with_terms += usize::from(info.has_pod_terms());
                self.nodes[*index].add(Placed { info, labels });
            }
            None => self.homeless.entry(node.to_owned()).or_default().push(info),
        }
    }

    /// A pod on a node is new or has changed.
    pub fn set_pod(&mut self, pod: Arc<Pod>, node: &str) {
        // The binding of a pod we have placed changes nothing that counts.
        if let Some(place) = self.places.get_mut(pod.uid())
            && place.node == node
            && place.assumed
            && !pod.is_terminating()
            && same_demands(&place.info.pod, &pod)
        {
            place.assumed = false;
            return;
        }
        self.remove_pod(pod.uid());
        self.place(node, Arc::new(PodInfo::new(pod)), false);
    }

    /// Puts a pod on a node before the API knows.
    pub fn assume(&mut self, info: Arc<PodInfo>, node: &str) {
        self.remove_pod(&info.uid.clone());
        self.place(node, info, true);
    }

    /// Whether a pod is on a node, bound or assumed.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    /// A pod is gone, or an assumption was wrong. Returns the pod.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let place = self.places.remove(uid)?;
        match self.index.get(&place.node) {
            Some(index) => {
                if let Some(placed) = self.nodes[*index].remove(uid) {
                    self.sets.release(placed.labels);
                    self.pods_with_terms -= usize::from(placed.info.has_pod_terms());
                }
            }
            None => {
                if let Some(waiting) = self.homeless.get_mut(&place.node) {
                    waiting.retain(|info| &*info.uid != uid);
                    if waiting.is_empty() {
                        self.homeless.remove(&place.node);
                    }
                }
            }
        }
        Some(place.info)
    }

    /// Forgets a pod that was assumed but could not be bound.
    pub fn forget(&mut self, uid: &str) {
        if self.places.get(uid).is_some_and(|place| place.assumed) {
            self.remove_pod(uid);
        }
    }
}

/// Whether two states of a pod ask the same of their node. Only what can change in a bound pod is compared.
fn same_demands(a: &Pod, b: &Pod) -> bool {
    let resources = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        spec.map(|s| s.containers.iter().map(|c| c.resources.clone()).collect::<Vec<_>>())
    };
    a.metadata.labels == b.metadata.labels && resources(a) == resources(b)
}
