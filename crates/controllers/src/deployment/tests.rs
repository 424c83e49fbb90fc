//! Tables of rollouts: rounds of plans against ReplicaSets that become what the plan says.

use std::sync::Arc;

use api::prelude::*;
use jiff::Timestamp;
use serde_json::json;

use super::plan::{plan, status_after};
use super::status::Milestone;
use super::{revision, sizes};

fn deployment(replicas: i32, image: &str, strategy: serde_json::Value) -> Deployment {
    Deployment::from_value(json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": strategy,
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    }))
    .unwrap()
}

fn rolling(surge: serde_json::Value, unavailable: serde_json::Value) -> serde_json::Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A world in which ReplicaSets get what they ask for.
struct World {
    sets: Vec<Arc<ReplicaSet>>,
    log: Vec<String>,
    time: i64,
}

impl World {
    fn new() -> Self {
        World { sets: Vec::new(), log: Vec::new(), time: 0 }
    }

    /// Plans and executes until nothing changes, all pods becoming available after each round.
    fn settle(&mut self, deployment: &mut Deployment) {
        for _ in 0..100 {
            self.time += 1;
            let plan = plan(deployment, &self.sets, |_| false);
            let quiet = plan.create.is_none() && plan.changes.is_empty() && plan.delete.is_empty();
            if let Some(set) = plan.create {
                self.log.push(format!("new {}", sizes::size(&set)));
                let mut set = *set;
                set.metadata.creation_timestamp = Some(Time(at(self.time)));
                set.metadata.uid = Some(set.name().into());
                self.sets.push(Arc::new(set));
            }
            for change in plan.changes {
                let place = self.sets.iter().position(|s| Arc::ptr_eq(s, &change.set)).unwrap();
                let mut set = ReplicaSet::clone(&change.set);
                if let Some(size) = change.replicas {
                    self.log.push(format!("{}>{size}", sizes::size(&set)));
                    set.spec.replicas = Some(size);
                }
                set.metadata.annotations.get_or_insert_default().extend(change.annotations);
                self.sets[place] = Arc::new(set);
            }
            self.sets.retain(|set| !plan.delete.iter().any(|name| name == set.name()));
            for set in &mut self.sets {
                let set = Arc::make_mut(set);
                let size = sizes::size(set);
                let status = set.status.get_or_insert_default();
                status.replicas = size;
                status.ready_replicas = Some(size);
                status.available_replicas = Some(size);
            }
            let (status, _) = status_after(deployment, &self.sets, &Milestone::None, at(self.time));
            if let Some(status) = status {
                deployment.status = Some(status);
            } else if quiet {
                return;
            }
        }
        panic!("never settles: {:?}", self.log);
    }

    fn take_log(&mut self) -> String {
        std::mem::take(&mut self.log).join(" ")
    }
}

fn set_image(deployment: &mut Deployment, image: &str) {
    let template = &mut deployment.spec.template;
    template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
}

#[test]
fn rolling_updates_stay_within_bounds() {
    for (replicas, surge, unavailable, steps) in [
        (3, json!("25%"), json!("25%"), "new 1 3>2 1>2 2>1 2>3 1>0"),
        (4, json!(0), json!(1), "new 0 4>3 0>1 3>2 1>2 2>1 2>3 1>0 3>4"),
        (2, json!(2), json!(0), "new 2 2>0"),
        (10, json!("50%"), json!("50%"), "new 5 10>0 5>10"),
    ] {
        let mut world = World::new();
        let mut d = deployment(replicas, "a", rolling(surge, unavailable));
        world.settle(&mut d);
        assert_eq!(world.take_log(), format!("new {replicas}"));
        set_image(&mut d, "b");
        world.settle(&mut d);
        assert_eq!(world.take_log(), steps, "{replicas} replicas");
        let status = d.status.as_ref().unwrap();
        let progressing =
            status.conditions.as_ref().unwrap().iter().find(|c| c.type_.as_deref() == Some("Progressing"));
        assert_eq!(progressing.unwrap().reason.as_deref(), Some("NewReplicaSetAvailable"));
        assert_eq!(status.updated_replicas, Some(replicas));
    }
}

#[test]
fn recreate_waits_for_old_pods() {
    let mut world = World::new();
    let mut d = deployment(3, "a", json!({"type": "Recreate"}));
    world.settle(&mut d);
    set_image(&mut d, "b");
    assert_eq!(plan(&d, &world.sets, |_| true).changes[0].replicas, Some(0));
    world.settle(&mut d);
    assert_eq!(world.take_log(), "new 3 3>0 new 3");
    set_image(&mut d, "c");
    Arc::make_mut(&mut world.sets[1]).spec.replicas = Some(0);
    assert!(plan(&d, &world.sets, |_| true).create.is_none(), "old pods still run");
}

#[test]
fn revisions_grow_and_come_back() {
    let mut world = World::new();
    let mut d = deployment(1, "a", rolling(json!(1), json!(0)));
    world.settle(&mut d);
    set_image(&mut d, "b");
    world.settle(&mut d);
    let revisions = |world: &World| world.sets.iter().map(|s| revision::revision_of(s)).collect::<Vec<_>>();
    assert_eq!(revisions(&world), [1, 2]);
    set_image(&mut d, "a");
    world.settle(&mut d);
    assert_eq!(revisions(&world), [3, 2]);
    let first = &world.sets[0].metadata;
    assert_eq!(revision::annotation(first, revision::REVISION_HISTORY), Some("1"));
    set_image(&mut d, "c");
    world.settle(&mut d);
    assert_eq!(revisions(&world), [3, 4], "the history limit of one has taken revision 2");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new();
    let mut d = deployment(2, "a", rolling(json!(1), json!(0)));
    world.settle(&mut d);
    let spec = &mut d.spec;
    (spec.paused, spec.replicas) = (Some(true), Some(5));
    set_image(&mut d, "b");
    world.settle(&mut d);
    assert_eq!(world.take_log(), "new 2 2>5");
    let conditions = d.status.as_ref().unwrap().conditions.as_ref().unwrap();
    assert!(conditions.iter().any(|c| c.reason.as_deref() == Some("DeploymentPaused")));
}

#[test]
fn resizing_amid_a_rollout_is_proportional() {
    let mut world = World::new();
    let mut d = deployment(10, "a", rolling(json!(3), json!(2)));
    world.settle(&mut d);
    set_image(&mut d, "b");
    // One round: the new set is created with what the surge allows.
    let set = *plan(&d, &world.sets, |_| false).create.unwrap();
    assert_eq!(sizes::size(&set), 3);
    world.sets.push(Arc::new(set));
    d.spec.replicas = Some(20);
    let changes = plan(&d, &world.sets, |_| false).changes;
    let mut sizes: Vec<_> = changes.iter().map(|c| (sizes::size(&c.set), c.replicas)).collect();
    sizes.sort();
    assert_eq!(sizes, [(3, Some(5)), (10, Some(18))]);
    assert!(changes[0].event().unwrap().starts_with("Scaled up replica set web-"));
}

#[test]
fn rollouts_time_out() {
    let mut d = deployment(1, "a", rolling(json!(1), json!(0)));
    let set = Arc::new(*plan(&d, &[], |_| false).create.unwrap());
    let created = Milestone::Created(set.name().into());
    let (status, next) = status_after(&d, std::slice::from_ref(&set), &created, at(0));
    assert_eq!(next.unwrap().as_secs(), 601);
    d.status = status;
    let (status, next) = status_after(&d, std::slice::from_ref(&set), &Milestone::None, at(601));
    let conditions = status.unwrap().conditions.unwrap();
    let condition = conditions.iter().find(|c| c.type_.as_deref() == Some("Progressing")).unwrap();
    assert_eq!(condition.reason.as_deref(), Some("ProgressDeadlineExceeded"));
    assert_eq!(condition.message, Some(format!("ReplicaSet \"{}\" has timed out progressing.", set.name())));
    assert_eq!(next, None);
}

#[test]
fn hashes_are_stable_and_depend_on_collisions() {
    let d = deployment(1, "a", json!({}));
    let template = &d.spec.template;
    let hash = revision::template_hash(template, None);
    assert_eq!(hash, revision::template_hash(template, None));
    assert_ne!(hash, revision::template_hash(template, Some(1)));
    assert!(hash.len() <= 10 && hash.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b)));
}
