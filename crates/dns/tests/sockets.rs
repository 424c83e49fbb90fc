//! The server on real sockets of the loopback, with a scripted API and a scripted other server.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use client::{BoxFuture, Client, InProcess, body};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use reconcile::Context;
use stdx::{SystemClock, ThreadRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

fn api() -> Client {
    let handler = Arc::new(|request: http::Request<client::Body>| -> BoxFuture<'static, _> {
        let uri = request.uri().to_string();
        Box::pin(async move {
            if uri.contains("watch=true") {
                return std::future::pending().await;
            }
            let items = match uri.contains("/services") {
                true => {
                    r#"{"metadata":{"namespace":"n","name":"web","resourceVersion":"1"},"spec":{"clusterIP":"10.43.0.9"}}"#
                }
                false => "",
            };
            http::Response::new(body::full(format!(
                r#"{{"metadata":{{"resourceVersion":"1"}},"items":[{items}]}}"#
            )))
        })
    });
    Client::new(Arc::new(InProcess::new(handler)), "test")
}

/// Answers one question with an address, and no more.
async fn other_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
        let name = message.queries[0].name().clone();
        message.answers.push(Record::from_rdata(name, 300, RData::A(A::new(192, 0, 2, 1))));
        socket.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
    });
    address
}

fn question(name: &str) -> Message {
    let mut message = Message::query();
    message.queries.push(Query::query(Name::from_str(name).unwrap(), RecordType::A));
    message
}

async fn ask_udp(server: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    let asked = question(name);
    socket.send(&asked.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 512];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, asked.metadata.id);
    answer
}

#[tokio::test]
async fn answers_forwards_and_keeps() {
    let cancel = CancellationToken::new();
    let context = Context::new(api(), SystemClock::shared(), Arc::new(ThreadRandom), cancel.clone());
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = udp.local_addr().unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = tcp.local_addr().unwrap();
    let config = dns::Config { domain: "cluster.local".into(), upstreams: vec![other_server().await] };
    let running = tokio::spawn(async move { dns::run(&context, config, udp, tcp).await });

    let answer = ask_udp(server, "web.n.svc.cluster.local.").await;
    assert!(answer.metadata.authoritative);
    assert_eq!(answer.answers[0].data, RData::A(A::new(10, 43, 0, 9)));
    let answer = ask_udp(server, "gone.n.svc.cluster.local.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(matches!(answer.authorities[0].data, RData::SOA(_)));
    // The other server answers once only: the second time it is the cache.
    for _ in 0..2 {
        let answer = ask_udp(server, "example.com.").await;
        assert_eq!(answer.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
    }

    let mut connection = TcpStream::connect(stream).await.unwrap();
    let bytes = question("web.n.svc.cluster.local.").to_vec().unwrap();
    connection.write_u16(bytes.len() as u16).await.unwrap();
    connection.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; usize::from(connection.read_u16().await.unwrap())];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);

    cancel.cancel();
    running.await.unwrap().unwrap();
}
