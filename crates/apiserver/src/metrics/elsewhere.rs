//! How much of a request's time others are answerable for: it waits in a queue, or for a webhook.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

tokio::task_local! {
    /// The time that the present request has spent elsewhere.
    pub static ELSEWHERE: Arc<Elsewhere>;
}

/// Time spent elsewhere; calls that overlap count once.
#[derive(Debug, Default)]
pub struct Elsewhere(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    under_way: u32,
    since: Option<Instant>,
    total: Duration,
}

impl Elsewhere {
    /// All of it so far.
    pub fn total(&self) -> Duration {
        self.0.lock().total
    }
}

/// A stay elsewhere; it lasts until it is dropped.
pub struct Stay(Arc<Elsewhere>);

impl Drop for Stay {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.under_way = state.under_way.saturating_sub(1);
        if state.under_way == 0 {
            let stayed = state.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            state.total += stayed;
        }
    }
}

/// Begins a stay elsewhere of the present request, if this is the task of one.
pub fn elsewhere() -> Option<Stay> {
    let whole = ELSEWHERE.try_with(Arc::clone).ok()?;
    {
        let mut state = whole.0.lock();
        state.under_way += 1;
        state.since.get_or_insert_with(Instant::now);
    }
    Some(Stay(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_overlaps_counts_once() {
        assert!(elsewhere().is_none(), "no request, no time");
        let whole = Arc::new(Elsewhere::default());
        let run = async {
            let began = Instant::now();
            let (one, two) = (elsewhere(), elsewhere());
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(one);
            drop(two);
            began.elapsed()
        };
        let took = ELSEWHERE.scope(whole.clone(), run).await;
        assert!(whole.total() >= Duration::from_millis(20) && whole.total() <= took);
    }
}
