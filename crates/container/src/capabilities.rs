//! Linux capabilities by name.

use cri::Capabilities;

/// Names in the kernel's order: the position is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers have unless told otherwise: containerd's set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

fn number(name: &str) -> Option<u8> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare).map(|at| at as u8)
}

/// The name with `CAP_`, as seccomp profiles have it.
pub(crate) fn full_name(number: u8) -> String {
    NAMES.get(usize::from(number)).map_or_else(String::new, |name| format!("CAP_{name}"))
}

/// All of them.
pub(crate) fn all() -> Vec<u8> {
    (0..NAMES.len() as u8).collect()
}

/// The set of a container, sorted. The error is the name that no kernel knows.
pub(crate) fn resolve(change: &Capabilities) -> Result<Vec<u8>, String> {
    let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL");
    let numbers = |list: &[String]| {
        let named = list.iter().filter(|n| !is_all(n));
        named.map(|n| number(n).ok_or_else(|| n.clone())).collect::<Result<Vec<u8>, String>>()
    };
    let mut set: Vec<u8> = if change.add.iter().any(|n| is_all(&n)) {
        all()
    } else if change.drop.iter().any(|n| is_all(&n)) {
        Vec::new()
    } else {
        DEFAULT.iter().filter_map(|n| number(n)).collect()
    };
    set.extend(numbers(&change.add)?);
    let dropped = numbers(&change.drop)?;
    set.retain(|c| !dropped.contains(c));
    set.sort_unstable();
    set.dedup();
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(add: &[&str], drop: &[&str]) -> Result<String, String> {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        let set = resolve(&Capabilities { add: list(add), drop: list(drop) })?;
        Ok(set.iter().map(|n| NAMES[usize::from(*n)]).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn adds_and_drops() {
        assert_eq!(resolve(&Capabilities::default()).unwrap().len(), DEFAULT.len());
        assert_eq!(names(&["NET_ADMIN"], &["ALL"]).unwrap(), "NET_ADMIN");
        assert_eq!(names(&["CAP_SYS_TIME", "chown"], &["all"]).unwrap(), "CHOWN SYS_TIME");
        assert_eq!(names(&[], &["ALL"]).unwrap(), "");
        assert!(!names(&["ALL"], &["SYS_ADMIN"]).unwrap().contains("SYS_ADMIN"));
        assert!(names(&["ALL"], &[]).unwrap().contains("CHECKPOINT_RESTORE"));
        assert_eq!(names(&["FLY"], &[]), Err("FLY".into()));
        assert_eq!(full_name(21), "CAP_SYS_ADMIN");
    }
}
