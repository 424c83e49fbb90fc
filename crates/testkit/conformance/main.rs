//! Official conformance cases, ported under their official names, against one real cluster.

mod admission;
mod agnhost;
mod api;
mod auth;
mod cli;
mod commands;
mod crd;
mod crd_fields;
mod crd_openapi;
mod crd_rules;
mod disruption;
mod dra;
mod dra_taints;
mod jobs;
mod machinery;
mod network;
mod node;
mod node_managers;
mod node_more;
mod operations;
mod pod_env;
mod pod_life;
mod pulls;
mod quota;
mod records;
mod schedules;
mod scheduling;
mod servers;
mod services;
mod statefulset;
mod storage;
mod typed;
mod volumes;
mod volumes_block;
mod volumes_claims;
mod volumes_csi;
mod volumes_projected;
mod volumes_snapshots;
mod workloads;

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((agnhost::NAME, rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return agnhost::main(rest);
    }
    let groups = [
        storage::cases(),
        node::cases(),
        api::cases(),
        auth::cases(),
        network::cases(),
        node_managers::cases(),
        node_more::cases(),
        servers::cases(),
        cli::cases(),
        crd::cases(),
        crd_fields::cases(),
        crd_openapi::cases(),
        crd_rules::cases(),
        pulls::cases(),
        quota::cases(),
        admission::cases(),
        operations::cases(),
        pod_env::cases(),
        services::cases(),
        volumes::cases(),
        volumes_claims::cases(),
        volumes_csi::cases(),
        volumes_block::cases(),
        volumes_projected::cases(),
        volumes_snapshots::cases(),
        pod_life::cases(),
        statefulset::cases(),
        schedules::cases(),
        scheduling::cases(),
        disruption::cases(),
        dra::cases(),
        dra_taints::cases(),
        jobs::cases(),
        typed::cases(),
        workloads::cases(),
        records::cases(),
        commands::cases(),
        machinery::cases(),
    ];
    testkit::runner::main(&groups.concat())
}
