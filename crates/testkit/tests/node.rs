//! The unmodified JavaScript client.

use testkit::Cluster;

#[test]
fn the_official_client_works() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let out = cluster.namespace("node")?.node("node_client.mjs")?;
    assert_eq!(out, "ok informer\nok errors\nok patches\nok pods\nok objects\n");
    Ok(())
}
