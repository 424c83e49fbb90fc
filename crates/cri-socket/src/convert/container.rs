//! Containers: configuration, limits, identity, status.

use cri::{
    ApparmorProfile, Capabilities, ContainerConfig, ContainerFilter, ContainerResources,
    ContainerSecurityContext, ContainerState, ContainerStatus, Device, EnvVar, ExitInfo, HugepageLimit,
    IdMapping, Mount, MountPropagation, SelinuxOptions,
};
use rpc::cri as pb;

use super::sandbox::{id_mapping_to, namespaces_from, namespaces_to, seccomp_from, seccomp_to};
use super::{
    id_from, id_to, ids_from, ids_to, nanoseconds, signal, some_text, some_timestamp, text, timestamp,
};

/// A mount; with ids of the pod's own its files are shown with them.
fn mount_to(mount: &Mount, ids: Option<IdMapping>) -> pb::Mount {
    let ids: Vec<pb::IdMapping> = ids.map(id_mapping_to).into_iter().collect();
    let propagation = match mount.propagation {
        MountPropagation::Private => pb::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => pb::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => pb::MountPropagation::PropagationBidirectional,
    };
    pb::Mount {
        container_path: text(&mount.container_path),
        host_path: text(&mount.host_path),
        readonly: mount.readonly,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_readonly,
        image: mount.image.as_deref().map(image_spec),
        image_sub_path: mount.image_sub_path.clone(),
        uid_mappings: ids.clone(),
        gid_mappings: ids,
        ..Default::default()
    }
}

fn mount_from(mount: &pb::Mount) -> Mount {
    Mount {
        container_path: mount.container_path.as_str().into(),
        host_path: mount.host_path.as_str().into(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        propagation: match mount.propagation() {
            pb::MountPropagation::PropagationPrivate => MountPropagation::Private,
            pb::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
            pb::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
        },
        image: mount.image.as_ref().map(|image| image.image.clone()),
        image_sub_path: mount.image_sub_path.clone(),
    }
}

/// An image by its reference.
pub fn image_spec(image: &str) -> pb::ImageSpec {
    let image = image.to_owned();
    pb::ImageSpec { user_specified_image: image.clone(), image, ..Default::default() }
}

/// Limits.
pub fn resources_to(of: &ContainerResources) -> pb::LinuxContainerResources {
    pb::LinuxContainerResources {
        cpu_period: of.cpu_period_us.cast_signed(),
        cpu_quota: of.cpu_quota_us,
        cpu_shares: of.cpu_shares.cast_signed(),
        memory_limit_in_bytes: of.memory_limit_bytes,
        oom_score_adj: i64::from(of.oom_score_adj),
        cpuset_cpus: of.cpuset_cpus.clone(),
        cpuset_mems: of.cpuset_mems.clone(),
        hugepage_limits: of
            .hugepage_limits
            .iter()
            .map(|limit| pb::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit_bytes })
            .collect(),
        unified: of.unified.clone(),
        memory_swap_limit_in_bytes: of.memory_swap_limit_bytes,
    }
}

/// Limits.
pub fn resources_from(of: &pb::LinuxContainerResources) -> ContainerResources {
    let positive = |value: i64| u64::try_from(value).unwrap_or_default();
    ContainerResources {
        cpu_period_us: positive(of.cpu_period),
        cpu_quota_us: of.cpu_quota,
        cpu_shares: positive(of.cpu_shares),
        memory_limit_bytes: of.memory_limit_in_bytes,
        memory_swap_limit_bytes: of.memory_swap_limit_in_bytes,
        oom_score_adj: i32::try_from(of.oom_score_adj).unwrap_or_default(),
        cpuset_cpus: of.cpuset_cpus.clone(),
        cpuset_mems: of.cpuset_mems.clone(),
        pids_limit: 0,
        hugepage_limits: of
            .hugepage_limits
            .iter()
            .map(|limit| HugepageLimit { page_size: limit.page_size.clone(), limit_bytes: limit.limit })
            .collect(),
        unified: of.unified.clone(),
    }
}

fn security_to(of: &ContainerSecurityContext) -> pb::LinuxContainerSecurityContext {
    let policy = match of.strict_supplemental_groups {
        true => pb::SupplementalGroupsPolicy::Strict,
        false => pb::SupplementalGroupsPolicy::Merge,
    };
    pb::LinuxContainerSecurityContext {
        capabilities: Some(pb::Capability {
            add_capabilities: of.capabilities.add.clone(),
            drop_capabilities: of.capabilities.drop.clone(),
            ..Default::default()
        }),
        privileged: of.privileged,
        namespace_options: Some(namespaces_to(&of.namespaces)),
        run_as_user: id_to(of.run_as_user),
        run_as_group: id_to(of.run_as_group),
        run_as_username: of.run_as_username.clone(),
        readonly_rootfs: of.readonly_rootfs,
        supplemental_groups: ids_to(&of.supplemental_groups),
        supplemental_groups_policy: policy.into(),
        no_new_privs: of.no_new_privs,
        masked_paths: of.masked_paths.iter().map(|path| text(path)).collect(),
        readonly_paths: of.readonly_paths.iter().map(|path| text(path)).collect(),
        seccomp: Some(seccomp_to(&of.seccomp)),
        apparmor: of.apparmor.as_ref().map(apparmor_to),
        selinux_options: of.selinux.as_ref().map(|of| pb::SeLinuxOption {
            user: of.user.clone(),
            role: of.role.clone(),
            r#type: of.kind.clone(),
            level: of.level.clone(),
        }),
        ..Default::default()
    }
}

#[allow(deprecated)]
fn security_from(of: &pb::LinuxContainerSecurityContext) -> ContainerSecurityContext {
    let capabilities = of.capabilities.clone().unwrap_or_default();
    ContainerSecurityContext {
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
        },
        privileged: of.privileged,
        namespaces: of.namespace_options.as_ref().map(namespaces_from).unwrap_or_default(),
        run_as_user: id_from(of.run_as_user),
        run_as_group: id_from(of.run_as_group),
        run_as_username: of.run_as_username.clone(),
        readonly_rootfs: of.readonly_rootfs,
        supplemental_groups: ids_from(&of.supplemental_groups),
        strict_supplemental_groups: of.supplemental_groups_policy() == pb::SupplementalGroupsPolicy::Strict,
        no_new_privs: of.no_new_privs,
        masked_paths: of.masked_paths.iter().map(Into::into).collect(),
        readonly_paths: of.readonly_paths.iter().map(Into::into).collect(),
        seccomp: seccomp_from(of.seccomp.as_ref(), &of.seccomp_profile_path),
        apparmor: apparmor_from(of.apparmor.as_ref(), &of.apparmor_profile),
        selinux: of.selinux_options.as_ref().map(|of| SelinuxOptions {
            user: of.user.clone(),
            role: of.role.clone(),
            kind: of.r#type.clone(),
            level: of.level.clone(),
        }),
    }
}

fn apparmor_to(profile: &ApparmorProfile) -> pb::SecurityProfile {
    use pb::security_profile::ProfileType;
    let (kind, name) = match profile {
        ApparmorProfile::RuntimeDefault => (ProfileType::RuntimeDefault, ""),
        ApparmorProfile::Unconfined => (ProfileType::Unconfined, ""),
        ApparmorProfile::Localhost(name) => (ProfileType::Localhost, name.as_str()),
    };
    pb::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() }
}

/// An AppArmor profile: the message, or the older name where there is none.
fn apparmor_from(profile: Option<&pb::SecurityProfile>, name: &str) -> Option<ApparmorProfile> {
    use pb::security_profile::ProfileType;
    let Some(profile) = profile else {
        return match (name, name.strip_prefix("localhost/")) {
            ("", _) => None,
            ("runtime/default", _) => Some(ApparmorProfile::RuntimeDefault),
            ("unconfined", _) => Some(ApparmorProfile::Unconfined),
            (_, local) => Some(ApparmorProfile::Localhost(local.unwrap_or(name).to_owned())),
        };
    };
    Some(match profile.profile_type() {
        ProfileType::RuntimeDefault => ApparmorProfile::RuntimeDefault,
        ProfileType::Unconfined => ApparmorProfile::Unconfined,
        // The name may come with the older one's prefix.
        ProfileType::Localhost => {
            let name = profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref);
            ApparmorProfile::Localhost(name.to_owned())
        }
    })
}

/// A container's configuration.
pub fn config_to(config: &ContainerConfig) -> pb::ContainerConfig {
    let envs = config
        .envs
        .iter()
        .map(|env| pb::KeyValue { key: env.name.clone(), value: env.value.clone().into_bytes().into() });
    let devices = config.devices.iter().map(|device| pb::Device {
        container_path: text(&device.container_path),
        host_path: text(&device.host_path),
        permissions: device.permissions.clone(),
    });
    pb::ContainerConfig {
        metadata: Some(pb::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }),
        image: Some(image_spec(&config.image)),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone(),
        envs: envs.collect(),
        mounts: config.mounts.iter().map(|m| mount_to(m, config.security.namespaces.user_ids)).collect(),
        devices: devices.collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: text(&config.log_path),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(pb::LinuxContainerConfig {
            resources: Some(resources_to(&config.resources)),
            security_context: Some(security_to(&config.security)),
        }),
        cdi_devices: config.cdi_devices.iter().map(|name| pb::CdiDevice { name: name.clone() }).collect(),
        stop_signal: config.stop_signal.as_deref().map_or(pb::Signal::RuntimeDefault, signal::to).into(),
    }
}

/// A container's configuration.
pub fn config_from(config: &pb::ContainerConfig) -> ContainerConfig {
    let metadata = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    let envs = config
        .envs
        .iter()
        .map(|env| EnvVar { name: env.key.clone(), value: String::from_utf8_lossy(&env.value).into_owned() });
    let devices = config.devices.iter().map(|device| Device {
        container_path: device.container_path.as_str().into(),
        host_path: device.host_path.as_str().into(),
        permissions: device.permissions.clone(),
    });
    ContainerConfig {
        name: metadata.name,
        attempt: metadata.attempt,
        image: config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone(),
        envs: envs.collect(),
        mounts: config.mounts.iter().map(mount_from).collect(),
        devices: devices.collect(),
        cdi_devices: config.cdi_devices.iter().map(|device| device.name.clone()).collect(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: config.log_path.as_str().into(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: signal::from(config.stop_signal),
        resources: linux.resources.as_ref().map(resources_from).unwrap_or_default(),
        security: linux.security_context.as_ref().map(security_from).unwrap_or_default(),
        ..ContainerConfig::default()
    }
}

/// Where a container is in its life.
pub fn state_to(state: ContainerState) -> pb::ContainerState {
    match state {
        ContainerState::Created => pb::ContainerState::ContainerCreated,
        ContainerState::Running => pb::ContainerState::ContainerRunning,
        ContainerState::Exited => pb::ContainerState::ContainerExited,
        ContainerState::Unknown => pb::ContainerState::ContainerUnknown,
    }
}

/// Where a container is in its life.
pub fn state_from(state: pb::ContainerState) -> ContainerState {
    match state {
        pb::ContainerState::ContainerCreated => ContainerState::Created,
        pb::ContainerState::ContainerRunning => ContainerState::Running,
        pb::ContainerState::ContainerExited => ContainerState::Exited,
        pb::ContainerState::ContainerUnknown => ContainerState::Unknown,
    }
}

fn metadata_of(status: &ContainerStatus) -> pb::ContainerMetadata {
    pb::ContainerMetadata { name: status.name.clone(), attempt: status.attempt }
}

/// A container in a list.
pub fn item_to(status: &ContainerStatus) -> pb::Container {
    pb::Container {
        id: status.id.clone(),
        pod_sandbox_id: status.sandbox_id.clone(),
        metadata: Some(metadata_of(status)),
        image: Some(image_spec(&status.image)),
        image_ref: status.image_id.clone(),
        state: state_to(status.state).into(),
        created_at: nanoseconds(status.created_at),
        labels: status.labels.clone(),
        annotations: status.annotations.clone(),
        image_id: status.image_id.clone(),
    }
}

/// A container in full.
pub fn status_to(status: &ContainerStatus, mounts: &[Mount]) -> pb::ContainerStatus {
    let exit = status.exit.as_ref();
    let user = status.user.as_ref().map(|(uid, gid, groups)| pb::LinuxContainerUser {
        uid: i64::from(*uid),
        gid: i64::from(*gid),
        supplemental_groups: ids_to(groups),
    });
    pb::ContainerStatus {
        id: status.id.clone(),
        metadata: Some(metadata_of(status)),
        state: state_to(status.state).into(),
        created_at: nanoseconds(status.created_at),
        started_at: status.started_at.map(nanoseconds).unwrap_or_default(),
        finished_at: exit.map(|exit| nanoseconds(exit.finished_at)).unwrap_or_default(),
        exit_code: exit.map(|exit| exit.code).unwrap_or_default(),
        image: Some(image_spec(&status.image)),
        image_ref: status.image_ref.clone(),
        reason: exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: status.labels.clone(),
        annotations: status.annotations.clone(),
        mounts: mounts.iter().map(|mount| mount_to(mount, None)).collect(),
        log_path: text(&status.log_path),
        resources: Some(pb::ContainerResources { linux: Some(resources_to(&status.resources)) }),
        image_id: status.image_id.clone(),
        user: Some(pb::ContainerUser { linux: user }),
        stop_signal: signal::to(&status.stop_signal).into(),
    }
}

/// A container in full; the protocol leaves its sandbox to lists. Limits are `None` with runtimes that do not
/// tell them.
pub fn status_from(status: pb::ContainerStatus, sandbox_id: &str) -> (ContainerStatus, bool) {
    let state = state_from(status.state());
    let metadata = status.metadata.unwrap_or_default();
    let ended = matches!(state, ContainerState::Exited | ContainerState::Unknown) && status.finished_at != 0;
    let exit = ended.then(|| ExitInfo {
        code: status.exit_code,
        oom_killed: status.reason == "OOMKilled",
        finished_at: timestamp(status.finished_at),
        reason: status.reason,
        message: status.message,
    });
    let resources = status.resources.and_then(|resources| resources.linux);
    let user = status.user.and_then(|user| user.linux).and_then(|user| {
        let groups = ids_from(&user.supplemental_groups);
        Some((u32::try_from(user.uid).ok()?, u32::try_from(user.gid).ok()?, groups))
    });
    // Older runtimes have the id in the reference's place.
    let image_id = match status.image_id.is_empty() {
        true => status.image_ref.clone(),
        false => status.image_id,
    };
    let told = resources.is_some();
    let status = ContainerStatus {
        id: status.id,
        sandbox_id: sandbox_id.to_owned(),
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        created_at: timestamp(status.created_at),
        started_at: some_timestamp(status.started_at),
        exit,
        pid: None,
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_id,
        image_ref: status.image_ref,
        user,
        labels: status.labels,
        annotations: status.annotations,
        log_path: status.log_path.into(),
        resources: resources.as_ref().map(resources_from).unwrap_or_default(),
        stop_signal: signal::from(status.stop_signal).unwrap_or_default(),
    };
    (status, told)
}

/// A filter of containers.
pub fn filter_to(filter: &ContainerFilter) -> pb::ContainerFilter {
    pb::ContainerFilter {
        id: filter.id.clone().unwrap_or_default(),
        state: filter.state.map(|state| pb::ContainerStateValue { state: state_to(state).into() }),
        pod_sandbox_id: filter.sandbox_id.clone().unwrap_or_default(),
        label_selector: filter.labels.clone(),
    }
}

/// A filter of containers.
pub fn filter_from(filter: Option<pb::ContainerFilter>) -> ContainerFilter {
    let filter = filter.unwrap_or_default();
    ContainerFilter {
        id: some_text(&filter.id),
        sandbox_id: some_text(&filter.pod_sandbox_id),
        state: filter.state.map(|value| state_from(value.state())),
        labels: filter.label_selector,
    }
}

#[cfg(test)]
mod tests {
    use cri::{NamespaceMode, NamespaceOptions, SeccompProfile};

    use super::*;

    #[test]
    fn configurations_survive_both_ways() {
        let config = ContainerConfig {
            name: "c".into(),
            attempt: 3,
            image: "i:1".into(),
            command: vec!["a".into()],
            args: vec!["b".into()],
            working_dir: "/w".into(),
            envs: vec![EnvVar { name: "N".into(), value: "v\u{fc}".into() }],
            mounts: vec![
                Mount {
                    container_path: "/c".into(),
                    host_path: "/h".into(),
                    readonly: true,
                    recursive_readonly: true,
                    propagation: MountPropagation::Bidirectional,
                    ..Mount::default()
                },
                Mount { container_path: "/i".into(), image: Some("x".into()), ..Mount::default() },
            ],
            devices: vec![Device {
                container_path: "/dev/a".into(),
                host_path: "/dev/b".into(),
                permissions: "rw".into(),
            }],
            cdi_devices: vec!["vendor.com/class=x".into()],
            labels: [("a".to_owned(), "b".to_owned())].into(),
            annotations: [("c".to_owned(), "d".to_owned())].into(),
            log_path: "c/0.log".into(),
            log_rotation: None,
            stdin: true,
            stdin_once: true,
            tty: true,
            stop_signal: Some("SIGUSR1".into()),
            resources: ContainerResources {
                cpu_period_us: 1,
                cpu_quota_us: -1,
                cpu_shares: 3,
                memory_limit_bytes: 4,
                memory_swap_limit_bytes: 5,
                oom_score_adj: -6,
                cpuset_cpus: "0".into(),
                cpuset_mems: "1".into(),
                pids_limit: 0,
                hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit_bytes: 7 }],
                unified: [("memory.high".to_owned(), "8".to_owned())].into(),
            },
            security: ContainerSecurityContext {
                capabilities: Capabilities { add: vec!["NET_ADMIN".into()], drop: vec!["ALL".into()] },
                namespaces: NamespaceOptions {
                    pid: NamespaceMode::Target("t".into()),
                    ..NamespaceOptions::default()
                },
                run_as_user: Some(0),
                run_as_group: Some(9),
                run_as_username: "u".into(),
                supplemental_groups: vec![10],
                strict_supplemental_groups: true,
                no_new_privs: true,
                readonly_rootfs: true,
                seccomp: SeccompProfile::RuntimeDefault,
                apparmor: Some(ApparmorProfile::Localhost("a".into())),
                selinux: Some(SelinuxOptions { kind: "t".into(), level: "s0".into(), ..Default::default() }),
                ..ContainerSecurityContext::default()
            },
            ulimits: Vec::new(),
        };
        assert_eq!(config_from(&config_to(&config)), config);
    }

    #[test]
    fn statuses_survive_both_ways() {
        let status = ContainerStatus {
            id: "i".into(),
            sandbox_id: "s".into(),
            name: "c".into(),
            attempt: 1,
            state: ContainerState::Exited,
            created_at: timestamp(1),
            started_at: Some(timestamp(2)),
            exit: Some(ExitInfo {
                code: 137,
                oom_killed: true,
                finished_at: timestamp(3),
                reason: "OOMKilled".into(),
                message: "m".into(),
            }),
            pid: None,
            image: "i:1".into(),
            image_id: "sha256:a".into(),
            image_ref: "i@sha256:b".into(),
            user: Some((1, 2, vec![3])),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: "/l".into(),
            resources: ContainerResources { cpu_shares: 2, ..ContainerResources::default() },
            stop_signal: "SIGTERM".into(),
        };
        assert_eq!(status_from(status_to(&status, &[]), "s"), (status, true));
        let bare = pb::ContainerStatus { image_ref: "sha256:a".into(), ..Default::default() };
        let (bare, told) = status_from(bare, "s");
        assert_eq!((bare.image_id.as_str(), bare.exit, told), ("sha256:a", None, false));
    }
}
