//! One channel of a client's connection, whatever the protocol: what comes in is an [`Inbound`], bounded in
//! bytes; what goes out is sent to an [`Outbound`], which waits while the client is slow.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::spdy::StreamSender;
use super::spdy::frame::Frame;
use super::websocket::ChannelSender;

/// Bytes of a channel that may wait for their reader before the connection is no longer read. Twice the
/// window that SPDY begins with, so that a peer that keeps to it never stops the others.
pub(super) const INBOUND_LEN_MAX: usize = 128 << 10;
/// Least that a piece counts for, so that a flood of tiny ones is bounded as well.
const CHARGE_MIN: usize = 256;
/// Bytes read by a channel before its peer is told that it may send more: half of the initial window, so
/// that it does not run dry.
const CREDIT_STEP: usize = 32 << 10;

/// The client is gone or does not want the channel any more.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub(super) struct Gone;

/// Tells a SPDY peer how much of a stream was read.
#[derive(Debug)]
pub(super) struct Credit {
    stream: u32,
    owed: usize,
    frames: mpsc::Sender<Frame>,
}

impl Credit {
    /// Credit for `stream`, given through `frames`.
    pub(super) fn new(stream: u32, frames: mpsc::Sender<Frame>) -> Self {
        Credit { stream, owed: 0, frames }
    }

    async fn give(&mut self) {
        if self.owed < CREDIT_STEP {
            return;
        }
        let Ok(places) = self.frames.reserve_many(2).await else { return };
        // The stream has a window, and so has the connection (stream 0).
        for (place, stream) in places.zip([self.stream, 0]) {
            place.send(Frame::WindowUpdate { stream, delta: self.owed as u32 });
        }
        self.owed = 0;
    }
}

/// The connection's end of an inbound channel. Dropping all of its clones ends the channel.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    sender: mpsc::UnboundedSender<(Bytes, u32)>,
    room: Arc<Semaphore>,
}

impl Feed {
    /// Waits for room and adds a piece of at most [`INBOUND_LEN_MAX`] bytes; false when nobody reads any more.
    pub(super) async fn push(&self, data: Bytes) -> bool {
        let charge = data.len().clamp(CHARGE_MIN, INBOUND_LEN_MAX) as u32;
        let Ok(permit) = self.room.acquire_many(charge).await else { return false };
        permit.forget();
        self.sender.send((data, charge)).is_ok()
    }
}

/// What a client sends on a channel.
#[derive(Debug)]
pub(super) struct Inbound {
    receiver: mpsc::UnboundedReceiver<(Bytes, u32)>,
    room: Arc<Semaphore>,
    credit: Option<Credit>,
}

impl Inbound {
    /// The next piece; `None` at the end. May be dropped while it waits without losing anything.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        // Who asks for more has dealt with what was given.
        if let Some(credit) = &mut self.credit {
            credit.give().await;
        }
        let (data, charge) = self.receiver.recv().await?;
        self.room.add_permits(charge as usize);
        if let Some(credit) = &mut self.credit {
            credit.owed += data.len();
        }
        Some(data)
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.room.close();
    }
}

/// Both ends of an inbound channel.
pub(super) fn inbound(credit: Option<Credit>) -> (Feed, Inbound) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(INBOUND_LEN_MAX));
    (Feed { sender, room: room.clone() }, Inbound { receiver, room, credit })
}

/// A channel towards the client.
#[derive(Debug, Clone)]
pub(super) enum Outbound {
    /// A channel of a WebSocket.
    WebSocket(ChannelSender),
    /// A stream of a SPDY connection.
    Spdy(StreamSender),
}

impl Outbound {
    /// Sends, waiting while the client is slow.
    pub(super) async fn send(&self, data: Bytes) -> Result<(), Gone> {
        match self {
            Outbound::WebSocket(channel) => channel.send(&data).await,
            Outbound::Spdy(stream) => stream.send(data).await,
        }
    }

    /// Says that nothing more comes. A WebSocket has no word for that: there the end of the connection says it.
    pub(super) async fn finish(&self) {
        match self {
            Outbound::WebSocket(_) => {}
            Outbound::Spdy(stream) => stream.finish().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_channel_is_bounded_in_bytes() {
        let (feed, mut inbound) = inbound(None);
        for _ in 0..4 {
            assert!(feed.push(vec![0; 32 << 10].into()).await);
        }
        assert!(feed.push(Bytes::from_static(b"x")).now_or_never().is_none(), "it is full");
        assert_eq!(inbound.next().await.map(|data| data.len()), Some(32 << 10));
        assert!(feed.push(Bytes::from_static(b"x")).await);
        drop(inbound);
        assert!(!feed.push(Bytes::from_static(b"x")).await, "nobody reads");
    }

    #[tokio::test]
    async fn tiny_pieces_count_too() {
        let (feed, _inbound) = inbound(None);
        for _ in 0..INBOUND_LEN_MAX / CHARGE_MIN {
            assert!(feed.push(Bytes::from_static(b"x")).await);
        }
        assert!(feed.push(Bytes::from_static(b"x")).now_or_never().is_none());
    }

    #[tokio::test]
    async fn credit_is_given_for_what_was_read() {
        let (frames, mut sent) = mpsc::channel(4);
        let (feed, mut inbound) = inbound(Some(Credit::new(5, frames)));
        feed.push(vec![0; CREDIT_STEP].into()).await;
        inbound.next().await;
        assert!(sent.try_recv().is_err(), "not before it was dealt with");
        assert!(inbound.next().now_or_never().is_none());
        let delta = CREDIT_STEP as u32;
        assert_eq!(sent.try_recv().unwrap(), Frame::WindowUpdate { stream: 5, delta });
        assert_eq!(sent.try_recv().unwrap(), Frame::WindowUpdate { stream: 0, delta });
    }
}
