//! Official conformance cases, ported under their official names, against one real cluster.

mod admission;
mod api;
mod auth;
mod cli;
mod crd;
mod crd_fields;
mod crd_openapi;
mod crd_rules;
mod disruption;
mod network;
mod node;
mod operations;
mod pod_env;
mod pod_life;
mod quota;
mod schedules;
mod statefulset;
mod storage;
mod volumes;

fn main() -> std::process::ExitCode {
    let groups = [
        storage::cases(),
        node::cases(),
        api::cases(),
        auth::cases(),
        network::cases(),
        cli::cases(),
        crd::cases(),
        crd_fields::cases(),
        crd_openapi::cases(),
        crd_rules::cases(),
        quota::cases(),
        admission::cases(),
        operations::cases(),
        pod_env::cases(),
        volumes::cases(),
        pod_life::cases(),
        statefulset::cases(),
        schedules::cases(),
        disruption::cases(),
    ];
    testkit::runner::main(&groups.concat())
}
