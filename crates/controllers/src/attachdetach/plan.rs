//! Whether a volume is to be attached to a node, as a table.

use api::prelude::*;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

/// What is known of one volume and one node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// A pod on the node uses the volume.
    pub wanted: bool,
    /// There is an attachment.
    pub attached: bool,
    /// The attachment is being taken away.
    pub leaving: bool,
    /// The node says that the volume is in use there.
    pub in_use: bool,
    /// The node is gone, or known to be out of service.
    pub node_lost: bool,
    /// The node is not well and was given its time to let go.
    pub overdue: bool,
    /// The volume may be used from one node only, and is attached to another.
    pub elsewhere: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Make the attachment.
    Attach,
    /// Take it away.
    Detach,
    /// Wait for another node to let go, and say so.
    Conflict,
}

/// The step.
pub fn step(facts: Facts) -> Step {
    match (facts.wanted, facts.attached) {
        (true, false) if facts.elsewhere => Step::Conflict,
        (true, false) => Step::Attach,
        (false, true) if !facts.leaving && (!facts.in_use || facts.node_lost || facts.overdue) => {
            Step::Detach
        }
        _ => Step::Rest,
    }
}

/// How long a node that is not well has to let go of a volume (upstream's `maxWaitForUnmountDuration`).
pub const LET_GO: SignedDuration = SignedDuration::from_mins(6);

/// When a volume is taken from a node by force, that was to let go from `since` on. A node that is well takes its
/// time.
pub fn forced_at(since: Timestamp, is_well: bool) -> Option<Timestamp> {
    (!is_well).then(|| since.checked_add(LET_GO).unwrap_or(Timestamp::MAX))
}

/// Name of the attachment of a driver's volume to a node.
pub fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// How nodes call a driver's volume.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// Whether a volume may be attached to one node only.
pub fn is_exclusive(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    !modes.is_empty() && !modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        let f = Facts::default();
        for (facts, expected) in [
            (f, Step::Rest),
            (Facts { wanted: true, ..f }, Step::Attach),
            (Facts { wanted: true, elsewhere: true, ..f }, Step::Conflict),
            (Facts { wanted: true, attached: true, ..f }, Step::Rest),
            (Facts { attached: true, ..f }, Step::Detach),
            (Facts { attached: true, leaving: true, ..f }, Step::Rest),
            (Facts { attached: true, in_use: true, ..f }, Step::Rest),
            (Facts { attached: true, in_use: true, node_lost: true, ..f }, Step::Detach),
            (Facts { attached: true, in_use: true, overdue: true, ..f }, Step::Detach),
            (Facts { wanted: true, attached: true, in_use: true, overdue: true, ..f }, Step::Rest),
        ] {
            assert_eq!(step(facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn nodes_that_are_well_take_their_time() {
        let since = Timestamp::UNIX_EPOCH;
        assert_eq!(forced_at(since, true), None);
        assert_eq!(forced_at(since, false), Some(Timestamp::from_second(360).unwrap()));
    }

    #[test]
    fn names_are_upstreams() {
        let name = attachment_name("h", "d", "n");
        assert!(name.starts_with("csi-") && name.len() == 68);
        assert_eq!(unique_name("d", "h"), "kubernetes.io/csi/d^h");
    }
}
