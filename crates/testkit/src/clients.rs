//! Unmodified clients in other languages: where their packages are, and how they are run against a cluster.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::cluster::Scope;
use crate::image::BUSYBOX;

/// Directory with the packages that `cargo xtask test` installs: `venv` and `node_modules`.
fn packages() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let found = test.ancestors().map(|d| d.join("clients")).find(|d| d.is_dir());
    found.context("no clients are installed: `cargo xtask test` does that")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/clients").join(name)
}

impl Scope<'_> {
    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("KUBECONFIG", self.cluster.data().join("admin.kubeconfig")).stdin(Stdio::null())
    }

    /// Runs a Python script with the namespace and the test image as its arguments.
    pub fn python(&self, name: &str) -> anyhow::Result<String> {
        let mut command = Command::new(packages()?.join("venv/bin/python"));
        command.arg("-B").arg(script(name)).args([&self.namespace, BUSYBOX]);
        command.arg(self.cluster.data().join("admin.kubeconfig"));
        output(self.environment(&mut command))
    }

    /// Runs a script with Node.js, the same way.
    pub fn node(&self, name: &str) -> anyhow::Result<String> {
        let mut command = Command::new("node");
        command.arg(script(name)).args([&self.namespace, BUSYBOX]).arg(packages()?.join("node_modules"));
        output(self.environment(&mut command))
    }

    /// Runs the operator in Rust, which needs no interpreter, the same way.
    pub fn kube(&self) -> anyhow::Result<String> {
        let mut command = Command::new(packages()?.join("kube/debug/kube-client"));
        command.args([&self.namespace, BUSYBOX]);
        output(self.environment(&mut command))
    }

    /// Starts a kopf operator for this namespace; it runs until it is dropped.
    pub fn kopf(&self, name: &str) -> anyhow::Result<Running> {
        let mut command = Command::new(packages()?.join("venv/bin/kopf"));
        command.args(["run", "--standalone", "-n", &self.namespace]).arg(script(name));
        Ok(Running(self.environment(&mut command).spawn()?))
    }
}

/// A process that ends with its owner.
pub struct Running(Child);

impl Running {
    /// Ends it as a cluster would, and expects it to go without complaint.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        ensure!(self.0.wait()?.success());
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = crate::process::output(command)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!("{}:\n{text}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    Ok(text)
}
