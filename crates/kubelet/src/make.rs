//! From a pod's spec to what the runtime is asked for: sandbox, container, mounts, resolver, hosts file. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use api::prelude::*;
use cri::{
    ContainerConfig, DnsConfig, LogRotation, Mount, MountPropagation, NamespaceMode, PodSandboxConfig,
    PodSandboxSecurityContext, PortMapping, Protocol,
};

use crate::config::Config;
use crate::env;
use crate::resources;
use crate::security;
use crate::spec::{self, PodDirs, Role, mark};
use crate::swap::Swap;
use crate::volume::Source;

/// Where a container leaves its last words unless it says otherwise.
const MESSAGE_PATH_DEFAULT: &str = "/dev/termination-log";
/// Longest host name the kernel takes.
const HOSTNAME_MAX: usize = 63;

/// Host name and domain of a pod.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = spec::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let name = spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(pod.name());
    let name: String = name.chars().take(HOSTNAME_MAX).collect();
    let name = name.trim_end_matches(['-', '.']).to_owned();
    let domain = match spec.subdomain.as_deref().filter(|domain| !domain.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace()),
        None => String::new(),
    };
    (name, domain)
}

/// Resolver lines of the node's own file.
fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// The pod's resolver configuration by its DNS policy.
pub fn dns(pod: &Pod, config: &Config, node_resolv_conf: &str) -> DnsConfig {
    let spec = spec::spec(pod);
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let node = parse_resolv_conf(node_resolv_conf);
    let cluster = !config.cluster_dns.is_empty()
        && (policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network));
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster {
        let domain = &config.cluster_domain;
        let mut searches =
            vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
        searches.extend(node.searches);
        DnsConfig {
            servers: config.cluster_dns.iter().map(IpAddr::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        node
    };
    if let Some(extra) = &spec.dns_config {
        let add = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
            for item in more.iter().flatten() {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut dns.servers, &extra.nameservers);
        add(&mut dns.searches, &extra.searches);
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options.retain(|old| old.split(':').next() != Some(name.as_str()));
            dns.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    dns
}

/// The pod's `/etc/hosts`.
pub fn hosts_file(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, node_hosts: &str) -> String {
    let spec = spec::spec(pod);
    let mut text = if spec.host_network == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}")
    } else {
        let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost \
                        ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\n\
                        fe00::2\tip6-allrouters\n"
            .to_owned();
        let (name, domain) = hostname(pod, cluster_domain);
        for ip in ips {
            let names = if domain.is_empty() { name.clone() } else { format!("{name}.{domain}\t{name}") };
            text.push_str(&format!("{ip}\t{names}\n"));
        }
        text
    };
    let aliases: Vec<_> = spec.host_aliases.iter().flatten().collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.clone().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

fn protocol(name: Option<&str>) -> Protocol {
    match name {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

/// What the runtime is asked for to make the pod's sandbox.
pub fn sandbox(
    pod: &Pod,
    config: &Config,
    dirs: &PodDirs,
    attempt: u32,
    node_resolv_conf: &str,
) -> PodSandboxConfig {
    let spec = spec::spec(pod);
    let namespaces = security::namespaces(pod);
    let host_network = namespaces.network == NamespaceMode::Node;
    let (name, domain) = hostname(pod, &config.cluster_domain);
    let fqdn = spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty();
    let ports =
        spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(|c| spec::is_sidecar(c)));
    let ports = ports.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let host_port = port.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?;
        Some(PortMapping {
            protocol: protocol(port.protocol.as_deref()),
            container_port: u16::try_from(port.container_port).ok()?,
            host_port,
            host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
        })
    });
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    PodSandboxConfig {
        name: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        uid: pod.uid().to_owned(),
        attempt,
        hostname: match (host_network, fqdn) {
            (true, _) => String::new(),
            (false, true) => format!("{name}.{domain}"),
            (false, false) => name,
        },
        log_directory: dirs.logs.clone(),
        dns: Some(dns(pod, config, node_resolv_conf)),
        port_mappings: if host_network { Vec::new() } else { ports.collect() },
        labels: spec::sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: match config.cgroup_root.as_str() {
            "" => String::new(),
            root => resources::cgroup_parent(root, pod),
        },
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        // What stands behind the pod's RuntimeClass is looked up by who calls.
        runtime_handler: String::new(),
        security: PodSandboxSecurityContext {
            namespaces,
            supplemental_groups: security::supplemental_groups(pod),
            privileged: security::is_privileged(pod),
            seccomp: security::pod_seccomp(pod, &config.seccomp_dir),
            ..PodSandboxSecurityContext::default()
        },
    }
}

/// Everything a container's configuration is made of.
pub struct Parts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container's part in it.
    pub role: Role,
    /// The container.
    pub container: &'a Container,
    /// Restarts so far.
    pub restart_count: u32,
    /// Its environment.
    pub envs: Vec<cri::EnvVar>,
    /// Volumes by name.
    pub volumes: &'a HashMap<String, Source>,
    /// Paths of mounts with a sub path, by their position among the container's mounts.
    pub sub_paths: &'a HashMap<usize, PathBuf>,
    /// File that receives the termination message.
    pub message_file: PathBuf,
    /// Id of the container whose processes an ephemeral container sees.
    pub target: Option<String>,
    /// The pod's directories.
    pub dirs: &'a PodDirs,
    /// Memory of the node, in bytes.
    pub memory_capacity: i64,
    /// Directory of seccomp profiles.
    pub seccomp_dir: &'a Path,
    /// Whether the runtime can make read-only mounts recursively so.
    pub recursive_readonly: bool,
    /// Rotation of its log.
    pub log_rotation: LogRotation,
    /// Swap that is there to be limited.
    pub swap: Option<Swap>,
    /// Processors it runs on; empty for all.
    pub cpus: String,
    /// NUMA nodes its memory comes from; empty for all.
    pub memory_nodes: String,
}

/// The part of a volume that a mount names, with variables expanded.
pub fn sub_path(
    mount: &api::k8s_openapi::api::core::v1::VolumeMount,
    envs: &[cri::EnvVar],
) -> Option<String> {
    let expanded =
        mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()).map(|text| {
            env::expand(text, |name| envs.iter().find(|v| v.name == name).map(|v| v.value.clone()))
        });
    expanded.or_else(|| mount.sub_path.clone().filter(|path| !path.is_empty()))
}

fn mounts(parts: &Parts<'_>) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for (index, mount) in parts.container.volume_mounts.iter().flatten().enumerate() {
        let source = parts.volumes.get(&mount.name);
        let source = source.ok_or_else(|| {
            format!("cannot find volume {:?} to mount into container {:?}", mount.name, parts.container.name)
        })?;
        let mut made = Mount {
            container_path: PathBuf::from(&mount.mount_path),
            readonly: mount.read_only == Some(true),
            recursive_readonly: match mount.recursive_read_only.as_deref() {
                Some("Enabled") if !parts.recursive_readonly => {
                    return Err(format!(
                        "failed to resolve recursive read-only mode: volume {:?} requested recursive read-only mode, \
                         but it is not supported by the runtime",
                        mount.name
                    ));
                }
                Some("Enabled") => true,
                Some("IfPossible") => parts.recursive_readonly,
                _ => false,
            },
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
            ..Mount::default()
        };
        if !made.container_path.is_absolute() {
            made.container_path = Path::new("/").join(&made.container_path);
        }
        match source {
            Source::Image { reference, .. } => {
                made.image = Some(reference.clone());
                made.image_sub_path = sub_path(mount, &parts.envs).unwrap_or_default();
                made.readonly = true;
            }
            Source::Path(path) => made.host_path = parts.sub_paths.get(&index).unwrap_or(path).clone(),
            Source::Device { .. } => {
                return Err(format!(
                    "cannot find volume {:?} to mount into container {:?}",
                    mount.name, parts.container.name
                ));
            }
        }
        mounts.push(made);
    }
    let mounted =
        |path: &str, mounts: &[Mount]| mounts.iter().any(|mount| mount.container_path == Path::new(path));
    if !mounted("/etc/hosts", &mounts) {
        mounts.push(Mount {
            container_path: "/etc/hosts".into(),
            host_path: parts.dirs.etc_hosts(),
            readonly: parts.container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem)
                == Some(true),
            ..Mount::default()
        });
    }
    let message_path = parts.container.termination_message_path.as_deref().unwrap_or(MESSAGE_PATH_DEFAULT);
    if !message_path.is_empty() && !mounted(message_path, &mounts) {
        mounts.push(Mount {
            container_path: message_path.into(),
            host_path: parts.message_file.clone(),
            ..Mount::default()
        });
    }
    Ok(mounts)
}

/// The block volumes that a container has as devices.
fn devices(parts: &Parts<'_>) -> Result<Vec<cri::Device>, String> {
    let wanted = parts.container.volume_devices.iter().flatten();
    let one = |device: &api::k8s_openapi::api::core::v1::VolumeDevice| match parts.volumes.get(&device.name) {
        Some(Source::Device { path, read_only }) => Ok(cri::Device {
            container_path: PathBuf::from(&device.device_path),
            host_path: path.clone(),
            permissions: if *read_only { "r" } else { "mrw" }.into(),
        }),
        _ => Err(format!(
            "cannot find volume {:?} to pass into container {:?}",
            device.name, parts.container.name
        )),
    };
    wanted.map(one).collect()
}

/// What the runtime is asked for to make a container.
pub fn container(parts: Parts<'_>) -> Result<ContainerConfig, String> {
    let (pod, container) = (parts.pod, parts.container);
    let (mounts, devices) = (mounts(&parts)?, devices(&parts)?);
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        let value = |name: &str| parts.envs.iter().rev().find(|v| v.name == name).map(|v| v.value.clone());
        list.iter().flatten().map(|text| env::expand(text, value)).collect()
    };
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in [
        (mark::POD_NAME, pod.name()),
        (mark::POD_NAMESPACE, pod.namespace()),
        (mark::POD_UID, pod.uid()),
        (mark::CONTAINER_NAME, &container.name),
    ] {
        labels.insert(key.into(), value.into());
    }
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let annotations = BTreeMap::from([
        (mark::HASH.to_owned(), spec::container_hash(container)),
        (mark::RESTART_COUNT.to_owned(), parts.restart_count.to_string()),
        (mark::MESSAGE_PATH.to_owned(), container.termination_message_path.clone().unwrap_or_default()),
        (mark::MESSAGE_POLICY.to_owned(), policy.to_owned()),
        (mark::MESSAGE_FILE.to_owned(), parts.message_file.display().to_string()),
    ]);
    let mut security = security::container_context(pod, container, parts.seccomp_dir);
    if let Some(target) = parts.target {
        security.namespaces.pid = NamespaceMode::Target(target);
    }
    let mut resources = resources::container_resources(pod, container, parts.memory_capacity);
    resources.cpuset_cpus = parts.cpus;
    resources.cpuset_mems = parts.memory_nodes;
    if let Some(swap) = parts.swap {
        let most = swap.limit(pod, parts.role, container);
        resources.unified.insert("memory.swap.max".into(), most.to_string());
    }
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: parts.restart_count,
        image: container.image.clone().unwrap_or_default(),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts,
        devices,
        labels,
        annotations,
        log_path: spec::log_path(&container.name, parts.restart_count),
        log_rotation: Some(parts.log_rotation),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        resources,
        security,
        envs: parts.envs,
        ..ContainerConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    fn config() -> Config {
        Config { cluster_dns: vec!["10.43.0.10".parse().unwrap()], ..Config::new("n1", "/d".into()) }
    }

    #[test]
    fn resolvers() {
        let node = "nameserver 1.1.1.1\nsearch lan\noptions rotate\n";
        let cases = [
            (
                json!({"containers": []}),
                "10.43.0.10|n.svc.cluster.local svc.cluster.local cluster.local lan|ndots:5",
            ),
            (json!({"containers": [], "dnsPolicy": "Default"}), "1.1.1.1|lan|rotate"),
            (json!({"containers": [], "hostNetwork": true}), "1.1.1.1|lan|rotate"),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["x"],
                       "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "9.9.9.9|x|ndots:2 edns0",
            ),
            (
                json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                "10.43.0.10|n.svc.cluster.local svc.cluster.local cluster.local lan|ndots:1",
            ),
        ];
        for (spec, expected) in cases {
            let dns = dns(&pod(spec.clone()), &config(), node);
            let shown = [dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" ")].join("|");
            assert_eq!(shown, expected, "{spec}");
        }
    }

    #[test]
    fn hosts() {
        let pod = pod(json!({"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&pod, &["10.42.0.2".parse().unwrap()], "cluster.local", "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.42.0.2\th.s.n.svc.cluster.local\th\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn container_configuration() {
        let pod = pod(json!({"containers": [{"name": "c", "image": "i", "command": ["run", "$(A)", "$(B)"],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}, {"name": "v", "mountPath": "/w", "subPathExpr": "$(A)"}],
            "volumeDevices": [{"name": "b", "devicePath": "/dev/disk"}]}]}));
        let dirs = PodDirs::new(Path::new("/k"), Path::new("/l"), &pod);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let device = Source::Device { path: "/link".into(), read_only: true };
        let volumes =
            HashMap::from([("v".to_owned(), Source::Path("/vol".into())), ("b".to_owned(), device)]);
        let sub_paths = HashMap::from([(1, PathBuf::from("/sub"))]);
        let parts = |volumes| Parts {
            pod: &pod,
            role: Role::Regular,
            container,
            restart_count: 3,
            envs: vec![cri::EnvVar { name: "A".into(), value: "1".into() }],
            volumes,
            sub_paths: &sub_paths,
            message_file: "/m".into(),
            target: None,
            dirs: &dirs,
            memory_capacity: 1 << 30,
            seccomp_dir: Path::new("/s"),
            recursive_readonly: true,
            log_rotation: LogRotation { max_bytes: 1 << 20, max_files: 2 },
            swap: Some(Swap { total: 1, memory: 1, limited: false }),
            cpus: "1-2".into(),
            memory_nodes: "0".into(),
        };
        let made = super::container(parts(&volumes)).unwrap();
        assert_eq!(made.command, ["run", "1", "$(B)"]);
        let paths: Vec<_> = made
            .mounts
            .iter()
            .map(|m| (m.container_path.to_str().unwrap(), m.host_path.to_str().unwrap(), m.readonly))
            .collect();
        assert_eq!(
            paths,
            [
                ("/v", "/vol", true),
                ("/w", "/sub", false),
                ("/etc/hosts", "/k/pods/u/etc-hosts", false),
                ("/dev/termination-log", "/m", false)
            ]
        );
        assert_eq!(made.annotations[mark::RESTART_COUNT], "3");
        assert_eq!((made.resources.cpuset_cpus.as_str(), made.resources.cpuset_mems.as_str()), ("1-2", "0"));
        assert_eq!(made.resources.unified["memory.swap.max"], "0");
        assert_eq!(made.log_path, Path::new("c/3.log"));
        let given = &made.devices[0];
        assert_eq!((given.host_path.as_path(), given.permissions.as_str()), (Path::new("/link"), "r"));
        let without = |name: &str| {
            let mut fewer = volumes.clone();
            fewer.remove(name);
            fewer
        };
        let fewer = without("v");
        assert!(super::container(parts(&fewer)).unwrap_err().contains("cannot find volume \"v\""));
        let fewer = without("b");
        let error = super::container(parts(&fewer)).unwrap_err();
        assert_eq!(error, "cannot find volume \"b\" to pass into container \"c\"");
    }
}
