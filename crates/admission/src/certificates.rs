//! `CertificateApproval`, `CertificateSigning`, `ClusterTrustBundleAttest` and `CertificateSubjectRestriction`: who
//! may speak for a signer, and what no signer is asked for.

use certificate::{Request as Asked, signer};
use meta::user::GROUP_MASTERS;
use meta::{Status, UserInfo};
use serde_json::Value;

use crate::{Cluster, Object, Permission, Plugin, Request};

const GROUP: &str = "certificates.k8s.io";

fn is_about(request: &Request<'_>, resource: &str, subresource: &str) -> bool {
    (request.group, request.resource, request.subresource) == (GROUP, resource, subresource)
}

fn text<'a>(object: &'a Object, part: &str, key: &str) -> &'a str {
    object.get(part).and_then(|p| p.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// Whether the user has `verb` on the signer, or on all signers of its domain.
fn speaks_for(user: &UserInfo, verb: &str, signer: &str, cluster: &dyn Cluster) -> bool {
    let may = |name: &str| {
        let permission =
            Permission { verb, group: GROUP, resource: "signers", subresource: "", namespace: "", name };
        cluster.authorizer().permits(user, &permission)
    };
    let domain = signer.split('/').next().unwrap_or_default();
    may(signer) || may(&format!("{domain}/*"))
}

/// Approving needs `approve` on the signer.
pub struct Approval;

impl Plugin for Approval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        _: Option<&Object>,
        old: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        let Some(old) = old.filter(|_| is_about(request, "certificatesigningrequests", "approval")) else {
            return Ok(());
        };
        let signer = text(old, "spec", "signerName");
        match speaks_for(request.user, "approve", signer, cluster) {
            true => Ok(()),
            false => {
                Err(request
                    .forbid(&format!("user not permitted to approve requests with signerName {signer:?}")))
            }
        }
    }
}

/// Signing, and failing, need `sign` on the signer.
pub struct Signing;

impl Plugin for Signing {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        let (Some(object), Some(old)) = (object, old) else { return Ok(()) };
        if !is_about(request, "certificatesigningrequests", "status") {
            return Ok(());
        }
        let of = |o: &Object, key: &str| o.get("status").and_then(|s| s.get(key)).cloned();
        let same = |key: &str| of(object, key) == of(old, key);
        let signer = text(old, "spec", "signerName");
        if (same("certificate") && same("conditions")) || speaks_for(request.user, "sign", signer, cluster) {
            return Ok(());
        }
        Err(request.forbid(&format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

/// Publishing a signer's trust bundle needs `attest` on the signer.
pub struct BundleAttest;

impl Plugin for BundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        let Some(bundle) = object.filter(|_| is_about(request, "clustertrustbundles", "")) else {
            return Ok(());
        };
        let signer = text(bundle, "spec", "signerName");
        let unchanged = old.is_some_and(|old| {
            let meaning = |o: &Object| {
                let metadata = |key: &str| o.get("metadata").and_then(|m| m.get(key)).cloned();
                (o.get("spec").cloned(), metadata("labels"), metadata("annotations"))
            };
            meaning(old) == meaning(bundle)
        });
        if signer.is_empty() || unchanged || speaks_for(request.user, "attest", signer, cluster) {
            return Ok(());
        }
        Err(request.forbid(&format!("user not permitted to attest for signerName {signer:?}")))
    }
}

/// Nobody becomes an administrator by certificate request.
pub struct SubjectRestriction;

impl Plugin for SubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        _: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        let Some(object) = object.filter(|_| request.creates(GROUP, "certificatesigningrequests")) else {
            return Ok(());
        };
        if text(object, "spec", "signerName") != signer::API_CLIENT {
            return Ok(());
        }
        let asked = Asked::from_base64(text(object, "spec", "request"))
            .map_err(|e| request.forbid(&format!("failed to parse CSR: {e}")))?;
        if asked.organizations.iter().any(|o| o == GROUP_MASTERS) {
            let why =
                format!("use of {} signer with {GROUP_MASTERS} group is not allowed", signer::API_CLIENT);
            return Err(request.forbid(&why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixed;
    use serde_json::json;

    fn object(value: Value) -> Object {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn who_speaks_for_a_signer() {
        let old = object(json!({"spec": {"signerName": "a.example/s"}}));
        let signed = object(json!({"spec": {"signerName": "a.example/s"}, "status": {"certificate": "x"}}));
        let cluster = Fixed::default();
        for (user, subresource, allowed) in [
            ("approve:a.example/s", "approval", true),
            ("approve:a.example/*", "approval", true),
            ("approve:b.example/*", "approval", false),
            ("sign:a.example/s", "approval", false),
            ("sign:a.example/s", "status", true),
            ("approve:a.example/s", "status", false),
            ("nobody", "", true),
        ] {
            let user = UserInfo::authenticated(user, &[]);
            let request = Request {
                group: GROUP,
                kind: "CertificateSigningRequest",
                subresource,
                operation: "UPDATE",
                ..crate::testing::create("certificatesigningrequests", "", &user)
            };
            let result = crate::validate(&request, Some(&signed), Some(&old), &cluster, &|_, _, _| {});
            assert_eq!(result.is_ok(), allowed, "{} {subresource}: {result:?}", user.username);
            // Nothing of the signer's changes: nobody is asked.
            if subresource == "status" {
                assert!(crate::validate(&request, Some(&old), Some(&old), &cluster, &|_, _, _| {}).is_ok());
            }
        }
    }

    #[test]
    fn bundles_of_signers() {
        let bundle = |signer: &str| object(json!({"spec": {"signerName": signer, "trustBundle": "x"}}));
        let user = UserInfo::authenticated("attest:a.example/s", &[]);
        let request = Request { group: GROUP, ..crate::testing::create("clustertrustbundles", "", &user) };
        let cluster = Fixed::default();
        for (signer, allowed) in [("a.example/s", true), ("", true), ("a.example/t", false)] {
            let new = bundle(signer);
            let result = crate::validate(&request, Some(&new), None, &cluster, &|_, _, _| {});
            assert_eq!(result.is_ok(), allowed, "{signer}: {result:?}");
            assert!(
                crate::validate(&request, Some(&new), Some(&new), &cluster, &|_, _, _| {}).is_ok(),
                "unchanged"
            );
        }
    }
}
