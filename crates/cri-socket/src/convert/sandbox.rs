//! Sandboxes and what they share with containers: namespaces, seccomp, port mappings.

use std::net::IpAddr;

use cri::{
    DnsConfig, IdMapping, NamespaceMode, NamespaceOptions, PodSandboxConfig, PodSandboxFilter,
    PodSandboxSecurityContext, PodSandboxState, PodSandboxStatus, PortMapping, Protocol, SeccompProfile,
};
use rpc::cri as pb;

use super::{id_from, id_to, ids_from, ids_to, nanoseconds, some_text, text, timestamp};

fn mode_to(mode: &NamespaceMode) -> pb::NamespaceMode {
    match mode {
        NamespaceMode::Pod => pb::NamespaceMode::Pod,
        NamespaceMode::Container => pb::NamespaceMode::Container,
        NamespaceMode::Node => pb::NamespaceMode::Node,
        NamespaceMode::Target(_) => pb::NamespaceMode::Target,
    }
}

fn mode_from(mode: pb::NamespaceMode, target: &str) -> NamespaceMode {
    match mode {
        pb::NamespaceMode::Pod => NamespaceMode::Pod,
        pb::NamespaceMode::Container => NamespaceMode::Container,
        pb::NamespaceMode::Node => NamespaceMode::Node,
        pb::NamespaceMode::Target => NamespaceMode::Target(target.to_owned()),
    }
}

/// Namespaces of a sandbox or container.
pub fn namespaces_to(of: &NamespaceOptions) -> pb::NamespaceOption {
    let target = match &of.pid {
        NamespaceMode::Target(id) => id.clone(),
        _ => String::new(),
    };
    let ids = of.user_ids.map(id_mapping_to).into_iter().collect::<Vec<_>>();
    let userns =
        |mode: pb::NamespaceMode| pb::UserNamespace { mode: mode.into(), uids: ids.clone(), gids: ids };
    pb::NamespaceOption {
        network: mode_to(&of.network).into(),
        pid: mode_to(&of.pid).into(),
        ipc: mode_to(&of.ipc).into(),
        target_id: target,
        // Absent is the node's, which also runtimes understand that know nothing of user namespaces.
        userns_options: (!of.host_users).then(|| userns(pb::NamespaceMode::Pod)),
    }
}

/// Namespaces of a sandbox or container.
pub fn namespaces_from(of: &pb::NamespaceOption) -> NamespaceOptions {
    let userns = of.userns_options.as_ref();
    NamespaceOptions {
        network: mode_from(of.network(), ""),
        pid: mode_from(of.pid(), &of.target_id),
        ipc: mode_from(of.ipc(), ""),
        host_users: userns.is_none_or(|users| users.mode() == pb::NamespaceMode::Node),
        user_ids: userns.and_then(|users| users.uids.first()).map(|ids| IdMapping {
            container_id: ids.container_id,
            host_id: ids.host_id,
            length: ids.length,
        }),
    }
}

/// Ids of a pod and what they are on the node.
pub fn id_mapping_to(of: IdMapping) -> pb::IdMapping {
    pb::IdMapping { host_id: of.host_id, container_id: of.container_id, length: of.length }
}

/// A seccomp profile.
pub fn seccomp_to(profile: &SeccompProfile) -> pb::SecurityProfile {
    use pb::security_profile::ProfileType;
    let (kind, path) = match profile {
        SeccompProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SeccompProfile::Localhost(path) => (ProfileType::Localhost, text(path)),
    };
    pb::SecurityProfile { profile_type: kind.into(), localhost_ref: path }
}

/// A seccomp profile: the message, or the older path where there is none.
pub fn seccomp_from(profile: Option<&pb::SecurityProfile>, path: &str) -> SeccompProfile {
    use pb::security_profile::ProfileType;
    let Some(profile) = profile else {
        return match path.strip_prefix("localhost/") {
            Some(file) => SeccompProfile::Localhost(file.into()),
            None if matches!(path, "runtime/default" | "docker/default") => SeccompProfile::RuntimeDefault,
            None => SeccompProfile::Unconfined,
        };
    };
    match profile.profile_type() {
        ProfileType::RuntimeDefault => SeccompProfile::RuntimeDefault,
        ProfileType::Unconfined => SeccompProfile::Unconfined,
        ProfileType::Localhost => SeccompProfile::Localhost(profile.localhost_ref.as_str().into()),
    }
}

fn port_to(port: &PortMapping) -> pb::PortMapping {
    let protocol = match port.protocol {
        Protocol::Tcp => pb::Protocol::Tcp,
        Protocol::Udp => pb::Protocol::Udp,
        Protocol::Sctp => pb::Protocol::Sctp,
    };
    pb::PortMapping {
        protocol: protocol.into(),
        container_port: i32::from(port.container_port),
        host_port: i32::from(port.host_port),
        host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

fn port_from(port: &pb::PortMapping) -> PortMapping {
    PortMapping {
        protocol: match port.protocol() {
            pb::Protocol::Tcp => Protocol::Tcp,
            pb::Protocol::Udp => Protocol::Udp,
            pb::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: u16::try_from(port.container_port).unwrap_or_default(),
        host_port: u16::try_from(port.host_port).unwrap_or_default(),
        host_ip: port.host_ip.parse().ok(),
    }
}

fn security_to(security: &PodSandboxSecurityContext) -> pb::LinuxSandboxSecurityContext {
    pb::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces_to(&security.namespaces)),
        run_as_user: id_to(security.run_as_user),
        run_as_group: id_to(security.run_as_group),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: ids_to(&security.supplemental_groups),
        privileged: security.privileged,
        seccomp: Some(seccomp_to(&security.seccomp)),
        ..Default::default()
    }
}

#[allow(deprecated)]
fn security_from(security: &pb::LinuxSandboxSecurityContext) -> PodSandboxSecurityContext {
    let namespaces = security.namespace_options.as_ref().map(namespaces_from);
    PodSandboxSecurityContext {
        namespaces: namespaces.unwrap_or_default(),
        run_as_user: id_from(security.run_as_user),
        run_as_group: id_from(security.run_as_group),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: ids_from(&security.supplemental_groups),
        privileged: security.privileged,
        seccomp: seccomp_from(security.seccomp.as_ref(), &security.seccomp_profile_path),
    }
}

/// A sandbox's configuration; the handler travels beside it.
pub fn config_to(config: &PodSandboxConfig) -> pb::PodSandboxConfig {
    pb::PodSandboxConfig {
        metadata: Some(pb::PodSandboxMetadata {
            name: config.name.clone(),
            uid: config.uid.clone(),
            namespace: config.namespace.clone(),
            attempt: config.attempt,
        }),
        hostname: config.hostname.clone(),
        log_directory: text(&config.log_directory),
        dns_config: config.dns.as_ref().map(|dns| pb::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: config.port_mappings.iter().map(port_to).collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        linux: Some(pb::LinuxPodSandboxConfig {
            cgroup_parent: config.cgroup_parent.clone(),
            security_context: Some(security_to(&config.security)),
            sysctls: config.sysctls.clone(),
            ..Default::default()
        }),
    }
}

/// A sandbox's configuration with its handler.
pub fn config_from(config: &pb::PodSandboxConfig, handler: &str) -> PodSandboxConfig {
    let metadata = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    PodSandboxConfig {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        hostname: config.hostname.clone(),
        log_directory: config.log_directory.as_str().into(),
        dns: config.dns_config.as_ref().map(|dns| DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: config.port_mappings.iter().map(port_from).collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        cgroup_parent: linux.cgroup_parent,
        sysctls: linux.sysctls,
        runtime_handler: handler.to_owned(),
        security: linux.security_context.as_ref().map(security_from).unwrap_or_default(),
    }
}

fn state_to(state: PodSandboxState) -> pb::PodSandboxState {
    match state {
        PodSandboxState::Ready => pb::PodSandboxState::SandboxReady,
        PodSandboxState::NotReady => pb::PodSandboxState::SandboxNotready,
    }
}

/// Whether a sandbox is up.
pub fn state_from(state: pb::PodSandboxState) -> PodSandboxState {
    match state {
        pb::PodSandboxState::SandboxReady => PodSandboxState::Ready,
        pb::PodSandboxState::SandboxNotready => PodSandboxState::NotReady,
    }
}

fn metadata_of(status: &PodSandboxStatus) -> pb::PodSandboxMetadata {
    pb::PodSandboxMetadata {
        name: status.name.clone(),
        uid: status.uid.clone(),
        namespace: status.namespace.clone(),
        attempt: status.attempt,
    }
}

/// A sandbox in a list.
pub fn item_to(status: &PodSandboxStatus) -> pb::PodSandbox {
    pb::PodSandbox {
        id: status.id.clone(),
        metadata: Some(metadata_of(status)),
        state: state_to(status.state).into(),
        created_at: nanoseconds(status.created_at),
        labels: status.labels.clone(),
        annotations: status.annotations.clone(),
        runtime_handler: status.runtime_handler.clone(),
    }
}

/// A sandbox in full.
pub fn status_to(status: &PodSandboxStatus) -> pb::PodSandboxStatus {
    let mut ips = status.ips.iter().map(IpAddr::to_string);
    let network = pb::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| pb::PodIp { ip }).collect(),
    };
    let options = Some(namespaces_to(&status.namespaces));
    pb::PodSandboxStatus {
        id: status.id.clone(),
        metadata: Some(metadata_of(status)),
        state: state_to(status.state).into(),
        created_at: nanoseconds(status.created_at),
        network: Some(network),
        linux: Some(pb::LinuxPodSandboxStatus { namespaces: Some(pb::Namespace { options }) }),
        labels: status.labels.clone(),
        annotations: status.annotations.clone(),
        runtime_handler: status.runtime_handler.clone(),
    }
}

/// A sandbox in full.
pub fn status_from(status: pb::PodSandboxStatus) -> PodSandboxStatus {
    let state = state_from(status.state());
    let metadata = status.metadata.unwrap_or_default();
    let network = status.network.unwrap_or_default();
    let texts = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    let options = status.linux.and_then(|linux| linux.namespaces?.options);
    PodSandboxStatus {
        id: status.id,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        state,
        created_at: timestamp(status.created_at),
        ips: texts.filter_map(|ip| ip.parse().ok()).collect(),
        namespaces: options.as_ref().map(namespaces_from).unwrap_or_default(),
        runtime_handler: status.runtime_handler,
        labels: status.labels,
        annotations: status.annotations,
    }
}

/// A filter of sandboxes.
pub fn filter_to(filter: &PodSandboxFilter) -> pb::PodSandboxFilter {
    pb::PodSandboxFilter {
        id: filter.id.clone().unwrap_or_default(),
        state: filter.state.map(|state| pb::PodSandboxStateValue { state: state_to(state).into() }),
        label_selector: filter.labels.clone(),
    }
}

/// A filter of sandboxes.
pub fn filter_from(filter: Option<pb::PodSandboxFilter>) -> PodSandboxFilter {
    let filter = filter.unwrap_or_default();
    PodSandboxFilter {
        id: some_text(&filter.id),
        state: filter.state.map(|value| state_from(value.state())),
        labels: filter.label_selector,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_survive_both_ways() {
        let config = PodSandboxConfig {
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            attempt: 2,
            hostname: "h".into(),
            log_directory: "/logs".into(),
            dns: Some(DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() }),
            port_mappings: vec![PortMapping {
                protocol: Protocol::Udp,
                container_port: 53,
                host_port: 5353,
                host_ip: Some("127.0.0.1".parse().unwrap()),
            }],
            labels: [("a".to_owned(), "b".to_owned())].into(),
            annotations: [("c".to_owned(), "d".to_owned())].into(),
            cgroup_parent: "/x/pod".into(),
            sysctls: [("net.a".to_owned(), "1".to_owned())].into(),
            runtime_handler: "kata".into(),
            security: PodSandboxSecurityContext {
                namespaces: NamespaceOptions {
                    network: NamespaceMode::Node,
                    pid: NamespaceMode::Pod,
                    ipc: NamespaceMode::Node,
                    host_users: false,
                    user_ids: Some(IdMapping { container_id: 0, host_id: 131_072, length: 65536 }),
                },
                run_as_user: Some(1),
                run_as_group: Some(2),
                readonly_rootfs: true,
                supplemental_groups: vec![3],
                privileged: true,
                seccomp: SeccompProfile::Localhost("/p".into()),
            },
        };
        assert_eq!(config_from(&config_to(&config), "kata"), config);
    }

    #[test]
    fn statuses_survive_both_ways() {
        let status = PodSandboxStatus {
            id: "i".into(),
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            attempt: 1,
            state: PodSandboxState::NotReady,
            created_at: timestamp(5),
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            namespaces: NamespaceOptions::default(),
            runtime_handler: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
        };
        assert_eq!(status_from(status_to(&status)), status);
    }

    #[test]
    fn seccomp_of_older_callers() {
        assert_eq!(seccomp_from(None, "localhost//a/b"), SeccompProfile::Localhost("/a/b".into()));
        assert_eq!(seccomp_from(None, "runtime/default"), SeccompProfile::RuntimeDefault);
        assert_eq!(seccomp_from(None, ""), SeccompProfile::Unconfined);
    }
}
