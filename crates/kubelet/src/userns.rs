//! User ids of pods with users of their own (`hostUsers: false`): every such pod has a range of the node's ids that no
//! other pod has while it lives.
//!
//! Which ranges there are is told by `getsubids kubelet`, where that user and that program exist. What a pod was given
//! lies in its directory, so that another life of the kubelet finds it again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::prelude::*;
use cri::IdMapping;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::config::Config;

/// Ranges are counted in these, and begin at multiples of them.
pub const UNIT: u32 = 65_536;
/// Whose subordinate ids are pods'.
const USER: &str = "kubelet";
/// File of a pod's range, in its directory.
const FILE: &str = "userns";

/// Ids that pods may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The first.
    pub first: u32,
    /// How many pods there is room for.
    pub pods: u32,
    /// Ids of each.
    pub each: u32,
}

impl Space {
    /// What `getsubids` allows, or else as many ranges as there can be pods, behind the node's own ids.
    pub fn new(each: u32, pods_max: i64, told: Option<&str>) -> Result<Space, String> {
        let each = each.max(1);
        let Some(told) = told else {
            let pods = u32::try_from(pods_max).unwrap_or(u32::MAX).min((u32::MAX / each).saturating_sub(1));
            return Ok(Space { first: each, pods, each });
        };
        let (first, length) = parse(told)?;
        if !first.is_multiple_of(each) {
            return Err(format!("kubelet user assigned ID {first} is not a multiple of {each}"));
        }
        if first < each {
            return Err(format!("kubelet user assigned ID {first} must be greater or equal to {each}"));
        }
        if !length.is_multiple_of(each) {
            return Err(format!("kubelet user assigned IDs length {length} is not a multiple of {each}"));
        }
        let pods = length / each;
        if i64::from(pods) < pods_max {
            return Err(format!("kubelet user assigned IDs are not enough to support {pods_max} pods"));
        }
        Ok(Space { first, pods, each })
    }

    fn mapping(&self, place: u32) -> IdMapping {
        IdMapping { container_id: 0, host_id: self.first + place * self.each, length: self.each }
    }

    /// The place of a mapping that was given before.
    fn place(&self, mapping: &IdMapping) -> Option<u32> {
        let offset = mapping.host_id.checked_sub(self.first)?;
        let fits = mapping.length == self.each && mapping.container_id == 0;
        Some(offset / self.each)
            .filter(|place| fits && *place < self.pods && offset.is_multiple_of(self.each))
    }
}

/// The one line `0: kubelet 65536 7208960`.
fn parse(told: &str) -> Result<(u32, u32), String> {
    let mut lines = told.lines().filter(|line| !line.trim().is_empty());
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(format!("error parsing getsubids output for user {USER:?}: {told:?}"));
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [_, _, first, length] => first.parse().ok().zip(length.parse().ok()),
        _ => None,
    }
    .ok_or_else(|| format!("error parsing getsubids output for user {USER:?}: {told:?}"))
}

/// What the node says of subordinate ids; `None` where there is no such user or program.
fn told() -> Result<Option<String>, String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if !passwd.lines().any(|line| line.split(':').next() == Some(USER)) {
        return Ok(None);
    }
    let ask = |arguments: &[&str]| match Command::new("getsubids").args(arguments).output() {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(output) => Err(format!(
            "error executing getsubids: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("error executing getsubids: {error}")),
    };
    let (users, groups) = (ask(&[USER])?, ask(&["-g", USER])?);
    if users != groups {
        return Err(format!("mismatched subuids and subgids for user {USER:?}"));
    }
    Ok(users)
}

/// The ranges of the node and whose they are.
#[derive(Debug)]
pub struct Manager {
    space: Result<Space, String>,
    pods: PathBuf,
    given: Mutex<BTreeMap<String, IdMapping>>,
}

fn write(mapping: &IdMapping) -> String {
    let list =
        json!([{"hostId": mapping.host_id, "containerId": mapping.container_id, "length": mapping.length}]);
    json!({"uidMappings": list, "gidMappings": list}).to_string()
}

fn read(text: &str) -> Option<IdMapping> {
    let saved: Value = serde_json::from_str(text).ok()?;
    let users = saved.get("uidMappings")?;
    if Some(users) != saved.get("gidMappings") || users.as_array()?.len() != 1 {
        return None;
    }
    let number = |name: &str| u32::try_from(users.get(0)?.get(name)?.as_u64()?).ok();
    Some(IdMapping {
        host_id: number("hostId")?,
        container_id: number("containerId")?,
        length: number("length")?,
    })
}

impl Manager {
    /// The manager of this node, with what pods were given before.
    pub fn new(config: &Config) -> Manager {
        let space = told().and_then(|told| Space::new(config.ids_per_pod, config.max_pods, told.as_deref()));
        if let Err(error) = &space {
            tracing::warn!(error, "pods with users of their own cannot run");
        }
        Manager::with(space, &config.root_dir.join("pods"))
    }

    fn with(space: Result<Space, String>, pods: &Path) -> Manager {
        let entries = fs::read_dir(pods).into_iter().flatten().flatten();
        let given = entries.filter_map(|entry| {
            let mapping = read(&fs::read_to_string(entry.path().join(FILE)).ok()?)?;
            Some((entry.file_name().into_string().ok()?, mapping))
        });
        Manager { given: Mutex::new(given.collect()), space, pods: pods.to_owned() }
    }

    /// The ids of a pod that has some.
    pub fn of(&self, uid: &str) -> Option<IdMapping> {
        self.given.lock().get(uid).copied()
    }

    /// Gives a pod ids of its own: those it has, or the first that nobody has.
    pub fn give(&self, uid: &str) -> Result<IdMapping, String> {
        let mut given = self.given.lock();
        if let Some(mapping) = given.get(uid) {
            return Ok(*mapping);
        }
        let space = self.space.clone()?;
        // Ranges of another configuration are in use as long as their pods live.
        let overlaps = |mapping: &IdMapping| {
            given.values().any(|other| {
                let ends = |m: &IdMapping| u64::from(m.host_id) + u64::from(m.length);
                u64::from(mapping.host_id) < ends(other) && u64::from(other.host_id) < ends(mapping)
            })
        };
        let taken: std::collections::BTreeSet<u32> = given.values().filter_map(|m| space.place(m)).collect();
        let mut free =
            (0..space.pods).filter(|place| !taken.contains(place)).map(|place| space.mapping(place));
        let mapping = free.find(|mapping| !overlaps(mapping));
        let mapping = mapping.ok_or("could not find an empty slot to allocate a user namespace")?;
        let directory = self.pods.join(uid);
        fs::create_dir_all(&directory)
            .and_then(|()| fs::write(directory.join(FILE), write(&mapping)))
            .map_err(|error| format!("record user namespace: {error}"))?;
        given.insert(uid.to_owned(), mapping);
        Ok(mapping)
    }

    /// Takes a pod's ids back.
    pub fn release(&self, uid: &str) {
        if self.given.lock().remove(uid).is_some() {
            // Usually gone by now, with the pod's directory.
            let _ = fs::remove_file(self.pods.join(uid).join(FILE));
        }
    }

    /// Takes back what pods have that no longer exist.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.given.lock().keys().filter(|uid| !exists(uid)).cloned().collect();
        gone.iter().for_each(|uid| self.release(uid));
    }
}

/// Why a runtime cannot run a pod whose users are its own.
pub fn unsupported(runtime: &cri::RuntimeInfo, handler: &str) -> Option<String> {
    let supported = match runtime.handlers.iter().find(|known| known.name == handler) {
        Some(known) => known.user_namespaces,
        None if runtime.handlers.is_empty() => runtime.user_namespaces,
        None => return Some(format!("the handler {handler:?} is not known")),
    };
    match (supported, handler) {
        (true, _) => None,
        (false, "") => {
            Some("can't set `spec.hostUsers: false`, runtime does not support user namespaces".into())
        }
        (false, handler) => Some(format!(
            "can't set `spec.hostUsers: false`, RuntimeClass handler {handler:?} does not support user namespaces"
        )),
    }
}

/// Whether a pod's users are its own.
pub fn has_own(pod: &Pod) -> bool {
    crate::spec::spec(pod).host_users == Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces() {
        let of = |told| Space::new(UNIT, 110, told);
        assert_eq!(of(None), Ok(Space { first: 65536, pods: 110, each: 65536 }));
        assert_eq!(
            of(Some("0: kubelet 131072 7208960\n")),
            Ok(Space { first: 131_072, pods: 110, each: 65536 })
        );
        let table = [
            ("0: kubelet 65537 65536", "kubelet user assigned ID 65537 is not a multiple of 65536"),
            ("0: kubelet 0 65536", "kubelet user assigned ID 0 must be greater or equal to 65536"),
            ("0: kubelet 65536 5", "kubelet user assigned IDs length 5 is not a multiple of 65536"),
            ("0: kubelet 65536 65536", "kubelet user assigned IDs are not enough to support 110 pods"),
            ("", "error parsing getsubids output for user \"kubelet\": \"\""),
        ];
        for (told, error) in table {
            assert_eq!(of(Some(told)), Err(error.to_owned()));
        }
        // No id beyond those there are.
        let all = Space::new(UNIT, i64::MAX, None).unwrap();
        let last = all.mapping(all.pods - 1);
        assert!(last.host_id.checked_add(last.length).is_some());
    }

    #[test]
    fn given_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let space = |pods| Ok(Space { first: UNIT, pods, each: UNIT });
        let manager = Manager::with(space(2), directory.path());
        let first = manager.give("a").unwrap();
        assert_eq!((first.host_id, first.length), (UNIT, UNIT));
        assert_eq!(manager.give("a"), Ok(first));
        assert_eq!(manager.give("b").unwrap().host_id, 2 * UNIT);
        assert_eq!(
            manager.give("c"),
            Err("could not find an empty slot to allocate a user namespace".into())
        );
        // Another life of the kubelet, with other ranges.
        let again = Manager::with(Ok(Space { first: UNIT, pods: 4, each: 2 * UNIT }), directory.path());
        assert_eq!(again.of("a"), Some(first));
        assert_eq!(again.give("c").unwrap().host_id, 3 * UNIT);
        again.keep_only(|uid| uid != "a");
        assert_eq!((again.of("a"), again.give("d").map(|m| m.host_id)), (None, Ok(5 * UNIT)));
    }

    #[test]
    fn runtimes() {
        let handler = |name: &str, user_namespaces| cri::RuntimeHandler {
            name: name.into(),
            user_namespaces,
            recursive_readonly_mounts: true,
        };
        let runtime = cri::RuntimeInfo {
            handlers: vec![handler("", false), handler("x", true), handler("y", false)],
            ..Default::default()
        };
        let table = [
            ("x", None),
            ("", Some("can't set `spec.hostUsers: false`, runtime does not support user namespaces")),
            (
                "y",
                Some(
                    "can't set `spec.hostUsers: false`, RuntimeClass handler \"y\" does not support user namespaces",
                ),
            ),
            ("z", Some("the handler \"z\" is not known")),
        ];
        for (name, message) in table {
            assert_eq!(unsupported(&runtime, name).as_deref(), message);
        }
    }
}
