//! What a controller has done and its cache has not shown yet (upstream's ControllerExpectations).
//!
//! A controller that creates three pods and reconciles again before its cache has them would create three
//! more. So it notes what it expects to see, handlers tick that off, and until all has come (or a time
//! limit has passed) it only updates status.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// After this long an expectation no longer counts: the event was lost, the cache tells the truth.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

struct Expected {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

/// Expectations by the key of the controlling object.
#[derive(Default)]
pub struct Expectations(Mutex<HashMap<String, Expected>>);

impl Expectations {
    /// Whether everything expected for `key` has come, so that its cache can be trusted.
    pub fn satisfied(&self, key: &str, now: Instant) -> bool {
        self.0.lock().get(key).is_none_or(|expected| {
            (expected.creations <= 0 && expected.deletions.is_empty())
                || now.duration_since(expected.since) > TIMEOUT
        })
    }

    /// Expects `count` creations, forgetting what was expected before.
    pub fn expect_creations(&self, key: &str, count: usize, now: Instant) {
        let expected = Expected { creations: count as i64, deletions: HashSet::new(), since: now };
        self.0.lock().insert(key.to_owned(), expected);
    }

    /// Expects the deletion of these uids, forgetting what was expected before.
    pub fn expect_deletions(&self, key: &str, uids: impl IntoIterator<Item = String>, now: Instant) {
        let expected = Expected { creations: 0, deletions: uids.into_iter().collect(), since: now };
        self.0.lock().insert(key.to_owned(), expected);
    }

    /// A creation was seen, or will not come.
    pub fn creation_observed(&self, key: &str) {
        if let Some(expected) = self.0.lock().get_mut(key) {
            expected.creations -= 1;
        }
    }

    /// A deletion was seen, or will not come.
    pub fn deletion_observed(&self, key: &str, uid: &str) {
        if let Some(expected) = self.0.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// The controlling object is gone.
    pub fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_until_seen_or_too_long() {
        let (e, now) = (Expectations::default(), Instant::now());
        assert!(e.satisfied("k", now));
        e.expect_creations("k", 2, now);
        e.creation_observed("k");
        assert!(!e.satisfied("k", now));
        e.creation_observed("k");
        assert!(e.satisfied("k", now));
        e.expect_deletions("k", ["u".to_owned()], now);
        e.deletion_observed("k", "other");
        assert!(!e.satisfied("k", now));
        assert!(e.satisfied("k", now + TIMEOUT * 2));
        e.deletion_observed("k", "u");
        assert!(e.satisfied("k", now));
    }
}
