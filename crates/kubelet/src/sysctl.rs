//! Sysctls that pods may set: safe ones always, others where the node allows them. Pure.

use api::prelude::*;

use crate::spec;
use crate::status::Verdict;

/// Ones that touch nothing but the pod itself.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];
/// Beginnings of names that belong to the IPC namespace.
const OF_IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

/// `a/b.c` and `a.b/c` name the same: the first separator decides which one separates.
fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(&normal(prefix)),
        None => normal(pattern) == name,
    }
}

/// Refuses a pod that sets what it may not; `allowed` is the node's list.
pub fn admit(pod: &Pod, allowed: &[String]) -> Result<(), Verdict> {
    let spec = spec::spec(pod);
    let context = spec.security_context.as_ref();
    for sysctl in context.into_iter().flat_map(|context| context.sysctls.iter().flatten()) {
        let name = normal(&sysctl.name);
        let known = SAFE.contains(&name.as_str()) || allowed.iter().any(|pattern| matches(pattern, &name));
        let of_ipc = OF_IPC.iter().any(|prefix| name.starts_with(prefix));
        let problem = if !known {
            "not allowlisted"
        } else if of_ipc && spec.host_ipc == Some(true) {
            "not allowed with host ipc enabled"
        } else if name.starts_with("net.") && spec.host_network == Some(true) {
            "not allowed with host net enabled"
        } else {
            continue;
        };
        return Err(Verdict {
            reason: "SysctlForbidden".into(),
            message: format!("Pod was rejected: forbidden sysctl: {:?} {problem}", sysctl.name),
            ..Verdict::default()
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_may_what() {
        let allowed = ["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()];
        let table = [
            ("kernel.shm_rmid_forced", "", None),
            ("kernel/shm_rmid_forced", "", None),
            ("kernel.msgmax", "", None),
            ("net.core.somaxconn", "", None),
            ("net.core.somaxconn", "hostNetwork", Some("not allowed with host net enabled")),
            ("kernel.msgmax", "hostIPC", Some("not allowed with host ipc enabled")),
            ("kernel.sem", "", Some("not allowlisted")),
            ("vm.swappiness", "", Some("not allowlisted")),
        ];
        for (name, with, expected) in table {
            let mut spec =
                json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            if !with.is_empty() {
                spec[with] = json!(true);
            }
            let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            let found = admit(&pod, &allowed).err().map(|verdict| verdict.message);
            let wanted = expected.map(|why| format!("Pod was rejected: forbidden sysctl: {name:?} {why}"));
            assert_eq!(found, wanted);
        }
    }
}
