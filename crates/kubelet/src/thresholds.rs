//! Hard eviction thresholds, in the syntax of the kubelet's `--eviction-hard`: `signal<quantity` or
//! `signal<percentage`, separated by commas.

use std::str::FromStr;

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
}

/// The bounds of all signals; upstream's defaults where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// `memory.available`
    pub memory_available: Bound,
    /// `nodefs.available`
    pub nodefs_available: Bound,
    /// `nodefs.inodesFree`
    pub nodefs_inodes_free: Bound,
    /// `pid.available`
    pub pid_available: Bound,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            memory_available: Bound::Absolute(100 << 20),
            nodefs_available: Bound::Percent(10.0),
            nodefs_inodes_free: Bound::Percent(5.0),
            pid_available: Bound::Percent(5.0),
        }
    }
}

/// Text that is no list of thresholds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("eviction threshold {text:?}: {problem}")]
pub struct ThresholdError {
    text: String,
    problem: &'static str,
}

impl FromStr for Thresholds {
    type Err = ThresholdError;

    fn from_str(list: &str) -> Result<Self, ThresholdError> {
        let mut thresholds = Thresholds::default();
        for text in list.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let wrong = |problem| ThresholdError { text: text.to_owned(), problem };
            let (signal, value) = text.split_once('<').ok_or_else(|| wrong("use SIGNAL<VALUE"))?;
            let bound = match value.strip_suffix('%') {
                Some(percent) => {
                    percent.parse().ok().filter(|p| (0.0..=100.0).contains(p)).map(Bound::Percent)
                }
                None => (meta::Quantity::parse(value).ok().filter(|q| !q.is_negative()))
                    .map(|q| Bound::Absolute(q.value().unsigned_abs())),
            };
            let bound = bound.ok_or_else(|| wrong("the value is neither a quantity nor a percentage"))?;
            let target = match signal {
                "memory.available" => &mut thresholds.memory_available,
                // Images and containers lie on the same file system as pods.
                "nodefs.available" | "imagefs.available" | "containerfs.available" => {
                    &mut thresholds.nodefs_available
                }
                "nodefs.inodesFree" | "imagefs.inodesFree" | "containerfs.inodesFree" => {
                    &mut thresholds.nodefs_inodes_free
                }
                "pid.available" => &mut thresholds.pid_available,
                _ => return Err(wrong("the signal is unknown")),
            };
            *target = bound;
        }
        Ok(thresholds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let read: Thresholds = "memory.available<500Mi,nodefs.available<1%".parse().unwrap();
        assert_eq!(read.memory_available.of(1 << 40), 500 << 20);
        assert_eq!(read.nodefs_available.of(1000), 10);
        assert_eq!(read.pid_available, Thresholds::default().pid_available);
        for bad in ["memory.available", "memory.available<x", "disk<1%", "nodefs.available<101%"] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
    }
}
