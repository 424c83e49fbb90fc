//! Confinement by the kernel's security modules: AppArmor profiles and SELinux labels, taken on with the exec.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use cri::{ApparmorProfile, SelinuxOptions};

use crate::spec::ProcessSpec;
use crate::wire::Failure;

/// The profile of containers that ask for the runtime's.
const DEFAULT_PROFILE: &str = "ferry-default";
/// What it allows: all that capabilities and masks let through, but no writes to the kernel's tuning files, no
/// mounts, and signals and traces among its own alone.
const DEFAULT_TEXT: &str = "#include <tunables/global>
profile ferry-default flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=ferry-default,
  ptrace (trace,read,tracedby,readby) peer=ferry-default,
  deny mount,
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";

/// What of AppArmor a host has.
pub(crate) trait Host {
    /// Whether the kernel enforces profiles.
    fn enabled(&self) -> bool;
    /// Whether a profile is loaded.
    fn has(&self, profile: &str) -> bool;
    /// Loads the default profile.
    fn load_default(&self) -> Result<(), String>;
}

/// This host.
pub(crate) struct Kernel;

impl Host for Kernel {
    fn enabled(&self) -> bool {
        let text = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        text.is_ok_and(|text| text.starts_with('Y'))
    }

    fn has(&self, profile: &str) -> bool {
        // Lines are `name (enforce)`.
        let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
        loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
    }

    fn load_default(&self) -> Result<(), String> {
        let mut parser = Command::new("apparmor_parser");
        let parser = parser.args(["-Kr"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let failed = |error: std::io::Error| format!("load apparmor profile {DEFAULT_PROFILE}: {error}");
        let mut child = parser.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(DEFAULT_TEXT.as_bytes()).map_err(failed)?;
        }
        let output = child.wait_with_output().map_err(failed)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "load apparmor profile {DEFAULT_PROFILE}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )),
        }
    }
}

/// The profile a container is to have; empty for none.
pub(crate) fn apparmor(
    wanted: Option<&ApparmorProfile>,
    privileged: bool,
    host: &dyn Host,
) -> Result<String, String> {
    let named = match wanted {
        Some(ApparmorProfile::Unconfined) => return Ok(String::new()),
        None if privileged || !host.enabled() => return Ok(String::new()),
        Some(_) if !host.enabled() => {
            return Err("apparmor is not supported by this kernel".into());
        }
        Some(ApparmorProfile::Localhost(name)) => name.as_str(),
        Some(ApparmorProfile::RuntimeDefault) | None => DEFAULT_PROFILE,
    };
    match (host.has(named), named) {
        (true, _) => Ok(named.to_owned()),
        (false, DEFAULT_PROFILE) => match host.load_default() {
            Ok(()) => Ok(named.to_owned()),
            // Nobody has asked for it: a host without the parser runs containers all the same.
            Err(_) if wanted.is_none() => Ok(String::new()),
            Err(error) => Err(error),
        },
        (false, name) => Err(format!("apparmor profile not found {name}")),
    }
}

/// The label a container is to have; empty where the kernel has none or the pod asks for none.
pub(crate) fn selinux(wanted: Option<&SelinuxOptions>) -> String {
    match Path::new("/sys/fs/selinux/enforce").exists() {
        true => wanted.map(label).unwrap_or_default(),
        false => String::new(),
    }
}

/// A label in the kernel's form; what is not said is what containers have everywhere.
fn label(wanted: &SelinuxOptions) -> String {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    [
        or(&wanted.user, "system_u"),
        or(&wanted.role, "system_r"),
        or(&wanted.kind, "container_t"),
        or(&wanted.level, "s0"),
    ]
    .join(":")
}

/// Has this process take on its confinement with the next exec.
pub(crate) fn on_exec(process: &ProcessSpec) -> Result<(), Failure> {
    if !process.apparmor.is_empty() {
        let wanted = format!("exec {}", process.apparmor);
        // Kernels with several modules at once have a file for each.
        let written = fs::write("/proc/self/attr/apparmor/exec", &wanted)
            .or_else(|_| fs::write("/proc/self/attr/exec", &wanted));
        written.map_err(Failure::during(format!("apply apparmor profile {}", process.apparmor)))?;
    }
    if !process.selinux.is_empty() {
        fs::write("/proc/self/attr/exec", &process.selinux)
            .map_err(Failure::during(format!("set exec label {}", process.selinux)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        enabled: bool,
        loaded: &'static [&'static str],
        loads: bool,
    }

    impl Host for Fake {
        fn enabled(&self) -> bool {
            self.enabled
        }
        fn has(&self, profile: &str) -> bool {
            self.loaded.contains(&profile)
        }
        fn load_default(&self) -> Result<(), String> {
            if self.loads { Ok(()) } else { Err("no parser".into()) }
        }
    }

    #[test]
    fn profiles() {
        let without = Fake { enabled: false, loaded: &[], loads: false };
        let with = Fake { enabled: true, loaded: &["mine"], loads: true };
        let bare = Fake { enabled: true, loaded: &[], loads: false };
        let (default, free) = (ApparmorProfile::RuntimeDefault, ApparmorProfile::Unconfined);
        let local = |name: &str| ApparmorProfile::Localhost(name.into());
        let unsupported = Err("apparmor is not supported by this kernel");
        let table = [
            (None, false, &without, Ok("")),
            (Some(default.clone()), false, &without, unsupported),
            (Some(local("mine")), false, &without, unsupported),
            (Some(free.clone()), false, &with, Ok("")),
            (None, false, &with, Ok("ferry-default")),
            (None, true, &with, Ok("")),
            (Some(local("mine")), false, &with, Ok("mine")),
            (Some(local("other")), false, &with, Err("apparmor profile not found other")),
            (Some(default.clone()), true, &with, Ok("ferry-default")),
            (None, false, &bare, Ok("")),
            (Some(default), false, &bare, Err("no parser")),
        ];
        for (wanted, privileged, host, expected) in table {
            let found = apparmor(wanted.as_ref(), privileged, host);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{wanted:?} {privileged}");
        }
    }

    #[test]
    fn labels() {
        let wanted = SelinuxOptions { level: "s0:c1,c2".into(), ..SelinuxOptions::default() };
        assert_eq!(label(&wanted), "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(selinux(None), "");
    }
}
