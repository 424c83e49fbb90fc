//! The command line, and the configuration file with the same names.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Kubernetes in one binary.
#[derive(Debug, Parser)]
#[command(name = "ferry", version, about, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a one-node cluster in the foreground: control plane and node.
    Up(Box<UpOptions>),
    /// The node's images.
    Image(Box<crate::images::ImageOptions>),
    /// Remove every trace of a cluster from this host: containers, network, state.
    Down(DownOptions),
    /// The server inside the demo application.
    #[command(hide = true)]
    DemoServer,
    /// Print shell completion.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
}

/// Parts that can be left out of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The built-in controllers.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// The kubelet with its container runtime and pod network.
    Node,
    /// The service proxy.
    Proxy,
    /// The cluster DNS server.
    Dns,
    /// The class `local-path`: volumes on this node's disk.
    LocalStorage,
}

/// Where the state is.
#[derive(Debug, Clone, Args)]
pub struct DataDir {
    /// Directory of everything this cluster keeps on disk.
    #[arg(long, default_value = "/var/lib/ferry", env = "FERRY_DATA_DIR", global = true)]
    pub data_dir: PathBuf,
}

/// Options of `ferry down`.
#[derive(Debug, Clone, Args)]
pub struct DownOptions {
    /// Where the state is.
    #[command(flatten)]
    pub data: DataDir,
    /// Keep the data directory: stop and clean up only what runs.
    #[arg(long)]
    pub keep_data: bool,
}

/// Options of `ferry up`.
#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// Where the state is.
    #[command(flatten)]
    pub data: DataDir,
    /// YAML file with options of the same names; the command line wins.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Port of the API server; 0 lets the system choose.
    #[arg(long, default_value_t = 6443)]
    pub https_port: u16,
    /// Address the API server listens on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port of the kubelet; 0 lets the system choose.
    #[arg(long, default_value_t = 10250)]
    pub kubelet_port: u16,
    /// Name of this node; the host's name by default.
    #[arg(long)]
    pub node_name: Option<String>,
    /// Address of this node; that of the default route by default.
    #[arg(long)]
    pub node_ip: Option<IpAddr>,
    /// Range of pod addresses.
    #[arg(long, default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// Range of Service addresses.
    #[arg(long, default_value = "10.43.0.0/16")]
    pub service_cidr: String,
    /// Address of the cluster DNS server.
    #[arg(long, default_value = "10.43.0.10")]
    pub cluster_dns: IpAddr,
    /// Domain of the cluster.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Also write the admin kubeconfig here.
    #[arg(long)]
    pub write_kubeconfig: Option<PathBuf>,
    /// Deploy a small application and print its URL.
    #[arg(long)]
    pub demo: bool,
    /// Registries (host and port) that are spoken to without TLS.
    #[arg(long, value_delimiter = ',')]
    pub insecure_registry: Vec<String>,
    /// EncryptionConfiguration for values in the store; without one, Secrets are encrypted with keys of Ferry's
    /// own, which it replaces in time.
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
    /// Take changes of that file into effect at once.
    #[arg(long, requires = "encryption_provider_config")]
    pub encryption_provider_config_automatic_reload: bool,
    /// Proxies in front of the server, and the server as one.
    #[command(flatten)]
    pub front: crate::front::FrontOptions,
    /// Who is let in and what they may do.
    #[command(flatten)]
    pub identity: crate::identity::IdentityOptions,
    /// Versions of the API to serve beside (or, with `=false`, without) the stable ones: api/all, api/beta,
    /// api/alpha, GROUP/VERSION or GROUP/VERSION/RESOURCE.
    #[arg(long, value_delimiter = ',', value_name = "KEY=BOOL")]
    pub runtime_config: Vec<String>,
    /// When the node is short of memory, disk, inodes or process ids: SIGNAL<VALUE, separated by commas, as the
    /// kubelet's option of this name has it.
    #[arg(long, default_value = "", value_name = "LIST")]
    pub eviction_hard: String,
    /// KubeletConfiguration (`kubelet.config.k8s.io/v1beta1`) of the node; what it names wins over options.
    #[arg(long, value_name = "FILE")]
    pub kubelet_config: Option<PathBuf>,
    /// Where device plugins register; in the data directory by default, `/var/lib/kubelet/device-plugins` for
    /// plugins that expect the usual place.
    #[arg(long, value_name = "DIR")]
    pub device_plugin_dir: Option<PathBuf>,
    /// Where files of the Container Device Interface are, the later directory over the earlier.
    #[arg(long, value_delimiter = ',', default_value = "/etc/cdi,/var/run/cdi", value_name = "DIRS")]
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Images: pulls and what is collected.
    #[command(flatten)]
    pub images: crate::pulls::ImageOptions,
    /// How the API server serves.
    #[command(flatten)]
    pub serving: crate::serving::Serving,
    /// Who runs containers.
    #[command(flatten)]
    pub runtime: crate::runtime::RuntimeOptions,
    /// Parts to leave out.
    #[arg(long, value_delimiter = ',')]
    pub disable: Vec<Part>,
    /// Log filter, e.g. `info` or `warn,kubelet=debug`.
    #[arg(long, default_value = "warn", env = "FERRY_LOG")]
    pub log_level: String,
}

impl UpOptions {
    /// Whether a part runs.
    pub fn enabled(&self, part: Part) -> bool {
        !self.disable.contains(&part)
    }
}

/// Puts the options of `--config FILE` before the others, so that the command line wins.
pub fn with_config_file(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let mut path = None;
    for (i, argument) in arguments.iter().enumerate() {
        let text = argument.to_string_lossy();
        if let Some(p) = text.strip_prefix("--config=") {
            path = Some(PathBuf::from(p));
        } else if text == "--config" {
            path = arguments.get(i + 1).map(PathBuf::from);
        }
    }
    let (Some(path), true) = (path, arguments.len() > 1) else { return Ok(arguments) };
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let options: serde_json::Map<String, serde_json::Value> =
        serde_saphyr::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    let mut out = arguments[..2].to_vec();
    for (name, value) in options {
        let flag = format!("--{name}");
        match value {
            serde_json::Value::Bool(true) => out.push(flag.into()),
            serde_json::Value::Bool(false) | serde_json::Value::Null => {}
            serde_json::Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                out.extend([flag.into(), items.join(",").into()]);
            }
            serde_json::Value::Object(_) => bail!("{}: {name} must be a plain value", path.display()),
            value => out.extend([flag.into(), plain(&value).into()]),
        }
    }
    out.extend_from_slice(&arguments[2..]);
    Ok(out)
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = std::env::temp_dir().join(format!("ferry-config-{}.yaml", std::process::id()));
        std::fs::write(&file, "https-port: 7000\ncluster-domain: a.b\ndisable: [dns, proxy]\n").unwrap();
        let given = ["ferry", "up", "--config", file.to_str().unwrap(), "--https-port", "7001"];
        let cli = Cli::parse_from(with_config_file(given.map(OsString::from).to_vec()).unwrap());
        std::fs::remove_file(&file).unwrap();
        let Command::Up(options) = cli.command else { panic!("not up") };
        assert_eq!((options.https_port, options.cluster_domain.as_str()), (7001, "a.b"));
        assert!(!options.enabled(Part::Dns) && options.enabled(Part::Node));
    }
}
