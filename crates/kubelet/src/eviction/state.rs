//! What the thresholds say over time: which are met, for how long, and which conditions hold. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::threshold::{Condition, Eviction, Signal, Threshold};

/// What a signal was seen to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// How much is left.
    pub available: u64,
    /// Of how much.
    pub capacity: u64,
}

/// All signals that could be observed.
pub type Observations = BTreeMap<Signal, Observation>;

/// Pressure the node is under.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Little memory is left.
    pub memory: bool,
    /// Little disk is left.
    pub disk: bool,
    /// Few process ids are left.
    pub pid: bool,
}

/// The past of thresholds and conditions.
#[derive(Debug, Default)]
pub struct State {
    met: Vec<Threshold>,
    since: Vec<(Threshold, Timestamp)>,
    last_seen: BTreeMap<Condition, Timestamp>,
}

/// Thresholds that are met, whatever their grace; with `reclaiming` only what has been won back counts.
pub fn met(thresholds: &[Threshold], observed: &Observations, reclaiming: bool) -> Vec<Threshold> {
    let is_met = |threshold: &&Threshold| {
        observed.get(&threshold.signal).is_some_and(|seen| {
            let more = threshold.minimum_reclaim.filter(|_| reclaiming);
            let wanted = threshold.value.of(seen.capacity) + more.map_or(0, |bound| bound.of(seen.capacity));
            seen.available < wanted
        })
    };
    thresholds.iter().filter(is_met).copied().collect()
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

impl State {
    /// Takes note of what was observed now. Answers which thresholds are to be acted upon, the most urgent first.
    pub fn observe(&mut self, config: &Eviction, observed: &Observations, now: Timestamp) -> Vec<Threshold> {
        let mut all = met(&config.thresholds, observed, false);
        for unresolved in met(&self.met, observed, true) {
            if !all.contains(&unresolved) {
                all.push(unresolved);
            }
        }
        self.since = all
            .iter()
            .map(|threshold| {
                let before = self.since.iter().find(|(earlier, _)| earlier == threshold);
                (*threshold, before.map_or(now, |(_, since)| *since))
            })
            .collect();
        for threshold in &all {
            self.last_seen.insert(threshold.signal.condition(), now);
        }
        self.last_seen.retain(|_, seen| *seen == now || elapsed(*seen, now) < config.transition);
        let due = self.since.iter().filter(|(threshold, since)| elapsed(*since, now) >= threshold.grace);
        self.met = due.map(|(threshold, _)| *threshold).collect();
        let mut urgent = self.met.clone();
        // Memory before all else: it runs out fastest.
        urgent.sort_by_key(|threshold| {
            (threshold.signal.condition() != Condition::Memory, !threshold.is_hard())
        });
        urgent
    }

    /// Conditions that hold, as of the last observation.
    pub fn pressure(&self) -> Pressure {
        let holds = |condition| self.last_seen.contains_key(&condition);
        Pressure {
            memory: holds(Condition::Memory),
            disk: holds(Condition::Disk),
            pid: holds(Condition::Pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::threshold::{Bound, Statements};
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn disk(available: u64) -> Observations {
        Observations::from([(Signal::NodeFsAvailable, Observation { available, capacity: 1000 })])
    }

    fn config() -> Eviction {
        let one = |value: &str| Statements::from([("nodefs.available".to_owned(), value.to_owned())]);
        let made = Eviction::new(&one("100"), &one("20%"), &one("1m"), &one("50"), true).unwrap();
        Eviction { transition: Duration::from_secs(30), ..made }
    }

    #[test]
    fn grace_reclaim_and_transition() {
        let config = config();
        let mut state = State::default();
        let mut step =
            |second: i64, left: u64| (state.observe(&config, &disk(left), at(second)), state.pressure().disk);
        let (soft, hard) = (Bound::Percent(20.0), Bound::Absolute(100));
        let values = |list: &[Threshold]| list.iter().map(|t| t.value).collect::<Vec<_>>();
        assert_eq!(step(0, 500), (Vec::new(), false));
        // The condition holds before the grace of the soft threshold is over.
        assert_eq!(step(10, 199), (Vec::new(), true));
        assert_eq!(values(&step(70, 199).0), [soft]);
        assert_eq!(values(&step(80, 99).0), [hard, soft]);
        // The hard one was met: 150 have to be free now, and 250 for the soft one.
        assert_eq!(values(&step(90, 149).0), [hard, soft]);
        assert_eq!(values(&step(100, 151).0), [soft]);
        assert_eq!(values(&step(110, 249).0), [soft]);
        // Over; the condition stays for its transition.
        assert_eq!(step(120, 251), (Vec::new(), true));
        assert_eq!(step(139, 251), (Vec::new(), true));
        assert_eq!(step(140, 251), (Vec::new(), false));
    }

    #[test]
    fn memory_comes_first() {
        let config = Eviction::default();
        let short = Observation { available: 1, capacity: 1 << 40 };
        let observed = Observations::from([
            (Signal::NodeFsAvailable, short),
            (Signal::PidAvailable, short),
            (Signal::MemoryAvailable, short),
        ]);
        let mut state = State::default();
        let urgent = state.observe(&config, &observed, at(0));
        assert_eq!(urgent.first().map(|t| t.signal), Some(Signal::MemoryAvailable));
        assert_eq!(state.pressure(), Pressure { memory: true, disk: true, pid: true });
    }
}
