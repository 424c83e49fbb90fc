//! One file: its form, its rules, and what it comes to.

use std::path::PathBuf;

use serde::Deserialize;

/// Versions of the form that are understood.
const VERSIONS: [&str; 10] =
    ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0", "0.2.0", "0.1.0"];

/// What a container needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub devices: Vec<DeviceNode>,
    /// Files and directories of the node.
    pub mounts: Vec<cri::Mount>,
    /// Further groups.
    pub gids: Vec<u32>,
    /// Programs to be run at moments of the container's life.
    pub hooks: Vec<Hook>,
}

/// A program of the node that is run at a moment of a container's life.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// The moment.
    #[serde(rename = "hookName")]
    pub moment: Moment,
    /// The program.
    pub path: PathBuf,
    /// Its arguments, the first of which is its name; the path alone if empty.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its variables, `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds that it may take.
    pub timeout: Option<u32>,
}

/// Moments of a container's life, as the OCI has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Moment {
    /// As `CreateRuntime`, and before it.
    Prestart,
    /// Namespaces and root stand; on the node.
    CreateRuntime,
    /// The same, in the container's namespaces but before its root is the only one.
    CreateContainer,
    /// Just before the container's program, in its place.
    StartContainer,
    /// The program runs; on the node.
    Poststart,
    /// The container is gone; on the node.
    Poststop,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceNode {
    /// Where it appears.
    pub path: PathBuf,
    /// The node's device; the same path if empty.
    #[serde(default)]
    pub host_path: PathBuf,
    /// `b`, `c`, `u` or `p`; that of the node's device if empty.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Permissions of the node.
    pub file_mode: Option<u32>,
    /// Access by the device cgroup; `rwm` if empty.
    #[serde(default)]
    pub permissions: String,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Spec {
    #[serde(default)]
    cdi_version: String,
    pub kind: String,
    #[serde(default)]
    pub devices: Vec<Device>,
    #[serde(default)]
    pub container_edits: RawEdits,
}

/// A device of a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    pub name: String,
    #[serde(default)]
    pub container_edits: RawEdits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawEdits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<RawMount>,
    hooks: Vec<Hook>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
}

impl Spec {
    /// Reads a file. An error says what is wrong with it.
    pub fn parse(text: &str, json: bool) -> Result<Spec, String> {
        let spec: Spec = match json {
            true => serde_json::from_str(text).map_err(|e| e.to_string())?,
            false => serde_saphyr::from_str(text).map_err(|e| e.to_string())?,
        };
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.trim_start_matches('v')) {
            return Err(format!("the version {:?} is not understood", self.cdi_version));
        }
        let parts = self.kind.split_once('/');
        if !parts.is_some_and(|(vendor, class)| is_vendor(vendor) && is_class(class)) {
            return Err(format!("the kind {:?} is not vendor/class", self.kind));
        }
        if let Some(bad) = self.devices.iter().find(|device| !is_device(&device.name)) {
            return Err(format!("the name of a device {:?} is malformed", bad.name));
        }
        let all = self.devices.iter().map(|device| &device.container_edits);
        for edits in all.chain([&self.container_edits]) {
            let of_hooks = edits.hooks.iter().flat_map(|hook| &hook.env);
            if let Some(bad) = edits.env.iter().chain(of_hooks).find(|env| !env.contains('=')) {
                return Err(format!("the variable {bad:?} has no value"));
            }
            let absolute = |path: &PathBuf| path.is_absolute();
            if !edits.device_nodes.iter().all(|node| absolute(&node.path)) {
                return Err("a device node has no path".into());
            }
            if !edits.mounts.iter().all(|m| absolute(&m.host_path) && absolute(&m.container_path)) {
                return Err("a mount lacks a path".into());
            }
            if !edits.hooks.iter().all(|hook| absolute(&hook.path)) {
                return Err("a hook has no path".into());
            }
        }
        Ok(())
    }
}

fn is_vendor(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    edges(text, |b| b.is_ascii_alphabetic()) && text.bytes().all(inner)
}

fn is_class(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    edges(text, |b| b.is_ascii_alphabetic()) && text.bytes().all(inner)
}

fn is_device(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
    edges(text, |b| b.is_ascii_alphanumeric()) && text.bytes().all(inner)
}

fn edges(text: &str, first: fn(u8) -> bool) -> bool {
    let (start, end) = (text.bytes().next(), text.bytes().last());
    start.is_some_and(first) && end.is_some_and(|b| b.is_ascii_alphanumeric())
}

/// The parts of a device's full name: kind and name.
pub(crate) fn split(name: &str) -> Option<(&str, &str)> {
    let (kind, device) = name.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    (is_vendor(vendor) && is_class(class) && is_device(device)).then_some((kind, device))
}

fn mount(raw: &RawMount) -> cri::Mount {
    let has = |option: &str| raw.options.iter().any(|o| o == option);
    cri::Mount {
        host_path: raw.host_path.clone(),
        container_path: raw.container_path.clone(),
        readonly: has("ro") || has("rro"),
        recursive_readonly: has("rro"),
        propagation: match () {
            () if has("rshared") || has("shared") => cri::MountPropagation::Bidirectional,
            () if has("rslave") || has("slave") => cri::MountPropagation::HostToContainer,
            () => cri::MountPropagation::Private,
        },
        ..cri::Mount::default()
    }
}

impl RawEdits {
    /// Adds these edits to others.
    pub fn add_to(&self, edits: &mut Edits) {
        edits.env.extend(self.env.iter().cloned());
        edits.devices.extend(self.device_nodes.iter().cloned());
        edits.mounts.extend(self.mounts.iter().map(mount));
        edits.gids.extend(self.additional_gids.iter().copied().filter(|gid| *gid != 0));
        edits.hooks.extend(self.hooks.iter().cloned());
    }
}
