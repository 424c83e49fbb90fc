//! Builds, as the local socket serves them: a line with the options, then (for a context that is an archive) a
//! tar; the answer is a line for every event and at last the outcome.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use build::{Builder, Event, Request};
use hyper::body::Incoming;
use image::ImageStore;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, Lines, Upload};

/// Longest line of options: a Dockerfile and some secrets.
const OPTIONS_LEN_MAX: u64 = 64 << 20;
/// Events on their way to a client.
const EVENTS_MAX: usize = 256;
/// Largest Dockerfile in an archive.
const DOCKERFILE_LEN_MAX: u64 = 4 << 20;

/// The options of a build.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    /// Text of the Dockerfile; without one it is in the archive.
    pub dockerfile: Option<String>,
    /// Its name.
    pub file: String,
    /// Directory of the context.
    pub context: Option<PathBuf>,
    /// Text of the ignore file.
    pub ignore: String,
    /// Whether an archive with the context follows.
    pub archive: bool,
    /// Build arguments.
    pub build_args: BTreeMap<String, String>,
    /// Stage to stop at.
    pub target: Option<String>,
    /// Names of the image.
    pub tags: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Secrets, in base64.
    pub secrets: BTreeMap<String, String>,
    /// Take every step.
    pub no_cache: bool,
    /// Look for newer base images.
    pub pull: bool,
    /// Platform.
    pub platform: Option<String>,
    /// Entitlements.
    pub allow: Vec<String>,
    /// Text of a Docker configuration.
    pub credentials: String,
}

/// An unpacked archive; removed with this.
struct Unpacked(PathBuf);

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) async fn build(
    builder: Arc<Builder>,
    images: Arc<ImageStore>,
    body: Incoming,
) -> anyhow::Result<Answer> {
    let (upload, pieces) = Upload::open(body);
    let prepared = tokio::task::spawn_blocking(move || prepare(&images, pieces));
    let (fed, prepared) = tokio::join!(upload.feed(), prepared);
    let (request, unpacked) = prepared??;
    fed?;
    let (lines, answer) = Lines::open();
    tokio::spawn(async move {
        let (sender, mut events) = tokio::sync::mpsc::channel(EVENTS_MAX);
        let building = builder.build(request, sender);
        tokio::pin!(building);
        let outcome = loop {
            tokio::select! {
                outcome = &mut building => break outcome,
                event = events.recv() => {
                    let Some(event) = event else { continue };
                    // Nobody waits for this build any more: dropping it ends it.
                    if !lines.step(&value(&event)).await {
                        return;
                    }
                }
                () = lines.0.closed() => return,
            }
        };
        while let Ok(event) = events.try_recv() {
            lines.step(&value(&event)).await;
        }
        drop(unpacked);
        let outcome = outcome.map(|o| {
            json!({"id": o.id, "digest": o.digest, "names": o.names, "steps": o.steps, "cached": o.cached})
        });
        lines.end(outcome.map_err(Into::into)).await;
    });
    Ok(answer)
}

/// Reads what the client has sent.
fn prepare(images: &ImageStore, body: impl Read) -> anyhow::Result<(Request, Option<Unpacked>)> {
    let mut body = BufReader::new(body);
    let mut line = Vec::new();
    (&mut body).take(OPTIONS_LEN_MAX).read_until(b'\n', &mut line)?;
    let options: Options = serde_json::from_slice(&line).context("cannot understand the options")?;
    let unpacked = match options.archive {
        true => Some(unpack(images, &mut body)?),
        false => None,
    };
    let context = options.context.clone().or(unpacked.as_ref().map(|u| u.0.clone()));
    let (dockerfile, ignore) = match (options.dockerfile, &unpacked) {
        (Some(text), _) => (text, options.ignore),
        (None, Some(root)) => {
            let text = read_inside(&root.0, &options.file)?;
            let text = text.with_context(|| format!("the archive has no {}", options.file))?;
            (text, read_inside(&root.0, ".dockerignore")?.unwrap_or_default())
        }
        (None, None) => bail!("no Dockerfile was given"),
    };
    let decode = |text: &String| base64::engine::general_purpose::STANDARD.decode(text);
    let secrets = options.secrets.iter().map(|(id, text)| Ok((id.clone(), decode(text)?)));
    let request = Request {
        dockerfile,
        file_name: options.file,
        context,
        ignore,
        build_args: options.build_args,
        target: options.target,
        tags: options.tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>()?,
        labels: options.labels,
        secrets: secrets.collect::<anyhow::Result<_>>()?,
        no_cache: options.no_cache,
        pull: options.pull,
        platform: options.platform,
        allow_insecure: options.allow.iter().any(|a| a == "security.insecure"),
        allow_host_network: options.allow.iter().any(|a| a == "network.host"),
        credentials: options.credentials,
    };
    Ok((request, unpacked))
}

fn unpack(images: &ImageStore, body: &mut impl Read) -> anyhow::Result<Unpacked> {
    let dir = Unpacked(images.work_dir()?);
    let file = dir.0.join("archive");
    std::io::copy(body, &mut std::fs::File::create_new(&file)?).context("cannot receive the context")?;
    ensure!(image::is_archive(&file)?, "the context is not a tar archive");
    let root = dir.0.join("context");
    std::fs::create_dir(&root)?;
    image::extract_archive(&file, std::fs::File::open(&root)?.into())?;
    std::fs::remove_file(&file)?;
    // What stays behind when the inner directory is used goes with the outer.
    let moved = images.work_dir()?;
    std::fs::remove_dir(&moved)?;
    std::fs::rename(&root, &moved)?;
    Ok(Unpacked(moved))
}

/// Reads a file of an unpacked archive; nothing outside of it, wherever links lead.
fn read_inside(root: &Path, name: &str) -> anyhow::Result<Option<String>> {
    let root = root.canonicalize()?;
    let Ok(path) = root.join(name.trim_start_matches('/')).canonicalize() else { return Ok(None) };
    ensure!(path.starts_with(&root), "{name} lies outside of the context");
    let mut text = String::new();
    std::fs::File::open(&path)?.take(DOCKERFILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

fn value(event: &Event) -> Value {
    match event {
        Event::Begin { step, text } => json!({"step": step, "begin": text}),
        Event::Output { step, text } => json!({"step": step, "output": text}),
        Event::Done { step, cached, took } => {
            json!({"step": step, "done": true, "cached": cached, "seconds": took.as_secs_f64()})
        }
        Event::Failed { step, error } => json!({"step": step, "failed": error}),
        Event::Warning { text } => json!({"warning": text}),
    }
}
