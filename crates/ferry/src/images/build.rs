//! `ferry image build`: gathers what the build needs, sends it to the instance, shows how it goes.

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use clap::{Args, ValueEnum};
use http::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{Output, credentials, show};
use crate::local::{self, Source, building::Options};

/// Bytes that tell an archive from a Dockerfile.
const HEAD_LEN: u64 = 512;
/// How often a spinner turns.
const TICK: std::time::Duration = std::time::Duration::from_millis(100);

/// Options of `ferry image build`.
#[derive(Debug, Args)]
pub struct BuildOptions {
    /// Directory of the files to build from; `-` reads a Dockerfile or a tar from standard input.
    pub context: PathBuf,
    /// The Dockerfile, `Dockerfile` in the context by default; `-` reads standard input.
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// Name for the image.
    #[arg(short, long = "tag")]
    pub tags: Vec<String>,
    /// Build argument; without a value that of the environment.
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    pub build_args: Vec<String>,
    /// Label to add.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Stage to stop at.
    #[arg(long)]
    pub target: Option<String>,
    /// Secret for RUN --mount=type=secret: id=NAME and src=FILE or env=VARIABLE.
    #[arg(long = "secret", value_name = "id=NAME,src=FILE")]
    pub secrets: Vec<String>,
    /// Take every step anew.
    #[arg(long)]
    pub no_cache: bool,
    /// Look for newer base images.
    #[arg(long)]
    pub pull: bool,
    /// Platform; only this machine's.
    #[arg(long)]
    pub platform: Option<String>,
    /// What steps may ask for: network.host, security.insecure.
    #[arg(long = "allow")]
    pub allow: Vec<String>,
    /// How to show progress.
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
    /// Print the image's id alone.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Ways to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// `tty` on a terminal, else `plain`.
    Auto,
    /// Lines.
    Plain,
    /// Moving lines.
    Tty,
}

/// Builds.
pub(super) async fn run(socket: &Path, build: &BuildOptions, output: Output) -> anyhow::Result<()> {
    let (options, archive) = gather(build)?;
    let mut head = serde_json::to_vec(&options)?;
    head.push(b'\n');
    let head = std::io::Cursor::new(head);
    let body: Source = match archive {
        Some(archive) => Box::new(head.chain(archive)),
        None => Box::new(head),
    };
    let tty = match build.progress {
        Progress::Auto => std::io::stderr().is_terminal(),
        Progress::Plain => false,
        Progress::Tty => true,
    };
    let mut screen = if tty { Screen::Tty(Spinners::default()) } else { Screen::Plain };
    let quiet = build.quiet;
    let outcome = local::call(socket, Method::POST, "/images/build", Some(body), |event| {
        if !quiet {
            screen.show(event);
        }
    })
    .await;
    drop(screen);
    let value = outcome.map_err(|e| anyhow::anyhow!("failed to build:\n{e:#}"))?;
    match output {
        Output::Table if quiet => println!("{}", value["id"].as_str().unwrap_or_default()),
        Output::Table => {
            let names: Vec<&str> =
                value["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            println!("built {} {}", value["id"].as_str().unwrap_or_default(), names.join(" "));
        }
        form => show::document(form, &value)?,
    }
    Ok(())
}

fn gather(build: &BuildOptions) -> anyhow::Result<(Options, Option<Source>)> {
    let mut options = Options {
        build_args: build.build_args.iter().filter_map(|arg| argument(arg)).collect(),
        labels: build.labels.iter().map(|l| pair(l)).collect(),
        secrets: build.secrets.iter().map(|s| secret(s)).collect::<anyhow::Result<_>>()?,
        target: build.target.clone(),
        tags: build.tags.clone(),
        no_cache: build.no_cache,
        pull: build.pull,
        platform: build.platform.clone(),
        allow: build.allow.clone(),
        credentials: credentials(),
        ..Options::default()
    };
    if let (Ok(epoch), false) =
        (std::env::var("SOURCE_DATE_EPOCH"), options.build_args.contains_key("SOURCE_DATE_EPOCH"))
    {
        options.build_args.insert("SOURCE_DATE_EPOCH".into(), epoch);
    }
    let text = build.context.to_string_lossy();
    let remote = ["http://", "https://", "git://", "git@", "ssh://"].iter().any(|p| text.starts_with(p));
    ensure!(!remote, "{text}: contexts from the network are not supported; clone or fetch it first");
    if text == "-" {
        let archive = from_stdin(build, &mut options)?;
        return Ok((options, archive));
    }
    let context = build.context.canonicalize();
    let context = context.with_context(|| format!("cannot find the context {}", build.context.display()))?;
    ensure!(context.is_dir(), "the context {} is not a directory", context.display());
    let file = match &build.file {
        Some(file) => file.clone(),
        None => context.join("Dockerfile"),
    };
    let dockerfile = match file.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        false => std::fs::read_to_string(&file)
            .with_context(|| format!("failed to read dockerfile: open {}", file.display()))?,
    };
    options.dockerfile = Some(dockerfile);
    options.file = match file.as_os_str() == "-" {
        true => "Dockerfile".into(),
        false => file.strip_prefix(&context).unwrap_or(&file).display().to_string(),
    };
    // One beside the Dockerfile with its name comes first.
    let own = PathBuf::from(format!("{}.dockerignore", file.display()));
    let ignore =
        [own, context.join(".dockerignore")].into_iter().find_map(|p| std::fs::read_to_string(p).ok());
    options.ignore = ignore.unwrap_or_default();
    options.context = Some(context);
    Ok((options, None))
}

/// A Dockerfile alone, or an archive with one.
fn from_stdin(build: &BuildOptions, options: &mut Options) -> anyhow::Result<Option<Source>> {
    let mut head = Vec::new();
    std::io::stdin().take(HEAD_LEN).read_to_end(&mut head)?;
    let packed = head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let archive = packed || head.get(257..262).is_some_and(|magic| magic == b"ustar");
    options.file = build.file.as_ref().map_or_else(|| "Dockerfile".into(), |f| f.display().to_string());
    if archive {
        options.archive = true;
        return Ok(Some(Box::new(std::io::Cursor::new(head).chain(std::io::stdin()))));
    }
    std::io::stdin().read_to_end(&mut head)?;
    let text = String::from_utf8(head).context("standard input is neither a Dockerfile nor a tar")?;
    options.dockerfile = Some(text);
    Ok(None)
}

fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

/// `KEY=VALUE`, or `KEY` with the value of the environment.
fn argument(text: &str) -> Option<(String, String)> {
    match text.contains('=') {
        true => Some(pair(text)),
        false => Some((text.to_owned(), std::env::var(text).ok()?)),
    }
}

fn secret(text: &str) -> anyhow::Result<(String, String)> {
    let fields: BTreeMap<String, String> = text.split(',').map(pair).collect();
    let field = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name));
    if let Some(unknown) =
        fields.keys().find(|k| !["id", "src", "source", "env", "type"].contains(&k.as_str()))
    {
        bail!("--secret {text}: unknown field {unknown:?}");
    }
    let id = fields
        .get("id")
        .filter(|id| !id.is_empty())
        .with_context(|| format!("--secret {text}: needs an id"))?;
    let value = match (field(["src", "source"]), fields.get("env")) {
        (Some(file), _) => {
            std::fs::read(file).with_context(|| format!("--secret {id}: cannot read {file}"))?
        }
        (None, Some(name)) => {
            std::env::var(name).with_context(|| format!("--secret {id}: variable {name}"))?.into_bytes()
        }
        (None, None) => {
            std::env::var(id).with_context(|| format!("--secret {id}: needs src or env"))?.into_bytes()
        }
    };
    Ok((id.clone(), base64::engine::general_purpose::STANDARD.encode(value)))
}

enum Screen {
    Plain,
    Tty(Spinners),
}

#[derive(Default)]
struct Spinners {
    screen: MultiProgress,
    bars: HashMap<u64, ProgressBar>,
}

impl Screen {
    fn show(&mut self, event: &Value) {
        if let Some(text) = event["warning"].as_str() {
            eprintln!("[Warning] {text}");
            return;
        }
        let Some(step) = event["step"].as_u64() else { return };
        match self {
            Screen::Plain => plain(step, event),
            Screen::Tty(spinners) => spinners.show(step, event),
        }
    }
}

fn plain(step: u64, event: &Value) {
    if let Some(text) = event["begin"].as_str() {
        eprintln!("#{step} {text}");
    } else if let Some(text) = event["output"].as_str() {
        text.lines().for_each(|line| eprintln!("#{step} {line}"));
    } else if event["cached"] == true {
        eprintln!("#{step} CACHED\n");
    } else if event["done"] == true {
        eprintln!("#{step} DONE {:.1}s\n", event["seconds"].as_f64().unwrap_or(0.0));
    } else if let Some(error) = event["failed"].as_str() {
        eprintln!("#{step} ERROR: {}\n", error.lines().last().unwrap_or_default());
    }
}

impl Spinners {
    fn show(&mut self, step: u64, event: &Value) {
        let screen = &self.screen;
        let bar = self.bars.entry(step).or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            screen.add(bar)
        });
        if let Some(text) = event["begin"].as_str() {
            bar.set_prefix(text.to_owned());
        } else if let Some(line) = event["output"].as_str().and_then(|text| text.lines().last()) {
            bar.set_message(line.to_owned());
        } else if event["cached"] == true {
            bar.finish_with_message("CACHED");
        } else if event["done"] == true {
            bar.finish_with_message(format!("{:.1}s", event["seconds"].as_f64().unwrap_or(0.0)));
        } else if event["failed"].is_string() {
            bar.finish_with_message("ERROR");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_arguments() {
        let file = std::env::temp_dir().join(format!("ferry-secret-{}", std::process::id()));
        std::fs::write(&file, "top").unwrap();
        let given = secret(&format!("id=s,src={}", file.display())).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(given, ("s".to_owned(), "dG9w".to_owned()));
        for bad in ["src=/x", "id=s,src=/does/not/exist", "id=s,sorce=/x", "id=surely-not-set"] {
            assert!(secret(bad).is_err(), "{bad}");
        }
        assert_eq!(argument("a=b=c"), Some(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(argument("SURELY_NOT_SET_ANYWHERE"), None);
    }
}
