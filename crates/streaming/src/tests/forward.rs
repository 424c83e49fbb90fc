//! Port-forward.

use std::sync::Arc;

use cri::Duplex;

use super::runtime::Scripted;
use super::{Frame, Operation, Spdy, message, say, spdy, websocket};
use crate::websocket::client_tunnel;

/// Opens a pair of streams for a port.
async fn pair<T: Duplex>(client: &mut Spdy<T>, first: u32, port: &str, request: &str) {
    for (stream, kind) in [(first, "error"), (first + 2, "data")] {
        client.open(stream, &[("streamtype", kind), ("port", port), ("requestid", request)]).await;
        let reply = client.next().await.unwrap();
        assert!(matches!(reply, Frame::SynReply { stream: s, .. } if s == stream), "{reply:?}");
        if kind == "error" {
            client.data(stream, b"", true).await;
        }
    }
}

async fn both_ways<T: Duplex>(mut client: Spdy<T>) {
    pair(&mut client, 1, "80", "0").await;
    client.data(3, b"hello", false).await;
    client.data(3, b" world", true).await;
    let [errors, data] = client.until_end([1, 3]).await;
    assert_eq!((errors.as_str(), data.as_str()), ("", "got hello world"), "half-closed, then answered");

    pair(&mut client, 5, "81", "1").await;
    let [errors, data] = client.until_end([5, 7]).await;
    assert_eq!(
        errors,
        "error forwarding port 81 to pod sandbox, uid : failed to connect to localhost:81 inside namespace \
         \"n\": connection refused"
    );
    assert_eq!(data, "");
}

#[tokio::test]
async fn spdy_carries_connections() {
    let runtime = Arc::new(Scripted::default());
    both_ways(spdy(Operation::PortForward, &runtime, "", "portforward.k8s.io").await).await;
}

#[tokio::test]
async fn spdy_inside_a_websocket() {
    let runtime = Arc::new(Scripted::default());
    let protocol = "SPDY/3.1+portforward.k8s.io";
    let socket = websocket(Operation::PortForward, &runtime, "", protocol).await;
    both_ways(Spdy::new(client_tunnel(socket))).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_hangs_up_ends_the_pair() {
    let runtime = Arc::new(Scripted::default());
    let mut client = spdy(Operation::PortForward, &runtime, "", "portforward.k8s.io").await;
    pair(&mut client, 1, "82", "0").await;
    let [errors, data] = client.until_end([1, 3]).await;
    assert_eq!((errors.as_str(), data.as_str()), ("", "bye"));
}

#[tokio::test]
async fn a_reset_reaches_the_pod() {
    let runtime = Arc::new(Scripted::default());
    let mut client = spdy(Operation::PortForward, &runtime, "", "portforward.k8s.io").await;
    pair(&mut client, 1, "83", "0").await;
    client.send(Frame::RstStream { stream: 3, status: 5 }).await;
    runtime.port_ended.cancelled().await;
    assert_eq!(client.until_end([1]).await, [""]);
}

#[tokio::test]
async fn streams_do_not_wait_for_each_other() {
    let runtime = Arc::new(Scripted::default());
    let mut client = spdy(Operation::PortForward, &runtime, "", "portforward.k8s.io").await;
    pair(&mut client, 1, "7", "0").await;
    pair(&mut client, 5, "7", "1").await;
    client.data(7, b"second", false).await;
    client.data(3, b"first", false).await;
    let mut texts = [Vec::new(), Vec::new()];
    while texts[0] != b"first" || texts[1] != b"second" {
        let Some(Frame::Data { stream, data, .. }) = client.next().await else { continue };
        texts[usize::from(stream == 7)].extend_from_slice(&data);
    }
}

#[tokio::test]
async fn bad_streams_are_refused() {
    let runtime = Arc::new(Scripted::default());
    let mut client = spdy(Operation::PortForward, &runtime, "", "portforward.k8s.io").await;
    client.open(1, &[("streamtype", "data")]).await;
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 1, status: 3 }));
    client.open(2, &[("streamtype", "data"), ("port", "1")]).await;
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 2, status: 1 }));
}

#[tokio::test(start_paused = true)]
async fn half_a_pair_is_given_up() {
    let runtime = Arc::new(Scripted::default());
    let mut client = spdy(Operation::PortForward, &runtime, "", "portforward.k8s.io").await;
    client.open(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "0")]).await;
    assert_eq!(client.until_end([1]).await, ["timed out waiting for streams"]);
}

#[tokio::test]
async fn websocket_channels() {
    let runtime = Arc::new(Scripted::default());
    let query = "ports=7&ports=81";
    let mut socket = websocket(Operation::PortForward, &runtime, query, "v4.channel.k8s.io").await;
    let mut first = Vec::new();
    let mut error = String::new();
    while first.len() < 4 || error.is_empty() {
        let data = message(&mut socket).await.unwrap();
        match data[..] {
            [_, low, high] => first.push((data[0], u16::from_le_bytes([low, high]))),
            _ => error = String::from_utf8(data[1..].to_vec()).unwrap(),
        }
    }
    first.sort_unstable();
    assert_eq!(first, [(0, 7), (1, 7), (2, 81), (3, 81)], "each channel begins with its port");
    assert!(error.ends_with("connection refused"), "{error}");
    say(&mut socket, b"\0echo".to_vec()).await;
    assert_eq!(message(&mut socket).await.unwrap(), b"\0echo");
    drop(socket);
    runtime.port_ended.cancelled().await;
}
