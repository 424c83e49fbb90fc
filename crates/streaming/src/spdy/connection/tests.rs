use super::*;
use futures_util::FutureExt;
use tokio::io::DuplexStream;

struct Client {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
}

fn pair() -> (Client, Connection) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let connection = Connection::new(Box::new(far), Arc::new(Activity::new())).unwrap();
    let buffer = BytesMut::new();
    (Client { io: near, encoder: Encoder::new().unwrap(), decoder: Decoder::new(), buffer }, connection)
}

impl Client {
    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32) {
        let headers = Headers::default();
        let (associated, priority, fin, unidirectional) = (0, 0, false, false);
        self.send(Frame::SynStream { stream, associated, priority, fin, unidirectional, headers }).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// Reads data until `len` bytes have come.
    async fn read(&mut self, mut len: usize) {
        while len > 0 {
            if let Some(Frame::Data { data, .. }) = self.next().await {
                len -= data.len();
            }
        }
    }
}

const MUCH: usize = 200 << 10;

#[tokio::test]
async fn a_client_that_does_not_count_gets_everything() {
    let (mut client, mut connection) = pair();
    client.open(1).await;
    let stream = connection.accept().await.unwrap();
    let sent = stream.outbound.send(vec![0; MUCH].into());
    let (sent, ()) = futures_util::future::join(sent, client.read(MUCH)).await;
    sent.unwrap();
}

#[tokio::test]
async fn a_client_that_counts_is_not_overrun() {
    let (mut client, mut connection) = pair();
    client.send(Frame::Settings { entries: vec![(frame::SETTINGS_INITIAL_WINDOW_SIZE, 1000)] }).await;
    client.open(1).await;
    let stream = connection.accept().await.unwrap();
    let sending = tokio::spawn(async move { stream.outbound.send(vec![0; 1500].into()).await });
    client.read(1000).await;
    // Its answer comes after all that could be sent.
    client.send(Frame::Ping { id: 1 }).await;
    assert_eq!(client.next().await, Some(Frame::Ping { id: 1 }));
    client.send(Frame::WindowUpdate { stream: 1, delta: 400 }).await;
    client.read(400).await;
    client.send(Frame::WindowUpdate { stream: 1, delta: 400 }).await;
    client.read(100).await;
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_ends_a_waiting_sender() {
    let (mut client, mut connection) = pair();
    client.send(Frame::Settings { entries: vec![(frame::SETTINGS_INITIAL_WINDOW_SIZE, 0)] }).await;
    client.open(1).await;
    let stream = connection.accept().await.unwrap();
    let outbound = stream.outbound.clone();
    let sending = tokio::spawn(async move { outbound.send(vec![0; 10].into()).await });
    client.send(Frame::RstStream { stream: 1, status: 5 }).await;
    stream.reset.cancelled().await;
    assert!(sending.await.unwrap().is_err());
}

#[tokio::test]
async fn streams_are_limited() {
    let (mut client, mut connection) = pair();
    let mut held = Vec::new();
    for i in 0..STREAMS_MAX as u32 {
        client.open(2 * i + 1).await;
        held.push(connection.accept().await.unwrap());
    }
    let next = 2 * STREAMS_MAX as u32 + 1;
    client.open(next).await;
    let refused = Frame::RstStream { stream: next, status: frame::RST_REFUSED_STREAM };
    assert_eq!(client.next().await, Some(refused));
    // A number must not come again.
    client.open(1).await;
    let error = Frame::RstStream { stream: 1, status: frame::RST_PROTOCOL_ERROR };
    assert_eq!(client.next().await, Some(error));
    for stream in held.drain(..) {
        stream.outbound.finish().await;
        stream.outbound.release();
    }
    let mut ended = 0;
    while ended < STREAMS_MAX {
        ended += usize::from(matches!(client.next().await, Some(Frame::Data { fin: true, .. })));
    }
    client.open(next + 2).await;
    assert_eq!(connection.accept().await.unwrap().id, next + 2);
}

#[tokio::test]
async fn the_end_of_the_connection_ends_its_streams() {
    let (mut client, mut connection) = pair();
    client.open(1).await;
    let mut stream = connection.accept().await.unwrap();
    client.send(Frame::Data { stream: 1, fin: false, data: Bytes::from_static(b"x") }).await;
    assert_eq!(stream.inbound.next().await.unwrap(), "x");
    assert!(stream.inbound.next().now_or_never().is_none());
    drop(client);
    assert_eq!(stream.inbound.next().await, None);
    stream.reset.cancelled().await;
    connection.gone().cancelled().await;
    assert!(connection.accept().await.is_none());
}

#[tokio::test]
async fn nonsense_ends_the_connection() {
    let (mut client, connection) = pair();
    client.io.write_all(b"GET / HTTP/1.1\r\n\r\n\x80\x02\0\0\0\0\0\0").await.unwrap();
    client.io.write_all(&[0x80; 1 << 16]).await.unwrap();
    drop(client);
    connection.gone().cancelled().await;
}
