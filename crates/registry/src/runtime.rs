//! Which versions of the API are served: stable ones, unless `--runtime-config` says otherwise.
//!
//! Objects stay in the store whatever is served; a version that is switched on again shows them again.

use std::collections::BTreeMap;

use crate::resource::ResourceDef;

/// A setting of `--runtime-config` cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeConfigError {
    /// The value is no boolean.
    #[error("invalid value of {key}: {value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    Value {
        /// What is switched.
        key: String,
        /// What it is switched to.
        value: String,
    },
    /// The key is none of `api/all`, `api/ga`, `api/beta`, `api/alpha`, `GROUP/VERSION`, `GROUP/VERSION/RESOURCE`.
    #[error("runtime-config invalid key {0}")]
    Key(String),
    /// No such group is known.
    #[error("unknown api groups {0}")]
    Group(String),
}

/// How stable a version is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ga,
    Beta,
    Alpha,
}

fn level(version: &str) -> Level {
    match () {
        () if version.contains("alpha") => Level::Alpha,
        () if version.contains("beta") => Level::Beta,
        () => Level::Ga,
    }
}

/// The switches of `--runtime-config`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeConfig(BTreeMap<String, bool>);

impl RuntimeConfig {
    /// Reads `KEY[=BOOL],...`; a key without a value is switched on.
    pub fn parse(text: &str) -> Result<RuntimeConfig, RuntimeConfigError> {
        let mut switches = BTreeMap::new();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            let (key, value) = (key.trim(), value.trim());
            let on = match value {
                "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                _ => return Err(RuntimeConfigError::Value { key: key.into(), value: value.into() }),
            };
            if !matches!(key.split('/').count(), 2 | 3) || key.split('/').any(str::is_empty) {
                return Err(RuntimeConfigError::Key(key.into()));
            }
            switches.insert(key.to_owned(), on);
        }
        Ok(RuntimeConfig(switches))
    }

    /// Checks that every group that is named exists.
    pub fn check<'a>(&self, groups: impl Iterator<Item = &'a str> + Clone) -> Result<(), RuntimeConfigError> {
        for key in self.0.keys() {
            let group = key.split('/').next().unwrap_or_default();
            // `api` stands for the core group and for the switches of whole levels.
            if group != "api" && !groups.clone().any(|g| g == group) {
                return Err(RuntimeConfigError::Group(group.to_owned()));
            }
            let level = matches!(&**key, "api/all" | "api/ga" | "api/beta" | "api/alpha");
            if group == "api" && !level && key != "api/v1" && !key.starts_with("api/v1/") {
                return Err(RuntimeConfigError::Key(key.clone()));
            }
        }
        Ok(())
    }

    /// Whether a row of the table is served: the most specific switch decides.
    pub fn serves(&self, def: &ResourceDef) -> bool {
        let switch = |key: &str| self.0.get(key).copied();
        let group = if def.group.is_empty() { "api" } else { &*def.group };
        let version = format!("{group}/{}", def.version);
        // An add-on upstream, which is there or not: its clients know no other version.
        let level = if &*def.group == "metrics.k8s.io" { Level::Ga } else { level(&def.version) };
        let by_level = match level {
            Level::Ga => "api/ga",
            Level::Beta => "api/beta",
            Level::Alpha => "api/alpha",
        };
        switch(&format!("{version}/{}", def.resource))
            .or_else(|| switch(&version))
            .or_else(|| switch(by_level))
            .or_else(|| switch("api/all"))
            .unwrap_or(level == Level::Ga)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ResourceTable;

    fn served(config: &str) -> Vec<String> {
        let config = RuntimeConfig::parse(config).unwrap();
        let table = ResourceTable::builtin().unwrap().served(&config).unwrap();
        table.rows().iter().map(|r| format!("{}/{}", r.api_version(), r.resource)).collect()
    }

    #[test]
    fn stable_versions_are_on_and_others_off() {
        let all = served("");
        assert!(
            all.contains(&"v1/pods".to_owned())
                && all.contains(&"resource.k8s.io/v1/deviceclasses".to_owned())
        );
        let off =
            |r: &&String| r.contains("alpha") || (r.contains("beta") && !r.starts_with("metrics.k8s.io"));
        assert!(!all.iter().any(|r| off(&r)), "{all:?}");
    }

    #[test]
    fn the_most_specific_switch_decides() {
        for (config, resource, on) in [
            ("api/all", "resource.k8s.io/v1beta1/deviceclasses", true),
            ("api/all=true", "scheduling.k8s.io/v1alpha3/podgroups", true),
            ("api/beta=true", "resource.k8s.io/v1beta1/deviceclasses", true),
            ("api/beta=true", "resource.k8s.io/v1alpha3/devicetaintrules", false),
            ("api/alpha", "internal.apiserver.k8s.io/v1alpha1/storageversions", true),
            ("resource.k8s.io/v1beta1=true", "resource.k8s.io/v1beta1/deviceclasses", true),
            ("resource.k8s.io/v1beta1=true", "resource.k8s.io/v1beta2/deviceclasses", false),
            ("resource.k8s.io/v1beta1/deviceclasses=true", "resource.k8s.io/v1beta1/deviceclasses", true),
            ("resource.k8s.io/v1beta1/deviceclasses=true", "resource.k8s.io/v1beta1/resourceclaims", false),
            ("api/all=true,resource.k8s.io/v1beta1=false", "resource.k8s.io/v1beta1/deviceclasses", false),
            ("api/beta=true,api/all=false", "resource.k8s.io/v1beta1/deviceclasses", true),
            ("api/beta=true,api/all=false", "v1/pods", false),
            ("apps/v1=false", "apps/v1/deployments", false),
        ] {
            assert_eq!(served(config).contains(&resource.to_owned()), on, "{config} {resource}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        let table = ResourceTable::builtin().unwrap();
        let told = |text: &str| match RuntimeConfig::parse(text) {
            Ok(config) => table.served(&config).unwrap_err().to_string(),
            Err(e) => e.to_string(),
        };
        assert_eq!(told("api"), "runtime-config invalid key api");
        assert_eq!(told("api/gamma=true"), "runtime-config invalid key api/gamma");
        assert_eq!(told("nothing.example/v1"), "unknown api groups nothing.example");
        assert!(told("api/all=maybe").starts_with("invalid value of api/all: maybe, err: strconv.ParseBool"));
    }
}
