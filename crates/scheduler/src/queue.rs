//! Pods that want a node: those to try now, those that wait after a failure, those that wait for a change
//! in the cluster, and those that are not to be tried yet.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stdx::Backoff;

use crate::framework::Changes;
use crate::plugins::PLUGINS;
use crate::pod_info::PodInfo;

/// Pauses of a pod that fits nowhere (`podInitialBackoffSeconds`, `podMaxBackoffSeconds`).
const BACKOFF: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(10) };
/// After this long a pod is tried again even if nothing has changed that we know of.
const FLUSH_AFTER: Duration = Duration::from_secs(5 * 60);

/// A pod in the queue.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The pod.
    pub info: Arc<PodInfo>,
    /// Failed attempts.
    pub attempts: u32,
    /// When it last came into the queue or failed.
    pub since: Instant,
    /// Bits of the plugins that refused it.
    pub refused_by: u32,
}

/// In order of priority, then first come, first served (`PrioritySort`).
struct Active(Queued, u64);

impl PartialEq for Active {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Active {}
impl PartialOrd for Active {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Active {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.info.priority.cmp(&other.0.info.priority).then_with(|| other.1.cmp(&self.1))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Active(u64),
    Waiting,
    Gated,
}

/// The queue. Time is passed in.
#[derive(Default)]
pub struct Queue {
    active: BinaryHeap<Active>,
    /// Pods that wait for time or for a change, by uid.
    waiting: HashMap<Arc<str>, Waiting>,
    gated: HashSet<Arc<str>>,
    places: HashMap<Arc<str>, Where>,
    sequence: u64,
}

#[derive(Debug, Clone)]
struct Waiting {
    pod: Queued,
    /// Not to be tried before.
    not_before: Instant,
    /// Worth a try as soon as the time has come.
    ready: bool,
}

impl Queue {
    /// A pod wants a node, or has changed while it waits for one.
    pub fn add(&mut self, info: Arc<PodInfo>, now: Instant) {
        let attempts = self.waiting.get(&info.uid).map_or(0, |w| w.pod.attempts);
        self.remove(&info.uid);
        self.activate(Queued { info, attempts, since: now, refused_by: 0 });
    }

    /// A pod is not to be tried until its gates are gone.
    pub fn gate(&mut self, uid: Arc<str>) {
        self.remove(&uid);
        self.places.insert(uid.clone(), Where::Gated);
        self.gated.insert(uid);
    }

    /// A pod no longer wants a node.
    pub fn remove(&mut self, uid: &str) {
        match self.places.remove(uid) {
            Some(Where::Waiting) => drop(self.waiting.remove(uid)),
            Some(Where::Gated) => drop(self.gated.remove(uid)),
            // Entries of the heap that nobody points to any more are passed over.
            Some(Where::Active(_)) | None => {}
        }
    }

    fn activate(&mut self, pod: Queued) {
        self.sequence += 1;
        self.places.insert(pod.info.uid.clone(), Where::Active(self.sequence));
        self.active.push(Active(pod, self.sequence));
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Instant) -> Option<Queued> {
        self.release(now);
        while let Some(Active(pod, sequence)) = self.active.pop() {
            if self.places.get(&pod.info.uid) == Some(&Where::Active(sequence)) {
                self.places.remove(&pod.info.uid);
                return Some(pod);
            }
        }
        None
    }

    /// A pod fits nowhere; it waits for a change that one of the plugins that refused it has asked for.
    pub fn unschedulable(&mut self, pod: Queued, refused_by: u32, now: Instant) {
        self.wait(Queued { attempts: pod.attempts + 1, since: now, refused_by, ..pod }, false, now);
    }

    /// Something went wrong that has nothing to do with the pod; it is tried again after a pause.
    pub fn failed(&mut self, pod: Queued, now: Instant) {
        self.wait(Queued { attempts: pod.attempts + 1, since: now, refused_by: 0, ..pod }, true, now);
    }

    fn wait(&mut self, pod: Queued, ready: bool, now: Instant) {
        let uid = pod.info.uid.clone();
        self.remove(&uid);
        let not_before = now + BACKOFF.delay(pod.attempts);
        self.places.insert(uid.clone(), Where::Waiting);
        self.waiting.insert(uid, Waiting { pod, not_before, ready });
    }

    /// Something has changed. `helps` may look closer at whether that can help a pod.
    pub fn changed(&mut self, changes: Changes, now: Instant, helps: impl Fn(&PodInfo) -> bool) {
        for waiting in self.waiting.values_mut().filter(|w| !w.ready) {
            let asked = PLUGINS.iter().enumerate().any(|(bit, plugin)| {
                waiting.pod.refused_by & (1 << bit) != 0 && plugin.wakes_on.intersects(changes)
            });
            // Without any plugin that refused there were no nodes at all.
            let asked = asked || (waiting.pod.refused_by == 0 && changes.intersects(Changes::NODE_ADDED));
            waiting.ready = asked && helps(&waiting.pod.info);
        }
        self.release(now);
    }

    /// Moves pods whose time has come to those to try now.
    fn release(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let due: Vec<Arc<str>> =
            self.waiting.iter().filter(|(_, w)| w.due() <= now).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            if let Some(waiting) = self.waiting.remove(&uid) {
                self.activate(waiting.pod);
            }
        }
    }

    /// When a waiting pod has to be looked at, if nothing happens before.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(Waiting::due).min()
    }

    /// Numbers of pods: to try now, waiting, gated.
    pub fn depths(&self) -> (usize, usize, usize) {
        (self.places.len() - self.waiting.len() - self.gated.len(), self.waiting.len(), self.gated.len())
    }
}

impl Waiting {
    fn due(&self) -> Instant {
        if self.ready { self.not_before } else { self.pod.since + FLUSH_AFTER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::prelude::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let value = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"priority": priority, "containers": []}});
        Arc::new(PodInfo::new(Arc::new(Pod::from_value(value).unwrap())))
    }

    fn pop(queue: &mut Queue, now: Instant) -> String {
        queue.pop(now).map_or("-".into(), |p| p.info.pod.name().to_owned())
    }

    #[test]
    fn priority_then_first_come() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 5), ("c", 5), ("gone", 9)] {
            queue.add(pod(name, priority), now);
        }
        queue.remove("gone");
        let order: Vec<_> = (0..4).map(|_| pop(&mut queue, now)).collect();
        assert_eq!(order, ["b", "c", "a", "-"]);
    }

    #[test]
    fn pods_wait_for_what_refused_them() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let fit = PLUGINS.iter().position(|p| p.name == "NodeResourcesFit").unwrap();
        queue.add(pod("a", 0), now);
        let a = queue.pop(now).unwrap();
        queue.unschedulable(a, 1 << fit, now);
        queue.changed(Changes::NODE_TAINTS, now, |_| true);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(pop(&mut queue, later(20)), "-", "taints do not help it");
        queue.changed(Changes::POD_REMOVED, now, |_| true);
        assert_eq!(pop(&mut queue, now), "-", "backing off");
        assert_eq!(queue.next_due(), Some(later(1)));
        let again = queue.pop(later(1)).unwrap();
        queue.unschedulable(again, 1 << fit, later(1));
        queue.changed(Changes::POD_REMOVED, later(1), |_| true);
        assert_eq!(queue.next_due(), Some(later(3)), "twice as long");
    }

    #[test]
    fn nothing_waits_for_ever() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0), now);
        let a = queue.pop(now).unwrap();
        queue.unschedulable(a, 1, now);
        assert_eq!(pop(&mut queue, now + Duration::from_secs(299)), "-");
        assert_eq!(pop(&mut queue, now + Duration::from_secs(300)), "a");
    }
}
