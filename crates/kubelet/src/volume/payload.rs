//! What the files of configMap, secret, downwardAPI and projected volumes contain. Pure.

use std::collections::BTreeMap;

use api::k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath};
use api::prelude::*;

use super::atomic::{File, Payload};
use crate::env::{self, Facts};
use crate::spec;

/// Permission bits when a volume names none.
pub const DEFAULT_MODE: i32 = 0o644;

/// A key is asked for that the object does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key is not there.
    #[error("references non-existent {kind} key: {key}")]
    MissingKey {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// The downward API cannot tell it.
    #[error(transparent)]
    Field(#[from] env::Error),
}

fn mode(mode: Option<i32>, default: i32) -> u32 {
    (mode.unwrap_or(default) & 0o777) as u32
}

/// Files of a ConfigMap's or Secret's data: all keys, or those that `items` name.
pub fn of_data(
    kind: &'static str,
    data: &BTreeMap<String, Vec<u8>>,
    items: &[KeyToPath],
    default_mode: i32,
    optional: bool,
) -> Result<Payload, Error> {
    if items.is_empty() {
        let file = |content: &Vec<u8>| File { content: content.clone(), mode: mode(None, default_mode) };
        return Ok(data.iter().map(|(key, content)| (key.clone(), file(content))).collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(content) => {
                let file = File { content: content.clone(), mode: mode(item.mode, default_mode) };
                payload.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(Error::MissingKey { kind, key: item.key.clone() }),
        }
    }
    Ok(payload)
}

/// Files of the downward API.
pub fn of_downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    facts: &Facts,
) -> Result<Payload, Error> {
    let mut payload = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            env::pod_field(pod, &field.field_path, facts)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let (_, container) = spec::find(pod, name)
                .ok_or_else(|| env::Error::Field(format!("container {name} not found")))?;
            env::resource_field(pod, &container, selector, facts)?
        } else {
            continue;
        };
        payload.insert(
            item.path.clone(),
            File { content: text.into_bytes(), mode: mode(item.mode, default_mode) },
        );
    }
    Ok(payload)
}

/// The data of a ConfigMap, text and binary.
pub fn config_map_data(object: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

/// The data of a Secret.
pub fn secret_data(object: &Secret) -> BTreeMap<String, Vec<u8>> {
    object.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_items() {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let all = of_data("config", &data, &[], 0o600, false).unwrap();
        assert_eq!((all.len(), all["a"].mode), (2, 0o600));
        let item = |key: &str| KeyToPath {
            key: key.into(),
            path: format!("x/{key}"),
            mode: Some(0o400),
            ..Default::default()
        };
        let some = of_data("config", &data, &[item("a")], 0o600, false).unwrap();
        assert_eq!(
            some.iter().map(|(path, file)| (path.as_str(), file.mode)).collect::<Vec<_>>(),
            [("x/a", 0o400)]
        );
        let error = of_data("config", &data, &[item("c")], 0o600, false).unwrap_err();
        assert_eq!(error.to_string(), "references non-existent config key: c");
        assert!(of_data("config", &data, &[item("c")], 0o600, true).unwrap().is_empty());
    }
}
