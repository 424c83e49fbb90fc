//! From what the kubelet asks for and what the image says to what the shim does. Pure.

use std::path::{Path, PathBuf};

use cri::{ContainerConfig, ImageConfig, NamespaceMode, PodSandboxConfig, SeccompProfile};
use image::{Identity, resolve_user};

use crate::capabilities;
use crate::cgroup::DeviceRule;
use crate::lsm;
use crate::signals;
use crate::spec::{ContainerSpec, DeviceSpec, ImageMountSpec, MountSpec, PidMode, ProcessSpec};

/// `PATH` where neither image nor pod has one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that goes into a container's specification.
pub(super) struct Inputs<'a> {
    pub(super) sandbox: &'a PodSandboxConfig,
    pub(super) sandbox_dir: &'a Path,
    pub(super) config: &'a ContainerConfig,
    pub(super) image: &'a ImageConfig,
    pub(super) layers: Vec<PathBuf>,
    /// The image's `/etc/passwd` and `/etc/group`.
    pub(super) passwd: &'a str,
    pub(super) group: &'a str,
    pub(super) cgroup: PathBuf,
    /// Host name that the container sees.
    pub(super) hostname: &'a str,
    pub(super) devices: Vec<DeviceSpec>,
    pub(super) image_mounts: Vec<ImageMountSpec>,
}

/// A container ready to be written down.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) spec: ContainerSpec,
    /// `None` allows all devices.
    pub(super) device_rules: Option<Vec<DeviceRule>>,
    pub(super) seccomp: SeccompProfile,
    pub(super) stop_signal: i32,
}

/// Makes the plan; the error is a message for the user.
pub(super) fn plan(inputs: Inputs<'_>) -> Result<Plan, String> {
    let Inputs { sandbox, config, image, .. } = &inputs;
    let security = &config.security;
    let privileged = security.privileged;
    let identity = identity(config, image, inputs.passwd, inputs.group)?;
    let capabilities = if privileged {
        capabilities::all()
    } else {
        capabilities::resolve(&security.capabilities)
            .map_err(|name| format!("unknown capability \"CAP_{name}\""))?
    };
    let stop_signal = config.stop_signal.as_deref().or(image.stop_signal.as_deref()).unwrap_or("SIGTERM");
    let stop_signal =
        signals::parse(stop_signal).ok_or_else(|| format!("failed to parse signal {stop_signal:?}"))?;
    let mut rules = DeviceRule::defaults();
    rules.extend(inputs.devices.iter().map(|d| DeviceRule {
        block: d.block,
        major: Some(d.major),
        minor: Some(d.minor),
        access: d.access.clone(),
    }));
    let process = ProcessSpec {
        argv: command(config, image)?,
        env: environment(config, image, inputs.hostname, &identity.home),
        cwd: working_dir(config, image)?,
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
        capabilities,
        no_new_privs: security.no_new_privs && !privileged,
        apparmor: lsm::apparmor(security.apparmor.as_ref(), privileged, &lsm::Kernel)?,
        selinux: lsm::selinux(security.selinux.as_ref()),
        tty: config.tty,
        rlimits: rlimits(config)?,
        oom_score_adj: config.resources.oom_score_adj,
    };
    let spec = ContainerSpec {
        process,
        pid: match &security.namespaces.pid {
            NamespaceMode::Container => PidMode::Private,
            NamespaceMode::Pod => PidMode::Pod,
            NamespaceMode::Node => PidMode::Node,
            NamespaceMode::Target(id) => PidMode::Container(id.clone()),
        },
        layers: inputs.layers.clone(),
        readonly_rootfs: security.readonly_rootfs,
        privileged,
        mounts: mounts(config, inputs.sandbox_dir)?,
        image_mounts: inputs.image_mounts.clone(),
        devices: inputs.devices.clone(),
        masked_paths: if privileged { Vec::new() } else { security.masked_paths.clone() },
        readonly_paths: if privileged { Vec::new() } else { security.readonly_paths.clone() },
        host_ipc: sandbox.security.namespaces.ipc == NamespaceMode::Node,
        cgroup: inputs.cgroup.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        log_path: log_path(sandbox, config),
        log_rotation: config.log_rotation,
        hooks: Default::default(),
    };
    let seccomp = if privileged { SeccompProfile::Unconfined } else { security.seccomp.clone() };
    Ok(Plan { spec, device_rules: (!privileged).then_some(rules), seccomp, stop_signal })
}

/// Absolute path of the log; empty for none.
pub(super) fn log_path(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> PathBuf {
    if config.log_path.as_os_str().is_empty() {
        PathBuf::new()
    } else {
        sandbox.log_directory.join(&config.log_path)
    }
}

fn command(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, String> {
    let (mut argv, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (config.command.clone(), &config.args),
        (true, false) => (image.entrypoint.clone(), &config.args),
        (true, true) => (image.entrypoint.clone(), &image.cmd),
    };
    argv.extend_from_slice(args);
    if argv.is_empty() { Err("no command specified".to_owned()) } else { Ok(argv) }
}

/// Later settings of a name replace earlier ones.
fn environment(config: &ContainerConfig, image: &ImageConfig, hostname: &str, home: &str) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(image.env.len() + config.envs.len() + 4);
    let mut set = |line: String| {
        let name_len = line.find('=').map_or(line.len(), |at| at + 1);
        match env.iter_mut().find(|old| old.get(..name_len) == line.get(..name_len)) {
            Some(old) => *old = line,
            None => env.push(line),
        }
    };
    set(DEFAULT_PATH.to_owned());
    set(format!("HOME={home}"));
    set(format!("HOSTNAME={hostname}"));
    if config.tty {
        set("TERM=xterm".to_owned());
    }
    image.env.iter().for_each(|line| set(line.clone()));
    config.envs.iter().for_each(|e| set(format!("{}={}", e.name, e.value)));
    env
}

fn working_dir(config: &ContainerConfig, image: &ImageConfig) -> Result<PathBuf, String> {
    let dir = if config.working_dir.is_empty() { &image.working_dir } else { &config.working_dir };
    match dir.as_str() {
        "" => Ok(PathBuf::from("/")),
        dir if dir.starts_with('/') => Ok(PathBuf::from(dir)),
        dir => Err(format!("invalid working directory {dir:?}: not absolute")),
    }
}

fn identity(
    config: &ContainerConfig,
    image: &ImageConfig,
    passwd: &str,
    group: &str,
) -> Result<Identity, String> {
    let security = &config.security;
    let user = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => uid.to_string(),
        (None, "") => image.user.clone(),
        (None, name) => name.to_owned(),
    };
    let user_alone = user.split(':').next().unwrap_or("").to_owned();
    let spec = match security.run_as_group {
        Some(gid) => format!("{user_alone}:{gid}"),
        None => user,
    };
    let mut identity = resolve_user(&spec, passwd, group).map_err(|e| e.to_string())?;
    // The image's groups of the user count whatever the primary group, unless the policy is strict.
    let of_image = match security.strict_supplemental_groups {
        true => Vec::new(),
        false => resolve_user(&user_alone, passwd, group).map_err(|e| e.to_string())?.groups,
    };
    let mut groups = vec![identity.gid];
    for gid in of_image.into_iter().chain(security.supplemental_groups.iter().copied()) {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    identity.groups = groups;
    Ok(identity)
}

/// The pod's mounts, and the runtime's own files where the pod brings none.
fn mounts(config: &ContainerConfig, sandbox_dir: &Path) -> Result<Vec<MountSpec>, String> {
    let mut mounts = Vec::with_capacity(config.mounts.len() + 3);
    for mount in config.mounts.iter().filter(|m| m.image.is_none()) {
        if !mount.container_path.is_absolute() {
            let path = mount.container_path.display();
            return Err(format!("mount destination {path} not absolute"));
        }
        mounts.push(MountSpec {
            source: mount.host_path.clone(),
            target: mount.container_path.clone(),
            readonly: mount.readonly,
            recursive_readonly: mount.recursive_readonly,
            propagation: mount.propagation,
        });
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = Path::new("/etc").join(name);
        if !config.mounts.iter().any(|m| m.container_path == target) {
            mounts.push(MountSpec {
                source: sandbox_dir.join(name),
                target,
                readonly: config.security.readonly_rootfs,
                recursive_readonly: false,
                propagation: cri::MountPropagation::Private,
            });
        }
    }
    Ok(mounts)
}

fn rlimits(config: &ContainerConfig) -> Result<Vec<(u32, u64, u64)>, String> {
    const KINDS: [(&str, u32); 8] = [
        ("NOFILE", libc::RLIMIT_NOFILE),
        ("NPROC", libc::RLIMIT_NPROC),
        ("CORE", libc::RLIMIT_CORE),
        ("MEMLOCK", libc::RLIMIT_MEMLOCK),
        ("STACK", libc::RLIMIT_STACK),
        ("FSIZE", libc::RLIMIT_FSIZE),
        ("AS", libc::RLIMIT_AS),
        ("RTPRIO", libc::RLIMIT_RTPRIO),
    ];
    let number = |limit: &cri::Rlimit| {
        let upper = limit.kind.to_ascii_uppercase();
        let bare = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
        let known = KINDS.iter().find(|(name, _)| *name == bare);
        known
            .map(|(_, n)| (*n, limit.soft, limit.hard))
            .ok_or_else(|| format!("unknown rlimit {:?}", limit.kind))
    };
    config.ulimits.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nlogs:x:50:web\n";

    fn run(config: &ContainerConfig, image: &ImageConfig) -> Result<Plan, String> {
        plan(Inputs {
            sandbox: &PodSandboxConfig { log_directory: "/var/log/pods/x".into(), ..Default::default() },
            sandbox_dir: Path::new("/run/s"),
            config,
            image,
            layers: Vec::new(),
            passwd: PASSWD,
            group: GROUP,
            cgroup: "/ferry/pod/c".into(),
            hostname: "box",
            devices: Vec::new(),
            image_mounts: Vec::new(),
        })
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn command_and_args_override_as_kubernetes_says() {
        let image = ImageConfig { entrypoint: strings(&["/e"]), cmd: strings(&["c"]), ..Default::default() };
        let table: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/e", "c"]),
            (&["/x"], &[], &["/x"]),
            (&[], &["y"], &["/e", "y"]),
            (&["/x"], &["y"], &["/x", "y"]),
        ];
        for (command, args, want) in table {
            let config =
                ContainerConfig { command: strings(command), args: strings(args), ..Default::default() };
            assert_eq!(run(&config, &image).unwrap().spec.process.argv, want);
        }
        let error = run(&ContainerConfig::default(), &ImageConfig::default()).unwrap_err();
        assert_eq!(error, "no command specified");
    }

    fn with_command() -> ContainerConfig {
        ContainerConfig { command: strings(&["/x"]), ..Default::default() }
    }

    #[test]
    fn environment_is_merged_by_name() {
        let mut config = with_command();
        config.tty = true;
        config.envs.push(cri::EnvVar { name: "A".into(), value: "pod=1".into() });
        let image = ImageConfig { env: strings(&["A=image", "PATH=/opt", "AB=2"]), ..Default::default() };
        let env = run(&config, &image).unwrap().spec.process.env;
        assert_eq!(env, ["PATH=/opt", "HOME=/root", "HOSTNAME=box", "TERM=xterm", "A=pod=1", "AB=2"]);
    }

    #[test]
    fn users_and_groups() {
        let image = ImageConfig { user: "web".into(), ..Default::default() };
        let mut config = with_command();
        config.security.supplemental_groups = vec![99, 50];
        let ids = |config: &ContainerConfig| {
            let p = run(config, &image).unwrap().spec.process;
            (p.uid, p.gid, p.groups)
        };
        assert_eq!(ids(&config), (33, 34, vec![34, 50, 99]));
        config.security.run_as_group = Some(7);
        assert_eq!(ids(&config), (33, 7, vec![7, 50, 99]));
        config.security.strict_supplemental_groups = true;
        config.security.supplemental_groups.clear();
        assert_eq!(ids(&config), (33, 7, vec![7]));
        config.security.run_as_user = Some(1000);
        config.security.run_as_group = None;
        assert_eq!(ids(&config), (1000, 0, vec![0]));
        config.security.run_as_user = None;
        config.security.run_as_username = "ghost".into();
        let error = run(&config, &image).unwrap_err();
        assert_eq!(error, "unable to find user ghost: no matching entries in passwd file");
    }

    #[test]
    fn privileged_opens_everything() {
        let mut config = with_command();
        config.security.seccomp = SeccompProfile::RuntimeDefault;
        let plain = run(&config, &ImageConfig::default()).unwrap();
        assert!(plain.device_rules.is_some() && !plain.spec.masked_paths.is_empty());
        assert_eq!(plain.seccomp, SeccompProfile::RuntimeDefault);
        config.security.privileged = true;
        let open = run(&config, &ImageConfig::default()).unwrap();
        assert!(open.device_rules.is_none() && open.spec.masked_paths.is_empty());
        assert_eq!(open.seccomp, SeccompProfile::Unconfined);
        assert_eq!(open.spec.process.capabilities.len(), 41);
    }

    #[test]
    fn own_files_stand_back_for_the_pods() {
        let mut config = with_command();
        config.log_path = "c/0.log".into();
        config.mounts.push(cri::Mount {
            container_path: "/etc/hosts".into(),
            host_path: "/pods/hosts".into(),
            ..Default::default()
        });
        let spec = run(&config, &ImageConfig::default()).unwrap().spec;
        let sources: Vec<_> = spec.mounts.iter().map(|m| m.source.to_str().unwrap()).collect();
        assert_eq!(sources, ["/pods/hosts", "/run/s/hostname", "/run/s/resolv.conf"]);
        assert_eq!(spec.log_path, Path::new("/var/log/pods/x/c/0.log"));
    }
}
