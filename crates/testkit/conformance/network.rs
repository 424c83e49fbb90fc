//! \[sig-network\]: Services, their endpoints and names.

use serde_json::json;
use testkit::Case;
use testkit::pods::has;

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-network] DNS should provide DNS for the cluster [Conformance]",
            run: |s| {
                has(&s.script("lookup", "nslookup kubernetes.default.svc.cluster.local")?, &["10.43.0.1"])
            },
        },
        Case {
            name: "[sig-network] API Server should provide secure master service [Conformance]",
            run: |s| {
                let service = s.cluster.scope("default").get("services", "kubernetes")?;
                has(&service["spec"]["ports"].to_string(), &["443", "https"])
            },
        },
        Case {
            name: "[sig-network] Services should delete a collection of services [Conformance]",
            run: |s| {
                for name in ["a", "b"] {
                    s.create("services", json!({"metadata": {"name": name, "labels": {"set": "s"}}, "spec": {"ports": [{"port": 80}]}}))?;
                }
                s.delete_all("services", "set=s")?;
                ["a", "b"].iter().try_for_each(|name| s.wait_gone("services", name))
            },
        },
    ]
}
