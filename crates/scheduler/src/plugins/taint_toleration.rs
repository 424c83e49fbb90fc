//! `TaintToleration`: taints keep pods away that do not tolerate them, or make the node worse for them.

use api::k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal, normalize_down};
use crate::node_info::NodeInfo;
use crate::pod_info::{PodInfo, tolerates};

/// The row.
pub const PLUGIN: Plugin = Plugin {
    filter: Some(filter),
    prepare_score: Some(prepare_score),
    score: Some(score),
    normalize: Some(normalize_down),
    weight: 3,
    ..Plugin::named("TaintToleration", Changes::NODE_ADDED.and(Changes::NODE_TAINTS))
};

fn filter(_: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let forbids = |taint: &&Taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !pod.tolerations().iter().any(|t| tolerates(t, taint))
    };
    match node.taints().iter().find(forbids) {
        None => Ok(()),
        Some(taint) => {
            let value = taint.value.as_deref().unwrap_or_default();
            Err(Refusal::lasting(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)))
        }
    }
}

fn prepare_score(_: &PodInfo, cache: &Cache, feasible: &[usize], _: &mut CycleState) -> Prepared {
    let any =
        feasible.iter().any(|at| cache.nodes[*at].taints().iter().any(|t| t.effect == "PreferNoSchedule"));
    if any { Prepared::Run } else { Prepared::Skip }
}

/// Number of soft taints the pod does not tolerate.
fn score(_: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Cache) -> i64 {
    let relevant = |t: &&Toleration| matches!(t.effect.as_deref(), None | Some("" | "PreferNoSchedule"));
    let tolerated = |taint: &Taint| pod.tolerations().iter().filter(relevant).any(|t| tolerates(t, taint));
    let soft = node.taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerated(taint)).count() as i64
}
