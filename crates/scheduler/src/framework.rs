//! What a plugin is: a row of function pointers, and the notes one cycle keeps between them.

use std::borrow::Cow;
use std::ops::BitOr;

use crate::cache::Cache;
use crate::node_info::NodeInfo;
use crate::plugins::{
    dynamic_resources, inter_pod_affinity, node_volume_limits, topology_spread, volume_binding,
    volume_restrictions,
};
use crate::pod_info::PodInfo;

/// Best score of one plugin.
pub const SCORE_MAX: i64 = 100;

/// Kinds of change in the cluster, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes(pub u16);

impl Changes {
    /// Nothing.
    pub const NONE: Changes = Changes(0);
    /// A node is new.
    pub const NODE_ADDED: Changes = Changes(1);
    /// A node offers something else than before.
    pub const NODE_ALLOCATABLE: Changes = Changes(2);
    /// A node has other labels.
    pub const NODE_LABELS: Changes = Changes(4);
    /// A node has other taints or another `spec.unschedulable`.
    pub const NODE_TAINTS: Changes = Changes(8);
    /// A pod has left a node, or asks for less.
    pub const POD_REMOVED: Changes = Changes(16);
    /// A pod has come to a node, or has other labels.
    pub const POD_PLACED: Changes = Changes(32);
    /// A namespace has other labels.
    pub const NAMESPACE: Changes = Changes(64);
    /// Claims, volumes or their classes have changed.
    pub const STORAGE: Changes = Changes(128);
    /// Claims, slices or classes of devices have changed.
    pub const DEVICES: Changes = Changes(256);
    /// Everything.
    pub const ALL: Changes = Changes(u16::MAX);

    /// Whether the sets have a change in common.
    pub const fn intersects(self, other: Changes) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets.
    pub const fn and(self, other: Changes) -> Changes {
        Changes(self.0 | other.0)
    }
}

impl BitOr for Changes {
    type Output = Changes;
    fn bitor(self, other: Changes) -> Changes {
        self.and(other)
    }
}

/// Why a node will not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Sentences for people; several where several things are missing.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether removing other pods from the node could help.
    pub resolvable: bool,
    /// Whether no other node need be looked at: something is wrong with what the pod asks for.
    pub fatal: bool,
}

impl Refusal {
    /// A refusal that removing pods could lift.
    pub fn resolvable(reason: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { reasons: vec![reason.into()], resolvable: true, fatal: false }
    }

    /// A refusal that stays whatever pods are on the node.
    pub fn lasting(reason: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { reasons: vec![reason.into()], resolvable: false, fatal: false }
    }

    /// A refusal that holds for every node.
    pub fn fatal(reason: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { reasons: vec![reason.into()], resolvable: false, fatal: true }
    }
}

/// Whether the rest of a plugin has anything to do in this cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// Yes.
    Run,
    /// No: it would accept every node, or score all alike.
    Skip,
    /// No node will do, for this reason; no need to look at any.
    Reject(String),
}

/// What plugins note for themselves during one cycle.
#[derive(Debug, Clone, Default)]
pub struct CycleState {
    /// Numbers of matching pods per place, for affinity.
    pub affinity: inter_pod_affinity::State,
    /// Numbers of matching pods per place, for spreading.
    pub spread: topology_spread::State,
    /// The pod's claims.
    pub claims: volume_binding::State,
    /// The pod's claims of devices.
    pub devices: dynamic_resources::State,
    /// Claims of the pod that one pod at a time may use.
    pub exclusive: volume_restrictions::State,
    /// Volumes of drivers that the pod would bring to a node.
    pub limits: node_volume_limits::State,
    /// The plugin that wants no node at all, and why.
    pub rejected: Option<(usize, String)>,
    /// Bits of plugins that have nothing to filter.
    pub skip_filter: u32,
    /// Bits of plugins that have nothing to score.
    pub skip_score: u32,
}

/// Prepares filtering.
pub type PrepareFilter = fn(&PodInfo, &Cache, &mut CycleState) -> Prepared;
/// Judges one node.
pub type Filter = fn(&CycleState, &PodInfo, &NodeInfo) -> Result<(), Refusal>;
/// Prepares scoring of the nodes at these positions of the cache.
pub type PrepareScore = fn(&PodInfo, &Cache, &[usize], &mut CycleState) -> Prepared;
/// Scores one node.
pub type Score = fn(&CycleState, &PodInfo, &NodeInfo, &Cache) -> i64;
/// Brings scores to 0..=[`SCORE_MAX`].
pub type Normalize = fn(&mut [i64]);

/// A row of the table of plugins. What is absent, the plugin does not do.
pub struct Plugin {
    /// Upstream's name.
    pub name: &'static str,
    /// Changes after which a pod it refused is worth another try.
    pub wakes_on: Changes,
    /// Prepares filtering.
    pub prepare_filter: Option<PrepareFilter>,
    /// Judges one node.
    pub filter: Option<Filter>,
    /// Prepares scoring.
    pub prepare_score: Option<PrepareScore>,
    /// Scores one node.
    pub score: Option<Score>,
    /// Brings scores into range; without it they are in range.
    pub normalize: Option<Normalize>,
    /// Weight of its score.
    pub weight: i64,
}

impl Plugin {
    /// A row that does nothing, to be filled in.
    pub const fn named(name: &'static str, wakes_on: Changes) -> Plugin {
        Plugin {
            name,
            wakes_on,
            prepare_filter: None,
            filter: None,
            prepare_score: None,
            score: None,
            normalize: None,
            weight: 0,
        }
    }
}

/// Scales scores so that the best is [`SCORE_MAX`].
pub fn normalize_up(scores: &mut [i64]) {
    let best = scores.iter().copied().max().unwrap_or(0);
    if best > 0 {
        scores.iter_mut().for_each(|score| *score = *score * SCORE_MAX / best);
    }
}

/// Scales scores so that the lowest count is best.
pub fn normalize_down(scores: &mut [i64]) {
    let worst = scores.iter().copied().max().unwrap_or(0);
    let scale = |score: i64| if worst == 0 { SCORE_MAX } else { SCORE_MAX - score * SCORE_MAX / worst };
    scores.iter_mut().for_each(|score| *score = scale(*score));
}
