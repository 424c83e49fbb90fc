//! Exponential back-off, alone and per key.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Exponential back-off from `initial`, doubling up to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// First delay.
    pub initial: Duration,
    /// Largest delay.
    pub max: Duration,
}

impl Backoff {
    /// The delay before attempt number `failures + 1`, after `failures` failures; zero for none.
    pub fn delay(&self, failures: u32) -> Duration {
        match failures {
            0 => Duration::ZERO,
            n => self.initial.saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(self.max),
        }
    }
}

/// Back-off per key. A key that has been quiet for twice the maximum starts anew, so the map stays small.
#[derive(Debug)]
pub struct KeyedBackoff<K> {
    shape: Backoff,
    entries: HashMap<K, (u32, Instant)>,
}

impl<K: Hash + Eq + Clone> KeyedBackoff<K> {
    /// An empty table with this shape of back-off.
    pub fn new(shape: Backoff) -> Self {
        KeyedBackoff { shape, entries: HashMap::new() }
    }

    /// Notes a failure of `key` at `now` and returns how long to wait before the next attempt.
    pub fn fail(&mut self, key: &K, now: Instant) -> Duration {
        let entry = self.entries.entry(key.clone()).or_insert((0, now));
        if now.duration_since(entry.1) > self.shape.max * 2 {
            entry.0 = 0;
        }
        *entry = (entry.0.saturating_add(1), now);
        self.shape.delay(entry.0)
    }

    /// How much of the current delay of `key` is left at `now`.
    pub fn remaining(&self, key: &K, now: Instant) -> Duration {
        let Some((failures, since)) = self.entries.get(key) else { return Duration::ZERO };
        self.shape.delay(*failures).saturating_sub(now.duration_since(*since))
    }

    /// Forgets `key`: its next failure counts as the first.
    pub fn forget(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// Drops every key that has been quiet for longer than twice the maximum delay.
    pub fn collect_garbage(&mut self, now: Instant) {
        let limit = self.shape.max * 2;
        self.entries.retain(|_, (_, at)| now.duration_since(*at) <= limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Backoff = Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(300) };

    #[test]
    fn doubles_up_to_the_maximum() {
        let seconds: Vec<u64> = (0..8).map(|n| SHAPE.delay(n).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(SHAPE.delay(u32::MAX), SHAPE.max);
    }

    #[test]
    fn quiet_keys_start_anew() {
        let start = Instant::now();
        let mut table = KeyedBackoff::new(SHAPE);
        assert_eq!(table.fail(&"a", start).as_secs(), 10);
        assert_eq!(table.fail(&"a", start).as_secs(), 20);
        assert_eq!(table.remaining(&"a", start + Duration::from_secs(5)).as_secs(), 15);
        assert_eq!(table.fail(&"a", start + Duration::from_secs(700)).as_secs(), 10);
        table.collect_garbage(start + Duration::from_secs(2000));
        assert_eq!(table.remaining(&"a", start + Duration::from_secs(2000)), Duration::ZERO);
    }
}
