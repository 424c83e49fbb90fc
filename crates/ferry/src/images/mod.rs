//! `ferry image`: the node's images from the command line.

mod build;
mod show;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use crate::config::DataDir;
use crate::local;

/// Options of `ferry image`.
#[derive(Debug, Args)]
pub struct ImageOptions {
    /// Where the instance's state is.
    #[command(flatten)]
    pub data: DataDir,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build from a Dockerfile.
    Build(build::BuildOptions),
    /// Import a docker-archive or OCI tar; `-` reads standard input.
    #[command(alias = "load")]
    Import {
        /// The archive.
        #[arg(default_value = "-")]
        archive: PathBuf,
        /// Name for an image that brings none.
        #[arg(long)]
        name: Option<String>,
    },
    /// Pull from a registry.
    Pull {
        /// Image reference.
        image: String,
    },
    /// Push to a registry.
    Push {
        /// Image reference.
        image: String,
        /// Another name to push it under.
        destination: Option<String>,
        /// With `false`, plain HTTP and unknown certificates will do.
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
        tls_verify: bool,
        /// PEM file of certificate authorities to trust instead of the system's.
        #[arg(long)]
        ca: Option<PathBuf>,
    },
    /// Write images to an archive.
    Save {
        /// Image references or ids.
        #[arg(required = true)]
        images: Vec<String>,
        /// Where to; standard output by default.
        #[arg(short = 'f', long = "file", default_value = "-")]
        file: PathBuf,
        /// Form of the archive.
        #[arg(long, value_enum, default_value_t = Format::DockerArchive)]
        format: Format,
    },
    /// Give an image another name.
    Tag {
        /// Image reference or id.
        image: String,
        /// The new name.
        name: String,
    },
    /// Everything known of images.
    Inspect {
        /// Image references or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// The steps that an image was made in.
    History {
        /// Image reference or id.
        image: String,
    },
    /// List images.
    #[command(alias = "list")]
    Ls,
    /// Remove references, and images with their last one.
    Rm {
        /// Image references or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images without a name, or what builds have kept.
    Prune {
        /// Also images with a name that nothing uses.
        #[arg(short, long)]
        all: bool,
        /// Instead the results and caches of builds.
        #[arg(long)]
        build_cache: bool,
    },
}

/// Forms of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// What `docker save` writes and `docker load` reads.
    DockerArchive,
    /// An OCI image layout.
    OciArchive,
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' => {
                (b as char).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}

/// The user's own registry credentials, as Docker keeps them.
fn credentials() -> String {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    let file = directory.or(home).map(|d| d.join("config.json"));
    file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
}

/// Runs a subcommand against the running instance.
pub fn run(options: ImageOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = options.data.data_dir.join(crate::paths::SOCKET);
    let outcome = runtime.block_on(run_in(&socket, &options));
    // A reader of standard input may still wait for more.
    runtime.shutdown_background();
    outcome
}

async fn run_in(socket: &Path, options: &ImageOptions) -> anyhow::Result<()> {
    let quiet = |_: &Value| ();
    let value = match &options.command {
        ImageCommand::Build(build) => return build::run(socket, build, options.output).await,
        ImageCommand::Save { images, file, format } => {
            return save(socket, images, file, *format).await;
        }
        ImageCommand::Import { archive, name } => {
            let path = format!("/images/import?name={}", encode(name.as_deref().unwrap_or_default()));
            local::call(socket, Method::POST, &path, Some(local::source(archive)?), quiet).await?
        }
        ImageCommand::Pull { image } => {
            let mut bars = crate::progress::Layers::default();
            let body = local::body(&json!({"image": image, "credentials": credentials()}));
            local::call(socket, Method::POST, "/images/pull", Some(body), |step| bars.show(step)).await?
        }
        ImageCommand::Push { image, destination, tls_verify, ca } => {
            let mut bars = crate::progress::Layers::default();
            let read = |path: &PathBuf| {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
            };
            let body = local::body(&json!({
                "image": image,
                "destination": destination,
                "credentials": credentials(),
                "insecure": !tls_verify,
                "ca": ca.as_ref().map(read).transpose()?,
            }));
            local::call(socket, Method::POST, "/images/push", Some(body), |step| bars.show(step)).await?
        }
        ImageCommand::Tag { image, name } => {
            let path = format!("/images/tag?name={}&to={}", encode(image), encode(name));
            local::call(socket, Method::POST, &path, None, quiet).await?
        }
        ImageCommand::Inspect { images } => {
            let mut all = Vec::new();
            for image in images {
                let path = format!("/images/inspect?name={}", encode(image));
                all.push(local::call(socket, Method::GET, &path, None, quiet).await?);
            }
            Value::Array(all)
        }
        ImageCommand::History { image } => {
            let path = format!("/images/inspect?name={}", encode(image));
            show::history(&local::call(socket, Method::GET, &path, None, quiet).await?)
        }
        ImageCommand::Ls => local::call(socket, Method::GET, "/images", None, quiet).await?,
        ImageCommand::Rm { images } => {
            for image in images {
                let path = format!("/images?name={}", encode(image));
                let value = local::call(socket, Method::DELETE, &path, None, quiet).await?;
                anyhow::ensure!(value["removed"] == true, "no image {image}");
            }
            json!({"removed": images})
        }
        ImageCommand::Prune { all, build_cache } => {
            let path = format!("/images/prune?all={all}&cache={build_cache}");
            local::call(socket, Method::POST, &path, None, quiet).await?
        }
    };
    if options.output == Output::Table {
        show::table(&options.command, &value);
        return Ok(());
    }
    show::document(options.output, &value)
}

async fn save(socket: &Path, images: &[String], file: &Path, format: Format) -> anyhow::Result<()> {
    let body = local::body(&json!({"images": images, "oci": format == Format::OciArchive}));
    if file.as_os_str() == "-" {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        anyhow::ensure!(!terminal, "an archive is not for a terminal; give a file with -f");
        local::receive(socket, "/images/save", body, &mut std::io::stdout()).await?;
        return Ok(());
    }
    // Under another name until it is whole.
    let temp = PathBuf::from(format!("{}.part", file.display()));
    let mut out =
        std::fs::File::create(&temp).with_context(|| format!("cannot create {}", temp.display()))?;
    let written = local::receive(socket, "/images/save", body, &mut out).await;
    if written.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    let written = written?;
    std::fs::rename(&temp, file).with_context(|| format!("cannot write {}", file.display()))?;
    println!("saved {} to {} ({})", images.join(", "), file.display(), show::size(written as f64));
    Ok(())
}
