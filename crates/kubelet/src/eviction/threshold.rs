//! Signals and the thresholds on them, in the syntax of the kubelet's configuration and options.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::duration;

/// Something that may run short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory of the machine.
    MemoryAvailable,
    /// Memory that pods may have.
    AllocatableMemoryAvailable,
    /// Bytes where pods' files are.
    NodeFsAvailable,
    /// Files where pods' files are.
    NodeFsInodesFree,
    /// Bytes where images are.
    ImageFsAvailable,
    /// Files where images are.
    ImageFsInodesFree,
    /// Bytes where containers' writable layers are.
    ContainerFsAvailable,
    /// Files where containers' writable layers are.
    ContainerFsInodesFree,
    /// Process ids.
    PidAvailable,
}

/// Conditions of a node that come from signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// `MemoryPressure`
    Memory,
    /// `DiskPressure`
    Disk,
    /// `PIDPressure`
    Pid,
}

/// What is to be won back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of memory.
    Memory,
    /// Bytes of disk.
    EphemeralStorage,
    /// Files.
    Inodes,
    /// Processes.
    Pids,
}

impl Resource {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::EphemeralStorage => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }
}

/// Signals, their names, what they are a lack of and which condition they bring.
const SIGNALS: [(Signal, &str, Resource, Condition); 9] = [
    (Signal::MemoryAvailable, "memory.available", Resource::Memory, Condition::Memory),
    (Signal::AllocatableMemoryAvailable, "allocatableMemory.available", Resource::Memory, Condition::Memory),
    (Signal::NodeFsAvailable, "nodefs.available", Resource::EphemeralStorage, Condition::Disk),
    (Signal::NodeFsInodesFree, "nodefs.inodesFree", Resource::Inodes, Condition::Disk),
    (Signal::ImageFsAvailable, "imagefs.available", Resource::EphemeralStorage, Condition::Disk),
    (Signal::ImageFsInodesFree, "imagefs.inodesFree", Resource::Inodes, Condition::Disk),
    (Signal::ContainerFsAvailable, "containerfs.available", Resource::EphemeralStorage, Condition::Disk),
    (Signal::ContainerFsInodesFree, "containerfs.inodesFree", Resource::Inodes, Condition::Disk),
    (Signal::PidAvailable, "pid.available", Resource::Pids, Condition::Pid),
];

impl Signal {
    fn row(self) -> &'static (Signal, &'static str, Resource, Condition) {
        // The table has every signal; the first stands in for the compiler's sake.
        SIGNALS.iter().find(|row| row.0 == self).unwrap_or(&SIGNALS[0])
    }

    /// The signal of this name.
    pub fn named(name: &str) -> Option<Signal> {
        SIGNALS.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// What it is a lack of.
    pub fn resource(self) -> Resource {
        self.row().2
    }

    /// The condition it brings.
    pub fn condition(self) -> Condition {
        self.row().3
    }
}

/// A bound on what is available.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Units (bytes, inodes, processes).
    Absolute(u64),
    /// Part of the whole, in percent.
    Percent(f64),
}

impl Bound {
    /// The bound in units of something with this capacity.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Bound::Absolute(units) => units,
            Bound::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }

    fn is_zero(self) -> bool {
        matches!(self, Bound::Absolute(0)) || matches!(self, Bound::Percent(part) if part == 0.0)
    }

    fn read(text: &str) -> Option<Bound> {
        match text.strip_suffix('%') {
            Some(percent) => percent
                .parse()
                .ok()
                .filter(|percent: &f64| (0.0..=100.0).contains(percent))
                .map(Bound::Percent),
            None => (meta::Quantity::parse(text).ok().filter(|quantity| !quantity.is_negative()))
                .map(|quantity| Bound::Absolute(quantity.value().unsigned_abs())),
        }
    }
}

/// When a signal is worth acting on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// The signal.
    pub signal: Signal,
    /// Less than this is too little.
    pub value: Bound,
    /// How long it may be too little; zero for a hard threshold.
    pub grace: Duration,
    /// How much more has to be won back once it was met.
    pub minimum_reclaim: Option<Bound>,
}

impl Threshold {
    /// Whether it is acted upon at once.
    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }
}

/// Everything about eviction that is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Eviction {
    /// Thresholds, hard and soft.
    pub thresholds: Vec<Threshold>,
    /// How long a condition outlives its cause.
    pub transition: Duration,
    /// Longest grace of a pod that a soft threshold ends, in seconds.
    pub pod_grace_seconds_max: i64,
}

/// A threshold that cannot be used, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The signal is unknown.
    #[error("unsupported eviction signal {0}")]
    Signal(String),
    /// The value of a threshold is nothing that can be compared with.
    #[error("eviction threshold {0}: {1:?} is neither a quantity nor a percentage")]
    Value(String, String),
    /// A soft threshold has no period.
    #[error("grace period must be specified for the soft eviction threshold {0}")]
    NoGrace(String),
    /// A grace period is no duration.
    #[error("invalid eviction grace period specified: {0}, must be a positive value")]
    Grace(String),
    /// Not `SIGNAL<VALUE`.
    #[error("eviction threshold {0:?}: use SIGNAL<VALUE")]
    Syntax(String),
}

/// Statements by signal.
pub type Statements = BTreeMap<String, String>;

/// Hard thresholds where none are configured: upstream's, without those of a file system of the images' own, which
/// lie beside the pods.
pub fn defaults() -> Statements {
    let defaults = [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("pid.available", "5%"),
    ];
    defaults.map(|(signal, value)| (signal.to_owned(), value.to_owned())).into()
}

/// The list of an option: `SIGNAL<VALUE`, separated by commas.
pub fn statements(list: &str) -> Result<Statements, Error> {
    let texts = list.split(',').map(str::trim).filter(|text| !text.is_empty());
    texts
        .map(|text| {
            let (signal, value) = text.split_once('<').ok_or_else(|| Error::Syntax(text.to_owned()))?;
            Ok((signal.to_owned(), value.to_owned()))
        })
        .collect()
}

fn read(of: &Statements) -> Result<Vec<(Signal, Bound)>, Error> {
    of.iter()
        .map(|(name, value)| {
            let signal = Signal::named(name).ok_or_else(|| Error::Signal(name.clone()))?;
            let bound = Bound::read(value).ok_or_else(|| Error::Value(name.clone(), value.clone()))?;
            Ok((signal, bound))
        })
        .collect()
}

impl Eviction {
    /// From the four maps of the configuration; `enforced`: pods' cgroups are limited to what is allocatable.
    pub fn new(
        hard: &Statements,
        soft: &Statements,
        grace: &Statements,
        reclaim: &Statements,
        enforced: bool,
    ) -> Result<Eviction, Error> {
        let mut periods = BTreeMap::new();
        for (name, text) in grace {
            let signal = Signal::named(name).ok_or_else(|| Error::Signal(name.clone()))?;
            let period = duration::parse(text).ok_or_else(|| Error::Grace(text.clone()))?;
            periods.insert(signal, period);
        }
        let reclaims: BTreeMap<Signal, Bound> = read(reclaim)?.into_iter().collect();
        let made = |signal: Signal, value: Bound, grace: Duration| Threshold {
            signal,
            value,
            grace,
            minimum_reclaim: reclaims.get(&signal).copied(),
        };
        let mut thresholds = Vec::new();
        for (signal, value) in read(hard)?.into_iter().filter(|(_, value)| !value.is_zero()) {
            thresholds.push(made(signal, value, Duration::ZERO));
            if enforced && signal == Signal::MemoryAvailable {
                let minimum_reclaim = reclaims.get(&signal).copied();
                let signal = Signal::AllocatableMemoryAvailable;
                thresholds.push(Threshold { signal, value, grace: Duration::ZERO, minimum_reclaim });
            }
        }
        for (signal, value) in read(soft)?.into_iter().filter(|(_, value)| !value.is_zero()) {
            let period = periods.get(&signal).ok_or_else(|| Error::NoGrace(signal.name().to_owned()))?;
            thresholds.push(made(signal, value, *period));
        }
        Ok(Eviction { thresholds, ..Eviction::nothing() })
    }

    fn nothing() -> Eviction {
        Eviction { thresholds: Vec::new(), transition: Duration::from_secs(300), pod_grace_seconds_max: 0 }
    }

    /// From an option's list of hard thresholds, over the defaults.
    pub fn from_list(list: &str) -> Result<Eviction, Error> {
        let mut hard = defaults();
        hard.extend(statements(list)?);
        let none = Statements::new();
        Eviction::new(&hard, &none, &none, &none, true)
    }

    /// Units of something with this capacity that the hard threshold of a signal keeps free.
    pub fn kept(&self, signal: Signal, capacity: i64) -> i64 {
        let hard = self.thresholds.iter().find(|threshold| threshold.signal == signal && threshold.is_hard());
        hard.map_or(0, |threshold| threshold.value.of(capacity.max(0) as u64) as i64)
    }
}

impl Default for Eviction {
    fn default() -> Self {
        Eviction::from_list("").unwrap_or_else(|_| Eviction::nothing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&str, &str)]) -> Statements {
        list.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn lists() {
        let read = Eviction::from_list("memory.available<500Mi,nodefs.available<1%").unwrap();
        assert_eq!(read.kept(Signal::MemoryAvailable, 1 << 40), 500 << 20);
        assert_eq!(read.kept(Signal::AllocatableMemoryAvailable, 1 << 40), 500 << 20);
        assert_eq!(read.kept(Signal::NodeFsAvailable, 1000), 10);
        assert_eq!(read.kept(Signal::PidAvailable, 1000), 50);
        for bad in ["memory.available", "memory.available<x", "disk<1%", "nodefs.available<101%"] {
            assert!(Eviction::from_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn maps() {
        let hard = map(&[("memory.available", "1Gi"), ("pid.available", "0%")]);
        let soft = map(&[("nodefs.available", "20%")]);
        let grace = map(&[("nodefs.available", "1m30s")]);
        let reclaim = map(&[("nodefs.available", "500Mi")]);
        let made = Eviction::new(&hard, &soft, &grace, &reclaim, false).unwrap();
        let [memory, disk] = made.thresholds[..] else { panic!("{made:?}") };
        assert!(memory.is_hard() && memory.minimum_reclaim.is_none());
        assert_eq!(
            (disk.grace, disk.minimum_reclaim),
            (Duration::from_secs(90), Some(Bound::Absolute(500 << 20)))
        );
        let none = Statements::new();
        let errors = [
            (
                Eviction::new(&none, &soft, &none, &none, true),
                "grace period must be specified for the soft eviction threshold nodefs.available",
            ),
            (Eviction::new(&map(&[("x", "1")]), &none, &none, &none, true), "unsupported eviction signal x"),
            (
                Eviction::new(&none, &soft, &map(&[("nodefs.available", "-1s")]), &none, true),
                "invalid eviction grace period specified: -1s, must be a positive value",
            ),
        ];
        for (result, message) in errors {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
