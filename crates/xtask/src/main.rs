//! Project tasks: test, tidy, codegen, bench.
//!
//! `cargo xtask test` sets up what tests need on a fresh machine and runs everything; it is what CI runs.

mod bench;
mod shell;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Project tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what tests need, then run every check and test.
    Test,
    /// Check the shape of the code: crate edges, sizes, headers.
    Tidy {
        /// Write today's sizes as the new limits (only ever smaller).
        #[arg(long)]
        ratchet: bool,
    },
    /// Generate the Rust of the gRPC protocols from `crates/rpc/proto`.
    Codegen,
    /// Measure; prints a table.
    Bench {
        /// Which figures; all without a name.
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test => test::run(),
        Task::Tidy { ratchet } => tidy::run(ratchet),
        Task::Codegen => shell::run("cargo", &["run", "--quiet", "--package", "codegen"]),
        Task::Bench { name } => bench::run(name.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
