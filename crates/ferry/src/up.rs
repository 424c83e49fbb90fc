//! `ferry up`: a one-node cluster in the foreground.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use auth::pki;
use stdx::{SystemClock, ThreadRandom};
use tokio_util::sync::CancellationToken;

use crate::config::{Part, UpOptions};
use crate::control::{self, ControlPlane, Environment};
use crate::node::Node;
use crate::paths::Paths;
use crate::{demo, local, network, preflight, revive, runtime, services};

/// What the last statuses of pods may take beyond the time of their ends.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long systemd may take to answer.
const SYSTEMD_ANSWER_MAX: Duration = Duration::from_secs(2);

/// Runs until interrupted.
pub fn run(options: UpOptions) -> anyhow::Result<()> {
    let started = Instant::now();
    let logging = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&options.log_level))
        .with_writer(std::io::stderr)
        .with_filter_reloading();
    let reload = logging.reload_handle();
    logging.init();
    let given = options.log_level.clone();
    let verbosity: kubelet::config::SetVerbosity = Arc::new(move |level| {
        let filter = tracing_subscriber::EnvFilter::new(with_verbosity(&given, level));
        reload.reload(filter).map_err(|error| error.to_string())
    });
    // A file that cannot be used is refused before anything is made.
    if let Some(path) = &options.kubelet_config {
        crate::node::kubelet_config(path)?;
    }
    let problems = preflight::check(&options);
    if !problems.is_empty() {
        for p in &problems {
            eprintln!("  ✗ {}\n    → {}", p.what, p.remedy);
        }
        bail!("this host cannot run the cluster yet; nothing was changed");
    }
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    executor.block_on(serve(options, started, verbosity))
}

/// The filter of logs with the kubelet's part at a level of klog's scale.
fn with_verbosity(given: &str, level: i32) -> String {
    match level {
        ..=1 => given.to_owned(),
        2..=3 => format!("{given},kubelet=info"),
        4..=5 => format!("{given},kubelet=debug"),
        6.. => format!("{given},kubelet=trace"),
    }
}

async fn serve(
    options: UpOptions,
    started: Instant,
    verbosity: kubelet::config::SetVerbosity,
) -> anyhow::Result<()> {
    let paths = Paths::open_or_create(&options.data.data_dir)?;
    let node_name = match &options.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .context("cannot read the host's name")?
            .to_string_lossy()
            .to_lowercase(),
    };
    let node_ip = match options.node_ip {
        Some(ip) => ip,
        None => primary_address().map_or_else(|| control::nth_address(&options.cluster_cidr, 1), Ok)?,
    };
    let env = Environment {
        options: Arc::new(options),
        paths,
        node_name,
        node_ip,
        clock: SystemClock::shared(),
        random: Arc::new(ThreadRandom),
        cancel: CancellationToken::new(),
    };
    let mut plane = ControlPlane::start(&env).await?;
    let kubeconfig = env.paths.admin_kubeconfig();
    write_kubeconfigs(&env, &plane)?;
    say(started, &format!("API server ready at https://127.0.0.1:{}", plane.address.port()));
    let mut images = None;
    revive::reap();
    let mut ending = None;
    if env.options.enabled(Part::Node) {
        let mut tasks = std::mem::take(&mut plane.tasks);
        let network = network::open(&env).await?;
        let node = Node::start(&env, &plane, Some(network.clone()), verbosity, &mut tasks).await?;
        images = node.opened.embedded.as_ref().map(|e| e.store.clone());
        ending = Some((node.shutdown, node.shutdown_time));
        let (socket, cancel) = (env.paths.socket(), env.cancel.clone());
        let opened = node.opened;
        if opened.embedded.is_some() {
            tasks.spawn(runtime::offer(env.clone(), opened.runtime.clone(), opened.images.clone()));
        }
        let shared = local::Shared { images: opened.images, embedded: opened.embedded, network };
        tasks.spawn(async move {
            if let Err(error) = local::serve(socket, shared, cancel).await {
                tracing::error!(%error, "the local socket is not served");
            }
        });
        services::start(&env, &plane, &mut tasks).await?;
        plane.tasks = tasks;
        say(started, "node agent running");
    }
    println!(
        "\n  export KUBECONFIG={}\n  kubectl get nodes\n\nCtrl-C stops the cluster.",
        kubeconfig.display()
    );

    if env.options.demo && env.options.runtime.container_runtime_endpoint.is_some() {
        println!("the demo is left out: its image comes with the embedded runtime");
    }
    if let (true, Some(images)) = (env.options.demo, images) {
        let url = demo::deploy(&plane, images, env.node_ip).await?;
        say(started, &format!("the demo answers at {url}"));
    }
    let machine_goes_down = tokio::select! {
        told = interrupted() => told?,
        error = plane.disk.failed() => outlive(&error, &env, &mut plane).await?,
    };
    if let (true, Some((shutdown, time))) = (machine_goes_down, ending)
        && !time.is_zero()
    {
        println!("\nthe machine goes down: ending pods");
        shutdown.ask();
        // Their last statuses still have to be written.
        let limit = time + LAST_WORDS;
        if tokio::time::timeout(limit, shutdown.done()).await.is_err() {
            tracing::warn!("not all pods have ended in their time");
        }
    }
    println!("\nstopping");
    env.cancel.cancel();
    while plane.tasks.join_next().await.is_some() {}
    Ok(())
}

/// Longest that parts of a server whose store failed may take to end.
const STOP_MAX: Duration = Duration::from_secs(2);

/// The store failed: waits for room and begins again, or returns what an interruption meanwhile was about.
async fn outlive(error: &store::Error, env: &Environment, plane: &mut ControlPlane) -> anyhow::Result<bool> {
    // Reads are answered from memory meanwhile, and pods run on.
    println!("\n{error}");
    let store = env.paths.store();
    tokio::select! {
        told = interrupted() => return told,
        () = revive::writable(&store) => {}
    }
    env.cancel.cancel();
    let ended = async { while plane.tasks.join_next().await.is_some() {} };
    // What hangs on the dead store is ended by the new beginning.
    let _ = tokio::time::timeout(STOP_MAX, ended).await;
    Err(revive::begin_again())
}

fn say(started: Instant, what: &str) {
    println!("[{:>6.3}s] {what}", started.elapsed().as_secs_f64());
}

/// Waits for the signal to end; whether it comes because the machine goes down.
///
/// SIGPWR says so itself. SIGTERM comes with every stop of a service: systemd, which is asked without a bus, knows
/// whether all stop. Pods outlive a mere restart.
async fn interrupted() -> anyhow::Result<bool> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut power = signal(SignalKind::from_raw(nix::libc::SIGPWR))?;
    tokio::select! {
        _ = power.recv() => Ok(true),
        _ = terminate.recv() => Ok(systemd_stops().await),
        _ = interrupt.recv() => Ok(false),
    }
}

/// Whether systemd runs this machine and is about to end it.
async fn systemd_stops() -> bool {
    if !Path::new("/run/systemd/system").exists() {
        return false;
    }
    let asked = tokio::process::Command::new("systemctl").arg("is-system-running").output();
    match tokio::time::timeout(SYSTEMD_ANSWER_MAX, asked).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim() == "stopping",
        _ => false,
    }
}

/// The address that this host uses towards others; nothing is sent.
fn primary_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

fn write_kubeconfigs(env: &Environment, plane: &ControlPlane) -> anyhow::Result<()> {
    let issued = plane.pki.stored_client("admin", "kubernetes-admin", &["system:masters"])?;
    let host = if env.options.bind_address.is_unspecified() {
        "127.0.0.1".into()
    } else {
        env.options.bind_address.to_string()
    };
    let url = format!("https://{host}:{}", plane.address.port());
    let text = pki::kubeconfig(&url, plane.pki.ca_pem(), &issued.cert_pem, &issued.key_pem, "ferry");
    let own = env.paths.admin_kubeconfig();
    for path in [Some(own.as_path()), env.options.write_kubeconfig.as_deref()].into_iter().flatten() {
        write_private(path, &text)?;
    }
    Ok(())
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    pki::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
