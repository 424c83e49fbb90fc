//! What devices of the Container Device Interface change in a container.

use cdi::{DeviceNode, Edits};
use cri::ContainerConfig;

use super::lifecycle::device_at;
use crate::spec::DeviceSpec;

/// The configuration with variables, mounts and groups of its devices. What devices say of a variable or a path wins
/// over what was there, as in other runtimes.
pub(super) fn apply(config: &ContainerConfig, edits: &Edits) -> ContainerConfig {
    let mut config = config.clone();
    for line in &edits.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        config.envs.retain(|env| env.name != name);
        config.envs.push(cri::EnvVar { name: name.to_owned(), value: value.to_owned() });
    }
    for mount in &edits.mounts {
        config.mounts.retain(|own| own.container_path != mount.container_path);
        config.mounts.push(mount.clone());
    }
    for gid in &edits.gids {
        if !config.security.supplemental_groups.contains(gid) {
            config.security.supplemental_groups.push(*gid);
        }
    }
    config
}

/// A device node. Type and numbers are the node's own where the file does not give them.
pub(super) fn device(node: &DeviceNode) -> Result<DeviceSpec, String> {
    let host = if node.host_path.as_os_str().is_empty() { &node.path } else { &node.host_path };
    let found = device_at(host);
    let numbers = node.major.zip(node.minor).or(found.as_ref().map(|found| (found.major, found.minor)));
    let block = match node.kind.as_str() {
        "" => found.as_ref().map(|found| found.block),
        "b" => Some(true),
        "c" | "u" => Some(false),
        other => {
            return Err(format!("the type {other:?} of device {} is not supported", node.path.display()));
        }
    };
    let ((major, minor), block) = numbers.zip(block).ok_or_else(|| {
        let path = host.display();
        format!(
            "CDI device injection failed: failed to stat CDI host device {:?}: no such device",
            path.to_string()
        )
    })?;
    let of = |own: Option<u32>, found: Option<u32>, other: u32| own.or(found).unwrap_or(other);
    Ok(DeviceSpec {
        path: node.path.clone(),
        block,
        major,
        minor,
        mode: of(node.file_mode, found.as_ref().map(|f| f.mode), 0o660) & 0o777,
        uid: of(node.uid, found.as_ref().map(|f| f.uid), 0),
        gid: of(node.gid, found.as_ref().map(|f| f.gid), 0),
        access: if node.permissions.is_empty() { "rwm".to_owned() } else { node.permissions.clone() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_applied() {
        let env = |name: &str, value: &str| cri::EnvVar { name: name.into(), value: value.into() };
        let config = ContainerConfig { envs: vec![env("A", "own"), env("B", "own")], ..Default::default() };
        let edits = Edits { env: vec!["A=device=1".into()], gids: vec![44], ..Edits::default() };
        let made = apply(&config, &edits);
        assert_eq!(made.envs, [env("B", "own"), env("A", "device=1")]);
        assert_eq!(made.security.supplemental_groups, [44]);
    }

    #[test]
    fn device_nodes() {
        let node =
            DeviceNode { path: "/dev/x".into(), host_path: "/dev/null".into(), ..DeviceNode::default() };
        let made = device(&node).unwrap();
        assert_eq!((made.major, made.minor, made.block, made.access.as_str()), (1, 3, false, "rwm"));
        let made = device(&DeviceNode {
            major: Some(7),
            minor: Some(9),
            kind: "b".into(),
            file_mode: Some(0o600),
            host_path: "/dev/none".into(),
            ..node.clone()
        });
        let made = made.unwrap();
        assert_eq!((made.major, made.minor, made.block, made.mode), (7, 9, true, 0o600));
        assert!(device(&DeviceNode { host_path: "/dev/none".into(), ..node }).is_err());
    }
}
