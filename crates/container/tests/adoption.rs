//! Containers survive the death of the node's process.
//!
//! The "node" that dies is this test binary, started again with an environment variable and killed.

mod support;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use cri::{ContainerState, PodSandboxState, RuntimeService};
use support::{Node, PATIENCE, open, shell, wait_for};

const ROLE: &str = "FERRY_TEST_VICTIM";

/// The process that will be killed: runs when the test below starts it, does nothing else.
#[tokio::test]
async fn victim() {
    let Ok(data) = std::env::var(ROLE) else { return };
    let data = std::path::PathBuf::from(data);
    let cluster = std::env::var("FERRY_TEST_CLUSTER").unwrap();
    let runtime = open(&data, &cluster).await;
    let pod = cri::PodSandboxConfig {
        uid: "u".into(),
        hostname: "h".into(),
        log_directory: data.join("logs"),
        ..Default::default()
    };
    let sandbox = runtime.run_pod_sandbox(pod).await.unwrap();
    for (name, script) in [
        ("stays", "echo up; while :; do sleep 0.02; echo tick; done"),
        ("ends", "while [ ! -e /dev/shm/go ]; do sleep 0.01; done; echo last; exit 42"),
        ("trigger", "while [ ! -e /go ]; do sleep 0.01; done; exit 0"),
    ] {
        let mut config = shell(script);
        config.name = name.into();
        let id = runtime.create_container(&sandbox, config).await.unwrap();
        runtime.start_container(&id).await.unwrap();
    }
    std::fs::write(data.join("ready"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn containers_survive_and_ends_are_not_lost() {
    let data = tempfile::Builder::new().prefix("ferry-rt-").tempdir().unwrap();
    let cluster = format!("a{}", std::process::id());
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["victim", "--exact"]).env(ROLE, data.path()).env("FERRY_TEST_CLUSTER", &cluster);
    let mut victim = victim.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    let ready = async {
        while !data.path().join("ready").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();

    // Nobody watches while this one ends.
    let shm = std::fs::read_dir(data.path().join("run")).unwrap().next().unwrap().unwrap().path().join("shm");
    std::fs::write(shm.join("go"), "").unwrap();
    let recorded = async {
        loop {
            let states = glob_states(&shm.with_file_name("c"));
            if states.iter().any(|s| s.contains("\"code\":42")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recorded).await.unwrap();

    let runtime = open(data.path(), &cluster).await;
    let containers = runtime.list_containers(&Default::default()).await.unwrap();
    let by_name = |name: &str| containers.iter().find(|c| c.name == name).unwrap().clone();
    let (stays, ends) = (by_name("stays"), by_name("ends"));
    assert_eq!(ends.exit.as_ref().map(|e| e.code), Some(42));
    assert_eq!(stays.state, ContainerState::Running);
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", stays.pid.unwrap())).unwrap();
    assert!(String::from_utf8_lossy(&cmdline).contains("tick"));
    let sandboxes = runtime.list_pod_sandboxes(&Default::default()).await.unwrap();
    assert_eq!(sandboxes[0].state, PodSandboxState::Ready);

    // It is a full member again: exec, events, stop.
    let mut events = runtime.events();
    let out = runtime.exec_sync(&stays.id, &["echo".into(), "hi".into()], PATIENCE).await.unwrap();
    assert_eq!(&out.stdout[..], b"hi\n");
    runtime.stop_container(&stays.id, Duration::ZERO).await.unwrap();
    wait_for(&mut events, &stays.id, |k| matches!(k, cri::EventKind::ContainerStopped(e) if e.code == 137))
        .await;
    runtime.destroy_all().await.unwrap();
    Node { runtime, data, cluster }.assert_clean();
}

fn glob_states(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| std::fs::read_to_string(e.path().join("state.json")).ok()).collect()
}

#[tokio::test]
async fn a_killed_shim_takes_its_containers_along() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let id = node.start(&sandbox, shell("sleep 1000")).await;
        let status = node.runtime.container_status(&id).await.unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", status.pid.unwrap())).unwrap();
        let shim: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL).unwrap();
        let exit = node.exit(&id).await.exit.unwrap();
        assert_eq!((exit.code, exit.reason.as_str()), (255, "Unknown"));
        let status = node.runtime.pod_sandbox_status(&sandbox).await.unwrap();
        assert_eq!(status.state, PodSandboxState::NotReady);
    })
    .await;
}
