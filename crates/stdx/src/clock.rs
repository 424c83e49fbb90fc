//! The one place that reads the wall clock and the monotonic clock.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;

/// Source of time. Injected wherever a decision depends on time.
pub trait Clock: Send + Sync + Debug {
    /// Wall-clock time.
    fn now(&self) -> Timestamp;
    /// Monotonic time, for measuring durations.
    fn instant(&self) -> Instant;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// A shared system clock.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct FakeClock {
    start: Instant,
    state: Mutex<(Timestamp, Duration)>,
}

impl FakeClock {
    /// A clock standing at `now`.
    pub fn at(now: Timestamp) -> Arc<FakeClock> {
        Arc::new(FakeClock { start: Instant::now(), state: Mutex::new((now, Duration::ZERO)) })
    }

    /// Moves both clocks forward by `step`.
    pub fn advance(&self, step: Duration) {
        let mut state = self.state.lock();
        state.0 += jiff::SignedDuration::try_from(step).unwrap_or(jiff::SignedDuration::MAX);
        state.1 += step;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        self.state.lock().0
    }
    fn instant(&self) -> Instant {
        self.start + self.state.lock().1
    }
}
