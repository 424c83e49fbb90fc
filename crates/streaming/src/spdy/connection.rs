//! A SPDY connection, mostly as its server: two tasks, one that reads frames and feeds the streams, one that writes what
//! the streams have to say, in the order of a bounded queue.
//!
//! Windows: the client's are kept only once it has shown that it knows them (by WINDOW_UPDATE or SETTINGS),
//! for the one client library in wide use, spdystream, never gives credit and would get 64 KiB and no more.
//! Ours are given, and a stream whose reader is slow stops the reading of the connection when it is full,
//! as the clients that ignore windows leave no other way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cri::Duplex;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::frame::{self, Decoder, Encoder, Frame, Headers};
use crate::channel::{Credit, Feed, Gone, Inbound, inbound};
use crate::idle::Activity;

/// Streams of one connection at once: a port-forward has two for each connection it carries, and a browser
/// opens some dozens.
const STREAMS_MAX: usize = 512;
/// Streams that were opened and not yet looked at.
const OPENED_MAX: usize = 64;
/// Frames that wait to be written: a slow client holds up who sends to it.
const FRAMES_MAX: usize = 32;
/// Largest data frame sent, so that streams take turns.
const SEND_LEN_MAX: usize = 16 << 10;
/// Bytes read at once.
const READ_LEN: usize = 32 << 10;
/// Window that streams and the connection begin with (SPDY/3.1, section 2.6.8).
const WINDOW_INITIAL: i64 = 64 << 10;
/// Largest window: more is an error of the peer and is cut.
const WINDOW_MAX: i64 = 0x7fff_ffff;
/// How long the client may take to close after we have: then it has read everything.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What is known of an open stream.
struct Entry {
    /// Where its data goes; none after its end.
    feed: Option<Feed>,
    /// Cancelled by RST_STREAM.
    reset: CancellationToken,
    /// What may still be sent, where the client counts.
    window: i64,
    /// Whether we have sent our last.
    finished: bool,
}

struct State {
    streams: HashMap<u32, Entry>,
    /// The highest stream seen.
    last: u32,
    /// What may still be sent on all streams together, where the client counts.
    window: i64,
    window_initial: i64,
    /// Whether the client has shown that it knows windows.
    counts: bool,
    /// Whether either side has said goodbye: no new streams.
    leaving: bool,
}

/// Who opens the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

struct Shared {
    side: Side,
    frames: mpsc::Sender<Frame>,
    state: Mutex<State>,
    /// A window grew or a stream went away.
    changed: Notify,
    gone: CancellationToken,
    activity: Arc<Activity>,
}

/// A connection. Dropping it ends it at once; [`Connection::close`] does it in good order.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    opened: mpsc::Receiver<Stream>,
}

/// A stream. One that the client has opened must be accepted or refused.
pub(crate) struct Stream {
    /// Its number.
    pub(crate) id: u32,
    /// The headers it came with.
    pub(crate) headers: Headers,
    /// What the client sends.
    pub(crate) inbound: Inbound,
    /// What goes to the client.
    pub(crate) outbound: StreamSender,
    /// Cancelled when the client ends the stream at once.
    pub(crate) reset: CancellationToken,
}

/// The sending half of a stream.
#[derive(Clone)]
pub(crate) struct StreamSender {
    id: u32,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for StreamSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSender").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Connection {
    /// Speaks SPDY on `io` as the server.
    ///
    /// # Errors
    /// When the header compression cannot be set up.
    pub(crate) fn new(io: Box<dyn Duplex>, activity: Arc<Activity>) -> Result<Self, frame::Error> {
        Self::start(io, activity, Side::Server)
    }

    /// Speaks SPDY on `io` as the client.
    ///
    /// # Errors
    /// When the header compression cannot be set up.
    pub(crate) fn client(io: Box<dyn Duplex>) -> Result<Self, frame::Error> {
        Self::start(io, Arc::new(Activity::new()), Side::Client)
    }

    fn start(io: Box<dyn Duplex>, activity: Arc<Activity>, side: Side) -> Result<Self, frame::Error> {
        let (frames, queue) = mpsc::channel(FRAMES_MAX);
        let (opener, opened) = mpsc::channel(OPENED_MAX);
        let state = State {
            streams: HashMap::new(),
            last: 0,
            window: WINDOW_INITIAL,
            window_initial: WINDOW_INITIAL,
            counts: false,
            leaving: false,
        };
        let gone = CancellationToken::new();
        let shared = Arc::new(Shared {
            side,
            frames,
            state: Mutex::new(state),
            changed: Notify::new(),
            gone,
            activity,
        });
        let encoder = Encoder::new()?;
        let (read, write) = tokio::io::split(io);
        let reading = shared.clone();
        tokio::spawn(async move {
            tokio::select! {
                outcome = reading.read(read, &opener) => match outcome {
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "a SPDY connection broke"),
                },
                () = reading.gone.cancelled() => {}
            }
            reading.end();
        });
        let gone = shared.gone.clone();
        tokio::spawn(async move {
            tokio::select! {
                outcome = write_all(write, queue, encoder) => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a SPDY connection cannot be written to");
                        gone.cancel();
                    }
                }
                () = gone.cancelled() => {}
            }
        });
        Ok(Connection { shared, opened })
    }

    /// The next stream that the client opens; `None` when it is gone.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }

    /// Opens a stream; the server's consent is not waited for, its refusal resets the stream.
    pub(crate) async fn open(&self, headers: Headers) -> Result<Stream, Gone> {
        let place = self.shared.frames.reserve().await.map_err(|_| Gone)?;
        let mut state = self.shared.state.lock();
        if state.leaving || self.shared.gone.is_cancelled() || state.streams.len() >= STREAMS_MAX {
            return Err(Gone);
        }
        let id = if state.last == 0 { 1 } else { state.last + 2 };
        let (stream, feed) = self.shared.stream(id, headers.clone());
        state.last = id;
        let window = state.window_initial;
        let entry = Entry { feed: Some(feed), reset: stream.reset.clone(), window, finished: false };
        state.streams.insert(id, entry);
        // Under the lock: numbers must go out in their order.
        place.send(Frame::SynStream {
            stream: id,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers,
        });
        Ok(stream)
    }

    /// Cancelled when the connection has ended.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.shared.gone.clone()
    }

    /// Says goodbye after all that was sent before, and waits a while for the client to leave as well.
    pub(crate) async fn close(self) {
        let last_stream = {
            let mut state = self.shared.state.lock();
            state.leaving = true;
            state.last
        };
        let goodbye = async {
            // It may have left already.
            let _ = self.shared.frames.send(Frame::GoAway { last_stream, status: 0 }).await;
            self.shared.gone.cancelled().await;
        };
        let _ = tokio::time::timeout(CLOSE_WAIT, goodbye).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.gone.cancel();
    }
}

impl Stream {
    /// Tells the client that the stream is taken.
    pub(crate) async fn accept(&self) -> Result<(), Gone> {
        let frame = Frame::SynReply { stream: self.id, fin: false, headers: Headers::default() };
        self.outbound.shared.frames.send(frame).await.map_err(|_| Gone)
    }

    /// Tells the client that the stream is not taken.
    pub(crate) async fn refuse(self) {
        self.outbound.abort(frame::RST_REFUSED_STREAM).await;
    }
}

impl StreamSender {
    /// Sends data, as fast as the client takes it.
    pub(crate) async fn send(&self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            // The place in the queue first: what was taken from a window must be sent.
            let place = self.shared.frames.reserve().await.map_err(|_| Gone)?;
            let Some(len) = self.shared.take_window(self.id, data.len())? else {
                drop(place);
                self.window_grows().await?;
                continue;
            };
            place.send(Frame::Data { stream: self.id, fin: false, data: data.split_to(len) });
            self.shared.activity.touch();
        }
        Ok(())
    }

    /// Waits until something may be sent.
    async fn window_grows(&self) -> Result<(), Gone> {
        loop {
            // Made before looking, so that no change is missed.
            let changed = self.shared.changed.notified();
            if self.shared.may_send(self.id)? {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = self.shared.gone.cancelled() => return Err(Gone),
            }
        }
    }

    /// Says that nothing more comes.
    pub(crate) async fn finish(&self) {
        let Ok(place) = self.shared.frames.reserve().await else { return };
        let mut state = self.shared.state.lock();
        let Some(entry) = state.streams.get_mut(&self.id) else { return };
        if std::mem::replace(&mut entry.finished, true) {
            return;
        }
        if entry.feed.is_none() {
            state.streams.remove(&self.id);
        }
        drop(state);
        place.send(Frame::Data { stream: self.id, fin: true, data: Bytes::new() });
    }

    /// Forgets a finished stream: a client that never says its end must not use up the places.
    pub(crate) fn release(&self) {
        self.shared.state.lock().streams.remove(&self.id);
        self.shared.changed.notify_waiters();
    }

    /// Ends the stream at once, in both directions.
    pub(crate) async fn abort(&self, status: u32) {
        if self.shared.state.lock().streams.remove(&self.id).is_some() {
            self.shared.changed.notify_waiters();
            let _ = self.shared.frames.send(Frame::RstStream { stream: self.id, status }).await;
        }
    }
}

impl State {
    /// What the windows leave for a stream, which is everything where the client does not count.
    fn allowed(&self, stream: u32) -> Result<i64, Gone> {
        let entry = self.streams.get(&stream).filter(|entry| !entry.finished).ok_or(Gone)?;
        Ok(if self.counts { entry.window.min(self.window) } else { WINDOW_MAX })
    }
}

impl Shared {
    /// Whether anything may be sent on a stream.
    fn may_send(&self, stream: u32) -> Result<bool, Gone> {
        self.state.lock().allowed(stream).map(|allowed| allowed > 0)
    }

    /// Takes up to `wanted` bytes from the windows; `None` when there is nothing to take.
    fn take_window(&self, stream: u32, wanted: usize) -> Result<Option<usize>, Gone> {
        let mut state = self.state.lock();
        let allowed = state.allowed(stream)?;
        if allowed <= 0 {
            return Ok(None);
        }
        let len = wanted.min(SEND_LEN_MAX).min(allowed as usize);
        // Counted even where it does not matter yet: a client that counts gives it all back.
        state.window -= len as i64;
        if let Some(entry) = state.streams.get_mut(&stream) {
            entry.window -= len as i64;
        }
        Ok(Some(len))
    }

    async fn read(
        self: &Arc<Self>,
        mut from: ReadHalf<Box<dyn Duplex>>,
        opener: &mpsc::Sender<Stream>,
    ) -> std::io::Result<()> {
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::with_capacity(READ_LEN);
        loop {
            while let Some(frame) = decoder.decode(&mut buffer).map_err(std::io::Error::other)? {
                self.received(frame, opener).await?;
            }
            buffer.reserve(READ_LEN);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn answer(&self, frame: Frame) -> std::io::Result<()> {
        self.frames.send(frame).await.map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    async fn received(self: &Arc<Self>, frame: Frame, opener: &mpsc::Sender<Stream>) -> std::io::Result<()> {
        match frame {
            Frame::SynStream { stream, fin, headers, .. } => {
                if let Err(status) = self.open(stream, fin, headers, opener) {
                    self.answer(Frame::RstStream { stream, status }).await?;
                }
            }
            Frame::Data { stream, fin, data } => self.data(stream, fin, data).await,
            Frame::RstStream { stream, .. } => {
                if let Some(entry) = self.state.lock().streams.remove(&stream) {
                    entry.reset.cancel();
                }
                self.changed.notify_waiters();
            }
            // The other numbers would be answers to ours, of which there are none.
            Frame::Ping { id } if (id % 2 == 1) == (self.side == Side::Server) => {
                self.answer(Frame::Ping { id }).await?
            }
            Frame::GoAway { .. } => self.state.lock().leaving = true,
            Frame::Settings { entries } => {
                let initial = entries.iter().rfind(|(id, _)| *id == frame::SETTINGS_INITIAL_WINDOW_SIZE);
                if let Some((_, size)) = initial {
                    self.initial_window(i64::from(*size).min(WINDOW_MAX));
                }
            }
            Frame::WindowUpdate { stream, delta } => self.grow_window(stream, i64::from(delta)),
            Frame::Headers { stream, fin: true, .. } => self.data(stream, true, Bytes::new()).await,
            Frame::SynReply { .. } | Frame::Headers { .. } | Frame::Ping { .. } => {}
        }
        Ok(())
    }

    /// Takes a new stream in; an error is the status to refuse it with.
    fn open(
        self: &Arc<Self>,
        stream: u32,
        fin: bool,
        headers: Headers,
        opener: &mpsc::Sender<Stream>,
    ) -> Result<(), u32> {
        let mut state = self.state.lock();
        if self.side == Side::Client || stream.is_multiple_of(2) || stream <= state.last {
            return Err(frame::RST_PROTOCOL_ERROR);
        }
        state.last = stream;
        if state.leaving || state.streams.len() >= STREAMS_MAX {
            return Err(frame::RST_REFUSED_STREAM);
        }
        let (opened, feed) = self.stream(stream, headers);
        let reset = opened.reset.clone();
        opener.try_send(opened).map_err(|_| frame::RST_REFUSED_STREAM)?;
        let feed = (!fin).then_some(feed);
        let window = state.window_initial;
        state.streams.insert(stream, Entry { feed, reset, window, finished: false });
        Ok(())
    }

    /// Both halves of a stream, and where what comes for it goes.
    fn stream(self: &Arc<Self>, id: u32, headers: Headers) -> (Stream, Feed) {
        let (feed, inbound) = inbound(Some(Credit::new(id, self.frames.clone())));
        let outbound = StreamSender { id, shared: self.clone() };
        (Stream { id, headers, inbound, outbound, reset: CancellationToken::new() }, feed)
    }

    async fn data(&self, stream: u32, fin: bool, data: Bytes) {
        self.activity.touch();
        let feed = self.state.lock().streams.get(&stream).and_then(|entry| entry.feed.clone());
        let len = data.len() as u32;
        // An empty piece would read as the end further on.
        let taken = match feed {
            Some(feed) if len > 0 => feed.push(data).await,
            _ => false,
        };
        if !taken && len > 0 {
            // Nobody will read it; the connection's window must have it back all the same.
            let _ = self.frames.send(Frame::WindowUpdate { stream: 0, delta: len }).await;
        }
        if fin {
            let mut state = self.state.lock();
            if let Some(entry) = state.streams.get_mut(&stream) {
                entry.feed = None;
                if entry.finished {
                    state.streams.remove(&stream);
                }
            }
        }
    }

    fn initial_window(&self, size: i64) {
        let mut state = self.state.lock();
        state.counts = true;
        let more = size - state.window_initial;
        state.window_initial = size;
        for entry in state.streams.values_mut() {
            entry.window = (entry.window + more).min(WINDOW_MAX);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn grow_window(&self, stream: u32, delta: i64) {
        let mut state = self.state.lock();
        state.counts = true;
        let window = match stream {
            0 => Some(&mut state.window),
            stream => state.streams.get_mut(&stream).map(|entry| &mut entry.window),
        };
        if let Some(window) = window {
            *window = (*window + delta).min(WINDOW_MAX);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The connection is over: every stream ends.
    fn end(&self) {
        self.gone.cancel();
        let streams = std::mem::take(&mut self.state.lock().streams);
        for entry in streams.values() {
            entry.reset.cancel();
        }
        self.changed.notify_waiters();
    }
}

/// Writes frames until the goodbye.
async fn write_all(
    mut to: WriteHalf<Box<dyn Duplex>>,
    mut queue: mpsc::Receiver<Frame>,
    mut encoder: Encoder,
) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        encoder.encode(&frame, &mut buffer).map_err(std::io::Error::other)?;
        to.write_all_buf(&mut buffer).await?;
        let last = matches!(frame, Frame::GoAway { .. });
        if last || queue.is_empty() {
            to.flush().await?;
        }
        if last {
            return to.shutdown().await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
