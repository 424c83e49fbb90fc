//! Project tasks: test, tidy, codegen, bench, fuzz, vm.
//!
//! `cargo xtask test` sets up what tests need on a fresh machine and runs everything; it is what CI runs.

mod bench;
mod fuzz;
mod shell;
mod test;
mod tidy;
mod vm;

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
    /// Hunt for input that breaks what reads it.
    Fuzz {
        /// Which target; each in turn without a name.
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// Run tests in an emulated machine with version 2 of control groups.
    Vm {
        /// Package of the tests.
        #[arg(long, default_value = "testkit")]
        package: String,
        /// Which tests of it: a file of its `tests`, or `lib`.
        #[arg(long, default_value = "conformance")]
        tests: String,
        /// Parts of names; those of the node without any.
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test => test::run(),
        Task::Tidy { ratchet } => tidy::run(ratchet),
        Task::Codegen => shell::run("cargo", &["run", "--quiet", "--package", "codegen"]),
        Task::Bench { name } => bench::run(name.as_deref()),
        Task::Vm { package, tests, names } => vm::run(&package, &tests, &names),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
