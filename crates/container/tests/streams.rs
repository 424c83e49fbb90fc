//! Exec, attach, terminals and port-forward.

mod support;

use std::time::Duration;

use cri::{AttachRequest, BoxRead, ExecRequest, RuntimeService, TerminalSize};
use support::{Node, PATIENCE, shell};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn read_all(stream: Option<BoxRead>) -> String {
    let mut text = String::new();
    let read = async { stream.unwrap().read_to_string(&mut text).await.unwrap() };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    text
}

/// Reads until `wanted` has come by.
async fn read_until(stream: &mut BoxRead, wanted: &str) -> String {
    let mut text = String::new();
    let read = async {
        let mut buffer = [0; 1024];
        while !text.contains(wanted) {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "ended before {wanted:?}: {text:?}");
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    text
}

fn command(id: &str, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: id.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        stdout: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn exec_sees_the_container_and_tells_its_end() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let mut config = shell("sleep 1000");
        config.envs.push(cri::EnvVar { name: "MINE".into(), value: "yes".into() });
        config.working_dir = "/work/here".into();
        let id = node.start(&sandbox, config).await;
        let (code, out, err) =
            node.exec(&id, &["sh", "-c", "echo $MINE $FROM; pwd; echo e >&2; exit 9"]).await;
        assert_eq!((code, out.as_str(), err.as_str()), (9, "yes image\n/work/here", "e"));
        assert_eq!(node.exec(&id, &["cat", "/shown"]).await.1, "from above");
        assert_ne!(node.exec(&id, &["cat", "/hidden"]).await.0, 0, "a whiteout hides");
        assert_eq!(node.exec(&id, &["cat", "/etc/resolv.conf"]).await.1, "nameserver 10.43.0.10");
        assert_eq!(node.exec(&id, &["hostname"]).await.1, "pod-host");
        assert_eq!(node.exec(&id, &["cat", "/etc/hostname"]).await.1, "pod-host");
        assert_eq!(node.exec(&id, &["cat", "/proc/1/cmdline"]).await.1, "sleep\x001000\0");
        let (code, ..) = node.exec(&id, &["sh", "-c", "kill -9 $$"]).await;
        assert_eq!(code, 137);
        let big = node.exec(&id, &["sh", "-c", "seq 1 200000"]).await.1;
        assert!(big.ends_with("\n200000") && big.len() > 1_000_000);

        let error = node.runtime.exec_sync(&id, &["nosuch".into()], PATIENCE).await.unwrap_err();
        assert_eq!(error.exit_code(), Some(127));
        assert!(error.to_string().contains("executable file not found in $PATH"), "{error}");
        let sleep = ["sleep".to_owned(), "1000".to_owned()];
        let error = node.runtime.exec_sync(&id, &sleep, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, cri::Error::Timeout { .. }), "{error}");
        // The command was killed, not left behind.
        let gone =
            async { while node.exec(&id, &["sh", "-c", "ps | grep -c '[s]leep 1000'"]).await.1 != "1" {} };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn exec_streams_both_ways() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let id = node.start(&sandbox, shell("sleep 1000")).await;
        let mut request = command(&id, "cat; echo done >&2; exit 4");
        (request.stdin, request.stderr) = (true, true);
        let mut session = node.runtime.exec(request).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        let payload = "x".repeat(300_000);
        let write = async {
            stdin.write_all(payload.as_bytes()).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let (_, out, err) =
            tokio::join!(write, read_all(session.stdout.take()), read_all(session.stderr.take()));
        assert_eq!((out.len(), err.as_str()), (300_000, "done\n"));
        assert_eq!(session.exit.await.unwrap(), 4);
    })
    .await;
}

#[tokio::test]
async fn exec_with_a_terminal() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let id = node.start(&sandbox, shell("sleep 1000")).await;
        let mut request = command(&id, "tty; echo $TERM; read x; stty size; exit 5");
        (request.tty, request.stdin) = (true, true);
        let mut session = node.runtime.exec(request).await.unwrap();
        let mut stdout = session.stdout.take().unwrap();
        assert!(read_until(&mut stdout, "xterm").await.contains("/dev/pts/"));
        session.resize.as_ref().unwrap().send(TerminalSize { width: 123, height: 45 }).await.unwrap();
        // A second process on the same connection order: the size is set before this line is read.
        tokio::time::sleep(Duration::from_millis(50)).await;
        session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
        read_until(&mut stdout, "45 123").await;
        assert_eq!(session.exit.await.unwrap(), 5);
    })
    .await;
}

#[tokio::test]
async fn attach_joins_many_and_stdin_once_ends() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let mut config = shell("echo started; cat; echo bye >&2");
        (config.stdin, config.stdin_once) = (true, true);
        let id = node.start(&sandbox, config).await;
        node.wait_for_log(&id, "started").await;
        let request =
            |stdin| AttachRequest { container_id: id.clone(), stdin, stdout: true, stderr: true, tty: false };
        let mut watcher = node.runtime.attach(request(false)).await.unwrap();
        let mut writer = node.runtime.attach(request(true)).await.unwrap();
        let mut stdin = writer.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        stdin.shutdown().await.unwrap();
        for session in [&mut watcher, &mut writer] {
            assert_eq!(read_all(session.stdout.take()).await, "hello\n");
            assert_eq!(read_all(session.stderr.take()).await, "bye\n");
        }
        assert_eq!(writer.exit.await.unwrap(), 0);
        assert_eq!(watcher.exit.await.unwrap(), 0);
        assert!(node.log(&id).await.contains(&"stdout F hello".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn a_container_with_a_terminal() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let mut config =
            shell("while read line; do [ \"$line\" = end ] && exit 6; echo \"got $line\"; stty size; done");
        (config.stdin, config.tty) = (true, true);
        let id = node.start(&sandbox, config).await;
        let request =
            AttachRequest { container_id: id.clone(), stdin: true, stdout: true, stderr: false, tty: true };
        let mut session = node.runtime.attach(request).await.unwrap();
        let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
        session.resize.as_ref().unwrap().send(TerminalSize { width: 90, height: 30 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stdin.write_all(b"one\n").await.unwrap();
        assert!(read_until(&mut stdout, "30 90").await.contains("got one"));
        assert_eq!(node.exec(&id, &["test", "-c", "/dev/console"]).await.0, 0);
        stdin.write_all(b"end\n").await.unwrap();
        assert_eq!(session.exit.await.unwrap(), 6);
        assert!(node.log(&id).await.iter().any(|l| l.starts_with("stdout F got one")));
    })
    .await;
}

#[tokio::test]
async fn port_forward_reaches_the_pods_loopback() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let id = node.start(&sandbox, shell("echo hi | nc -l -p 8080")).await;
        let connect = async {
            loop {
                if let Ok(stream) = node.runtime.port_forward(&sandbox, 8080).await {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let mut stream = tokio::time::timeout(PATIENCE, connect).await.unwrap();
        let mut text = String::new();
        stream.shutdown().await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hi\n");
        drop(id);
        let error = node.runtime.port_forward(&sandbox, 81).await.err().unwrap();
        assert!(error.to_string().contains("failed to connect to localhost:81"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn logs_can_be_reopened_and_rotate() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let mut config = shell("echo one; while [ ! -e /go ]; do sleep 0.01; done; echo two; sleep 1000");
        config.log_path = "x/0.log".into();
        let id = node.start(&sandbox, config).await;
        node.wait_for_log(&id, "one").await;
        let log = node.runtime.container_status(&id).await.unwrap().log_path;
        std::fs::rename(&log, log.with_extension("old")).unwrap();
        node.runtime.reopen_container_log(&id).await.unwrap();
        node.exec(&id, &["touch", "/go"]).await;
        node.wait_for_log(&id, "two").await;
        assert_eq!(node.log(&id).await, ["stdout F two"]);

        let mut config = shell("seq 1 2000");
        config.log_path = "y/0.log".into();
        config.log_rotation = Some(cri::LogRotation { max_bytes: 10_000, max_files: 3 });
        let id = node.start(&sandbox, config).await;
        node.exit(&id).await;
        let dir = node.data.path().join("logs/y");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 3);
    })
    .await;
}
