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
    let started = Instant::now();
    println!("\nrunning {} tests", chosen.len());
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
    report(&chosen, &failed, clean, &log, cases.len(), started);
    if clean
        && let Some(path) = std::env::var_os("FERRY_LEDGER")
        // Tests run in their crate's directory; people mean the checkout's.
        && let Err(error) = std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path), ledger(&chosen, &failed, on))
    {
        println!("cannot write the ledger: {error}");
        return ExitCode::FAILURE;
    }
    if failed.is_empty() && clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

fn report(cases: &[Case], failed: &[(&str, String)], clean: bool, log: &str, all: usize, started: Instant) {
    if !failed.is_empty() {
        println!("\nfailures:\n");
        failed.iter().for_each(|(name, why)| println!("---- {name} ----\n{why}\n"));
        println!("---- the cluster's log ends with ----\n{}", tail(log));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed.is_empty() && clean { "ok" } else { "FAILED" },
        cases.len() - failed.len(),
        failed.len(),
        all - cases.len(),
        started.elapsed().as_secs_f64()
    );
}

/// The ledger as Markdown.
fn ledger(cases: &[Case], failed: &[(&str, String)], on: Runtime) -> String {
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
    if on == Runtime::Embedded {
        out.push_str("\nOfficial cases that are not run:\n\n| case | why |\n|---|---|\n");
        for (name, why) in LEFT_OUT {
            let _ = writeln!(out, "| {name} | {why} |");
        }
    }
    out
}
