//! Why volumes of a pod are not there, in the words of upstream's volume manager. Pure.

/// Why one volume is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// What the pod asks for cannot be made sense of (yet): its claim is not bound, or is of another mode.
    Process(String),
    /// It is not attached to this node yet. Nothing to say of: whoever attaches says it.
    Unattached,
    /// The node can have no more volumes of this driver.
    Exhausted,
    /// It could not be mounted, and this is what to say.
    Said {
        /// Reason of the event.
        reason: &'static str,
        /// Its message.
        message: String,
    },
    /// It could not be mounted; the message is about the pod's own volume.
    SetUp(String),
}

impl From<String> for Problem {
    fn from(message: String) -> Problem {
        Problem::SetUp(message)
    }
}

impl Problem {
    /// A mount of a persistent volume that failed.
    pub fn mount(volume: &str, why: impl std::fmt::Display) -> Problem {
        Problem::during("FailedMount", "MountVolume.SetUp", volume, why)
    }

    /// A step for a persistent volume that failed.
    pub fn during(reason: &'static str, step: &str, volume: &str, why: impl std::fmt::Display) -> Problem {
        Problem::Said { reason, message: format!("{step} failed for volume {volume:?} : {why}") }
    }
}

/// The volumes of a pod that are not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failed(pub Vec<(String, Problem)>);

impl Failed {
    /// What to say at once: reason and message of events.
    pub fn said(&self) -> Vec<(&'static str, String)> {
        let one = |(name, problem): &(String, Problem)| match problem {
            Problem::Said { reason, message } => Some((*reason, message.clone())),
            Problem::SetUp(why) => {
                Some(("FailedMount", format!("MountVolume.SetUp failed for volume {name:?} : {why}")))
            }
            Problem::Process(_) | Problem::Unattached | Problem::Exhausted => None,
        };
        self.0.iter().filter_map(one).collect()
    }

    /// Why some volumes cannot even be tried, if that is so.
    pub fn unprocessed(&self) -> Option<String> {
        let reason = |(_, problem): &'_ (String, Problem)| match problem {
            Problem::Process(why) => Some(why.clone()),
            _ => None,
        };
        let reasons: Vec<String> = self.0.iter().filter_map(reason).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Whether waiting is of no use: the node can have no more.
    pub fn is_exhausted(&self) -> bool {
        self.0.iter().any(|(_, problem)| *problem == Problem::Exhausted)
    }

    /// The lists of volumes, and why.
    pub fn summary(&self, why: &str) -> String {
        let list = |wanted: &dyn Fn(&Problem) -> bool| {
            let mut names: Vec<&str> =
                self.0.iter().filter(|(_, p)| wanted(p)).map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            names.join(" ")
        };
        format!(
            "unmounted volumes=[{}], unattached volumes=[{}], failed to process volumes=[{}]: {why}",
            list(&|_| true),
            list(&|p| matches!(p, Problem::Unattached | Problem::Exhausted)),
            list(&|p| matches!(p, Problem::Process(_))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let failed = Failed(vec![
            ("b".into(), Problem::Process("error processing PVC n/c: PVC is not bound".into())),
            ("a".into(), Problem::Unattached),
            ("d".into(), Problem::SetUp("configmap \"x\" not found".into())),
            ("e".into(), Problem::mount("pv", "no")),
        ]);
        let said: Vec<String> = failed.said().into_iter().map(|(_, message)| message).collect();
        assert_eq!(
            said,
            [
                "MountVolume.SetUp failed for volume \"d\" : configmap \"x\" not found",
                "MountVolume.SetUp failed for volume \"pv\" : no"
            ]
        );
        assert_eq!(failed.unprocessed().as_deref(), Some("error processing PVC n/c: PVC is not bound"));
        assert_eq!(
            failed.summary("context deadline exceeded"),
            "unmounted volumes=[a b d e], unattached volumes=[a], failed to process volumes=[b]: context deadline exceeded"
        );
        assert!(!failed.is_exhausted() && Failed(vec![("a".into(), Problem::Exhausted)]).is_exhausted());
    }
}
