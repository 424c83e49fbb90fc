//! Images: unpacking against `tar`, pulls against `skopeo`, what a RUN step costs and what a build without
//! work costs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::instance::Home;
use crate::report::{Table, Target, median_ms};
use crate::{Options, floors, image};

/// Files of the measured layer, and the size of each.
const FILES: usize = 2000;
const FILE_BYTES: usize = 32 << 10;
/// RUN steps per build.
const STEPS: u32 = 10;
/// Times that each figure is taken.
const ROUNDS: usize = 3;

/// A registry that ends with the measurement.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program under measurement and where its cluster is.
struct Ferry {
    binary: PathBuf,
    data: PathBuf,
}

impl Ferry {
    fn image(&self, arguments: &[&str]) -> anyhow::Result<Duration> {
        let mut command = Command::new(&self.binary);
        command.arg("image").args(arguments).arg("--data-dir").arg(&self.data);
        timed(&mut command)
    }
}

fn timed(command: &mut Command) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let took = began.elapsed();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut home = Home::new(options)?;
    let (binary, directory) = (home.binary(), home.path().to_owned());
    let ferry = Ferry { binary, data: directory.join("data") };
    let instance = home.start().await?;
    instance.node_ready().await?;
    instance.import_image().await?;
    let mut table =
        Table::new("images (floor: the usual tool for the same; fork+exec in five namespaces for RUN)");
    builds(&ferry, &directory, &mut table)?;
    layers(&ferry, &directory, &mut table).await?;
    table.print();
    Ok(())
}

fn builds(ferry: &Ferry, directory: &Path, table: &mut Table) -> anyhow::Result<()> {
    let context = directory.join("context");
    std::fs::create_dir_all(&context)?;
    let steps: String = (0..STEPS).map(|n| format!("RUN exit 0 # {n}\n")).collect();
    std::fs::write(context.join("Dockerfile"), format!("FROM {}\n{steps}", image::NAME))?;
    let text = context.display().to_string();
    let mut real = Vec::new();
    for _ in 0..ROUNDS {
        real.push(ferry.image(&["build", "--no-cache", "-q", "-t", "bench.local/steps:1", &text])? / STEPS);
    }
    let mut cached = Vec::new();
    for _ in 0..ROUNDS {
        cached.push(ferry.image(&["build", "-q", "-t", "bench.local/steps:1", &text])?);
    }
    let floor = Some(median_ms(&floors::processes(true)?));
    table.row("one RUN step of a build", median_ms(&real), "ms", floor, Target::AtMost(30.0));
    table.row("a build with nothing to do", median_ms(&cached), "ms", None, Target::AtMost(100.0));
    Ok(())
}

/// Longest wait for the registry.
const PATIENCE: Duration = Duration::from_secs(20);

async fn layers(ferry: &Ferry, directory: &Path, table: &mut Table) -> anyhow::Result<()> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config = directory.join("registry.yml");
    let root = directory.join("registry");
    std::fs::write(
        &config,
        format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            root.display()
        ),
    )?;
    let mut command = Command::new("docker-registry");
    let child = command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _registry = Registry(child.context("docker-registry is needed for the figures of pulls")?);
    let listening = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listening).await.context("docker-registry does not listen")?;
    let name = format!("127.0.0.1:{port}/bench/files:1");
    let context = directory.join("files");
    std::fs::create_dir_all(&context)?;
    write_files(&context)?;
    std::fs::write(context.join("Dockerfile"), format!("FROM {}\nCOPY f* /files/\n", image::NAME))?;
    ferry.image(&["build", "-q", "-t", &name, &context.display().to_string()])?;
    ferry.image(&["push", &name])?;
    // Compressed, as layers are.
    let archive = directory.join("layer.tar.gz");
    timed(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&context).arg("."))?;
    let megabytes = (FILES * FILE_BYTES) as f64 / 1e6;
    let (mut pulls, mut copies, mut tars, mut imports) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let saved = directory.join("saved.tar").display().to_string();
    ferry.image(&["save", &name, "-f", &saved])?;
    for round in 0..ROUNDS {
        ferry.image(&["rm", &name])?;
        ferry.image(&["prune", "--all"])?;
        ferry.image(&["prune", "--build-cache"])?;
        pulls.push(ferry.image(&["pull", &name])?);
        ferry.image(&["rm", &name])?;
        imports.push(ferry.image(&["import", &saved])?);
        let target = directory.join(format!("copy-{round}"));
        let source = format!("docker://{name}");
        let copy = format!("dir:{}", target.display());
        copies.push(timed(Command::new("skopeo").args([
            "copy",
            "-q",
            "--src-tls-verify=false",
            &source,
            &copy,
        ]))?);
        let out = directory.join(format!("out-{round}"));
        std::fs::create_dir_all(&out)?;
        // Synced as well: an image that is acknowledged is on the disk.
        let script = "tar -xzf \"$0\" -C \"$1\" && sync -f \"$1\"";
        tars.push(timed(Command::new("sh").args(["-c", script]).arg(&archive).arg(&out))?);
    }
    let rate = |times: &[Duration]| megabytes / (median_ms(times) / 1e3);
    table.row("pull, unpacked and synced", median_ms(&pulls), "ms", Some(median_ms(&copies)), Target::None);
    table.row("import, unpacked and synced", rate(&imports), "MB/s", Some(rate(&tars)), Target::None);
    Ok(())
}

/// Files that compress about as programs do.
fn write_files(context: &Path) -> anyhow::Result<()> {
    let mut state = 1u64;
    for n in 0..FILES {
        let mut bytes = Vec::with_capacity(FILE_BYTES);
        while bytes.len() < FILE_BYTES {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&[0, 0, 0, 0]);
            bytes.extend_from_slice(&(state >> 32).to_le_bytes()[..4]);
        }
        std::fs::write(context.join(format!("f{n}")), bytes)?;
    }
    Ok(())
}
