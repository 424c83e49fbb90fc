//! Signers: what their names look like, and what Kubernetes' own ones sign.

use crate::Request;

/// Signer of clients of the API server.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signer of kubelets as clients.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of kubelets as servers.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signer of what older clients ask for; no rules.
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// Every usage that a request may ask for.
pub const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// Why a signer does not sign a request; `None` when it does or has no rules.
pub fn refusal(signer: &str, request: &Request, usages: &[&str]) -> Option<String> {
    match signer {
        API_CLIENT => client_usages(usages),
        KUBELET_CLIENT => kubelet_client(request, usages),
        KUBELET_SERVING => kubelet_serving(request, usages),
        _ => None,
    }
}

/// Whether a signer is one of those that the cluster's own authority signs for.
pub fn is_own(signer: &str) -> bool {
    [API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN].contains(&signer)
}

fn client_usages(usages: &[&str]) -> Option<String> {
    let optional = ["digital signature", "key encipherment"];
    if let Some(wrong) = usages.iter().find(|u| **u != "client auth" && !optional.contains(u)) {
        return Some(format!("invalid usage for client certificate: {wrong}"));
    }
    let missing = !usages.contains(&"client auth");
    missing.then(|| "missing required usage for client certificate: client auth".to_owned())
}

/// Digital signature and `purpose`; key encipherment too where the key is RSA, which nobody checks.
fn usages_differ(usages: &[&str], purpose: &str) -> Option<String> {
    let required = ["digital signature", purpose];
    let all = required.iter().all(|r| usages.contains(r));
    let only = usages.iter().all(|u| required.contains(u) || *u == "key encipherment");
    let mut listed = ["digital signature", "key encipherment", purpose];
    listed.sort_unstable();
    (!all || !only).then(|| format!("usages did not match [{}]", listed.join(" ")))
}

/// Why a request is none of a kubelet for its client certificate.
pub fn kubelet_client(request: &Request, usages: &[&str]) -> Option<String> {
    let problem = if request.organizations != [NODES] {
        "subject organization is not system:nodes"
    } else if !request.dns.is_empty() {
        "DNS subjectAltNames are not allowed"
    } else if !request.emails.is_empty() {
        "Email subjectAltNames are not allowed"
    } else if !request.ips.is_empty() {
        "IP subjectAltNames are not allowed"
    } else if !request.uris.is_empty() {
        "URI subjectAltNames are not allowed"
    } else if !request.common_name.starts_with(NODE_PREFIX) {
        "subject common name does not begin with system:node:"
    } else {
        return usages_differ(usages, "client auth");
    };
    Some(problem.to_owned())
}

/// Why a request is none of a kubelet for its serving certificate.
pub fn kubelet_serving(request: &Request, usages: &[&str]) -> Option<String> {
    let problem = if request.organizations != [NODES] {
        "subject organization is not system:nodes"
    } else if request.dns.is_empty() && request.ips.is_empty() {
        "DNS or IP subjectAltName is required"
    } else if !request.emails.is_empty() {
        "Email subjectAltNames are not allowed"
    } else if !request.uris.is_empty() {
        "URI subjectAltNames are not allowed"
    } else if let Some(problem) = usages_differ(usages, "server auth") {
        return Some(problem);
    } else if !request.common_name.starts_with(NODE_PREFIX) {
        "subject common name does not begin with system:node:"
    } else {
        return None;
    };
    Some(problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judgements() {
        let node = Request {
            common_name: "system:node:n".into(),
            organizations: vec![NODES.into()],
            ..Request::default()
        };
        let serving = Request { dns: vec!["n".into()], ..node.clone() };
        let person = Request { common_name: "ann".into(), ..Request::default() };
        let client = ["digital signature", "client auth"];
        let server = ["digital signature", "key encipherment", "server auth"];
        for (signer, request, usages, expected) in [
            (API_CLIENT, &person, &client[..], None),
            (API_CLIENT, &person, &server[..], Some("invalid usage for client certificate: server auth")),
            (
                API_CLIENT,
                &person,
                &client[..1],
                Some("missing required usage for client certificate: client auth"),
            ),
            (KUBELET_CLIENT, &node, &client[..], None),
            (KUBELET_CLIENT, &person, &client[..], Some("subject organization is not system:nodes")),
            (KUBELET_CLIENT, &serving, &client[..], Some("DNS subjectAltNames are not allowed")),
            (
                KUBELET_CLIENT,
                &node,
                &server[..],
                Some("usages did not match [client auth digital signature key encipherment]"),
            ),
            (KUBELET_SERVING, &serving, &server[..], None),
            (KUBELET_SERVING, &node, &server[..], Some("DNS or IP subjectAltName is required")),
            (LEGACY_UNKNOWN, &person, &server[..], None),
        ] {
            assert_eq!(refusal(signer, request, usages).as_deref(), expected, "{signer}");
        }
    }
}
