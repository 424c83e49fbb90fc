//! `cargo xtask test`: what a fresh machine lacks, then formatting, lints, tidiness and every test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::shell::{self, has, run_with};
use crate::tidy;

/// Programs that tests use and the Debian packages they come in.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("setpriv", "util-linux"),
    ("curl", "curl"),
    ("kubectl", "kubernetes-client"),
    ("python3", "python3-venv"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("containerd", "containerd"),
    ("runc", "runc"),
];

/// Clients in Python that must work, from the package index.
const PYTHON: &[&str] = &["kubernetes", "kopf", "kr8s"];
/// Clients in JavaScript that must work, from the package registry: the newest for Debian's Node.js.
const JAVASCRIPT: &[&str] = &["@kubernetes/client-node@1"];

/// Longest that the tests may take, their own compilation included, before they are ended: several times what
/// they take on two cores.
const TESTS_MAX: Duration = Duration::from_secs(40 * 60);

/// The client in Rust.
const KUBE: &str = "crates/testkit/fixtures/clients/kube/Cargo.toml";

/// Conformance cases that are run on containerd too, by parts of their names: a minute of what a runtime does
/// most. All about pods run there with `--runtime=containerd` alone.
const ON_CONTAINERD: &[&str] = &[
    "[sig-node] Container Lifecycle Hook",
    "[sig-node] Containers",
    "[sig-node] Ephemeral Containers",
    "[sig-node] InitContainer",
    "[sig-node] Pods should",
    "[sig-node] Security Context",
    "[sig-node] RuntimeClass",
    "[sig-storage] EmptyDir volumes",
    "[sig-storage] Subpath",
];

/// Installs and runs everything.
pub fn run() -> anyhow::Result<()> {
    install()?;
    install_clients()?;
    shell::run("cargo", &["fmt", "--all", "--check"])?;
    tidy::run(false)?;
    shell::run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    // `ferry` itself, and the examples that tests start: `cargo test --examples` would only build harnesses.
    shell::run("cargo", &["build", "--workspace", "--bins", "--examples"])?;
    // Containers, namespaces and registries are real: too many at once only make each other slow.
    // There are no documentation tests; naming the targets leaves their empty runs out.
    let targets = ["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"];
    shell::run_within(TESTS_MAX, "cargo", &targets, &[("RUST_TEST_THREADS", "4")])?;
    // Of the workspace, as above: alone, the package would have other features, and be built once more.
    let on_containerd = ["test", "--workspace", "--test", "conformance", "--", "--runtime=containerd"];
    let on_containerd: Vec<&str> = on_containerd.into_iter().chain(ON_CONTAINERD.iter().copied()).collect();
    shell::run_within(TESTS_MAX, "cargo", &on_containerd, &[])
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

/// Installs clients in other languages into a directory beside the build, once.
fn install_clients() -> anyhow::Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let clients = target.join("clients");
    let venv = clients.join("venv");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    if !venv.join("bin/kopf").is_file() {
        shell::run("python3", &["-m", "venv", &text(&venv)])?;
        let arguments: Vec<&str> = ["install", "--quiet"].into_iter().chain(PYTHON.iter().copied()).collect();
        shell::run(&text(&venv.join("bin/pip")), &arguments)?;
    }
    if !clients.join("node_modules/@kubernetes/client-node").is_dir() {
        let prefix = text(&clients);
        let arguments: Vec<&str> = ["install", "--silent", "--no-audit", "--no-fund", "--prefix", &prefix]
            .into_iter()
            .chain(JAVASCRIPT.iter().copied())
            .collect();
        shell::run("npm", &arguments)?;
    }
    // kube-rs chooses features of its own: it is built apart from the product.
    let (manifest, kube) = (text(Path::new(KUBE)), text(&clients.join("kube")));
    shell::run("cargo", &["build", "--locked", "--manifest-path", &manifest, "--target-dir", &kube])
}
