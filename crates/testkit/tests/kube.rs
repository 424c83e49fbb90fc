//! The unmodified client and controller runtime of Rust.

use testkit::Cluster;

#[test]
fn kube_rs_works() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let out = cluster.namespace("kube")?.kube()?;
    assert_eq!(out, "ok objects\nok watches\nok leader\nok discovery\nok controller\nok streams\n");
    Ok(())
}
