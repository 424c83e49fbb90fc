//! \[sig-cli\]: kubectl against the cluster.

use testkit::Case;
use testkit::image::BUSYBOX;
use testkit::pods::{has, pod};

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-cli] Kubectl client Kubectl api-versions should check if v1 is in available api versions [Conformance]",
            run: |s| has(&format!("\n{}", s.kubectl(&["api-versions"])?), &["\nv1\n"]),
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl version should check is all data is printed [Conformance]",
            run: |s| has(&s.kubectl(&["version"])?, &["Client Version", "Server Version: v1.37"]),
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl cluster-info should check if Kubernetes control plane services is included in cluster-info [Conformance]",
            run: |s| has(&s.kubectl(&["cluster-info"])?, &["Kubernetes control plane", "is running at"]),
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl label should update the label on a resource [Conformance]",
            run: |s| {
                s.create("pods", pod("p", "sleep 600", |_| ()))?;
                s.kubectl(&["label", "pods", "p", "testing-label=testing-value"])?;
                has(&s.kubectl(&["get", "pod", "p", "-L", "testing-label"])?, &["testing-value"])
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl run pod should create a pod from an image when restart is Never [Conformance]",
            run: |s| {
                s.kubectl(&["run", "e2e", "--restart=Never", &format!("--image={BUSYBOX}")])?;
                has(&s.get("pods", "e2e")?["spec"].to_string(), &["\"restartPolicy\":\"Never\""])
            },
        },
        Case {
            name: "[sig-cli] Kubectl client Kubectl server-side dry-run should check if kubectl can dry-run update Pods [Conformance]",
            run: |s| {
                s.create("pods", pod("p", "sleep 600", |_| ()))?;
                s.kubectl(&["label", "pods", "p", "dry=run", "--dry-run=server"])?;
                anyhow::ensure!(s.list("pods", "dry=run")?.is_empty());
                Ok(())
            },
        },
    ]
}
