//! The binary: configuration, subcommands, wiring, drain.
//!
//! `main` decides before anything else whether this process is a pod's shim (no runtime, no allocator
//! arenas, a few hundred kilobytes), and otherwise reads the command line and runs one subcommand.

mod audit;
mod cni;
mod config;
mod control;
mod demo;
mod down;
mod front;
mod identity;
mod images;
mod local;
mod network;
mod node;
mod paths;
mod preflight;
mod progress;
mod pulls;
mod reload;
mod revive;
mod runtime;
mod services;
mod serving;
mod storage;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::config::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages. A cluster's small objects fill them badly: a shim of 300 KiB took 2 MiB, and
    // an idle server half as much again. A kernel that can't leaves it at that. Containers get the kernel's default.
    let _ = nix::sys::prctl::set_thp_disable(true);
    // A pod's shim is this binary again: it must branch off before any thread exists.
    container::intercept();
    if let Some(code) = cni::intercept() {
        return code;
    }
    let arguments = match config::with_config_file(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error),
    };
    let cli = Cli::parse_from(arguments);
    let result = match cli.command {
        Command::Up(options) => up::run(*options),
        Command::Image(options) => images::run(*options),
        Command::Down(options) => down::run(options),
        Command::DemoServer => demo::serve(),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ferry", &mut std::io::stdout());
            Ok(())
        }
        Command::Version => {
            println!(
                "ferry {} (Kubernetes {})",
                env!("CARGO_PKG_VERSION"),
                apiserver::endpoints::GIT_VERSION
            );
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("ferry: {error:#}");
    ExitCode::FAILURE
}
