//! What the deletion of a namespace's content has come to, as conditions (upstream's wording).

use std::collections::BTreeMap;

use api::k8s_openapi::api::core::v1::NamespaceCondition;
use api::prelude::*;

/// What is left in a namespace after a round of deletion.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Groups whose resources could not be discovered.
    pub discovery_failures: Vec<String>,
    /// Errors of deletions and lists.
    pub deletion_failures: Vec<String>,
    /// Objects left, by `resource.group` with the dot even for the core group.
    pub remaining: BTreeMap<String, usize>,
    /// Objects left with each finalizer.
    pub finalizers: BTreeMap<String, usize>,
}

impl Report {
    /// Whether the namespace is empty and known to be.
    pub fn is_clean(&self) -> bool {
        *self == Report::default()
    }
}

/// The conditions of a namespace after a round. Conditions that stay keep their transition time; ones that
/// were never true are set once anything is wrong or known, as upstream does.
pub fn conditions(old: &[NamespaceCondition], report: &Report, now: &Time) -> Vec<NamespaceCondition> {
    let list = |counts: &BTreeMap<String, usize>, word: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(name, n)| format!("{name} {word} {n} resource instances")).collect();
        parts.join(", ")
    };
    let discovery = (!report.discovery_failures.is_empty()).then(|| {
        format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            report.discovery_failures.len(),
            report.discovery_failures.join(", ")
        )
    });
    let deletion = (!report.deletion_failures.is_empty()).then(|| {
        let failures = &report.deletion_failures;
        format!("Failed to delete all resource types, {} remaining: {}", failures.len(), failures.join(", "))
    });
    let remaining = (!report.remaining.is_empty())
        .then(|| format!("Some resources are remaining: {}", list(&report.remaining, "has")));
    let finalizers = (!report.finalizers.is_empty()).then(|| {
        format!("Some content in the namespace has finalizers remaining: {}", list(&report.finalizers, "in"))
    });
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            "DiscoveryFailed",
            discovery,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            "GroupVersionParsingFailed",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            "ContentDeletionFailed",
            deletion,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            "SomeResourcesRemain",
            remaining,
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            finalizers,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let mut conditions: Vec<NamespaceCondition> =
        old.iter().filter(|c| !rows.iter().any(|row| row.0 == c.type_)).cloned().collect();
    for (kind, bad_reason, problem, good_reason, good_message) in rows {
        let (status, reason, message) = match problem {
            Some(problem) => ("True", bad_reason, problem),
            None => ("False", good_reason, good_message.to_owned()),
        };
        let known = old.iter().find(|c| c.type_ == kind);
        let since = known.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        conditions.push(NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
        });
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording() {
        let report = Report {
            remaining: [("configmaps.".to_owned(), 1), ("deployments.apps".to_owned(), 2)].into(),
            finalizers: [("example.com/f".to_owned(), 1)].into(),
            ..Default::default()
        };
        let conditions = conditions(&[], &report, &Time(jiff::Timestamp::UNIX_EPOCH));
        let message = |kind: &str| {
            let found = conditions.iter().find(|c| c.type_ == kind).unwrap();
            (found.status.clone(), found.message.clone().unwrap())
        };
        let truth = |text: &str| ("True".to_owned(), text.to_owned());
        assert_eq!(
            message("NamespaceContentRemaining"),
            truth(
                "Some resources are remaining: configmaps. has 1 resource instances, deployments.apps has 2 resource instances"
            )
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            truth(
                "Some content in the namespace has finalizers remaining: example.com/f in 1 resource instances"
            )
        );
        assert_eq!(message("NamespaceDeletionContentFailure").0, "False");
        assert_eq!(conditions.len(), 5);
    }
}
