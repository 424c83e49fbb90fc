//! `cargo xtask fuzz [TARGET] [--seconds N]`: coverage-guided fuzzing with the seeds of `fuzz/`, on the stable
//! compiler and without sanitizers (the code is safe Rust: panics and wrong answers are what is hunted).

use std::path::Path;

use crate::shell::{self, has};

/// The targets, one for each thing that strangers send.
const TARGETS: &[&str] = &["json", "protobuf", "patches", "apply", "selectors", "cel"];

/// Most bytes of an input: a body's structure shows in a few kilobytes.
const BYTES_MAX: &str = "-max_len=8192";
/// One input may take this long: the server's limits must hold the work down. In seconds.
const TIMEOUT: &str = "-timeout=10";

/// Runs one target, or each in turn.
pub fn run(target: Option<&str>, seconds: u64) -> anyhow::Result<()> {
    if !has("cargo-fuzz") {
        shell::run("cargo", &["install", "cargo-fuzz"])?;
    }
    let time = format!("-max_total_time={seconds}");
    for name in TARGETS.iter().filter(|name| target.is_none_or(|t| t == **name)) {
        let (corpus, seeds) = (format!("fuzz/corpus/{name}"), format!("fuzz/seeds/{name}"));
        std::fs::create_dir_all(Path::new(&corpus))?;
        let arguments = ["fuzz", "run", "--sanitizer", "none", name, &corpus, &seeds, "--"];
        let limits = [time.as_str(), BYTES_MAX, TIMEOUT, "-dict=fuzz/seeds/tokens.dict"];
        shell::run("cargo", &[&arguments[..], &limits[..]].concat())?;
    }
    Ok(())
}
