//! Official conformance cases, ported under their official names, against one real cluster.

mod admission;
mod api;
mod cli;
mod network;
mod node;
mod operations;
mod quota;
mod storage;

fn main() -> std::process::ExitCode {
    let groups = [
        storage::cases(),
        node::cases(),
        api::cases(),
        network::cases(),
        cli::cases(),
        quota::cases(),
        admission::cases(),
        operations::cases(),
    ];
    testkit::runner::main(&groups.concat())
}
