//! `RUN --mount=...`.

/// What a RUN step sees beside its file tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMount {
    /// Where; empty for a secret that is only a variable.
    pub target: String,
    /// What.
    pub kind: RunMountKind,
}

/// Kinds of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunMountKind {
    /// Files of the context, a stage or an image; changes are dropped.
    Bind {
        /// Stage or image; the context without.
        from: Option<String>,
        /// Path there.
        source: String,
        /// Whether it may be written.
        writable: bool,
    },
    /// A directory kept from build to build.
    Cache {
        /// Its name.
        id: String,
        /// Who may use it at once.
        sharing: Sharing,
        /// Whether it may only be read.
        readonly: bool,
        /// Mode it is made with.
        mode: u32,
        /// Owner it is made with.
        uid: u32,
        /// Group it is made with.
        gid: u32,
        /// Where its first content comes from.
        from: Option<String>,
        /// Path there.
        source: String,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; 0 for no limit.
        size: u64,
    },
    /// A value of the one who builds.
    Secret {
        /// Its name.
        id: String,
        /// Variable that gets it, if any.
        env: Option<String>,
        /// Whether the build fails without.
        required: bool,
        /// Mode of the file.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// Who may use a cache at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All.
    Shared,
    /// Each gets one of its own.
    Private,
    /// One after the other.
    Locked,
}

/// The options as they are read.
#[derive(Default)]
struct Options {
    kind: String,
    target: Option<String>,
    from: Option<String>,
    source: Option<String>,
    id: Option<String>,
    sharing: Option<String>,
    env: Option<String>,
    size: u64,
    required: bool,
    writable: Option<bool>,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
}

/// Parses the value of a `--mount` flag, its variables already expanded.
pub fn parse_mount(text: &str) -> Result<RunMount, String> {
    let mut options = Options { kind: "bind".into(), ..Options::default() };
    for field in text.split(',').filter(|f| !f.is_empty()) {
        let (key, value) = field.split_once('=').map_or((field, None), |(k, v)| (k, Some(v)));
        option(&mut options, &key.to_ascii_lowercase(), value)
            .ok_or_else(|| format!("invalid mount option {field:?} in {text:?}"))?;
    }
    build(options)
}

fn option(options: &mut Options, key: &str, value: Option<&str>) -> Option<()> {
    let truth = || match value {
        None | Some("true" | "1") => Some(true),
        Some("false" | "0") => Some(false),
        Some(_) => None,
    };
    let text = || value.filter(|v| !v.is_empty()).map(str::to_owned);
    match key {
        "type" => options.kind = text()?,
        "target" | "dst" | "destination" => options.target = Some(text()?),
        "from" => options.from = Some(text()?),
        "source" | "src" => options.source = Some(value?.to_owned()),
        "id" => options.id = Some(text()?),
        "sharing" => options.sharing = Some(text()?),
        "env" => options.env = Some(text()?),
        "size" => options.size = size(value?)?,
        "required" => options.required = truth()?,
        "rw" | "readwrite" => options.writable = Some(truth()?),
        "ro" | "readonly" => options.writable = Some(!truth()?),
        "mode" => options.mode = Some(u32::from_str_radix(value?, 8).ok()?),
        "uid" => options.uid = value?.parse().ok()?,
        "gid" => options.gid = value?.parse().ok()?,
        _ => return None,
    }
    Some(())
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)?.to_ascii_lowercase().trim_end_matches('b') {
        "" => 1,
        "k" | "ki" => 1 << 10,
        "m" | "mi" => 1 << 20,
        "g" | "gi" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn build(options: Options) -> Result<RunMount, String> {
    let target = options.target.clone().unwrap_or_default();
    let needs_target = |target: &str| match target.is_empty() {
        true => Err(format!("invalid mount: type={} needs a target", options.kind)),
        false => Ok(()),
    };
    let source = options.source.clone().unwrap_or_default();
    let kind = match options.kind.as_str() {
        "bind" => {
            needs_target(&target)?;
            RunMountKind::Bind { from: options.from, source, writable: options.writable.unwrap_or(false) }
        }
        "cache" => {
            needs_target(&target)?;
            let sharing = match options.sharing.as_deref() {
                None | Some("shared") => Sharing::Shared,
                Some("private") => Sharing::Private,
                Some("locked") => Sharing::Locked,
                Some(other) => return Err(format!("unsupported sharing value {other:?}")),
            };
            RunMountKind::Cache {
                id: options.id.unwrap_or_else(|| target.clone()),
                sharing,
                readonly: options.writable == Some(false),
                mode: options.mode.unwrap_or(0o755),
                uid: options.uid,
                gid: options.gid,
                from: options.from,
                source,
            }
        }
        "tmpfs" => {
            needs_target(&target)?;
            RunMountKind::Tmpfs { size: options.size }
        }
        "secret" => {
            let file = target.rsplit('/').next().unwrap_or_default().to_owned();
            let id = options.id.or(Some(file).filter(|f| !f.is_empty())).or(options.env.clone());
            let id = id.ok_or("invalid mount: a secret needs an id or a target")?;
            let target = match (target.is_empty(), &options.env) {
                (true, None) => format!("/run/secrets/{id}"),
                _ => target,
            };
            let mode = options.mode.unwrap_or(0o400);
            let (env, required) = (options.env, options.required);
            let kind = RunMountKind::Secret { id, env, required, mode, uid: options.uid, gid: options.gid };
            return Ok(RunMount { target, kind });
        }
        "ssh" => {
            return Err(
                "mounts of type ssh are not supported: a build runs in the node, which has no SSH agent \
                        of yours; give the key as a secret (--mount=type=secret)"
                    .into(),
            );
        }
        other => return Err(format!("unsupported mount type {other:?}")),
    };
    Ok(RunMount { target, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        let bind = |from: Option<&str>, source: &str, writable| RunMountKind::Bind {
            from: from.map(str::to_owned),
            source: source.into(),
            writable,
        };
        let cache = |id: &str, sharing| RunMountKind::Cache {
            id: id.into(),
            sharing,
            readonly: false,
            mode: 0o755,
            uid: 0,
            gid: 0,
            from: None,
            source: String::new(),
        };
        let secret = |id: &str, env: Option<&str>, required| RunMountKind::Secret {
            id: id.into(),
            env: env.map(str::to_owned),
            required,
            mode: 0o400,
            uid: 0,
            gid: 0,
        };
        let table = [
            ("target=/a", "/a", bind(None, "", false)),
            ("type=bind,from=b,source=/x,dst=/a,rw", "/a", bind(Some("b"), "/x", true)),
            ("type=cache,target=/c", "/c", cache("/c", Sharing::Shared)),
            ("type=cache,id=i,target=/c,sharing=locked", "/c", cache("i", Sharing::Locked)),
            ("type=tmpfs,target=/t,size=1m", "/t", RunMountKind::Tmpfs { size: 1 << 20 }),
            ("type=secret,id=s", "/run/secrets/s", secret("s", None, false)),
            ("type=secret,target=/x/key,required", "/x/key", secret("key", None, true)),
            ("type=secret,id=s,env=S", "", secret("s", Some("S"), false)),
        ];
        for (text, target, kind) in table {
            assert_eq!(parse_mount(text), Ok(RunMount { target: target.into(), kind }), "{text}");
        }
        for bad in [
            "type=cache",
            "type=x,target=/",
            "type=ssh",
            "target=/a,foo=1",
            "type=secret",
            "type=cache,target=/c,sharing=x",
        ] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }
}
