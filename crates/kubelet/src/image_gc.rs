//! Collecting images that nothing uses: when their file system fills up, and when they have not been used for
//! long. What is to go is decided by pure functions; the loop around them looks every few minutes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use cri::{ContainerFilter, FsInfo, Image};
use jiff::Timestamp;
use reconcile::EventType;

use crate::agent::Agent;
use crate::node::register;
use crate::spec;

/// How often images are looked at, as upstream does.
const LOOK_EVERY: Duration = Duration::from_secs(5 * 60);

/// When images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Use of the file system, in percent, from which images go always; 100 switches it off.
    pub high_percent: u8,
    /// Use down to which they go.
    pub low_percent: u8,
    /// Younger ones stay.
    pub minimum_age: Duration,
    /// Ones unused for this long go always; zero switches it off.
    pub maximum_age: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::from_secs(2 * 60),
            maximum_age: Duration::ZERO,
        }
    }
}

/// What is wrong with a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not a percentage.
    #[error("invalid {name} {value}, must be in range [0-100]")]
    Range {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u8,
    },
    /// They are the wrong way round.
    #[error("LowThresholdPercent {low} can not be higher than HighThresholdPercent {high}")]
    Order {
        /// The low one.
        low: u8,
        /// The high one.
        high: u8,
    },
}

impl Policy {
    /// Checks that the policy makes sense.
    pub fn check(&self) -> Result<(), PolicyError> {
        let names = [("HighThresholdPercent", self.high_percent), ("LowThresholdPercent", self.low_percent)];
        if let Some((name, value)) = names.into_iter().find(|(_, value)| *value > 100) {
            return Err(PolicyError::Range { name, value });
        }
        match self.low_percent > self.high_percent {
            true => Err(PolicyError::Order { low: self.low_percent, high: self.high_percent }),
            false => Ok(()),
        }
    }

    /// Bytes that have to come free for the file system to be as empty as wanted; `None` where it is.
    pub fn to_free(&self, fs: &FsInfo) -> Option<u64> {
        let available = fs.available_bytes.min(fs.capacity_bytes);
        let part = u128::from(available) * 100 / u128::from(fs.capacity_bytes.max(1));
        let used = 100u128.saturating_sub(part);
        if used < u128::from(self.high_percent) {
            return None;
        }
        let wanted = u128::from(fs.capacity_bytes) * u128::from(100 - self.low_percent.min(100)) / 100;
        Some(u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(available))
    }
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    first_seen: Timestamp,
    /// When it was last seen in use; the beginning of time where it never was.
    last_used: Timestamp,
    bytes: u64,
    pinned: bool,
}

/// The images of the node, as seen over time.
#[derive(Debug, Default)]
pub struct Seen(HashMap<String, Known>);

impl Seen {
    /// Takes note of what is there, and of what is in use, now.
    pub fn look(&mut self, images: &[Image], in_use: &HashSet<String>, now: Timestamp) {
        let present: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.0.retain(|id, _| present.contains(id.as_str()));
        for image in images {
            let known = self.0.entry(image.id.clone()).or_insert_with(|| Known {
                // Ones that were there before this process are as old as the store says.
                first_seen: image.added_at.unwrap_or(now).min(now),
                last_used: Timestamp::UNIX_EPOCH,
                bytes: 0,
                pinned: false,
            });
            (known.bytes, known.pinned) = (image.size_bytes, image.pinned);
            if in_use.contains(&image.id) {
                known.last_used = now;
            }
        }
    }

    fn unused(&self, now: Timestamp) -> Vec<(&String, &Known)> {
        let mut list: Vec<_> = self.0.iter().filter(|(_, k)| !k.pinned && k.last_used < now).collect();
        list.sort_by_key(|(id, k)| (k.last_used, k.first_seen, (*id).clone()));
        list
    }

    /// Images that may go, the ones not used for longest first.
    pub fn eligible(&self, policy: &Policy, now: Timestamp) -> Vec<(String, u64)> {
        let unused = self.unused(now).into_iter();
        let old = unused.filter(|(_, k)| age(now, k.first_seen) >= policy.minimum_age);
        old.map(|(id, k)| (id.clone(), k.bytes)).collect()
    }

    /// Images that have not been used for too long; nothing before this process has watched for that long.
    pub fn stale(&self, policy: &Policy, began: Timestamp, now: Timestamp) -> Vec<String> {
        if policy.maximum_age.is_zero() || age(now, began) <= policy.maximum_age {
            return Vec::new();
        }
        let unused = self.unused(now).into_iter();
        let stale = unused.filter(|(_, k)| age(now, k.last_used.max(k.first_seen)) > policy.maximum_age);
        stale.map(|(id, _)| id.clone()).collect()
    }
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// A collection that could not do its work, in upstream's words.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("invalid capacity 0 on image filesystem")]
    Capacity,
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
         {found} bytes eligible to free."
    )]
    TooLittle { wanted: u64, found: u64 },
    #[error("{0}")]
    Runtime(#[from] cri::Error),
}

/// Looks and collects. Forever.
pub(crate) async fn keep(agent: Arc<Agent>) {
    let began = agent.clock.now();
    let mut failed_before = false;
    loop {
        let failure = collect(&agent, &mut *agent.images_seen.lock().await, began).await.err();
        let node = || register::reference(&agent.config.node_name);
        match &failure {
            None => {}
            Some(Failure::Capacity) => {
                agent.recorder.record(
                    node(),
                    EventType::Warning,
                    "InvalidDiskCapacity",
                    Failure::Capacity.to_string(),
                );
            }
            Some(error) => {
                if let Failure::TooLittle { .. } = error {
                    agent.recorder.record(
                        node(),
                        EventType::Warning,
                        "FreeDiskSpaceFailed",
                        error.to_string(),
                    );
                }
                // Once may be chance.
                if failed_before {
                    agent.recorder.record(node(), EventType::Warning, "ImageGCFailed", error.to_string());
                }
                tracing::warn!(%error, "images could not be collected");
            }
        }
        failed_before = failure.is_some();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn collect(agent: &Agent, seen: &mut Seen, began: Timestamp) -> Result<(), Failure> {
    let service = agent.images.service();
    let policy = &agent.config.image_gc;
    let in_use = in_use(agent).await?;
    let now = agent.clock.now();
    let images = service.list().await?;
    let ids: Vec<String> = images.iter().map(|image| image.id.clone()).collect();
    // What is removed below is forgotten at the next look.
    agent.images.forget_others(&ids, now);
    seen.look(&images, &in_use, now);
    for id in seen.stale(policy, began, now) {
        tracing::info!(image = id, "removing an image that was not used for long");
        service.remove(&id).await?;
        seen.0.remove(&id);
    }
    let fs = service.fs_info().await?;
    if fs.capacity_bytes == 0 {
        return Err(Failure::Capacity);
    }
    let Some(wanted) = policy.to_free(&fs) else { return Ok(()) };
    let mut found = 0;
    let mut failure = None;
    for (id, bytes) in seen.eligible(policy, now) {
        if found >= wanted {
            break;
        }
        tracing::info!(image = id, bytes, "removing an unused image, as the disk is filling up");
        match service.remove(&id).await {
            Ok(()) => {
                seen.0.remove(&id);
                found += bytes;
            }
            Err(error) => failure = Some(error),
        }
    }
    match (failure, found < wanted) {
        (Some(error), _) => Err(error.into()),
        (None, true) => Err(Failure::TooLittle { wanted, found }),
        (None, false) => Ok(()),
    }
}

/// Removes every image that nothing uses and that is old enough: the node is short of disk.
pub(crate) async fn remove_unused(agent: &Agent) {
    let mut seen = agent.images_seen.lock().await;
    let service = agent.images.service();
    let (Ok(in_use), Ok(images)) = (in_use(agent).await, service.list().await) else { return };
    let now = agent.clock.now();
    seen.look(&images, &in_use, now);
    for (id, bytes) in seen.eligible(&agent.config.image_gc, now) {
        tracing::info!(image = id, bytes, "removing an unused image, as the node is short of disk");
        match service.remove(&id).await {
            Ok(()) => drop(seen.0.remove(&id)),
            Err(error) => tracing::warn!(image = id, %error, "an unused image could not be removed"),
        }
    }
}

/// Ids of images that containers (ended ones too) or pods' image volumes use.
async fn in_use(agent: &Agent) -> Result<HashSet<String>, cri::Error> {
    let containers = agent.runtime.list_containers(&ContainerFilter::default()).await?;
    let mut ids: HashSet<String> = containers.into_iter().map(|container| container.image_id).collect();
    let pods: Vec<Arc<Pod>> = agent.admitted.lock().values().cloned().collect();
    let mut names = HashSet::new();
    for pod in &pods {
        let spec = spec::spec(pod);
        let volumes = spec.volumes.iter().flatten();
        names.extend(volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone()));
        // Pulled for a container that is about to be made.
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        names.extend(containers.filter_map(|container| container.image.clone()));
    }
    for name in names {
        if let Ok(Some(status)) = agent.images.service().status(&name).await {
            ids.insert(status.image.id);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, bytes: u64, added: i64, pinned: bool) -> Image {
        Image {
            id: id.into(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size_bytes: bytes,
            uid: None,
            username: String::new(),
            pinned,
            added_at: Timestamp::from_second(added).ok(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn fs(capacity: u64, available: u64) -> FsInfo {
        FsInfo {
            timestamp: at(0),
            mountpoint: "/".into(),
            used_bytes: 0,
            inodes_used: 0,
            capacity_bytes: capacity,
            available_bytes: available,
            inodes: 0,
            inodes_free: 0,
        }
    }

    #[test]
    fn how_much_has_to_go() {
        let policy = Policy::default();
        let table = [(1000, 500, None), (1000, 160, None), (1000, 159, Some(41)), (1000, 10, Some(190))];
        for (capacity, available, want) in table {
            assert_eq!(policy.to_free(&fs(capacity, available)), want, "{available}");
        }
        assert_eq!(Policy { high_percent: 100, ..policy }.to_free(&fs(1000, 11)), None);
        assert_eq!(
            Policy { low_percent: 90, ..policy }.check(),
            Err(PolicyError::Order { low: 90, high: 85 })
        );
        let error = Policy { high_percent: 101, ..policy }.check().unwrap_err();
        assert_eq!(error.to_string(), "invalid HighThresholdPercent 101, must be in range [0-100]");
    }

    #[test]
    fn what_was_used_last_goes_last() {
        let policy = Policy::default();
        let images = [
            image("old", 1, 0, false),
            image("used", 2, 0, false),
            image("pinned", 4, 0, true),
            image("new", 8, 990, false),
        ];
        let mut seen = Seen::default();
        seen.look(&images[..3], &HashSet::from(["used".to_owned(), "old".to_owned()]), at(500));
        seen.look(&images[..3], &HashSet::from(["used".to_owned()]), at(900));
        let ids = |seen: &Seen, now| {
            seen.eligible(&policy, at(now)).into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        // In use at this very look: stays.
        assert_eq!(ids(&seen, 900), ["old"]);
        seen.look(&images, &HashSet::new(), at(995));
        assert_eq!(ids(&seen, 1000), ["old", "used"]);
        assert_eq!(ids(&seen, 1200), ["new", "old", "used"]);
        seen.look(&images[..1], &HashSet::new(), at(1300));
        assert_eq!(seen.0.len(), 1);
    }

    #[test]
    fn what_nobody_has_used_for_long_goes() {
        let policy = Policy { maximum_age: Duration::from_secs(100), ..Policy::default() };
        let mut seen = Seen::default();
        seen.look(
            &[image("a", 1, 0, false), image("b", 1, 0, false)],
            &HashSet::from(["b".to_owned()]),
            at(50),
        );
        assert!(seen.stale(&policy, at(0), at(100)).is_empty(), "watched for too short a time");
        assert_eq!(seen.stale(&policy, at(0), at(120)), ["a"]);
        assert_eq!(seen.stale(&policy, at(0), at(151)), ["a", "b"]);
        assert!(seen.stale(&Policy::default(), at(0), at(10_000)).is_empty());
    }
}
