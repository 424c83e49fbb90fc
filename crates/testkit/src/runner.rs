//! Runs registered cases against one cluster and reports as cargo's own harness does.
//!
//! Arguments: a filter on names, `--list`, `--exact`, `--runtime=containerd` to run the cases about pods there. With `FERRY_LEDGER=FILE` the result of every case is
//! written there as a Markdown table.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::cluster::{Cluster, Runtime, Scope, tail};
use crate::containerd;

/// Cases that run side by side: waiting dominates, so more than there are processors.
const PARALLEL: usize = 6;

/// Arguments of the cluster: history is given up early, for the cases that wait for that.
const ARGUMENTS: [&str; 1] = ["--etcd-compaction-interval=15s"];

/// Groups of cases that are about what runs pods: those are worth running on another runtime.
const PODS: [&str; 2] = ["[sig-node]", "[sig-storage]"];

/// Parts of names of cases that run alone, after all others: they would take something away from those.
const ALONE: [&str; 2] = ["[Disruptive]", "SchedulerPredicates [Serial] validates resource limits"];

/// Official cases that are not among ours, and why.
const LEFT_OUT: [(&str, &str); 1] = [(
    "[sig-architecture] Conformance Tests should have at least two untainted nodes [Conformance]",
    "a cluster of Ferry has one node",
)];

/// Cases that a containerd cannot pass, the version that can, and what it is about.
const LACKING: [(&str, (u32, u32), &str); 3] = [
    (
        "[sig-node] [DRA] kubelet [Feature:DynamicResourceAllocation] on single node supports simple pod referencing inline resource claim",
        (1, 7),
        "devices of the Container Device Interface",
    ),
    (
        "[sig-node] [DRA] kubelet [Feature:DynamicResourceAllocation] on single node supports external claim referenced by multiple pods",
        (1, 7),
        "devices of the Container Device Interface",
    ),
    (
        "[sig-node] ImageVolume should succeed with pod and pull policy of Always [LinuxOnly] [MinimumKubeletVersion:1.35] \
         [Conformance]",
        (2, 1),
        "image volumes",
    ),
];

/// Why a case is not run on a containerd of this version.
fn lacking(name: &str, version: (u32, u32)) -> Option<String> {
    let (_, since, what) = LACKING.iter().find(|(lacking, since, _)| *lacking == name && version < *since)?;
    Some(format!("{what} came with containerd {}.{}, this is {}.{}", since.0, since.1, version.0, version.1))
}

/// One case under its official name.
#[derive(Clone, Copy)]
pub struct Case {
    /// Codename of the conformance description.
    pub name: &'static str,
    /// What must hold; gets a namespace of its own.
    pub run: fn(&Scope<'_>) -> anyhow::Result<()>,
}

/// The whole program: picks the cases, runs them, prints and exits.
pub fn main(cases: &[Case]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let on = match arguments.iter().any(|a| a == "--runtime=containerd") {
        true => Runtime::Containerd,
        false => Runtime::Embedded,
    };
    let filter: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let exact = arguments.iter().any(|a| a == "--exact");
    let wanted = |c: &&Case| {
        let of_runtime = on == Runtime::Embedded || PODS.iter().any(|group| c.name.starts_with(group));
        of_runtime && filter.is_empty()
            || filter.iter().any(|f| if exact { c.name == *f } else { c.name.contains(*f) })
    };
    let chosen: Vec<Case> = cases.iter().filter(wanted).copied().collect();
    if arguments.iter().any(|a| a == "--list") {
        if !arguments.iter().any(|a| a == "--ignored") {
            chosen.iter().for_each(|c| println!("{}: test", c.name));
        }
        return ExitCode::SUCCESS;
    }
    let left_out = match left_out(&chosen, on) {
        Ok(left_out) => left_out,
        Err(error) => {
            println!("cannot tell what the runtime is: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let chosen: Vec<Case> =
        chosen.into_iter().filter(|case| left_out.iter().all(|(name, _)| *name != case.name)).collect();
    let started = Instant::now();
    println!("\nrunning {} tests", chosen.len() + left_out.len());
    left_out.iter().for_each(|(name, why)| println!("test {name} ... ignored, {why}"));
    let cluster = match Cluster::start_on(on, &ARGUMENTS) {
        Ok(cluster) => cluster,
        Err(error) => {
            println!(
                "cannot start a cluster: {error:#}\n\ntest result: FAILED. 0 passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
                chosen.len()
            );
            return ExitCode::FAILURE;
        }
    };
    let (alone, together): (Vec<Case>, Vec<Case>) =
        chosen.iter().partition(|case| ALONE.iter().any(|part| case.name.contains(part)));
    let mut failed = run_all(&cluster, &together, PARALLEL);
    failed.extend(run_all(&cluster, &alone, 1));
    let failed = again(&cluster, &chosen, failed);
    let log = cluster.log();
    let clean = std::panic::catch_unwind(AssertUnwindSafe(move || drop(cluster))).is_ok();
    report(&chosen, &failed, clean, &log, (left_out.len(), cases.len()), started);
    if clean
        && let Some(path) = std::env::var_os("FERRY_LEDGER")
        // Tests run in their crate's directory; people mean the checkout's.
        && let Err(error) = std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path), ledger(&chosen, &failed, &left_out, on))
    {
        println!("cannot write the ledger: {error}");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() && clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Cases among these that the runtime cannot pass, and why.
fn left_out(cases: &[Case], on: Runtime) -> anyhow::Result<Vec<(&'static str, String)>> {
    if on == Runtime::Embedded {
        return Ok(Vec::new());
    }
    let version = containerd::version()?;
    Ok(cases.iter().filter_map(|case| Some((case.name, lacking(case.name, version)?))).collect())
}

/// Runs the cases on a few threads; answers the failures as name and reason.
fn run_all(cluster: &Cluster, cases: &[Case], threads_max: usize) -> Vec<(&'static str, String)> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..threads_max.min(cases.len()) {
            threads.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run_one(cluster, case)));
                    let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
                    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
                    println!("test {} ... {verdict} <{:.1}s>", case.name, started.elapsed().as_secs_f64());
                    if let Err(error) = result {
                        failed.lock().push((case.name, format!("{error:#}")));
                    }
                }
            });
        }
    });
    failed.into_inner()
}

/// Most failures that are worth a second try.
const SECOND_TRIES_MAX: usize = 4;

/// Runs what failed once more, alone: a few cases may have met what others did to the cluster at that moment.
/// Both outcomes are printed; what fails twice has failed.
fn again(
    cluster: &Cluster,
    cases: &[Case],
    failed: Vec<(&'static str, String)>,
) -> Vec<(&'static str, String)> {
    if failed.len() > SECOND_TRIES_MAX {
        return failed;
    }
    let fails_again = |(name, why): &(&'static str, String)| {
        let Some(case) = cases.iter().find(|c| c.name == *name) else { return true };
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| run_one(cluster, case)));
        let ok = result.is_ok_and(|r| r.is_ok());
        println!("second try of {name}: {}; the first: {why}", if ok { "ok" } else { "FAILED" });
        !ok
    };
    failed.into_iter().filter(fails_again).collect()
}

fn run_one(cluster: &Cluster, case: &Case) -> anyhow::Result<()> {
    let scope = cluster.namespace("case")?;
    let result = (case.run)(&scope);
    let _ = scope.delete("namespaces", &scope.namespace, &client::DeleteParams::default());
    result
}

fn report(
    cases: &[Case],
    failed: &[(&str, String)],
    clean: bool,
    log: &str,
    (left_out, all): (usize, usize),
    started: Instant,
) {
    if !failed.is_empty() {
        println!("\nfailures:\n");
        failed.iter().for_each(|(name, why)| println!("---- {name} ----\n{why}\n"));
        println!("---- the cluster's log ends with ----\n{}", tail(log));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; {left_out} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed.is_empty() && clean { "ok" } else { "FAILED" },
        cases.len() - failed.len(),
        failed.len(),
        all - cases.len() - left_out,
        started.elapsed().as_secs_f64()
    );
}

/// The ledger as Markdown.
fn ledger(cases: &[Case], failed: &[(&str, String)], left_out: &[(&str, String)], on: Runtime) -> String {
    let (file, argument, what) = match on {
        Runtime::Embedded => ("conformance.md", "", "a real cluster"),
        Runtime::Containerd => (
            "conformance-containerd.md",
            " -- --runtime=containerd",
            "a real cluster whose pods are in containerd",
        ),
    };
    let mut names: Vec<&str> = cases.iter().map(|c| c.name).collect();
    names.sort_unstable();
    let mut out = format!(
        "# Conformance ledger\n\nGenerated by `FERRY_LEDGER=docs/{file} cargo test -p testkit --test conformance{argument}`; \
         do not edit.\nOfficial conformance cases ported so far, run against {what}: **{} of {} pass**.\n\n\
         | case | result |\n|---|---|\n",
        names.len() - failed.len(),
        names.len()
    );
    for name in names {
        let verdict = if failed.iter().any(|(f, _)| *f == name) { "fails" } else { "passes" };
        let _ = writeln!(out, "| {} | {verdict} |", name.replace('|', "\\|").replace('*', "\\*"));
    }
    let mut not_run: Vec<(&str, &str)> = left_out.iter().map(|(name, why)| (*name, why.as_str())).collect();
    if on == Runtime::Embedded {
        not_run.extend(LEFT_OUT);
    }
    if !not_run.is_empty() {
        out.push_str("\nOfficial cases that are not run:\n\n| case | why |\n|---|---|\n");
    }
    for (name, why) in not_run {
        let _ = writeln!(out, "| {name} | {why} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_containerd_lacks() {
        for (name, since, _) in LACKING {
            assert!(lacking(name, (1, 6)).is_some() && lacking(name, since).is_none(), "{name}");
        }
        assert_eq!(lacking("[sig-node] anything else", (1, 0)), None);
    }
}
