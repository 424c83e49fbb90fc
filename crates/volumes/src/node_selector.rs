//! Terms of node selectors, compiled: node affinity of pods and of volumes.

use api::k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use api::prelude::*;
use meta::selector::{LabelSelector, Op, Requirement};

/// A term of node affinity, compiled: all requirements must match. A term without any matches nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeTerm {
    labels: LabelSelector,
    fields: LabelSelector,
    never: bool,
}

impl NodeTerm {
    /// Compiles a term. An operator or a number that does not make sense makes it match nothing.
    pub fn compile(term: &NodeSelectorTerm) -> NodeTerm {
        let compile = |list: &Option<Vec<NodeSelectorRequirement>>| {
            list.iter().flatten().map(requirement).collect::<Option<Vec<_>>>()
        };
        let (labels, fields) = (compile(&term.match_expressions), compile(&term.match_fields));
        let never = labels.is_none() || fields.is_none();
        let (labels, fields) = (labels.unwrap_or_default(), fields.unwrap_or_default());
        let never = never || (labels.is_empty() && fields.is_empty());
        NodeTerm { labels: LabelSelector(labels), fields: LabelSelector(fields), never }
    }

    /// Whether a node matches.
    pub fn matches(&self, node: &Node) -> bool {
        let labels = node.metadata.labels.as_ref();
        !self.never
            && self.labels.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
            && self.fields.matches_with(|key| (key == "metadata.name").then(|| node.name()))
    }
}

fn requirement(r: &NodeSelectorRequirement) -> Option<Requirement> {
    let values = || r.values.clone().unwrap_or_default();
    let number = || values().first().and_then(|v| v.parse().ok());
    let op = match r.operator.as_str() {
        "In" => Op::In(values()),
        "NotIn" => Op::NotIn(values()),
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" => Op::Gt(number()?),
        "Lt" => Op::Lt(number()?),
        _ => return None,
    };
    Some(Requirement { key: r.key.clone(), op })
}
