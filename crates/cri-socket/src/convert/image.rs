//! Images, credentials and the file system that holds them.

use base64::Engine;
use cri::{FsInfo, Image, ImageAuth, ImageConfig};
use rpc::cri as pb;
use serde_json::{Value, json};

use super::{id_from, id_to, nanoseconds, text, value, value_of};

/// An image.
pub fn image_to(image: &Image) -> pb::Image {
    pb::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid: id_to(image.uid),
        username: if image.uid.is_some() { String::new() } else { image.username.clone() },
        spec: None,
        pinned: image.pinned,
    }
}

/// An image.
pub fn image_from(image: pb::Image) -> Image {
    Image {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size_bytes: image.size,
        uid: id_from(image.uid),
        username: image.username,
        pinned: image.pinned,
        added_at: None,
    }
}

/// Credentials.
pub fn auth_to(auth: &ImageAuth) -> pb::AuthConfig {
    pb::AuthConfig {
        username: auth.username.clone(),
        password: auth.password.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
        ..Default::default()
    }
}

/// Credentials; `auth` is `user:password` in base64, as in docker's files. `Err` says what is wrong with it.
pub fn auth_from(auth: &pb::AuthConfig) -> Result<Option<ImageAuth>, String> {
    let mut out = ImageAuth {
        username: auth.username.clone(),
        password: auth.password.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    };
    if out.username.is_empty() && !auth.auth.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(auth.auth.trim())
            .map_err(|error| format!("invalid auth: {error}"))?;
        let text = String::from_utf8_lossy(&decoded).into_owned();
        let (user, password) =
            text.split_once(':').ok_or("invalid auth: no colon between user and password")?;
        out.username = user.to_owned();
        // Docker pads with NUL.
        out.password = password.trim_end_matches('\0').to_owned();
    }
    Ok((out != ImageAuth::default()).then_some(out))
}

/// Use of a file system.
pub fn fs_to(info: &FsInfo) -> pb::FilesystemUsage {
    pb::FilesystemUsage {
        timestamp: nanoseconds(info.timestamp),
        fs_id: Some(pb::FilesystemIdentifier { mountpoint: text(&info.mountpoint) }),
        used_bytes: value(info.used_bytes),
        inodes_used: value(info.inodes_used),
    }
}

/// Bytes and files in use.
pub fn fs_used(usage: &pb::FilesystemUsage) -> (u64, u64) {
    (value_of(usage.used_bytes), value_of(usage.inodes_used))
}

/// The verbose half of an image's status: its configuration as OCI writes it.
pub fn config_info(config: &ImageConfig) -> Value {
    json!({"imageSpec": {"config": {
        "Entrypoint": config.entrypoint, "Cmd": config.cmd, "Env": config.env, "User": config.user,
        "WorkingDir": config.working_dir, "StopSignal": config.stop_signal, "Labels": config.labels,
    }}})
}

/// The configuration in the verbose half, as containerd and CRI-O write it; empty where there is none.
pub fn config_of_info(info: &str) -> ImageConfig {
    let info: Value = serde_json::from_str(info).unwrap_or_default();
    let config = info.pointer("/imageSpec/config").unwrap_or(&Value::Null);
    let texts = |name: &str| -> Vec<String> {
        let list = config.get(name).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let word = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let labels = config.get("Labels").and_then(Value::as_object).into_iter().flatten();
    ImageConfig {
        entrypoint: texts("Entrypoint"),
        cmd: texts("Cmd"),
        env: texts("Env"),
        user: word("User"),
        working_dir: word("WorkingDir"),
        stop_signal: super::some_text(&word("StopSignal")),
        labels: labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect(),
        ..ImageConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials() {
        let with = |auth: &str| auth_from(&pb::AuthConfig { auth: auth.into(), ..Default::default() });
        let found = with("dTpw").unwrap().unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("u", "p"));
        assert!(with("dTpwAAA=").unwrap().is_some_and(|auth| auth.password == "p"));
        assert!(with("!").is_err() && with("dXA=").is_err());
        assert_eq!(with(""), Ok(None));
        let auth = ImageAuth { username: "u".into(), registry_token: "t".into(), ..ImageAuth::default() };
        assert_eq!(auth_from(&auth_to(&auth)), Ok(Some(auth)));
    }

    #[test]
    fn configurations_in_words() {
        let config = ImageConfig {
            cmd: vec!["sh".into()],
            user: "nobody".into(),
            stop_signal: Some("SIGQUIT".into()),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ..ImageConfig::default()
        };
        assert_eq!(config_of_info(&config_info(&config).to_string()), config);
        assert_eq!(config_of_info("nonsense"), ImageConfig::default());
    }
}
