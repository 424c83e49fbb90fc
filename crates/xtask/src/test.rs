//! `cargo xtask test`: what a fresh machine lacks, then formatting, lints, tidiness and every test.

use crate::shell::{self, has, run_with};
use crate::tidy;

/// Programs that tests use and the Debian packages they come in.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("kubectl", "kubernetes-client"),
];

/// Installs and runs everything.
pub fn run() -> anyhow::Result<()> {
    install()?;
    shell::run("cargo", &["fmt", "--all", "--check"])?;
    tidy::run(false)?;
    shell::run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    // `ferry` itself, and the examples that tests start: `cargo test --examples` would only build harnesses.
    shell::run("cargo", &["build", "--workspace", "--bins", "--examples"])?;
    // Containers, namespaces and registries are real: too many at once only make each other slow.
    // There are no documentation tests; naming the targets leaves their empty runs out.
    let targets = ["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"];
    run_with("cargo", &targets, &[("RUST_TEST_THREADS", "4")])
}

fn install() -> anyhow::Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().filter(|(program, _)| !has(program)).map(|(_, p)| *p).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let quiet = [("DEBIAN_FRONTEND", "noninteractive")];
    run_with("apt-get", &["update", "-qq"], &quiet)?;
    let arguments: Vec<&str> =
        ["install", "-y", "-qq", "--no-install-recommends"].into_iter().chain(missing).collect();
    run_with("apt-get", &arguments, &quiet)
}
