//! Exec and attach.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::runtime::Scripted;
use super::{Frame, Operation, Spdy, ask, connect, message, say, spdy, websocket};

/// Everything that comes until the end, by channel.
async fn channels(socket: &mut WebSocketStream<DuplexStream>) -> BTreeMap<u8, String> {
    let mut texts: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    while let Some(data) = message(socket).await {
        texts.entry(data[0]).or_default().extend_from_slice(&data[1..]);
    }
    texts.into_iter().map(|(channel, text)| (channel, String::from_utf8(text).unwrap())).collect()
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

#[tokio::test]
async fn v5_passes_the_end_of_input_on() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=cat&stdin=true&stdout=true&stderr=true";
    let mut socket = websocket(Operation::Exec, &runtime, query, "v5.channel.k8s.io").await;
    assert_eq!(message(&mut socket).await.unwrap(), [1], "an empty message comes first");
    say(&mut socket, b"\0hello ".to_vec()).await;
    socket.send(Message::Ping("p".into())).await.unwrap();
    say(&mut socket, b"\0world".to_vec()).await;
    say(&mut socket, [255, 0]).await;
    let texts = channels(&mut socket).await;
    assert_eq!(texts[&1], "hello world<end>");
    assert_eq!(serde_json::from_str::<Value>(&texts[&3]).unwrap(), success());
    let asked = runtime.execs.lock()[0].clone();
    assert_eq!((asked.container_id.as_str(), asked.command), ("container", vec!["cat".to_owned()]));
    assert!(asked.stdin && asked.stdout && asked.stderr && !asked.tty);
}

#[tokio::test]
async fn v4_tells_the_exit_code() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=fail&command=3&output=1&error=1";
    let mut socket = websocket(Operation::Exec, &runtime, query, "v4.channel.k8s.io").await;
    let texts = channels(&mut socket).await;
    assert_eq!((texts[&1].as_str(), texts[&2].as_str()), ("out", "err"));
    let status: Value = serde_json::from_str(&texts[&3]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
}

#[tokio::test]
async fn base64_and_the_first_version() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=fail&command=3&stdout=1";
    let mut socket = websocket(Operation::Exec, &runtime, query, "base64.channel.k8s.io").await;
    let mut messages = Vec::new();
    while let Some(data) = message(&mut socket).await {
        messages.push(String::from_utf8(data).unwrap());
    }
    // `out`, and a status that is text.
    assert_eq!(messages, ["1", "1b3V0", "3Y29tbWFuZCB0ZXJtaW5hdGVkIHdpdGggZXhpdCBjb2RlIDM="]);
}

#[tokio::test]
async fn output_is_whole_when_the_status_comes() {
    let runtime = Arc::new(Scripted::default());
    let mut socket = websocket(Operation::Exec, &runtime, "command=much&stdout=1", "v5.channel.k8s.io").await;
    let mut len = 0;
    loop {
        match message(&mut socket).await.unwrap()[..] {
            [1, ref data @ ..] => len += data.len(),
            [3, ..] => break,
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!(len, 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_child_with_the_output_does_not_keep_the_client() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=leaves-child&stdin=1&stdout=1";
    let mut socket = websocket(Operation::Exec, &runtime, query, "v5.channel.k8s.io").await;
    let texts = channels(&mut socket).await;
    assert_eq!(texts[&1], "parent");
    assert_eq!(serde_json::from_str::<Value>(&texts[&3]).unwrap(), success());
}

#[tokio::test]
async fn what_cannot_be_run_is_an_internal_error() {
    let runtime = Arc::new(Scripted::default());
    let mut socket =
        websocket(Operation::Exec, &runtime, "command=missing&stdout=1", "v4.channel.k8s.io").await;
    let texts = channels(&mut socket).await;
    let status: Value = serde_json::from_str(&texts[&3]).unwrap();
    assert_eq!((&status["reason"], &status["code"]), (&json!("InternalError"), &json!(500)));
    assert_eq!(
        status["message"],
        "Internal error occurred: error executing command in container: failed to exec in container: \
         exec: \"missing\": executable file not found in $PATH: unknown"
    );
}

#[tokio::test]
async fn a_terminal_gets_its_size() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=size&stdin=1&stdout=1&stderr=1&tty=1";
    let mut socket = websocket(Operation::Exec, &runtime, query, "v5.channel.k8s.io").await;
    say(&mut socket, b"\x04{\"Width\":80,\"Height\":24}".to_vec()).await;
    assert_eq!(channels(&mut socket).await[&1], "80x24");
    assert!(!runtime.execs.lock()[0].stderr);
}

#[tokio::test]
async fn the_process_hears_when_the_client_leaves() {
    for orderly in [true, false] {
        let runtime = Arc::new(Scripted::default());
        let query = "command=forever&stdin=1&stdout=1";
        let mut socket = websocket(Operation::Exec, &runtime, query, "v4.channel.k8s.io").await;
        message(&mut socket).await.unwrap();
        if orderly {
            socket.close(None).await.unwrap();
        }
        drop(socket);
        runtime.input_ended.cancelled().await;
    }
    let runtime = Arc::new(Scripted::default());
    let query = "command=forever&stdin=1";
    let mut client = spdy(Operation::Exec, &runtime, query, "v4.channel.k8s.io").await;
    open(&mut client, &["error", "stdin"]).await;
    drop(client);
    runtime.input_ended.cancelled().await;
}

#[tokio::test]
async fn attach_has_no_exit_code() {
    let runtime = Arc::new(Scripted::default());
    let mut socket = websocket(Operation::Attach, &runtime, "stdout=1&stderr=1", "v5.channel.k8s.io").await;
    let texts = channels(&mut socket).await;
    assert_eq!((texts[&1].as_str(), texts[&2].as_str()), ("out", "err"));
    assert_eq!(serde_json::from_str::<Value>(&texts[&3]).unwrap(), success());
    assert_eq!(runtime.attaches.lock()[0].container_id, "container");
}

/// Opens streams of these types as 1, 3, 5 and so on, and waits for the replies.
async fn open(client: &mut Spdy<DuplexStream>, types: &[&str]) {
    for (i, kind) in types.iter().enumerate() {
        let stream = 2 * i as u32 + 1;
        client.open(stream, &[("streamtype", kind)]).await;
        let reply = client.next().await.unwrap();
        assert!(matches!(reply, Frame::SynReply { stream: s, .. } if s == stream), "{reply:?}");
    }
}

#[tokio::test]
async fn spdy_runs_commands() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=cat&stdin=1&stdout=1&stderr=1";
    let mut client = spdy(Operation::Exec, &runtime, query, "v4.channel.k8s.io").await;
    open(&mut client, &["error", "stdin", "stdout", "stderr"]).await;
    client.data(3, b"hello", false).await;
    client.send(Frame::Ping { id: 1 }).await;
    client.data(3, b"", true).await;
    let [status, out, err] = client.until_end([1, 5, 7]).await;
    assert_eq!((out.as_str(), err.as_str()), ("hello<end>", ""));
    assert_eq!(serde_json::from_str::<Value>(&status).unwrap(), success());
    assert!(matches!(client.next().await, Some(Frame::GoAway { .. })));
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn spdy_of_old_tells_failures_as_text() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=fail&command=4&stdout=1";
    let mut client = spdy(Operation::Exec, &runtime, query, "channel.k8s.io").await;
    open(&mut client, &["error", "stdout"]).await;
    let [status, out] = client.until_end([1, 3]).await;
    assert_eq!((status.as_str(), out.as_str()), ("command terminated with exit code 4", "out"));
}

#[tokio::test]
async fn spdy_terminals() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=size&stdout=1&tty=1";
    let mut client = spdy(Operation::Exec, &runtime, query, "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "strange")]).await;
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 1, status: 3 }));
    for (stream, kind) in [(3, "error"), (5, "stdout"), (7, "resize")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client.data(7, b"{\"Width\":100,", false).await;
    client.data(7, b"\"Height\":50}\n", false).await;
    let [_, out] = client.until_end([3, 5]).await;
    assert_eq!(out, "100x50");
}

#[tokio::test(start_paused = true)]
async fn streams_that_never_come() {
    let runtime = Arc::new(Scripted::default());
    let mut client = spdy(Operation::Exec, &runtime, "command=cat&stdout=1", "v4.channel.k8s.io").await;
    open(&mut client, &["error"]).await;
    assert!(matches!(client.next().await, Some(Frame::GoAway { .. })));
    assert!(runtime.execs.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_idle_are_let_go() {
    let runtime = Arc::new(Scripted::default());
    let query = "command=forever&stdin=1&stdout=1";
    let mut socket = websocket(Operation::Exec, &runtime, query, "v5.channel.k8s.io").await;
    assert_eq!(channels(&mut socket).await.len(), 1);
    runtime.input_ended.cancelled().await;
}

#[tokio::test]
async fn requests_that_are_refused() {
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    let table: [(&str, Vec<(&str, &str)>, &str); 4] = [
        ("command=a", upgrade.to_vec(), "400"),
        ("stdout=1&command=a", vec![], "400"),
        ("stdout=1&command=a", upgrade.to_vec(), "400"),
        ("stdout=1&command=a", [&upgrade[..], &[("X-Stream-Protocol-Version", "v9")]].concat(), "403"),
    ];
    for (query, headers, want) in table {
        let mut io = connect(Operation::Exec, Arc::new(Scripted::default()));
        let head = ask(&mut io, "POST", query, &headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {want}")), "{head}");
    }
}
