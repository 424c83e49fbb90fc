//! Security contexts: a container's fields win over the pod's; both become the runtime's terms.

use std::path::{Path, PathBuf};

use api::k8s_openapi::api::core::v1::{PodSecurityContext, SELinuxOptions, SeccompProfile as ApiSeccomp};
use api::prelude::*;
use cri::{
    ApparmorProfile, Capabilities, ContainerSecurityContext, NamespaceMode, NamespaceOptions, SeccompProfile,
    SelinuxOptions,
};

use crate::spec;
use crate::status::Verdict;

/// Ids in the API are 64 bit; the kernel's are 32.
fn id(value: Option<i64>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}

fn pod_context(pod: &Pod) -> PodSecurityContext {
    spec::spec(pod).security_context.clone().unwrap_or_default()
}

/// Groups every process of the pod is in beside its own: `supplementalGroups` and `fsGroup`.
pub fn supplemental_groups(pod: &Pod) -> Vec<u32> {
    let context = pod_context(pod);
    let groups = context.supplemental_groups.into_iter().flatten().chain(context.fs_group);
    groups.filter_map(|group| id(Some(group))).collect()
}

/// The pod's `fsGroup`.
pub fn fs_group(pod: &Pod) -> Option<u32> {
    id(pod_context(pod).fs_group)
}

/// Whether any container is privileged.
pub fn is_privileged(pod: &Pod) -> bool {
    spec::containers(pod).iter().any(|(_, container)| {
        container.security_context.as_ref().and_then(|context| context.privileged) == Some(true)
    })
}

/// Namespaces of the pod's sandbox.
pub fn namespaces(pod: &Pod) -> NamespaceOptions {
    let spec = spec::spec(pod);
    let host = |yes: Option<bool>, otherwise| if yes == Some(true) { NamespaceMode::Node } else { otherwise };
    let pid = match spec.share_process_namespace {
        Some(true) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOptions {
        network: host(spec.host_network, NamespaceMode::Pod),
        pid: host(spec.host_pid, pid),
        ipc: host(spec.host_ipc, NamespaceMode::Pod),
        host_users: spec.host_users.unwrap_or(true),
        // Which ids those are is known to who calls.
        user_ids: None,
    }
}

/// A seccomp profile; files lie below `seccomp_root`.
fn seccomp(profile: Option<&ApiSeccomp>, seccomp_root: &Path) -> SeccompProfile {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => SeccompProfile::RuntimeDefault,
        Some(("Localhost", Some(file))) => SeccompProfile::Localhost(seccomp_root.join(file)),
        _ => SeccompProfile::Unconfined,
    }
}

/// The sandbox's seccomp profile.
pub fn pod_seccomp(pod: &Pod, seccomp_root: &Path) -> SeccompProfile {
    seccomp(pod_context(pod).seccomp_profile.as_ref(), seccomp_root)
}

/// Before the field there was an annotation for each container.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The AppArmor profile of a container: its own, else the pod's.
pub fn apparmor(pod: &Pod, container: &Container) -> Option<ApparmorProfile> {
    let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.clone());
    if let Some(profile) = own.or(pod_context(pod).app_armor_profile) {
        return Some(match profile.type_.as_str() {
            "RuntimeDefault" => ApparmorProfile::RuntimeDefault,
            "Localhost" => ApparmorProfile::Localhost(profile.localhost_profile.unwrap_or_default()),
            _ => ApparmorProfile::Unconfined,
        });
    }
    let annotation = format!("{APPARMOR_ANNOTATION}{}", container.name);
    match pod.metadata.annotations.as_ref()?.get(&annotation)?.as_str() {
        "runtime/default" => Some(ApparmorProfile::RuntimeDefault),
        "unconfined" => Some(ApparmorProfile::Unconfined),
        other => other.strip_prefix("localhost/").map(|name| ApparmorProfile::Localhost(name.to_owned())),
    }
}

/// Refuses a pod whose AppArmor profiles the host cannot enforce.
pub fn admit_apparmor(pod: &Pod, enabled: bool) -> Result<(), Verdict> {
    let confined = |container: &Container| {
        apparmor(pod, container).is_some_and(|profile| profile != ApparmorProfile::Unconfined)
    };
    let wanted = spec::containers(pod).iter().any(|(_, container)| confined(container));
    match wanted && !enabled {
        false => Ok(()),
        true => Err(Verdict {
            reason: "AppArmor".into(),
            message: "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host".into(),
            ..Verdict::default()
        }),
    }
}

/// Whether the kernel enforces AppArmor profiles.
pub fn apparmor_enabled() -> bool {
    let text = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    text.is_ok_and(|text| text.starts_with('Y'))
}

fn selinux(of: Option<&SELinuxOptions>) -> Option<SelinuxOptions> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    of.map(|of| SelinuxOptions {
        user: text(&of.user),
        role: text(&of.role),
        kind: text(&of.type_),
        level: text(&of.level),
    })
}

/// The container's context merged with the pod's.
pub fn container_context(pod: &Pod, container: &Container, seccomp_root: &Path) -> ContainerSecurityContext {
    let of_pod = pod_context(pod);
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let mut context = ContainerSecurityContext {
        capabilities: Capabilities {
            add: capabilities.add.unwrap_or_default(),
            drop: capabilities.drop.unwrap_or_default(),
        },
        privileged,
        namespaces: namespaces(pod),
        run_as_user: id(own.run_as_user.or(of_pod.run_as_user)),
        run_as_group: id(own.run_as_group.or(of_pod.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: supplemental_groups(pod),
        strict_supplemental_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp: match privileged {
            true => SeccompProfile::Unconfined,
            false => seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()), seccomp_root),
        },
        apparmor: apparmor(pod, container),
        selinux: selinux(own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref())),
        ..ContainerSecurityContext::default()
    };
    // Only where the pod's root is not the node's.
    if own.proc_mount.as_deref() == Some("Unmasked") && spec::spec(pod).host_users == Some(false) {
        context.masked_paths = Vec::<PathBuf>::new();
        context.readonly_paths = Vec::new();
    }
    context
}

/// Checks `runAsNonRoot` against the user the container will run as: that of the context, else the image's.
pub fn check_non_root(
    pod: &Pod,
    container: &Container,
    image_uid: Option<u32>,
    image_user: &str,
) -> Result<(), String> {
    let of_pod = pod_context(pod);
    let own = container.security_context.clone().unwrap_or_default();
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let whom = format!("pod: {:?}, container: {}", spec::describe(pod), container.name);
    match (own.run_as_user.or(of_pod.run_as_user), image_uid, image_user) {
        (Some(0), _, _) => Err(format!("container's runAsUser breaks non-root policy ({whom})")),
        (Some(_), _, _) => Ok(()),
        (None, Some(0), _) => Err(format!("container has runAsNonRoot and image will run as root ({whom})")),
        (None, Some(_), _) => Ok(()),
        (None, None, "") => Err(format!("container has runAsNonRoot and image will run as root ({whom})")),
        (None, None, user) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root ({whom})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(pod_context: Value, container_context: Value) -> Pod {
        Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_context, "containers": [{"name": "c", "securityContext": container_context}]}}))
        .unwrap()
    }

    fn merged(pod: &Pod) -> ContainerSecurityContext {
        container_context(pod, &pod.spec.as_ref().unwrap().containers[0], Path::new("/seccomp"))
    }

    #[test]
    fn the_container_wins() {
        let context = merged(&pod(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
                   "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"runAsUser": 9, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
        ));
        assert_eq!((context.run_as_user, context.run_as_group), (Some(9), Some(2)));
        assert_eq!(context.supplemental_groups, [4, 3]);
        assert!(context.no_new_privs && context.capabilities.drop == ["ALL"]);
        assert_eq!(context.seccomp, SeccompProfile::RuntimeDefault);
        let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}});
        assert_eq!(
            merged(&pod(json!({}), local)).seccomp,
            SeccompProfile::Localhost("/seccomp/a.json".into())
        );
    }

    #[test]
    fn security_modules() {
        let local = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}});
        let free = json!({"appArmorProfile": {"type": "Unconfined"}});
        let default = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
        let table = [
            (json!({}), json!({}), None, true),
            (default.clone(), json!({}), Some(ApparmorProfile::RuntimeDefault), false),
            (default, free.clone(), Some(ApparmorProfile::Unconfined), true),
            (free, local, Some(ApparmorProfile::Localhost("mine".into())), false),
        ];
        for (of_pod, own, expected, admitted) in table {
            let pod = pod(of_pod, own);
            assert_eq!(merged(&pod).apparmor, expected);
            assert_eq!(admit_apparmor(&pod, false).is_ok(), admitted);
            assert!(admit_apparmor(&pod, true).is_ok());
        }
        let mut old = pod(json!({}), json!({}));
        let annotation = (format!("{APPARMOR_ANNOTATION}c"), "localhost/x".to_owned());
        old.metadata.annotations = Some([annotation].into());
        assert_eq!(merged(&old).apparmor, Some(ApparmorProfile::Localhost("x".into())));
        let refused = admit_apparmor(&old, false).unwrap_err();
        assert_eq!(
            (refused.reason.as_str(), refused.message.as_str()),
            ("AppArmor", "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host")
        );
        let label = merged(&pod(json!({"seLinuxOptions": {"level": "s0:c1"}}), json!({}))).selinux;
        assert_eq!(label.unwrap().level, "s0:c1");
        // All of /proc is for those alone who are not the node's root.
        let unmasked = pod(json!({}), json!({"procMount": "Unmasked"}));
        assert!(!merged(&unmasked).masked_paths.is_empty());
        let mut own = unmasked;
        own.spec.as_mut().unwrap().host_users = Some(false);
        assert!(merged(&own).masked_paths.is_empty() && merged(&own).readonly_paths.is_empty());
    }

    #[test]
    fn non_root() {
        let cases = [
            (json!({}), json!({}), None, "", true),
            (json!({"runAsNonRoot": true}), json!({}), Some(0), "", false),
            (json!({"runAsNonRoot": true}), json!({}), Some(5), "", true),
            (json!({"runAsNonRoot": true}), json!({}), None, "nginx", false),
            (json!({"runAsNonRoot": true}), json!({}), None, "", false),
            (json!({"runAsNonRoot": true}), json!({"runAsUser": 0}), Some(5), "", false),
            (json!({"runAsNonRoot": true, "runAsUser": 7}), json!({}), None, "nginx", true),
            (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), Some(0), "", true),
        ];
        for (of_pod, own, uid, user, fine) in cases {
            let pod = pod(of_pod.clone(), own.clone());
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(
                check_non_root(&pod, container, uid, user).is_ok(),
                fine,
                "{of_pod} {own} {uid:?} {user}"
            );
        }
    }
}
