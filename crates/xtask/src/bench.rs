//! `cargo xtask bench [NAME]`: builds the release binary and runs the measurements in `bench/`.

use crate::shell;

/// Builds and measures.
pub fn run(name: Option<&str>) -> anyhow::Result<()> {
    shell::run("cargo", &["build", "--release", "--package", "ferry", "--package", "bench"])?;
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let (binary, ferry) = (format!("{target}/release/bench"), format!("{target}/release/ferry"));
    let mut arguments = vec!["--ferry", ferry.as_str()];
    arguments.extend(name);
    shell::run(&binary, &arguments)
}
