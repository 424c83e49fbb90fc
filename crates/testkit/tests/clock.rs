//! A machine whose clock jumps: pods live on, the node stays or comes back, and what is new works.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;
use testkit::pods::{condition, pod};

/// How far it jumps: beyond every lease and toleration.
const JUMP_SECONDS: i64 = 2 * 3600;
/// What a jump breaks shows within this.
const SHOWS: Duration = Duration::from_secs(15);

/// Sets the clock of the machine so much forward.
fn jump(seconds: i64) -> anyhow::Result<()> {
    let now: i64 = testkit::cluster::succeed(Command::new("date").arg("+%s"))?.trim().parse()?;
    let output = testkit::process::output(Command::new("date").args(["-s", &format!("@{}", now + seconds)]))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs for ever, and has a probe that looks every second.
fn server(name: &str) -> Value {
    pod(name, "while :; do sleep 600; done", |spec| {
        spec["restartPolicy"] = "Always".into();
        spec["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    })
}

/// The node is Ready, the old pod is what it was, and a new one runs and answers.
fn well(s: &Scope<'_>, before: &Value, name: &str) -> anyhow::Result<()> {
    s.pause(SHOWS);
    s.wait_any("nodes", "", "a ready node", |node| condition(node, "Ready"))?;
    let after = s.get("pods", "before")?;
    let container = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    ensure!(container(&after) == container(before), "{}", after["status"]);
    ensure!(condition(&after, "Ready") && after["metadata"]["deletionTimestamp"].is_null(), "{after}");
    s.ready(server(name))?;
    s.kubectl(&["exec", name, "--", "true"])?;
    s.kubectl(&["delete", "pod", name])?;
    Ok(())
}

#[test]
#[ignore = "sets the machine's clock: `cargo xtask vm --tests clock`"]
fn clocks_jump_and_pods_do_not_notice() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let s = cluster.namespace("clock")?;
    let before = s.ready(server("before"))?;
    jump(JUMP_SECONDS)?;
    well(&s, &before, "later")?;
    jump(-JUMP_SECONDS)?;
    well(&s, &before, "earlier")?;
    Ok(())
}
