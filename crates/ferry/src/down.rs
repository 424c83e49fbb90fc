//! `ferry down`: removes every trace of a cluster from the host.

use std::sync::Arc;

use anyhow::{Context, bail};
use stdx::{SystemClock, ThreadRandom};
use tokio_util::sync::CancellationToken;

use crate::config::{Cli, Command, DownOptions};
use crate::control::Environment;
use crate::paths::Paths;
use crate::{network, node, runtime};

/// Stops what runs and removes what was made.
pub fn run(options: DownOptions) -> anyhow::Result<()> {
    let directory = &options.data.data_dir;
    if !directory.join("cluster-id").exists() {
        bail!("{} is not the data directory of a cluster", directory.display());
    }
    let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    executor.block_on(async {
        let paths = Paths::open_or_create(directory)?;
        if tokio::net::UnixStream::connect(paths.socket()).await.is_ok() {
            bail!("the cluster is running; stop it first (Ctrl-C, or SIGTERM to its `ferry up`)");
        }
        let arguments = ["ferry", "up", "--data-dir"].map(std::ffi::OsString::from);
        let arguments = arguments.into_iter().chain([paths.root.clone().into_os_string()]);
        let Command::Up(up) = <Cli as clap::Parser>::try_parse_from(arguments)?.command else {
            bail!("internal: `up` did not parse as itself");
        };
        let env = Environment {
            options: Arc::new(*up),
            paths,
            node_name: String::new(),
            node_ip: std::net::Ipv4Addr::LOCALHOST.into(),
            clock: SystemClock::shared(),
            random: Arc::new(ThreadRandom),
            cancel: CancellationToken::new(),
        };
        if !runtime::remove(&env).await? {
            let images = node::open_images(&env)?;
            let containers = node::open_runtime(&env, images, None).await?;
            containers.destroy_all().await.context("cannot remove the containers")?;
        }
        network::remove(&env).await.context("cannot remove the network")?;
        anyhow::Ok(())
    })?;
    unmount_below(directory)?;
    let root = directory.canonicalize().with_context(|| format!("cannot find {}", directory.display()))?;
    kubelet::volume::device::release_all(&root.join("kubelet"), &root)
        .context("cannot detach the loop devices of volumes")?;
    if !options.keep_data {
        std::fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    println!("every trace of {} is gone", directory.display());
    Ok(())
}

/// Unmounts everything below a directory, deepest first: volumes of pods that were running.
fn unmount_below(directory: &std::path::Path) -> anyhow::Result<()> {
    let root = directory.canonicalize().with_context(|| format!("cannot find {}", directory.display()))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let mut below: Vec<std::path::PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        // The kernel writes spaces in paths as octal.
        .map(|path| std::path::PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(&root))
        .collect();
    below.sort();
    for path in below.iter().rev() {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    Ok(())
}
