//! `ferry image`: the node's images from the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::Value;

use crate::config::DataDir;
use crate::local;

/// Options of `ferry image`.
#[derive(Debug, Args)]
pub struct ImageOptions {
    /// Where the instance's state is.
    #[command(flatten)]
    pub data: DataDir,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
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
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import a docker-archive or OCI tar; `-` reads standard input.
    Import {
        /// The archive.
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
    /// List images.
    Ls,
    /// Remove a reference, and the image with its last one.
    Rm {
        /// Image reference or id.
        image: String,
    },
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

/// Runs a subcommand against the running instance.
pub fn run(options: ImageOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = options.data.data_dir.join(crate::paths::SOCKET);
    let value = runtime.block_on(async {
        match &options.command {
            ImageCommand::Import { archive, name } => {
                let path = format!("/images/import?name={}", encode(name.as_deref().unwrap_or_default()));
                local::call(&socket, Method::POST, &path, Some(archive)).await
            }
            ImageCommand::Pull { image } => {
                let path = format!("/images/pull?name={}", encode(image));
                let mut bars = crate::progress::Layers::default();
                local::call_with_progress(&socket, Method::POST, &path, None, |step| bars.show(step)).await
            }
            ImageCommand::Ls => local::call(&socket, Method::GET, "/images", None).await,
            ImageCommand::Rm { image } => {
                local::call(&socket, Method::DELETE, &format!("/images?name={}", encode(image)), None).await
            }
        }
    })?;
    if options.output == Output::Json {
        println!("{value:#}");
        return Ok(());
    }
    match &options.command {
        ImageCommand::Import { .. } => value.as_array().into_iter().flatten().for_each(|i| {
            let names: Vec<&str> =
                i["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            println!("imported {}", if names.is_empty() { i["id"].to_string() } else { names.join(", ") });
        }),
        ImageCommand::Pull { image } => println!("pulled {image}"),
        ImageCommand::Ls => list(&value),
        ImageCommand::Rm { image } => match value["removed"] == true {
            true => println!("removed {image}"),
            false => anyhow::bail!("no image {image}"),
        },
    }
    Ok(())
}

fn list(images: &Value) {
    println!("{:<60} {:<14} {:>10}", "NAME", "ID", "SIZE");
    for image in images.as_array().into_iter().flatten() {
        let id: String =
            image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:").chars().take(12).collect();
        let size = format!("{:.1}MiB", image["size"].as_f64().unwrap_or(0.0) / f64::from(1 << 20));
        let names: Vec<&str> =
            image["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for name in if names.is_empty() { vec!["<none>"] } else { names } {
            println!("{name:<60} {id:<14} {size:>10}");
        }
    }
}
