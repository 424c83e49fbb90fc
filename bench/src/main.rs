//! Measurements of a real cluster: every section starts `ferry up` on a data directory of its own, loads it
//! over loopback, prints one table with the machine's own floor beside each figure, and removes every trace.
//!
//! Flow: `main` picks the sections, [`instance`] runs the binary, a module per section measures, [`floors`]
//! measures what the machine itself can do, [`report`] prints.

mod boot;
mod containerd;
mod density;
mod floors;
mod idle;
mod image;
mod images;
mod instance;
mod mixed;
mod pods;
mod report;
mod scale;
mod storage;
mod watching;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// What is measured and for how long.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench", about = "Measure a ferry binary")]
pub struct Options {
    /// The binary to measure.
    #[arg(long)]
    pub ferry: PathBuf,
    /// Where data directories are made; the system's temporary directory by default.
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// Starts per boot figure.
    #[arg(long, default_value_t = 5)]
    pub starts: usize,
    /// How long an idle cluster is watched.
    #[arg(long, default_value_t = 60)]
    pub idle_seconds: u64,
    /// How long each number of clients creates objects.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Pods per figure.
    #[arg(long, default_value_t = 30)]
    pub pods: usize,
    /// Log filter of the measured instance; its log is shown when a section fails.
    #[arg(long, default_value = "warn")]
    pub log_level: String,
    /// Which sections; all without a name.
    #[arg(value_enum)]
    pub sections: Vec<Section>,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Process start to API, node and first pod.
    Boot,
    /// Memory and CPU of a cluster without work.
    Idle,
    /// Pod start latency.
    Pods,
    /// A full node: a hundred pods at once, memory per pod.
    Density,
    /// Durable creates.
    Creates,
    /// Large lists.
    List,
    /// Watch fan-out.
    Watch,
    /// Fifty thousand pods: memory, and lists in every form.
    Scale,
    /// Builds, pulls and unpacking.
    Images,
    /// Latency while everything happens at once.
    Mixed,
}

impl Options {
    /// How long each number of clients creates objects.
    pub fn create_time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    report::machine();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Dropping the measurement on an interrupt runs the instance's cleanup.
    runtime.block_on(async {
        tokio::select! {
            result = measure(&options) => result,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let all = Section::value_variants();
    let sections = if options.sections.is_empty() { all } else { &options.sections };
    let mut failed = Vec::new();
    for section in sections {
        let result = match section {
            Section::Boot => boot::run(options).await,
            Section::Idle => idle::run(options).await,
            Section::Pods => pods::run(options).await,
            Section::Density => density::run(options).await,
            Section::Creates => storage::creates(options).await,
            Section::List => storage::list(options).await,
            Section::Watch => watching::run(options).await,
            Section::Scale => scale::run(options).await,
            Section::Images => images::run(options).await,
            Section::Mixed => mixed::run(options).await,
        };
        // One broken section must not hide the figures of the others.
        if let Err(error) = result {
            eprintln!("{section:?} failed: {error:#}");
            failed.push(format!("{section:?}"));
        }
    }
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
