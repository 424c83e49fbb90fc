//! Running other programs, loudly.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, bail};

/// Top of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

/// Runs a program in the checkout and fails when it does.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    run_with(program, arguments, &[])
}

/// Runs a program with further environment variables.
pub fn run_with(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<()> {
    run_within(Duration::MAX, program, arguments, environment)
}

/// The same for a program that must end within a time: it is killed after that, and has failed.
pub fn run_within(
    limit: Duration,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> anyhow::Result<()> {
    println!("+ {program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(child.wait()));
    let Ok(status) = end.recv_timeout(limit) else {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        bail!("{program} {} did not end in {limit:?}", arguments.join(" "));
    };
    let status = status?;
    if !status.success() {
        bail!("{program} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Whether a program can be found.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}
