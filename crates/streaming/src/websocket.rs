//! WebSockets: numbered channels in messages (`*.channel.k8s.io`), and a byte stream in binary messages, in
//! which port-forward carries SPDY.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use cri::Duplex;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::channel::{Feed, Gone, Inbound, inbound};
use super::idle::Activity;

/// Largest message taken, as in upstream's servers: some clients send a whole file as one.
const MESSAGE_LEN_MAX: usize = 32 << 20;
/// Largest piece of a message that is handed on at once.
const PIECE_LEN_MAX: usize = 32 << 10;
/// Messages that wait to be written: a slow client holds up the process.
const MESSAGES_MAX: usize = 16;
/// Bytes read at once, allocated for every connection.
const READ_LEN: usize = 16 << 10;
/// Bytes gathered before they are written.
const WRITE_LEN: usize = 64 << 10;
/// Bytes of a tunnelled stream on their way in either direction.
const TUNNEL_LEN: usize = 64 << 10;
/// How long the client may take to answer our goodbye: then it has read everything.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// The channel that closes others: the byte after it is the channel that ends (v5, KEP-4006).
const CLOSE_CHANNEL: u8 = 255;

type Socket = WebSocketStream<Box<dyn Duplex>>;

/// How channels are written into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// A byte with the channel's number, then the data.
    Binary,
    /// The channel's number as a digit, then the data in base64.
    Base64,
}

impl Codec {
    fn encode(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Codec::Binary => {
                let mut message = BytesMut::with_capacity(1 + data.len());
                message.put_u8(channel);
                message.put_slice(data);
                Message::Binary(message.freeze())
            }
            Codec::Base64 => {
                let mut text = String::from(char::from(b'0'.wrapping_add(channel)));
                STANDARD.encode_string(data, &mut text);
                Message::text(text)
            }
        }
    }

    /// The channel and data of a message; `None` where there is nothing in it, or nothing to understand.
    fn decode(self, mut message: Bytes) -> Option<(u8, Bytes)> {
        if message.is_empty() {
            return None;
        }
        let channel = message.split_to(1)[0];
        match self {
            Codec::Binary => Some((channel, message)),
            Codec::Base64 => Some((channel.checked_sub(b'0')?, STANDARD.decode(&message).ok()?.into())),
        }
    }
}

async fn upgrade(io: Box<dyn Duplex>) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_LEN)
        .write_buffer_size(WRITE_LEN)
        .max_message_size(Some(MESSAGE_LEN_MAX))
        .max_frame_size(Some(MESSAGE_LEN_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// A channel towards the client.
#[derive(Debug, Clone)]
pub(super) struct ChannelSender {
    channel: u8,
    codec: Codec,
    messages: mpsc::Sender<Message>,
    activity: Arc<Activity>,
}

impl ChannelSender {
    /// Sends one message, waiting while the client is slow.
    pub(super) async fn send(&self, data: &[u8]) -> Result<(), Gone> {
        self.activity.touch();
        self.messages.send(self.codec.encode(self.channel, data)).await.map_err(|_| Gone)
    }
}

/// A WebSocket of channels. Dropping it ends it at once; [`Channels::close`] does it in good order.
pub(super) struct Channels {
    codec: Codec,
    messages: mpsc::Sender<Message>,
    inbound: HashMap<u8, Inbound>,
    activity: Arc<Activity>,
    gone: CancellationToken,
}

impl Channels {
    /// Speaks on `io`, taking what comes on the channels `readable`. With `closes` the client may end single
    /// channels (v5).
    pub(super) async fn new(
        io: Box<dyn Duplex>,
        codec: Codec,
        readable: impl IntoIterator<Item = u8>,
        closes: bool,
        activity: Arc<Activity>,
    ) -> Self {
        let (sink, stream) = upgrade(io).await.split();
        let (messages, queue) = mpsc::channel(MESSAGES_MAX);
        let (mut feeds, mut readers) = (HashMap::new(), HashMap::new());
        for channel in readable {
            let (feed, reader) = inbound(None);
            feeds.insert(channel, feed);
            readers.insert(channel, reader);
        }
        let gone = CancellationToken::new();
        let (touched, ended) = (activity.clone(), gone.clone());
        tokio::spawn(async move {
            tokio::select! {
                outcome = read(stream, codec, feeds, closes, &touched) => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a WebSocket broke");
                    }
                }
                () = ended.cancelled() => {}
            }
            ended.cancel();
        });
        let ended = gone.clone();
        tokio::spawn(async move {
            tokio::select! {
                outcome = write(sink, queue) => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a WebSocket cannot be written to");
                        ended.cancel();
                    }
                }
                () = ended.cancelled() => {}
            }
        });
        Channels { codec, messages, inbound: readers, activity, gone }
    }

    /// What comes on a channel; once for each.
    pub(super) fn take(&mut self, channel: u8) -> Option<Inbound> {
        self.inbound.remove(&channel)
    }

    /// The way out on a channel.
    pub(super) fn sender(&self, channel: u8) -> ChannelSender {
        let (messages, activity) = (self.messages.clone(), self.activity.clone());
        ChannelSender { channel, codec: self.codec, messages, activity }
    }

    /// Cancelled when the connection has ended.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Says goodbye after all that was sent before, and waits a while for the client to leave as well.
    pub(super) async fn close(mut self) {
        // Nobody reads any more; a full channel must not keep the client's goodbye away.
        self.inbound.clear();
        let goodbye = async {
            // It may have left already.
            let _ = self.messages.send(goodbye()).await;
            self.gone.cancelled().await;
        };
        let _ = tokio::time::timeout(CLOSE_WAIT, goodbye).await;
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

async fn read(
    mut stream: SplitStream<Socket>,
    codec: Codec,
    mut feeds: HashMap<u8, Feed>,
    closes: bool,
    activity: &Activity,
) -> Result<(), tungstenite::Error> {
    while let Some(message) = stream.next().await {
        let message = match message? {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Close(_) => {
                // The next turn sends the answer.
                let _ = tokio::time::timeout(CLOSE_WAIT, stream.next()).await;
                return Ok(());
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        let Some((channel, mut data)) = codec.decode(message) else { continue };
        activity.touch();
        if closes && channel == CLOSE_CHANNEL {
            if let Some(ended) = data.first() {
                feeds.remove(ended);
            }
            continue;
        }
        while !data.is_empty() {
            let Some(feed) = feeds.get(&channel) else { break };
            let piece = data.split_to(data.len().min(PIECE_LEN_MAX));
            if !feed.push(piece).await {
                feeds.remove(&channel);
            }
        }
    }
    Ok(())
}

async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut queue: mpsc::Receiver<Message>,
) -> Result<(), tungstenite::Error> {
    while let Some(message) = queue.recv().await {
        let last = message.is_close();
        sink.feed(message).await?;
        if last || queue.is_empty() {
            sink.flush().await?;
        }
        if last {
            return Ok(());
        }
    }
    Ok(())
}

/// The byte stream that the binary messages of a WebSocket carry. Shutting it down says goodbye.
pub(super) async fn tunnel(io: Box<dyn Duplex>) -> Box<dyn Duplex> {
    carry(upgrade(io).await)
}

/// The same from the client's end.
#[cfg(test)]
pub(super) fn client_tunnel(socket: WebSocketStream<tokio::io::DuplexStream>) -> Box<dyn Duplex> {
    carry(socket)
}

fn carry<T: Duplex + 'static>(socket: WebSocketStream<T>) -> Box<dyn Duplex> {
    let (near, far) = tokio::io::duplex(TUNNEL_LEN);
    let (mut sink, mut stream) = socket.split();
    let (mut from_near, mut to_near) = tokio::io::split(far);
    tokio::spawn(async move {
        let inward = async {
            while let Some(Ok(message)) = stream.next().await {
                let data = match message {
                    Message::Binary(data) => data,
                    Message::Close(_) => {
                        // The next turn sends the answer.
                        let _ = tokio::time::timeout(CLOSE_WAIT, stream.next()).await;
                        break;
                    }
                    _ => continue,
                };
                if to_near.write_all(&data).await.is_err() {
                    break;
                }
            }
            // The other side may be gone.
            let _ = to_near.shutdown().await;
        };
        let outward = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PIECE_LEN_MAX);
                match from_near.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
                if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                    return;
                }
            }
            let _ = sink.send(goodbye()).await;
        };
        tokio::pin!(inward, outward);
        tokio::select! {
            // What is left to send is of no use to a client that has left.
            () = &mut inward => {}
            () = &mut outward => {
                let _ = tokio::time::timeout(CLOSE_WAIT, inward).await;
            }
        }
    });
    Box::new(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let binary = Codec::Binary.encode(2, b"ab");
        assert_eq!(binary, Message::Binary(Bytes::from_static(b"\x02ab")));
        assert_eq!(Codec::Binary.decode(binary.into_data()), Some((2, Bytes::from_static(b"ab"))));
        let text = Codec::Base64.encode(1, b"hi\n");
        assert_eq!(text, Message::text("1aGkK"));
        assert_eq!(Codec::Base64.decode(text.into_data()), Some((1, Bytes::from_static(b"hi\n"))));
        assert_eq!(Codec::Binary.decode(Bytes::new()), None);
        assert_eq!(Codec::Base64.decode(Bytes::from_static(b"0*")), None);
        assert_eq!(Codec::Base64.decode(Bytes::from_static(b" aGk=")), None);
    }
}
