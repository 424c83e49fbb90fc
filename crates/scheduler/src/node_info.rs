//! A node with what is known of the pods on it, kept up to date pod by pod.

use std::collections::HashMap;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Taint;
use api::prelude::*;

use crate::labels::SetId;
use crate::pod_info::{HostPort, PodInfo};
use crate::resources::Resources;

/// A pod on a node.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The pod.
    pub info: Arc<PodInfo>,
    /// Number of its label set.
    pub labels: SetId,
}

/// How many pods on a node have one label set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetCount {
    /// All.
    pub all: i64,
    /// Those that are not being deleted.
    pub staying: i64,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The node as the API has it.
    pub node: Arc<Node>,
    /// What it offers.
    pub allocatable: Resources,
    /// What its pods ask for.
    pub requested: Resources,
    /// CPU and memory its pods count for when nodes are compared.
    pub weights: (i64, i64),
    /// Its pods.
    pub pods: Vec<Placed>,
    /// Those of its pods with affinity or anti-affinity to pods.
    pub with_terms: Vec<Placed>,
    /// Taken ports.
    pub ports: Vec<HostPort>,
    /// Numbers of pods by label set.
    pub label_sets: HashMap<SetId, SetCount>,
    /// Numbers of pods by controller.
    pub by_controller: HashMap<Arc<str>, i64>,
    /// Sizes in bytes of the images it has, by name.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    /// A node without pods.
    pub fn new(node: Arc<Node>) -> NodeInfo {
        let mut info = NodeInfo {
            node: node.clone(),
            allocatable: Resources::default(),
            requested: Resources::default(),
            weights: (0, 0),
            pods: Vec::new(),
            with_terms: Vec::new(),
            ports: Vec::new(),
            label_sets: HashMap::new(),
            by_controller: HashMap::new(),
            images: HashMap::new(),
        };
        info.set_node(node);
        info
    }

    /// Takes in a new state of the node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        self.allocatable = Resources::from_list(status.and_then(|s| s.allocatable.as_ref()));
        self.images = status
            .and_then(|s| s.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image.names.iter().flatten().map(move |name| (name.clone(), size))
            })
            .collect();
        self.node = node;
    }

    /// Name of the node.
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// Taints of the node.
    pub fn taints(&self) -> &[Taint] {
        self.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
    }

    /// A label of the node.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Puts a pod on the node.
    pub fn add(&mut self, placed: Placed) {
        self.account(&placed, 1);
        if placed.info.has_pod_terms() {
            self.with_terms.push(placed.clone());
        }
        self.ports.extend(placed.info.host_ports.iter().cloned());
        self.pods.push(placed);
    }

    /// Takes a pod off the node.
    pub fn remove(&mut self, uid: &str) -> Option<Placed> {
        let place = self.pods.iter().position(|p| &*p.info.uid == uid)?;
        let placed = self.pods.swap_remove(place);
        self.account(&placed, -1);
        self.with_terms.retain(|p| &*p.info.uid != uid);
        for port in &placed.info.host_ports {
            if let Some(place) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(place);
            }
        }
        Some(placed)
    }

    fn account(&mut self, placed: &Placed, sign: i64) {
        let info = &placed.info;
        self.requested.add(&info.requests, sign);
        self.weights.0 += sign * info.weights.0;
        self.weights.1 += sign * info.weights.1;
        let count = self.label_sets.entry(placed.labels).or_default();
        count.all += sign;
        count.staying += if info.pod.is_terminating() { 0 } else { sign };
        if count.all == 0 {
            self.label_sets.remove(&placed.labels);
        }
        if let Some(controller) = &info.controller {
            let count = self.by_controller.entry(controller.clone()).or_default();
            *count += sign;
            if *count == 0 {
                self.by_controller.remove(controller);
            }
        }
    }
}
