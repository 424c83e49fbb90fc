//! The kinds the tests touch, by plural name.

use meta::Gvr;

/// The resource of a plural name; the core group's `v1` unless listed here.
pub fn gvr(resource: &str) -> Gvr {
    let (group, version) = match resource {
        "deployments" | "replicasets" | "statefulsets" | "daemonsets" | "controllerrevisions" => {
            ("apps", "v1")
        }
        "jobs" | "cronjobs" => ("batch", "v1"),
        "leases" => ("coordination.k8s.io", "v1"),
        "endpointslices" => ("discovery.k8s.io", "v1"),
        "runtimeclasses" => ("node.k8s.io", "v1"),
        "storageclasses" | "csidrivers" | "csinodes" | "csistoragecapacities" | "volumeattachments" => {
            ("storage.k8s.io", "v1")
        }
        "ingresses" | "ingressclasses" | "networkpolicies" | "ipaddresses" | "servicecidrs" => {
            ("networking.k8s.io", "v1")
        }
        "poddisruptionbudgets" => ("policy", "v1"),
        "deviceclasses"
        | "resourceclaims"
        | "resourceclaimtemplates"
        | "resourceslices"
        | "devicetaintrules" => ("resource.k8s.io", "v1"),
        "priorityclasses" => ("scheduling.k8s.io", "v1"),
        "flowschemas" | "prioritylevelconfigurations" => ("flowcontrol.apiserver.k8s.io", "v1"),
        "customresourcedefinitions" => ("apiextensions.k8s.io", "v1"),
        "tokenreviews" => ("authentication.k8s.io", "v1"),
        "certificatesigningrequests" | "clustertrustbundles" | "podcertificaterequests" => {
            ("certificates.k8s.io", "v1")
        }
        "certificaterevocations" => ("auth.ferry.dev", "v1"),
        "roles" | "rolebindings" | "clusterroles" | "clusterrolebindings" => {
            ("rbac.authorization.k8s.io", "v1")
        }
        "selfsubjectaccessreviews" | "subjectaccessreviews" => ("authorization.k8s.io", "v1"),
        "mutatingwebhookconfigurations"
        | "validatingwebhookconfigurations"
        | "mutatingadmissionpolicies"
        | "mutatingadmissionpolicybindings"
        | "validatingadmissionpolicies"
        | "validatingadmissionpolicybindings" => ("admissionregistration.k8s.io", "v1"),
        "volumesnapshots" | "volumesnapshotcontents" | "volumesnapshotclasses" => {
            ("snapshot.storage.k8s.io", "v1")
        }
        _ => ("", "v1"),
    };
    Gvr { group: group.into(), version: version.into(), resource: resource.to_owned().into() }
}
