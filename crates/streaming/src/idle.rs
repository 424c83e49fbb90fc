//! Connections on which nothing happens for hours are let go.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a connection may be without data, as streamingConnectionIdleTimeout is by default.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(4 * 60 * 60);

/// When data last went over a connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Instant>);

impl Activity {
    /// Activity that begins now.
    pub(super) fn new() -> Self {
        Activity(Mutex::new(Instant::now()))
    }

    /// Data went over the connection.
    pub(super) fn touch(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Returns when the connection has been idle for too long.
    pub(super) async fn idle(&self) {
        loop {
            let until = *self.0.lock() + IDLE_MAX;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn data_puts_the_end_off() {
        let activity = Activity::new();
        let begin = Instant::now();
        tokio::time::advance(IDLE_MAX / 2).await;
        activity.touch();
        activity.idle().await;
        let idle = begin.elapsed();
        assert!(idle >= IDLE_MAX * 3 / 2 && idle < IDLE_MAX * 2, "{idle:?}");
    }
}
