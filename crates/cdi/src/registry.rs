//! The directories, and devices by their full names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::spec::{Edits, Spec, split};

/// Largest file that is read: real ones have some kilobytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most files of one directory.
const FILES_MAX: usize = 1024;

/// Devices that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CDI device injection failed: unresolvable CDI devices {}", .0.join(", "))]
pub struct Error(pub Vec<String>);

/// Files of devices in some directories.
#[derive(Debug, Clone)]
pub struct Registry {
    directories: Vec<PathBuf>,
}

/// A file with a device, or nothing where two files of one directory claim it.
type Found = Option<(Arc<Spec>, PathBuf)>;

impl Default for Registry {
    fn default() -> Registry {
        Registry::new(crate::DIRECTORIES.iter().map(PathBuf::from))
    }
}

impl Registry {
    /// The files in these directories, the later over the earlier.
    pub fn new(directories: impl IntoIterator<Item = PathBuf>) -> Registry {
        Registry { directories: directories.into_iter().collect() }
    }

    /// What a container needs that is given these devices. Reads files.
    pub fn edits(&self, devices: &[String]) -> Result<Edits, Error> {
        let mut edits = Edits::default();
        if devices.is_empty() {
            return Ok(edits);
        }
        let known = self.read();
        let (mut missing, mut applied): (Vec<String>, Vec<&PathBuf>) = (Vec::new(), Vec::new());
        for name in devices {
            let found = split(name).and_then(|_| known.get(name)?.as_ref());
            let Some((spec, path)) = found else {
                missing.push(name.clone());
                continue;
            };
            // What a file says for all of its devices counts once.
            if !applied.contains(&path) {
                spec.container_edits.add_to(&mut edits);
                applied.push(path);
            }
            let own = split(name).and_then(|(_, own)| spec.devices.iter().find(|device| device.name == own));
            own.into_iter().for_each(|device| device.container_edits.add_to(&mut edits));
        }
        if missing.is_empty() { Ok(edits) } else { Err(Error(missing)) }
    }

    fn read(&self) -> BTreeMap<String, Found> {
        let mut known: BTreeMap<String, Found> = BTreeMap::new();
        for directory in &self.directories {
            let mut here: BTreeMap<String, Found> = BTreeMap::new();
            for path in files(directory) {
                let Some(spec) = read(&path) else { continue };
                let spec = Arc::new(spec);
                for device in &spec.devices {
                    let name = format!("{}={}", spec.kind, device.name);
                    let found = Some((spec.clone(), path.clone()));
                    here.entry(name).and_modify(|known| *known = None).or_insert(found);
                }
            }
            known.extend(here);
        }
        known
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let named =
        |path: &PathBuf| matches!(path.extension().and_then(|e| e.to_str()), Some("json" | "yaml" | "yml"));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(named).take(FILES_MAX).collect();
    files.sort();
    files
}

/// A file; nothing, and a word in the log, if it makes no sense.
fn read(path: &Path) -> Option<Spec> {
    let size = fs::metadata(path).map(|metadata| metadata.len());
    let text = match size {
        Ok(size) if size <= FILE_BYTES_MAX => fs::read_to_string(path).map_err(|e| e.to_string()),
        Ok(_) => Err("it is too large".into()),
        Err(error) => Err(error.to_string()),
    };
    let json = path.extension().is_some_and(|extension| extension == "json");
    match text.and_then(|text| Spec::parse(&text, json)) {
        Ok(spec) => Some(spec),
        Err(error) => {
            tracing::warn!(path = %path.display(), error, "a file of devices is passed over");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
        "devices": [{"name": "a", "containerEdits": {"env": ["A=1"], "deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/null"}]}},
            {"name": "b", "containerEdits": {"env": ["B=1"]}}],
        "containerEdits": {"env": ["ALL=1"], "additionalGids": [0, 44],
            "mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["ro", "bind"]}],
            "hooks": [{"hookName": "createContainer", "path": "/bin/x", "args": ["x", "y"], "env": ["H=1"], "timeout": 3}]}}"#;
    const YAML: &str = "cdiVersion: 1.0.0\nkind: vendor.com/nic\ndevices:\n- name: n0\n  containerEdits:\n    env:\n    - NIC=n0\n";

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn devices_are_found() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(low.path().join("gpu.json"), JSON).unwrap();
        fs::write(low.path().join("nic.yaml"), YAML).unwrap();
        fs::write(low.path().join("bad.json"), "{").unwrap();
        fs::write(low.path().join("old.json"), JSON.replace("0.6.0", "9.0.0").replace("gpu", "old")).unwrap();
        let registry = Registry::new([low.path().to_owned(), high.path().to_owned()]);
        let edits =
            registry.edits(&names(&["vendor.com/gpu=a", "vendor.com/gpu=b", "vendor.com/nic=n0"])).unwrap();
        assert_eq!(edits.env, ["ALL=1", "A=1", "B=1", "NIC=n0"]);
        assert_eq!((edits.gids.as_slice(), edits.hooks.len()), ([44].as_slice(), 1));
        let hook = &edits.hooks[0];
        assert_eq!(
            (hook.moment, hook.args.len(), hook.timeout),
            (crate::Moment::CreateContainer, 2, Some(3))
        );
        assert_eq!((edits.mounts.len(), edits.mounts[0].readonly), (1, true));
        assert_eq!(edits.devices[0].host_path, Path::new("/dev/null"));
        let error =
            registry.edits(&names(&["vendor.com/gpu=z", "nonsense", "vendor.com/old=a"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CDI device injection failed: unresolvable CDI devices vendor.com/gpu=z, nonsense, vendor.com/old=a"
        );
        // A later directory wins; twice in one directory is no device at all.
        fs::write(high.path().join("x.json"), JSON.replace("A=1", "A=2")).unwrap();
        assert_eq!(registry.edits(&names(&["vendor.com/gpu=a"])).unwrap().env, ["ALL=1", "A=2"]);
        fs::write(high.path().join("y.json"), JSON).unwrap();
        assert!(registry.edits(&names(&["vendor.com/gpu=a"])).is_err());
    }

    #[test]
    fn malformed_files() {
        let with = |from: &str, to: &str| Spec::parse(&JSON.replace(from, to), true).err();
        assert_eq!(with("nothing", ""), None);
        for (from, to) in [
            ("vendor.com/gpu", "vendor.com"),
            ("\"name\": \"a\"", "\"name\": \"-a\""),
            ("A=1", "A"),
            ("/dev/a", "dev/a"),
            ("\"hostPath\": \"/h\"", "\"hostPath\": \"h\""),
            ("createContainer", "whenever"),
            ("/bin/x", "bin/x"),
            ("H=1", "H"),
        ] {
            assert!(with(from, to).is_some(), "{to}");
        }
    }
}
