//! Devices of plugins and whose they are. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::prelude::*;
use jiff::Timestamp;
use rpc::deviceplugin::ContainerAllocateResponse;

use crate::numa::{self, Hints, Mask};
use crate::spec::{self, Role};

/// How long the devices of a plugin that went away are still told of, in seconds, as upstream does.
pub const GONE_SECONDS: i64 = 300;

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// It can be used.
    pub healthy: bool,
    /// NUMA nodes it is near to.
    pub nodes: Vec<i64>,
}

impl Device {
    /// Its NUMA nodes.
    fn mask(&self) -> Mask {
        Mask::of(self.nodes.iter().filter_map(|node| u32::try_from(*node).ok()))
    }
}

/// The devices of one plugin.
#[derive(Debug, Clone, Default)]
pub struct Resource {
    /// By id.
    pub devices: BTreeMap<String, Device>,
    /// Which registration they came with; an older one may no longer speak for them.
    pub generation: u64,
    /// Since when its plugin is gone.
    pub gone_since: Option<Timestamp>,
}

/// What a container was given of a resource.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Given {
    /// Devices.
    pub ids: BTreeSet<String>,
    /// What the plugin wants done to the container.
    pub response: ContainerAllocateResponse,
}

/// What containers of a pod were given, by container and resource.
pub type OfPod = BTreeMap<String, BTreeMap<String, Given>>;

/// All devices, and whose they are.
#[derive(Debug, Default)]
pub struct State {
    /// By resource.
    pub resources: BTreeMap<String, Resource>,
    /// By pod uid.
    pub given: BTreeMap<String, OfPod>,
    /// Resources that were there once.
    pub former: BTreeSet<String>,
}

/// What may be taken for a container.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// Devices to choose from.
    pub available: BTreeSet<String>,
    /// Ones that have to be among them.
    pub must: BTreeSet<String>,
}

impl State {
    /// Takes note of what a plugin tells; false if it is not its turn any more.
    pub fn update(&mut self, name: &str, generation: u64, devices: BTreeMap<String, Device>) -> bool {
        match self.resources.get_mut(name) {
            Some(resource) if resource.generation == generation => {
                resource.devices = devices;
                true
            }
            _ => false,
        }
    }

    /// A plugin registers. Its devices of before are unhealthy until it tells of them.
    pub fn register(&mut self, name: &str) -> u64 {
        let resource = self.resources.entry(name.to_owned()).or_default();
        resource.generation += 1;
        resource.gone_since = None;
        self.former.remove(name);
        resource.generation
    }

    /// A plugin went away: nothing of it can be used.
    pub fn lost(&mut self, name: &str, generation: u64, now: Timestamp) {
        let Some(resource) = self.resources.get_mut(name).filter(|r| r.generation == generation) else {
            return;
        };
        resource.gone_since = Some(now);
        resource.devices.values_mut().for_each(|device| device.healthy = false);
    }

    /// Forgets plugins that have been away for too long.
    pub fn expire(&mut self, now: Timestamp) {
        let former = &mut self.former;
        self.resources.retain(|name, resource| {
            let away = resource.gone_since.map(|since| now.as_second() - since.as_second());
            let stays = away.is_none_or(|seconds| seconds < GONE_SECONDS);
            if !stays {
                former.insert(name.clone());
            }
            stays
        });
    }

    /// Capacity and allocatable amounts. What was there once is zero.
    pub fn amounts(&self) -> BTreeMap<String, (i64, i64)> {
        let former = self.former.iter().map(|name| (name.clone(), (0, 0)));
        let present = self.resources.iter().map(|(name, resource)| {
            let healthy = resource.devices.values().filter(|device| device.healthy).count();
            (name.clone(), (resource.devices.len() as i64, healthy as i64))
        });
        former.chain(present).collect()
    }

    fn in_use(&self, name: &str) -> BTreeSet<&String> {
        let containers = self.given.values().flat_map(BTreeMap::values);
        containers.filter_map(|of| of.get(name)).flat_map(|given| &given.ids).collect()
    }

    /// What may be taken of a resource; `reusable` are devices of the pod's init containers. The error is
    /// upstream's.
    pub fn choose(&self, name: &str, wanted: usize, reusable: &BTreeSet<String>) -> Result<Choice, String> {
        let Some(resource) = self.resources.get(name) else {
            return Err(format!("cannot allocate unregistered device {name}"));
        };
        let healthy: BTreeSet<&String> =
            resource.devices.iter().filter(|(_, device)| device.healthy).map(|(id, _)| id).collect();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {name}"));
        }
        let in_use = self.in_use(name);
        let free = healthy.iter().filter(|id| !in_use.contains(**id) || reusable.contains(**id));
        let available: BTreeSet<String> = free.map(|id| (*id).clone()).collect();
        if available.len() < wanted {
            return Err(format!(
                "requested number of devices unavailable for {name}. Requested: {wanted}, Available: {}",
                available.len()
            ));
        }
        let must = reusable.intersection(&available).take(wanted).cloned().collect();
        Ok(Choice { available, must })
    }

    /// Devices that a pod's init containers have had and no later container has.
    pub fn reusable(&self, pod: &Pod, name: &str) -> BTreeSet<String> {
        let Some(of_pod) = self.given.get(pod.uid()) else { return BTreeSet::new() };
        let (mut left, mut used) = (BTreeSet::new(), BTreeSet::new());
        for (role, container) in spec::containers(pod) {
            let Some(given) = of_pod.get(&container.name).and_then(|of| of.get(name)) else { continue };
            let into = if role == Role::Init { &mut left } else { &mut used };
            into.extend(given.ids.iter().cloned());
        }
        left.difference(&used).cloned().collect()
    }

    /// Where among all NUMA nodes so many devices are; `None` where the plugin does not say.
    pub fn hints(&self, name: &str, wanted: usize, reusable: &BTreeSet<String>, all: &[u32]) -> Hints {
        let resource = self.resources.get(name)?;
        if resource.devices.values().map(Device::mask).all(Mask::is_empty) {
            return None;
        }
        let Ok(choice) = self.choose(name, wanted, reusable) else { return Some(Vec::new()) };
        let mut least = all.len() as u32;
        let mut masks = Vec::new();
        for mask in numa::combinations(all) {
            let near = |device: &Device| !device.mask().and(mask).is_empty();
            if resource.devices.values().filter(|device| near(device)).count() >= wanted {
                least = least.min(mask.len());
            }
            let of = |id: &String| resource.devices.get(id);
            let holds = reusable.iter().filter_map(of).all(|device| device.mask().is_empty() || near(device));
            if holds && choice.available.iter().filter_map(of).filter(|device| near(device)).count() >= wanted
            {
                masks.push(mask);
            }
        }
        numa::hints(masks, least)
    }

    /// Keeps a choice to devices of these NUMA nodes; where they are not enough, all of them are taken first.
    pub fn narrow(&self, name: &str, wanted: usize, choice: Choice, mask: Option<Mask>) -> Choice {
        let (Some(mask), Some(resource)) = (mask, self.resources.get(name)) else { return choice };
        let near = |id: &&String| {
            resource.devices.get(*id).is_some_and(|device| !device.mask().and(mask).is_empty())
        };
        let aligned: BTreeSet<String> =
            choice.available.difference(&choice.must).filter(near).cloned().collect();
        let missing = wanted.saturating_sub(choice.must.len());
        if missing < aligned.len() {
            return Choice { available: aligned.union(&choice.must).cloned().collect(), must: choice.must };
        }
        Choice { must: choice.must.union(&aligned).cloned().collect(), available: choice.available }
    }

    /// Takes devices: what has to be, then what the plugin prefers, then those of the NUMA node with most.
    pub fn pick(&self, name: &str, wanted: usize, choice: &Choice, preferred: &[String]) -> BTreeSet<String> {
        let mut taken = choice.must.clone();
        for id in preferred.iter().filter(|id| choice.available.contains(*id)) {
            if taken.len() < wanted {
                taken.insert(id.clone());
            }
        }
        let nodes = |id: &String| {
            let device = self.resources.get(name).and_then(|resource| resource.devices.get(id));
            device.map(|device| device.nodes.clone()).unwrap_or_default()
        };
        let mut groups: BTreeMap<Vec<i64>, Vec<&String>> = BTreeMap::new();
        for id in choice.available.difference(&taken) {
            groups.entry(nodes(id)).or_default().push(id);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        let missing = wanted.saturating_sub(taken.len());
        // The smallest group that is enough, or else the largest.
        groups.sort_by_key(|(nodes, ids)| {
            let enough = ids.len() >= missing;
            (!enough, if enough { ids.len() } else { usize::MAX - ids.len() }, nodes.clone())
        });
        let rest: Vec<String> = groups.into_iter().flat_map(|(_, ids)| ids).take(missing).cloned().collect();
        taken.extend(rest);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(healthy: bool, node: i64) -> Device {
        Device { healthy, nodes: vec![node] }
    }

    fn ids(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|id| id.to_string()).collect()
    }

    fn state() -> (State, u64) {
        let mut state = State::default();
        let generation = state.register("x/y");
        let devices = [("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 1)];
        let devices = devices.map(|(id, node)| (id.to_owned(), device(id != "e", node)));
        assert!(state.update("x/y", generation, devices.into()));
        (state, generation)
    }

    #[test]
    fn what_is_there() {
        let (mut state, generation) = state();
        assert_eq!(state.amounts()["x/y"], (5, 4));
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        state.lost("x/y", generation, at(0));
        assert_eq!(state.amounts()["x/y"], (5, 0));
        state.expire(at(299));
        assert_eq!(state.amounts()["x/y"], (5, 0));
        // One that comes back is not spoken for by the old one.
        let next = state.register("x/y");
        assert!(!state.update("x/y", generation, BTreeMap::new()));
        state.lost("x/y", generation, at(300));
        state.expire(at(9999));
        assert_eq!(state.amounts()["x/y"], (5, 0));
        state.lost("x/y", next, at(300));
        state.expire(at(600));
        assert_eq!(state.amounts()["x/y"], (0, 0));
        assert!(state.resources.is_empty());
    }

    #[test]
    fn what_is_taken() {
        let (mut state, _) = state();
        let none = BTreeSet::new();
        let choice = state.choose("x/y", 2, &none).unwrap();
        assert_eq!(choice.available, ids(&["a", "b", "c", "d"]));
        assert_eq!(state.pick("x/y", 2, &choice, &[]), ids(&["a", "b"]));
        assert_eq!(state.pick("x/y", 2, &choice, &["d".into(), "zz".into()]), ids(&["c", "d"]));
        let given = Given { ids: ids(&["a"]), ..Given::default() };
        state.given.insert("pod".into(), [("c".to_owned(), [("x/y".to_owned(), given)].into())].into());
        let choice = state.choose("x/y", 2, &none).unwrap();
        assert_eq!(state.pick("x/y", 2, &choice, &[]), ids(&["c", "d"]));
        let again = state.choose("x/y", 2, &ids(&["a"])).unwrap();
        assert_eq!(again.must, ids(&["a"]));
        assert_eq!(state.pick("x/y", 2, &again, &[]), ids(&["a", "b"]));
        let near = |choice: Choice, wanted: usize, node: u32| {
            state.narrow("x/y", wanted, choice, Some(Mask::of([node])))
        };
        let both = |choice: &Choice| (choice.available.clone(), choice.must.clone());
        let choose = |wanted: usize| state.choose("x/y", wanted, &none).unwrap();
        assert_eq!(both(&near(choose(1), 1, 1)), (ids(&["c", "d"]), none.clone()));
        assert_eq!(both(&near(choose(2), 2, 0)), (ids(&["b", "c", "d"]), ids(&["b"])));
        let masks = |wanted: usize| {
            let hints = state.hints("x/y", wanted, &none, &[0, 1]).unwrap().into_iter();
            hints.map(|hint| (hint.mask.unwrap().list(), hint.preferred)).collect::<Vec<_>>()
        };
        let pair = |mask: &str, preferred| (mask.to_owned(), preferred);
        assert_eq!(masks(1), [pair("0", true), pair("1", true), pair("0-1", false)]);
        assert_eq!(masks(2), [pair("1", true), pair("0-1", false)]);
        assert_eq!(masks(3), [pair("0-1", false)]);
        assert_eq!((masks(4).len(), state.hints("x/z", 1, &none, &[0, 1])), (0, None));
        let errors = [
            (
                state.choose("x/y", 4, &none),
                "requested number of devices unavailable for x/y. Requested: 4, Available: 3",
            ),
            (state.choose("x/z", 1, &none), "cannot allocate unregistered device x/z"),
        ];
        for (result, message) in errors {
            assert_eq!(result.unwrap_err(), message);
        }
        state.resources.get_mut("x/y").unwrap().devices.values_mut().for_each(|d| d.healthy = false);
        assert_eq!(
            state.choose("x/y", 1, &none).unwrap_err(),
            "no healthy devices present; cannot allocate unhealthy devices x/y"
        );
    }
}
