//! The pod network for somebody else's runtime: this binary as a CNI plugin.
//!
//! A runtime executes the plugin for each sandbox; it asks the running instance over its local socket, so that
//! addresses, rules and leases are kept in one place. Installed are a configuration that names the socket and
//! two links to this binary, told apart by the name they are called by.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use cri::{NetworkRequest, PodNetwork, PortMapping, Protocol};
use http::Method;
use serde_json::{Map, Value, json};

use crate::control::Environment;
use crate::local;

/// The plugin's name.
const PLUGIN: &str = "ferry-cni";
/// The plugin that brings `lo` up, which older runtimes call beside the network's.
const LOOPBACK: &str = "loopback";
/// Versions of the specification, newest last.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Paths on the local socket.
pub const ATTACH: &str = "/network/attach";
/// See [`ATTACH`].
pub const DETACH: &str = "/network/detach";

/// Error codes of the specification.
const UNSUPPORTED_VERSION: u32 = 1;
const BAD_ENVIRONMENT: u32 = 4;
const BAD_CONFIGURATION: u32 = 7;
const TRY_AGAIN: u32 = 11;
const FAILED: u32 = 100;

/// Where the network's configuration is put.
pub fn configuration_file(env: &Environment) -> PathBuf {
    env.options.runtime.cni_conf_dir.join(format!("10-ferry-{}.conflist", env.paths.cluster_id))
}

fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json")
}

/// Whether somebody else's plugin is configured: then it is theirs to give pods a network.
fn configured(dir: &Path, own: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| is_configuration(&path) && path != own)
}

/// Installs the plugin, unless another is configured.
pub fn install(env: &Environment, own: &Path) -> anyhow::Result<()> {
    let directories = &env.options.runtime;
    if configured(&directories.cni_conf_dir, own) {
        tracing::info!(dir = %directories.cni_conf_dir.display(), "pods get their network from the plugin that is configured");
        return Ok(());
    }
    std::fs::create_dir_all(&directories.cni_conf_dir)
        .context("cannot make the directory of configurations")?;
    std::fs::create_dir_all(&directories.cni_bin_dir).context("cannot make the directory of plugins")?;
    let binary = std::env::current_exe().context("cannot find this binary")?;
    for name in [PLUGIN, LOOPBACK] {
        let link = directories.cni_bin_dir.join(name);
        let ours = std::fs::read_link(&link).is_ok_and(|target| target.file_name() == binary.file_name());
        if ours {
            std::fs::remove_file(&link)?;
        }
        if !link.exists() {
            std::os::unix::fs::symlink(&binary, &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
    }
    let text = json!({
        "cniVersion": "1.0.0",
        "name": format!("ferry-{}", env.paths.cluster_id),
        "plugins": [{
            "type": PLUGIN,
            "socket": env.paths.socket(),
            "capabilities": {"portMappings": true},
        }],
    });
    // The runtime watches the directory: the file must appear whole.
    let fresh = own.with_extension("new");
    std::fs::write(&fresh, format!("{text:#}\n")).context("cannot write the network's configuration")?;
    std::fs::rename(&fresh, own).context("cannot write the network's configuration")
}

/// Removes the configuration; the links stay for other clusters of this host.
pub fn uninstall(own: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(own) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot remove the network's configuration")
        }
        _ => Ok(()),
    }
}

/// A failure in the specification's terms.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u32,
    message: String,
}

fn failure(code: u32, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

/// What the runtime has said: in the environment and on standard input.
#[derive(Debug, Default, Clone)]
struct Call {
    command: String,
    container: String,
    netns: String,
    interface: String,
    arguments: String,
    configuration: Value,
}

impl Call {
    fn version(&self) -> &str {
        self.configuration.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0")
    }

    /// What the instance is asked for.
    fn request(&self) -> Result<NetworkRequest, Failure> {
        if self.container.is_empty() {
            return Err(failure(BAD_ENVIRONMENT, "CNI_CONTAINERID is missing"));
        }
        let mut request = NetworkRequest {
            sandbox_id: self.container.clone(),
            netns: self.netns.as_str().into(),
            port_mappings: port_mappings(&self.configuration)?,
            ..NetworkRequest::default()
        };
        for (name, value) in self.arguments.split(';').filter_map(|pair| pair.split_once('=')) {
            match name {
                "K8S_POD_NAMESPACE" => request.pod_namespace = value.to_owned(),
                "K8S_POD_NAME" => request.pod_name = value.to_owned(),
                "K8S_POD_UID" => request.pod_uid = value.to_owned(),
                _ => {}
            }
        }
        Ok(request)
    }

    /// The request of a command that needs the namespace.
    fn request_within(&self) -> Result<NetworkRequest, Failure> {
        if self.netns.is_empty() {
            return Err(failure(BAD_ENVIRONMENT, "CNI_NETNS is missing"));
        }
        if self.interface != "eth0" {
            let message = format!("CNI_IFNAME is {:?}, only \"eth0\" is given", self.interface);
            return Err(failure(BAD_ENVIRONMENT, message));
        }
        self.request()
    }
}

fn port_mappings(configuration: &Value) -> Result<Vec<PortMapping>, Failure> {
    let list = configuration.pointer("/runtimeConfig/portMappings").and_then(Value::as_array);
    let one = |port: &Value| {
        let number = |name: &str| port.get(name)?.as_u64().and_then(|port| u16::try_from(port).ok());
        let word =
            |name: &str| port.get(name).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        Some(PortMapping {
            protocol: match word("protocol").as_str() {
                "" | "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => return None,
            },
            container_port: number("containerPort")?,
            host_port: number("hostPort")?,
            host_ip: word("hostIP").parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified()),
        })
    };
    list.into_iter()
        .flatten()
        .map(|port| one(port).ok_or_else(|| failure(BAD_CONFIGURATION, format!("bad port mapping {port}"))))
        .collect()
}

/// The result of ADD in a version of the specification.
fn result(network: &PodNetwork, netns: &str, version: &str) -> Value {
    let length = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    let ips: Vec<Value> = network
        .ips
        .iter()
        .map(|ip| {
            let mut one = Map::new();
            if version.starts_with("0.") {
                one.insert("version".into(), if ip.is_ipv4() { "4" } else { "6" }.into());
            }
            one.insert("address".into(), format!("{ip}/{}", length(ip)).into());
            if let Some(gateway) = network.gateway.filter(|gateway| gateway.is_ipv4() == ip.is_ipv4()) {
                one.insert("gateway".into(), gateway.to_string().into());
            }
            one.insert("interface".into(), 0.into());
            Value::Object(one)
        })
        .collect();
    let routes: Vec<Value> =
        network.gateway.iter().map(|gateway| json!({"dst": "0.0.0.0/0", "gw": gateway})).collect();
    json!({
        "cniVersion": version,
        "interfaces": [{"name": network.interface, "mac": network.mac, "sandbox": netns}],
        "ips": ips,
        "routes": routes,
        "dns": {},
    })
}

/// Whether what is attached is what an earlier result says.
fn agrees(network: &PodNetwork, earlier: &Value) -> bool {
    let known = earlier.get("ips").and_then(Value::as_array).into_iter().flatten();
    let mut addresses = known.filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok());
    addresses.all(|ip: IpAddr| network.ips.contains(&ip))
}

/// Runs as a plugin if the name that this process was called by says so.
pub fn intercept() -> Option<std::process::ExitCode> {
    let name = std::env::args_os().next().map(PathBuf::from)?;
    let name = name.file_name()?.to_str()?.to_owned();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if !matches!(name.as_str(), PLUGIN | LOOPBACK) || variable("CNI_COMMAND").is_empty() {
        return None;
    }
    let mut text = String::new();
    // Without input the configuration is null, which is complained of where it is needed.
    let _ = std::io::stdin().read_to_string(&mut text);
    let call = Call {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        interface: variable("CNI_IFNAME"),
        arguments: variable("CNI_ARGS"),
        configuration: serde_json::from_str(&text).unwrap_or_default(),
    };
    match run(&call, &name) {
        Ok(answer) => {
            if !answer.is_null() {
                println!("{answer}");
            }
            Some(std::process::ExitCode::SUCCESS)
        }
        Err(failure) => {
            println!(
                "{}",
                json!({"cniVersion": call.version(), "code": failure.code, "msg": failure.message})
            );
            Some(std::process::ExitCode::FAILURE)
        }
    }
}

fn run(call: &Call, name: &str) -> Result<Value, Failure> {
    if call.command == "VERSION" {
        return Ok(json!({"cniVersion": VERSIONS.last(), "supportedVersions": VERSIONS}));
    }
    let version = call.version();
    if !VERSIONS.contains(&version) {
        return Err(failure(UNSUPPORTED_VERSION, format!("version {version:?} is not supported")));
    }
    if name == LOOPBACK {
        return loopback(call);
    }
    let socket = call.configuration.get("socket").and_then(Value::as_str);
    let socket = socket.ok_or_else(|| failure(BAD_CONFIGURATION, "the configuration names no socket"))?;
    let ask = |path: &str, request: &NetworkRequest| ask(Path::new(socket), path, request);
    match call.command.as_str() {
        "ADD" => {
            let network = ask(ATTACH, &call.request_within()?)?;
            Ok(result(&network, &call.netns, version))
        }
        "CHECK" => {
            let network = ask(ATTACH, &call.request_within()?)?;
            let earlier = call.configuration.get("prevResult").unwrap_or(&Value::Null);
            match agrees(&network, earlier) {
                true => Ok(Value::Null),
                false => {
                    Err(failure(FAILED, format!("the pod has {:?}, not what was given to it", network.ips)))
                }
            }
        }
        "DEL" => ask(DETACH, &call.request()?).map(|_| Value::Null),
        "STATUS" => match std::os::unix::net::UnixStream::connect(socket) {
            Ok(_) => Ok(Value::Null),
            Err(error) => Err(failure(50, format!("no instance answers at {socket}: {error}"))),
        },
        "GC" => Ok(Value::Null),
        other => Err(failure(BAD_ENVIRONMENT, format!("unknown CNI_COMMAND {other:?}"))),
    }
}

/// Asks the running instance. One that is not there is asked again by the runtime.
fn ask(socket: &Path, path: &str, request: &NetworkRequest) -> Result<PodNetwork, Failure> {
    let asked = || -> anyhow::Result<Value> {
        let body = local::body(&serde_json::to_value(request)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(local::call(socket, Method::POST, path, Some(body), |_| ()))
    };
    let answer = asked().map_err(|error| failure(TRY_AGAIN, format!("{error:#}")))?;
    serde_json::from_value(answer).map_err(|error| failure(FAILED, format!("unexpected answer: {error}")))
}

/// Brings `lo` up.
fn loopback(call: &Call) -> Result<Value, Failure> {
    if call.command != "ADD" {
        return Ok(Value::Null);
    }
    let netns = Path::new(&call.netns);
    let outcome = net::link::within(netns, || {
        let socket = net::netlink::Socket::route()?;
        net::link::set_up(&socket, net::link::index("lo")?)
    });
    outcome.map_err(|error| failure(FAILED, error.to_string()))?;
    let ips = vec![IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)];
    let network = PodNetwork { ips, interface: "lo".into(), ..PodNetwork::default() };
    let mut answer = result(&network, &call.netns, call.version());
    if let Some(address) = answer.pointer_mut("/ips/0/address") {
        *address = "127.0.0.1/8".into();
    }
    Ok(answer)
}

/// Answers a plugin on the local socket.
pub async fn serve(network: &dyn cri::NetworkProvider, path: &str, body: &[u8]) -> anyhow::Result<Value> {
    let request: NetworkRequest = serde_json::from_slice(body).context("not a network request")?;
    ensure!(!request.sandbox_id.is_empty(), "the request names no sandbox");
    if path == DETACH {
        network.detach(&request.sandbox_id).await?;
        return Ok(serde_json::to_value(PodNetwork::default())?);
    }
    Ok(serde_json::to_value(network.attach(&request).await?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str) -> Call {
        Call {
            command: command.into(),
            container: "c1".into(),
            netns: "/run/netns/x".into(),
            interface: "eth0".into(),
            arguments: "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_UID=u".into(),
            configuration: json!({"cniVersion": "1.0.0", "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                {"hostPort": 53, "containerPort": 53, "protocol": "UDP"}]}}),
        }
    }

    #[test]
    fn requests() {
        let request = call("ADD").request_within().unwrap();
        assert_eq!((request.pod_name.as_str(), request.pod_namespace.as_str()), ("p", "n"));
        assert_eq!((request.pod_uid.as_str(), request.sandbox_id.as_str()), ("u", "c1"));
        assert_eq!(request.port_mappings[0].host_ip, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(request.port_mappings[1].protocol, Protocol::Udp);
        let bad = [
            (Call { netns: String::new(), ..call("ADD") }, BAD_ENVIRONMENT),
            (Call { interface: "net1".into(), ..call("ADD") }, BAD_ENVIRONMENT),
            (Call { container: String::new(), ..call("ADD") }, BAD_ENVIRONMENT),
            (
                Call {
                    configuration: json!({"runtimeConfig": {"portMappings": [{"hostPort": 70000}]}}),
                    ..call("ADD")
                },
                BAD_CONFIGURATION,
            ),
        ];
        for (call, code) in bad {
            assert_eq!(call.request_within().unwrap_err().code, code);
        }
    }

    #[test]
    fn results_by_version() {
        let network = PodNetwork {
            ips: vec!["10.42.0.5".parse().unwrap()],
            gateway: Some("10.42.0.1".parse().unwrap()),
            interface: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
        };
        let new = result(&network, "/run/netns/x", "1.0.0");
        assert_eq!(new["ips"], json!([{"address": "10.42.0.5/32", "gateway": "10.42.0.1", "interface": 0}]));
        assert_eq!(new["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.42.0.1"}]));
        assert_eq!(result(&network, "/x", "0.3.1")["ips"][0]["version"], "4");
        assert!(agrees(&network, &new));
        assert!(!agrees(&network, &json!({"ips": [{"address": "10.42.0.6/32"}]})));
    }

    #[test]
    fn what_needs_no_instance() {
        let versions = run(&call("VERSION"), PLUGIN).unwrap();
        assert!(versions["supportedVersions"].as_array().unwrap().contains(&json!("1.0.0")));
        let old = Call { configuration: json!({"cniVersion": "0.1.0"}), ..call("ADD") };
        assert_eq!(run(&old, PLUGIN).unwrap_err().code, UNSUPPORTED_VERSION);
        assert_eq!(run(&call("ADD"), PLUGIN).unwrap_err().code, BAD_CONFIGURATION);
    }

    #[test]
    fn other_plugins_win() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("10-ferry-x.conflist");
        std::fs::write(&own, "{}").unwrap();
        std::fs::write(dir.path().join("readme.txt"), "").unwrap();
        assert!(!configured(dir.path(), &own));
        std::fs::write(dir.path().join("05-calico.conflist"), "{}").unwrap();
        assert!(configured(dir.path(), &own));
    }
}
