//! Reading pod specs: containers by role, names that the runtime and the node's directories know them by.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use api::k8s_openapi::api::core::v1::{EphemeralContainer, ObjectReference};
use api::prelude::*;
use sha2::{Digest, Sha256};

/// Labels and annotations on sandboxes and containers, by which they are recognised after a restart.
pub mod mark {
    /// Name of the pod.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Namespace of the pod.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Uid of the pod.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Name of the container.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Hash of the container's spec.
    pub const HASH: &str = "io.kubernetes.container.hash";
    /// How often the container was restarted.
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    /// Path of the termination message in the container.
    pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    /// `File` or `FallbackToLogsOnError`.
    pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Host file behind the termination message.
    pub const MESSAGE_FILE: &str = "ferry.dev/termination-message-file";
}

/// What part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs to completion before the regular ones.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, runs beside the regular ones.
    Sidecar,
    /// A regular container.
    Regular,
    /// Added to a running pod for debugging.
    Ephemeral,
}

/// The spec; empty for a pod without.
pub fn spec(pod: &Pod) -> Cow<'_, PodSpec> {
    pod.spec.as_ref().map_or_else(|| Cow::Owned(PodSpec::default()), Cow::Borrowed)
}

/// Whether an init container is a sidecar.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Every container: init containers and sidecars in order, then regular, then ephemeral ones.
pub fn containers(pod: &Pod) -> Vec<(Role, Cow<'_, Container>)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|container| {
        (if is_sidecar(container) { Role::Sidecar } else { Role::Init }, Cow::Borrowed(container))
    });
    let regular = spec.containers.iter().map(|container| (Role::Regular, Cow::Borrowed(container)));
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|container| (Role::Ephemeral, Cow::Owned(from_ephemeral(container))));
    init.chain(regular).chain(ephemeral).collect()
}

/// The container of this name.
pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<(Role, Cow<'a, Container>)> {
    containers(pod).into_iter().find(|(_, container)| container.name == name)
}

fn from_ephemeral(from: &EphemeralContainer) -> Container {
    Container {
        args: from.args.clone(),
        command: from.command.clone(),
        env: from.env.clone(),
        env_from: from.env_from.clone(),
        image: from.image.clone(),
        image_pull_policy: from.image_pull_policy.clone(),
        name: from.name.clone(),
        resources: from.resources.clone(),
        security_context: from.security_context.clone(),
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path.clone(),
        termination_message_policy: from.termination_message_policy.clone(),
        tty: from.tty,
        volume_devices: from.volume_devices.clone(),
        volume_mounts: from.volume_mounts.clone(),
        working_dir: from.working_dir.clone(),
        ..Container::default()
    }
}

/// The container an ephemeral container shares processes with.
pub fn ephemeral_target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let ephemeral = pod.spec.as_ref()?.ephemeral_containers.as_ref()?;
    let container = ephemeral.iter().find(|container| container.name == name)?;
    container.target_container_name.as_deref().filter(|target| !target.is_empty())
}

/// Hash of the parts of a container whose change needs a restart (name and image, as upstream since
/// resources can be resized in place).
pub fn container_hash(container: &Container) -> String {
    let mut hasher = Sha256::new();
    hasher.update(container.name.as_bytes());
    hasher.update([0]);
    hasher.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hasher.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Names of the volumes that containers mount, and of those they have as devices.
pub fn used_volumes(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut mounts, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for (_, container) in containers(pod) {
        mounts.extend(container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()));
        devices.extend(container.volume_devices.iter().flatten().map(|device| device.name.clone()));
    }
    (mounts, devices)
}

/// An event reference to a container of a pod.
pub fn container_reference(pod: &Pod, role: Role, name: &str) -> ObjectReference {
    let list = match role {
        Role::Init | Role::Sidecar => "initContainers",
        Role::Regular => "containers",
        Role::Ephemeral => "ephemeralContainers",
    };
    let field_path = Some(format!("spec.{list}{{{name}}}"));
    ObjectReference { field_path, ..reconcile::object_reference(pod) }
}

/// `name_namespace(uid)`, as upstream names pods in messages.
pub fn describe(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name(), pod.namespace(), pod.uid())
}

/// Labels of a pod's sandbox and, with the container's name added, of its containers.
pub fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let own =
        [(mark::POD_NAME, pod.name()), (mark::POD_NAMESPACE, pod.namespace()), (mark::POD_UID, pod.uid())];
    let labels = pod.metadata.labels.iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    labels.chain(own.map(|(key, value)| (key.to_owned(), value.to_owned()))).collect()
}

/// Where a pod's files lie on the node.
#[derive(Debug, Clone)]
pub struct PodDirs {
    /// Directory of the pod.
    pub root: PathBuf,
    /// Directory of its logs.
    pub logs: PathBuf,
}

impl PodDirs {
    /// The directories of a pod below the kubelet's root and log directories.
    pub fn new(root: &Path, logs: &Path, pod: &Pod) -> Self {
        PodDirs {
            root: root.join("pods").join(pod.uid()),
            logs: logs.join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid())),
        }
    }

    /// Directory of a volume of a plugin such as `kubernetes.io/secret`.
    pub fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.root.join("volumes").join(plugin.replace('/', "~")).join(name)
    }

    /// The link to a device of a plugin such as `kubernetes.io/csi`.
    pub fn device(&self, plugin: &str, name: &str) -> PathBuf {
        self.root.join("volumeDevices").join(plugin.replace('/', "~")).join(name)
    }

    /// The pod's `/etc/hosts`.
    pub fn etc_hosts(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }

    /// Directory of a container's own files.
    pub fn container(&self, name: &str) -> PathBuf {
        self.root.join("containers").join(name)
    }
}

/// Log path of a container, relative to the pod's log directory.
pub fn log_path(container: &str, restart_count: u32) -> PathBuf {
    PathBuf::from(container).join(format!("{restart_count}.log"))
}

/// Seconds the pod may take to end: what deletion asked for, else the spec's.
pub fn grace_period_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds))
        .unwrap_or(30)
        .max(1)
}

/// The port that a probe or hook names: a number, or the name of a port of the container.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| format!("couldn't find port: {name:?} in container"))?,
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::k8s_openapi::api::core::v1::ContainerPort;

    #[test]
    fn ports() {
        let container = Container {
            ports: Some(vec![ContainerPort {
                name: Some("web".into()),
                container_port: 8080,
                ..Default::default()
            }]),
            ..Container::default()
        };
        let cases = [
            (IntOrString::Int(80), Ok(80)),
            (IntOrString::String("web".into()), Ok(8080)),
            (IntOrString::String("90".into()), Ok(90)),
            (IntOrString::String("x".into()), Err("couldn't find port: \"x\" in container".to_owned())),
            (IntOrString::Int(0), Err("invalid port number: 0".to_owned())),
        ];
        for (port, expected) in cases {
            assert_eq!(resolve_port(&port, &container), expected);
        }
    }

    #[test]
    fn hash_depends_on_the_image_only() {
        let a = Container { name: "c".into(), image: Some("i:1".into()), ..Container::default() };
        let mut b = a.clone();
        b.working_dir = Some("/x".into());
        assert_eq!(container_hash(&a), container_hash(&b));
        b.image = Some("i:2".into());
        assert_ne!(container_hash(&a), container_hash(&b));
    }
}
