//! How long the steps of a pod's life take. Prints, asserts nothing; run by hand:
//! `cargo nextest run -p container --run-ignored only --no-capture latency`.

mod support;

use std::time::{Duration, Instant};

use cri::RuntimeService;
use support::{Node, PATIENCE, shell};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures only"]
async fn latency() {
    Node::run(async |node| {
        let mut steps: Vec<(&str, Vec<Duration>)> =
            ["sandbox", "create", "start", "exec", "kill", "stop sandbox", "remove"]
                .map(|n| (n, Vec::new()))
                .into();
        for _ in 0..50 {
            let mut at = Instant::now();
            let mut lap = |n: usize, at: &mut Instant| {
                steps[n].1.push(at.elapsed());
                *at = Instant::now();
            };
            let sandbox = node.sandbox().await;
            lap(0, &mut at);
            let id = node.runtime.create_container(&sandbox, shell("exec sleep 1000")).await.unwrap();
            lap(1, &mut at);
            node.runtime.start_container(&id).await.unwrap();
            lap(2, &mut at);
            node.runtime.exec_sync(&id, &["true".into()], PATIENCE).await.unwrap();
            lap(3, &mut at);
            node.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
            lap(4, &mut at);
            node.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
            lap(5, &mut at);
            node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
            lap(6, &mut at);
        }
        for (name, mut times) in steps {
            times.sort();
            eprintln!("{name:>14}: p50 {:?} p90 {:?} max {:?}", times[25], times[45], times[49]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures only"]
async fn shim_memory() {
    Node::run(async |node| {
        for _ in 0..10 {
            let sandbox = node.sandbox().await;
            let id = node.start(&sandbox, shell("exec sleep 1000")).await;
            let status = node.runtime.container_status(&id).await.unwrap();
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", status.pid.unwrap())).unwrap();
            let shim = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
            let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
            let wanted = ["Rss:", "Pss:", "Private_Dirty:"];
            let lines: Vec<&str> =
                rollup.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))).collect();
            eprintln!("{}", lines.join(" "));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures only"]
async fn burst_of_30() {
    Node::run(async |node| {
        let begin = Instant::now();
        let pods = (0..30).map(|_| async {
            let sandbox = node.sandbox().await;
            node.start(&sandbox, shell("exec sleep 1000")).await;
            begin.elapsed()
        });
        let mut times = futures_util::future::join_all(pods).await;
        times.sort();
        eprintln!("running after: first {:?} half {:?} all {:?}", times[0], times[15], times[29]);
    })
    .await;
}
