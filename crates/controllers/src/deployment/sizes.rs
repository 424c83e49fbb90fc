//! Sizes of a Deployment's ReplicaSets: surge and unavailability, the steps of a rolling update, and
//! proportional scaling in the middle of one.

use std::sync::Arc;

use api::prelude::*;

use super::revision;

/// How far a rolling update may go beyond and below the wanted number of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Pods wanted.
    pub replicas: i32,
    /// Pods above that.
    pub surge: i32,
    /// Pods below that.
    pub unavailable: i32,
}

/// A ReplicaSet and its new size.
pub type Resize = (Arc<ReplicaSet>, i32);

/// Whether a Deployment replaces all pods at once.
pub fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref();
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// Pods a Deployment wants.
pub fn replicas_of(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

/// Pods a ReplicaSet wants.
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn total<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i32 {
    sets.into_iter().map(|set| size(set)).sum()
}

/// A count, or a percentage of `of`.
pub fn scaled(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(of);
            let rounded = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
        None => 0,
    }
}

/// The bounds of a Deployment. Surge rounds up and unavailability down; both zero would stand still, so
/// then one pod may be missing.
pub fn bounds(deployment: &Deployment) -> Bounds {
    let replicas = replicas_of(deployment);
    if is_recreate(deployment) {
        return Bounds { replicas, surge: 0, unavailable: 0 };
    }
    let strategy = deployment.spec.strategy.as_ref();
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let or_quarter = |value: Option<&IntOrString>| value.cloned().unwrap_or(quarter.clone());
    let surge = scaled(Some(&or_quarter(rolling.and_then(|r| r.max_surge.as_ref()))), replicas, true);
    let missing =
        scaled(Some(&or_quarter(rolling.and_then(|r| r.max_unavailable.as_ref()))), replicas, false);
    let missing = if surge == 0 && missing == 0 { 1 } else { missing };
    Bounds { replicas, surge, unavailable: missing.min(replicas) }
}

/// The size of the new ReplicaSet in a rolling update: as large as the surge allows.
pub fn new_size(bounds: Bounds, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> i32 {
    let current = new.map_or(0, |set| size(set));
    if current >= bounds.replicas {
        return bounds.replicas;
    }
    let room = bounds.replicas.saturating_add(bounds.surge) - (total(old) + current);
    current + room.clamp(0, bounds.replicas - current)
}

/// Sizes of the old ReplicaSets in a rolling update: first lose pods that are not available anyway, then
/// as many as may be missing.
pub fn old_sizes(bounds: Bounds, new: &Arc<ReplicaSet>, old: &[Arc<ReplicaSet>]) -> Vec<Resize> {
    let min_available = bounds.replicas - bounds.unavailable;
    let new_unavailable = size(new) - available(new);
    let mut budget = total(old) + size(new) - min_available - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = old.iter().map(|set| size(set)).collect();
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).clamp(0, budget.max(0));
        *size -= unhealthy;
        budget -= unhealthy;
    }
    let mut spare = old.iter().map(|set| available(set)).sum::<i32>() + available(new) - min_available;
    for size in &mut sizes {
        let less = (*size).clamp(0, spare.max(0));
        *size -= less;
        spare -= less;
    }
    let changed = |(set, size): &Resize| *size != self::size(set);
    old.iter().cloned().zip(sizes).filter(changed).collect()
}

/// Whether the Deployment was resized since its ReplicaSets were sized.
pub fn was_resized(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    let active = sets.iter().filter(|set| size(set) > 0);
    let noted = |set: &Arc<ReplicaSet>| {
        revision::annotation(&set.metadata, revision::DESIRED).and_then(|text| text.parse::<i32>().ok())
    };
    active.filter_map(noted).any(|desired| desired != replicas_of(deployment))
}

/// Sizes after the Deployment itself was resized, or while it is paused.
pub fn resized(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Vec<Resize> {
    let bounds = bounds(deployment);
    let active: Vec<&Arc<ReplicaSet>> = old.iter().chain(new).filter(|set| size(set) > 0).collect();
    let only = match active.as_slice() {
        [] => new.or_else(|| old.iter().max_by(|a, b| revision::age_order(a, b))),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(set) = only {
        return if size(set) == bounds.replicas { vec![] } else { vec![(set.clone(), bounds.replicas)] };
    }
    if new.is_some_and(|new| is_saturated(bounds, new)) {
        return old.iter().filter(|set| size(set) > 0).map(|set| (set.clone(), 0)).collect();
    }
    if is_recreate(deployment) {
        return Vec::new();
    }
    proportional(bounds, deployment, active.into_iter().cloned().collect())
}

fn is_saturated(bounds: Bounds, new: &ReplicaSet) -> bool {
    let noted = revision::annotation(&new.metadata, revision::DESIRED).and_then(|t| t.parse().ok());
    size(new) == bounds.replicas && noted == Some(bounds.replicas) && available(new) == bounds.replicas
}

/// Shares a change of size among ReplicaSets by their sizes; what rounding leaves goes to the largest.
fn proportional(bounds: Bounds, deployment: &Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Vec<Resize> {
    let allowed = if bounds.replicas > 0 { bounds.replicas.saturating_add(bounds.surge) } else { 0 };
    let to_add = allowed - total(&sets);
    // Of equals the newer grows first and the older shrinks first.
    sets.sort_by(|a, b| {
        let age = revision::age_order(a, b);
        size(b).cmp(&size(a)).then(if to_add > 0 { age.reverse() } else { age })
    });
    let mut added = 0;
    let mut sizes = Vec::new();
    for set in &sets {
        let share = share(bounds, deployment, set, to_add, added);
        added += share;
        sizes.push(size(set) + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sets.into_iter().zip(sizes).collect()
}

fn share(bounds: Bounds, deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if bounds.replicas == 0 {
        -size(set)
    } else {
        let noted = revision::annotation(&set.metadata, revision::MAX).and_then(|t| t.parse::<i32>().ok());
        let current = deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let before = f64::from(noted.filter(|n| *n > 0).unwrap_or(current).max(1));
        let after = f64::from(bounds.replicas.saturating_add(bounds.surge));
        (f64::from(size(set)) * after / before).round() as i32 - size(set)
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}
