//! A writing process is killed without warning, again and again; nothing it acknowledged may be missing.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use store::disk::{DiskStore, Options};
use store::{Change, Expect, Revision, Store, Write, WriteOutcome};

/// Set for the process that writes until it is killed.
const CHILD_DIRECTORY: &str = "FERRY_STORE_CRASH_CHILD";
/// How often the writer is killed.
const ROUNDS: usize = 200;
/// Rounds on one directory. Each opening reads the whole journal, so a fresh one keeps the test short.
const ROUNDS_PER_DIRECTORY: usize = 25;
const WRITERS: usize = 16;

/// What is written under `key` as write number `n` of a round: checkable, of varying length.
fn value(round: usize, key: &str, n: usize) -> Bytes {
    Bytes::from(format!("{round}:{key}:{n}:{}", "v".repeat((n * 37) % 700)))
}

/// The child: 16 writers that report each acknowledged write, and a watcher that reports what it sees.
#[test]
fn child_writes_until_killed() {
    let Ok(spec) = std::env::var(CHILD_DIRECTORY) else { return };
    let (round, directory) = spec.split_once(':').unwrap();
    let round: usize = round.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let store: Arc<dyn Store> =
            Arc::new(DiskStore::open(Path::new(directory), Options::default()).unwrap());
        let start = store.revision().await.unwrap();
        let mut watch = store.watch("", start).await.unwrap();
        tokio::spawn(async move {
            while let Some(Ok(batch)) = watch.next().await {
                for event in batch.events.iter() {
                    say(&format!("seen {} {}\n", event.revision, event.key));
                }
            }
        });
        for writer in 0..WRITERS {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let key = format!("/w{writer}/{}", n % 7);
                    let change =
                        if n % 11 == 10 { Change::Delete } else { Change::Put(value(round, &key, n)) };
                    let write = Write { key: key.clone(), expect: Expect::Any, change };
                    if let WriteOutcome::Committed { revision, .. } = store.write(write).await.unwrap() {
                        say(&format!("acked {revision} {key} {n}\n"));
                    }
                }
            });
        }
        if round % 4 == 3 {
            store.compact(start).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
}

/// One line in one write: short enough to reach the pipe whole or not at all.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Runs a child for a while, kills it, and returns the whole lines it got out.
fn run_and_kill(directory: &Path, round: usize, lifetime: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writes_until_killed", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIRECTORY, format!("{round}:{}", directory.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    // Its life counts from the first acknowledged write, so that a slow machine only makes the test longer.
    while !first.starts_with("acked") && !first.starts_with("seen") {
        first.clear();
        assert!(out.read_line(&mut first).unwrap() > 0, "the child died by itself");
    }
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        rest
    });
    let (done, timer) = std::sync::mpsc::channel::<()>();
    let _ = timer.recv_timeout(lifetime);
    drop(done);
    child.kill().unwrap();
    child.wait().unwrap();
    let text = first + &reader.join().unwrap();
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines().map(str::to_owned).collect()
}

#[test]
fn nothing_acknowledged_is_lost() {
    let mut directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The log as a watcher sees it that resumes after every crash.
    let mut log: HashMap<Revision, (String, Option<Bytes>)> = HashMap::new();
    let mut last: Revision = 1;
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        if round % ROUNDS_PER_DIRECTORY == 0 {
            directory = tempfile::tempdir().unwrap();
            log.clear();
            last = 1;
        }
        let lifetime = Duration::from_micros(rand::rng().random_range(1_000..40_000));
        let lines = run_and_kill(directory.path(), round, lifetime);
        runtime.block_on(async {
            let store = DiskStore::open(directory.path(), Options::default()).expect("reopens at once");
            let current = store.revision().await.unwrap();
            assert!(current >= last, "revisions went back");
            // Compaction in the child went up to where it started, which is where this watcher is.
            let mut watch = store.watch("", last).await.unwrap();
            while last < current {
                for event in watch.next().await.unwrap().unwrap().events.iter() {
                    assert_eq!(event.revision, last + 1, "a gap or a repetition");
                    last = event.revision;
                    log.insert(last, (event.key.to_string(), event.value.clone()));
                }
            }
        });
        for line in lines {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["acked", revision, key, n] => {
                    acknowledged += 1;
                    let n: usize = n.parse().unwrap();
                    let expected = (n % 11 != 10).then(|| value(round, key, n));
                    let kept = log.get(&revision.parse().unwrap());
                    assert_eq!(kept, Some(&(key.to_owned(), expected)), "round {round}: {line}");
                }
                ["seen", revision, key] => {
                    let kept = log.get(&revision.parse().unwrap()).map(|(key, _)| key.as_str());
                    assert_eq!(kept, Some(key), "round {round}: a watcher saw what was not durable");
                }
                _ => {}
            }
        }
    }
    assert!(acknowledged > ROUNDS, "the children did write: {acknowledged}");
    eprintln!("{acknowledged} acknowledged writes, {ROUNDS} kills");
}
