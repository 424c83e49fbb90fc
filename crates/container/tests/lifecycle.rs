//! Containers from start to end.

mod support;

use std::time::Duration;

use cri::{ContainerState, EventKind, PodSandboxState, RuntimeService};
use support::{Node, PATIENCE, next, shell, wait_for};

#[tokio::test]
async fn a_container_runs_logs_and_ends() {
    Node::run(async |node| {
        let mut events = node.runtime.events();
        let sandbox = node.sandbox().await;
        let id = node.start(&sandbox, shell("echo out; echo err >&2; printf 'no end'; exit 3")).await;
        let status = node.exit(&id).await;
        let exit = status.exit.unwrap();
        assert_eq!((exit.code, exit.reason.as_str(), exit.oom_killed), (3, "Error", false));
        assert!(status.started_at.unwrap() <= exit.finished_at);
        let mut log = node.log(&id).await;
        log.sort();
        assert_eq!(log, ["stderr F err", "stdout F out", "stdout P no end"]);
        let mut kinds = Vec::new();
        while kinds.len() < 4 {
            kinds.push(next(&mut events).await.kind);
        }
        assert_eq!(
            kinds[..3],
            [EventKind::SandboxStarted, EventKind::ContainerCreated, EventKind::ContainerStarted]
        );
        assert!(matches!(&kinds[3], EventKind::ContainerStopped(e) if e.code == 3));
        let (code, _) = node.script(&sandbox, shell("exit 0")).await;
        assert_eq!(code, 0);
    })
    .await;
}

#[tokio::test]
async fn stop_is_graceful_first_and_firm_later() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let polite =
            node.start(&sandbox, shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")).await;
        node.wait_for_log(&polite, "ready").await;
        node.runtime.stop_container(&polite, PATIENCE).await.unwrap();
        assert_eq!(node.exit(&polite).await.exit.unwrap().code, 7);
        let stubborn =
            node.start(&sandbox, shell("trap '' TERM; echo ready; while :; do sleep 1; done")).await;
        node.wait_for_log(&stubborn, "ready").await;
        node.runtime.stop_container(&stubborn, Duration::from_millis(50)).await.unwrap();
        assert_eq!(node.exit(&stubborn).await.exit.unwrap().code, 137);
        node.runtime.stop_container(&stubborn, PATIENCE).await.unwrap();
        node.runtime.remove_container(&stubborn).await.unwrap();
        node.runtime.remove_container(&stubborn).await.unwrap();
        assert!(node.runtime.container_status(&stubborn).await.unwrap_err().is_not_found());
    })
    .await;
}

#[tokio::test]
async fn start_failures_are_worded_as_users_know_them() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let table = [
            ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
            ("/etc/plain", "exec: \"/etc/plain\": permission denied"),
            ("/etc", "exec: \"/etc\": is a directory"),
        ];
        for (program, want) in table {
            let mut config = shell("");
            config.command = vec![program.into()];
            let id = node.runtime.create_container(&sandbox, config).await.unwrap();
            let error = node.runtime.start_container(&id).await.unwrap_err();
            assert_eq!(error.reason(), "RunContainerError");
            assert!(error.to_string().contains(want), "{error}");
            let status = node.runtime.container_status(&id).await.unwrap();
            let exit = status.exit.unwrap();
            assert_eq!(
                (status.state, exit.code, exit.reason.as_str()),
                (ContainerState::Exited, 128, "StartError")
            );
        }
        let mut config = shell("");
        config.security.run_as_username = "ghost".into();
        let error = node.runtime.create_container(&sandbox, config).await.unwrap_err();
        assert_eq!(error.reason(), "CreateContainerConfigError");
        let mut config = shell("");
        config.image = "absent".into();
        let error = node.runtime.create_container(&sandbox, config).await.unwrap_err();
        assert_eq!(error.reason(), "CreateContainerError");
    })
    .await;
}

#[tokio::test]
async fn running_out_of_memory_is_told() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        // The shell grows a variable until the kernel ends it.
        let mut config = shell("x=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
        config.resources.memory_limit_bytes = 16 << 20;
        let id = node.start(&sandbox, config).await;
        let exit = node.exit(&id).await.exit.unwrap();
        assert_eq!((exit.code, exit.oom_killed, exit.reason.as_str()), (137, true, "OOMKilled"));
    })
    .await;
}

#[tokio::test]
async fn sandboxes_stop_with_their_containers() {
    Node::run(async |node| {
        let mut events = node.runtime.events();
        let sandbox = node.sandbox().await;
        let id = node.start(&sandbox, shell("sleep 1000")).await;
        let created = node.runtime.create_container(&sandbox, shell("true")).await.unwrap();
        node.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
        let status = node.runtime.pod_sandbox_status(&sandbox).await.unwrap();
        assert_eq!(status.state, PodSandboxState::NotReady);
        assert_eq!(node.exit(&id).await.exit.unwrap().code, 137);
        assert_eq!(node.runtime.container_status(&created).await.unwrap().state, ContainerState::Created);
        wait_for(&mut events, &id, |k| matches!(k, EventKind::ContainerStopped(_))).await;
        assert!(node.runtime.create_container(&sandbox, shell("true")).await.is_err());
        node.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
        node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        node.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        assert!(node.runtime.list_containers(&Default::default()).await.unwrap().is_empty());
    })
    .await;
}
