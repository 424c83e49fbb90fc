//! Claims that are prepared stay so when the node's agent starts again, and are given back afterwards.

use std::time::{Duration, Instant};

use client::DeleteParams;
use serde_json::json;
use testkit::Cluster;
use testkit::dra::Driver;
use testkit::pods::pod;

fn until(cluster: &Cluster, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "no {what}");
        cluster.scope("default").pause(Duration::from_millis(50));
    }
}

#[test]
fn a_restart_keeps_what_is_prepared() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let data = cluster.data();
    let name = "restart.dra.example.com";
    let driver = Driver::start(name, &data.join("dra"), &data.join("kubelet"))?;
    until(&cluster, "registration", || driver.count("registered", "") == 1);
    let namespace = {
        let s = cluster.namespace("dra")?;
        let node = s.list("nodes", "")?[0]["metadata"]["name"].clone();
        s.create("deviceclasses", json!({"metadata": {"name": "c"}, "spec": {}}))?;
        s.create("resourceslices", json!({"metadata": {"name": "s"}, "spec": {"driver": name, "nodeName": node,
            "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "one"}]}}))?;
        s.create(
            "resourceclaims",
            json!({"metadata": {"name": "c"}, "spec":
            {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}),
        )?;
        let made = pod(
            "p",
            "echo claim=$DRA_CLAIM; test -e /tmp/again || { touch /tmp/again; sleep 1000; }; sleep 1000",
            |spec| {
                spec["resourceClaims"] = json!([{"name": "gpu", "resourceClaimName": "c"}]);
                spec["containers"][0]["resources"] = json!({"claims": [{"name": "gpu"}]});
                spec["restartPolicy"] = "Always".into();
            },
        );
        s.ready(made)?;
        assert_eq!(driver.count("prepare", "c"), 1);
        s.namespace.clone()
    };
    cluster.crash_and_restart()?;
    until(&cluster, "registration again", || driver.count("registered", "") == 2);
    let s = cluster.scope(&namespace);
    // Slices of the time before are gone: drivers publish theirs anew.
    s.wait_gone("resourceslices", "s")?;
    s.pod_ready("p")?;
    // A container that starts again gets the same devices without another call.
    s.kubectl(&["exec", "p", "--", "kill", "1"]).ok();
    s.kubectl(&["exec", "p", "--", "sh", "-c", "kill -9 -1"]).ok();
    s.pause(Duration::from_millis(500));
    s.pod_ready("p")?;
    assert!(s.logs("p", "main")?.contains("claim=c"));
    assert_eq!((driver.count("prepare", "c"), driver.count("unprepare", "c")), (1, 0));
    s.delete("pods", "p", &DeleteParams::default())?;
    s.wait_gone("pods", "p")?;
    assert_eq!(driver.count("unprepare", "c"), 1);
    s.wait_any("resourceclaims", "c", "to be free", |c| c["status"]["allocation"].is_null())?;
    Ok(())
}
