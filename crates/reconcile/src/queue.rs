//! The work queue between event handlers and workers: each key at most once in line and at most once in
//! work, later where it failed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use stdx::{Backoff, Histogram};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What queues and caches call an object: `namespace/name`, or `name` for cluster scope.
pub type Key = Arc<str>;

/// Back-off of a key that keeps failing (client-go's default item limiter).
const RETRY: Backoff = Backoff { initial: Duration::from_millis(5), max: Duration::from_secs(1000) };

/// Upper bounds of durations (client-go's: powers of ten from ten nanoseconds on).
const DURATIONS: &[f64] = &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// Counters of a queue, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct QueueStats {
    /// Keys waiting now.
    pub depth: usize,
    /// Keys waiting for their time.
    pub delayed: usize,
    /// Keys in work.
    pub processing: usize,
    /// Keys ever added.
    pub adds: u64,
    /// Keys ever added again after a failure.
    pub retries: u64,
    /// How long the keys in work have been so, together, in seconds.
    pub unfinished_seconds: f64,
    /// How long the oldest of them has been.
    pub longest_seconds: f64,
}

#[derive(Default)]
struct State {
    /// Keys in line, and since when.
    line: VecDeque<(Key, Instant)>,
    /// Keys that want work: those in line, and those that changed while in work.
    dirty: HashSet<Key>,
    /// Keys in work, and since when.
    processing: HashMap<Key, Instant>,
    /// Earliest time of each delayed key; the heap may hold outdated entries beside.
    delayed: HashMap<Key, Instant>,
    heap: BinaryHeap<Reverse<(Instant, Key)>>,
    failures: HashMap<Key, u32>,
    adds: u64,
    retries: u64,
    closed: bool,
}

impl State {
    /// Puts a key in line; says whether a worker may be needed.
    fn add(&mut self, key: Key) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) {
            return false;
        }
        self.adds += 1;
        if self.processing.contains_key(&key) {
            return false;
        }
        self.line.push_back((key, Instant::now()));
        true
    }

    /// Moves keys whose time has come into line; returns the time of the next.
    fn release(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((due, key))) = self.heap.peek() {
            if self.delayed.get(key) != Some(due) {
                self.heap.pop();
                continue;
            }
            if *due > now {
                return Some(*due);
            }
            let Some(Reverse((_, key))) = self.heap.pop() else { break };
            self.delayed.remove(&key);
            self.add(key);
        }
        None
    }
}

/// A queue of keys. All methods can be called from any thread; only [`WorkQueue::get`] waits.
pub struct WorkQueue {
    state: Mutex<State>,
    wake: Notify,
    /// How long keys have been in line, and in work.
    pub(crate) waited: Histogram,
    pub(crate) worked: Histogram,
}

impl Default for WorkQueue {
    fn default() -> Self {
        let (waited, worked) = (Histogram::new(DURATIONS), Histogram::new(DURATIONS));
        WorkQueue { state: Mutex::default(), wake: Notify::default(), waited, worked }
    }
}

impl WorkQueue {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts a key in line, unless it is there already. A key in work gets in line when its work is done.
    pub fn add(&self, key: impl Into<Key>) {
        if self.state.lock().add(key.into()) {
            self.wake.notify_one();
        }
    }

    /// Puts a key in line after `delay`; of several delays the earliest counts.
    pub fn add_after(&self, key: impl Into<Key>, delay: Duration) {
        let key = key.into();
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        let mut state = self.state.lock();
        if state.closed || state.delayed.get(&key).is_some_and(|earlier| *earlier <= due) {
            return;
        }
        state.delayed.insert(key.clone(), due);
        state.heap.push(Reverse((due, key)));
        drop(state);
        // Whoever waits has to set an earlier alarm.
        self.wake.notify_one();
    }

    /// Puts a key in line again after a failure, the later the more often it failed.
    pub fn add_rate_limited(&self, key: impl Into<Key>) {
        let key = key.into();
        let delay = {
            let mut state = self.state.lock();
            state.retries += 1;
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            RETRY.delay(*failures)
        };
        self.add_after(key, delay);
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &str) {
        self.state.lock().failures.remove(key);
    }

    /// How often a key has failed in a row.
    pub fn failures(&self, key: &str) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or_default()
    }

    /// Takes the next key, waiting for one; `None` once the queue is closed. Call [`WorkQueue::done`] after.
    pub async fn get(&self) -> Option<Key> {
        loop {
            let notified = self.wake.notified();
            let next = {
                let mut state = self.state.lock();
                if state.closed {
                    return None;
                }
                let next = state.release(Instant::now());
                if let Some((key, since)) = state.line.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone(), Instant::now());
                    self.waited.observe(since.elapsed().as_secs_f64());
                    // One wake-up may stand for several keys: pass it on.
                    if !state.line.is_empty() || next.is_some() {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                next
            };
            match next {
                Some(due) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => notified.await,
            }
        }
    }

    /// Says that the work on a key is over; it gets in line again if it was added meanwhile.
    pub fn done(&self, key: &Key) {
        let mut state = self.state.lock();
        if let Some(began) = state.processing.remove(key) {
            self.worked.observe(began.elapsed().as_secs_f64());
        }
        if state.dirty.contains(key) {
            state.line.push_back((key.clone(), Instant::now()));
            self.wake.notify_one();
        }
    }

    /// Ends the queue: waiting and later [`WorkQueue::get`] calls return `None`.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Present counters.
    pub fn stats(&self) -> QueueStats {
        let state = self.state.lock();
        let ages = || state.processing.values().map(|since| since.elapsed().as_secs_f64());
        QueueStats {
            unfinished_seconds: ages().sum(),
            longest_seconds: ages().fold(0.0, f64::max),
            depth: state.line.len(),
            delayed: state.delayed.len(),
            processing: state.processing.len(),
            adds: state.adds,
            retries: state.retries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_in_line_and_in_work_once() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        let a = queue.get().await.unwrap();
        assert_eq!((&*a, queue.stats().depth), ("a", 1));
        queue.add("a");
        assert_eq!(queue.stats().depth, 1, "a is in work and must wait");
        queue.done(&a);
        assert_eq!(&*queue.get().await.unwrap(), "b");
        assert_eq!(&*queue.get().await.unwrap(), "a");
        queue.close();
        assert!(queue.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(50));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(500));
        queue.add_after("b", Duration::from_secs(7));
        let a = queue.get().await.unwrap();
        assert_eq!((&*a, start.elapsed().as_secs()), ("a", 5));
        queue.done(&a);
        assert_eq!((&*queue.get().await.unwrap(), start.elapsed().as_secs()), ("b", 7));
        assert_eq!(queue.stats().delayed, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_until_forgotten() {
        let queue = WorkQueue::new();
        let mut waits = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            queue.add_rate_limited("a");
            let key = queue.get().await.unwrap();
            waits.push(start.elapsed().as_millis());
            queue.done(&key);
        }
        assert_eq!(waits, [5, 10, 20, 40]);
        assert_eq!(queue.failures("a"), 4);
        queue.forget("a");
        assert_eq!((queue.failures("a"), queue.stats().retries), (0, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn every_waiter_gets_a_key() {
        let queue = WorkQueue::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.get().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for key in ["a", "b", "c"] {
            queue.add_after(key, Duration::from_millis(10));
        }
        let mut keys = Vec::new();
        for worker in workers {
            keys.push(worker.await.unwrap().unwrap().to_string());
        }
        keys.sort();
        assert_eq!(keys, ["a", "b", "c"]);
    }
}
