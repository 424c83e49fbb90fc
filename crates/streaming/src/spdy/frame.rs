//! SPDY/3.1 frames: bytes to values and back, without IO.
//!
//! The headers of one direction are one compressed stream, so frames with headers must be encoded in the
//! order in which they are sent, and be decoded in the order in which they came, even those nobody wants.
//! Data frames come out in pieces as they arrive, so that their length (up to 16 MiB) costs no memory.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Largest control frame taken. Kubernetes' headers are some hundred bytes.
pub(crate) const CONTROL_LEN_MAX: usize = 16 << 10;
/// Most that a frame's headers may grow to, so that a small frame cannot fill the memory.
const HEADERS_LEN_MAX: usize = 64 << 10;
/// Most headers of a frame; Kubernetes sends four.
const HEADERS_MAX: usize = 64;
/// Largest piece of a data frame that is handed on at once.
pub(crate) const CHUNK_LEN_MAX: usize = 32 << 10;

const VERSION: u16 = 3;
const HEAD_LEN: usize = 8;
const FLAG_FIN: u8 = 0x01;
const FLAG_UNIDIRECTIONAL: u8 = 0x02;
/// Stream ids, window deltas and last-good ids have 31 bits.
const MASK_31: u32 = 0x7fff_ffff;

/// Status of RST_STREAM: the frame does not fit the stream's state.
pub(crate) const RST_PROTOCOL_ERROR: u32 = 1;
/// Status of RST_STREAM: not taken, and nothing was done.
pub(crate) const RST_REFUSED_STREAM: u32 = 3;
/// SETTINGS id of the window that new streams begin with.
pub(crate) const SETTINGS_INITIAL_WINDOW_SIZE: u32 = 7;

/// What is wrong with what a peer sent. All of it ends the connection.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    /// Another version of the protocol.
    #[error("unsupported SPDY version {0}")]
    Version(u16),
    /// A control frame over the limit.
    #[error("SPDY control frame of {0} bytes is over the limit of {CONTROL_LEN_MAX}")]
    TooLong(usize),
    /// A frame that is shorter than its type needs, or longer than it may be.
    #[error("SPDY frame of type {0} has a wrong length")]
    Length(u16),
    /// Headers that cannot be decompressed or parsed, or are over a limit.
    #[error("invalid SPDY headers: {0}")]
    Headers(&'static str),
}

/// Name and value pairs; names are lower case on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The first value of a header, or the empty string.
    pub(crate) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        // Several values of one name are joined by NUL.
        found.map_or("", |(_, value)| value.split('\0').next().unwrap_or_default())
    }

    fn write(&self, to: &mut BytesMut) {
        to.put_u32(self.0.len() as u32);
        for (name, value) in &self.0 {
            to.put_u32(name.len() as u32);
            to.put_slice(name.to_ascii_lowercase().as_bytes());
            to.put_u32(value.len() as u32);
            to.put_slice(value.as_bytes());
        }
    }

    fn read(mut from: &[u8]) -> Result<Self, Error> {
        fn text(from: &mut &[u8]) -> Result<String, Error> {
            let len = from.try_get_u32().map_err(|_| Error::Headers("cut off"))? as usize;
            let (text, rest) = from.split_at_checked(len).ok_or(Error::Headers("cut off"))?;
            *from = rest;
            String::from_utf8(text.to_vec()).map_err(|_| Error::Headers("not UTF-8"))
        }
        let count = from.try_get_u32().map_err(|_| Error::Headers("cut off"))? as usize;
        if count > HEADERS_MAX {
            return Err(Error::Headers("too many"));
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut from)?;
            if name.is_empty() {
                return Err(Error::Headers("a name is empty"));
            }
            headers.push((name, text(&mut from)?));
        }
        Ok(Headers(headers))
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Opens a stream.
    SynStream {
        stream: u32,
        associated: u32,
        priority: u8,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply { stream: u32, fin: bool, headers: Headers },
    /// Ends a stream at once, in both directions.
    RstStream { stream: u32, status: u32 },
    /// Settings as id and value.
    Settings { entries: Vec<(u32, u32)> },
    /// To be sent back as it is.
    Ping { id: u32 },
    /// No more streams will be taken.
    GoAway { last_stream: u32, status: u32 },
    /// Further headers.
    Headers { stream: u32, fin: bool, headers: Headers },
    /// More data may be sent on the stream, or on the connection as a whole where it is 0.
    WindowUpdate { stream: u32, delta: u32 },
    /// Data; the last with `fin`.
    Data { stream: u32, fin: bool, data: Bytes },
}

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The rest of a data frame that has not come yet.
#[derive(Debug)]
struct Partial {
    stream: u32,
    fin: bool,
    left: usize,
}

/// Reads the frames of one direction.
#[derive(Debug)]
pub(crate) struct Decoder {
    inflate: Decompress,
    partial: Option<Partial>,
}

impl Decoder {
    /// A decoder at the beginning of a connection.
    pub(crate) fn new() -> Self {
        Decoder { inflate: Decompress::new(true), partial: None }
    }

    /// Takes the next frame, or piece of a data frame, out of `buffer`; `None` when more bytes are needed.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(partial) = &mut self.partial {
                if buffer.is_empty() {
                    return Ok(None);
                }
                let len = partial.left.min(buffer.len()).min(CHUNK_LEN_MAX);
                // A copy: a piece that waits must not keep the whole read buffer alive.
                let data = Bytes::copy_from_slice(&buffer[..len]);
                buffer.advance(len);
                partial.left -= len;
                let ended = partial.left == 0;
                let frame = Frame::Data { stream: partial.stream, fin: partial.fin && ended, data };
                if ended {
                    self.partial = None;
                }
                return Ok(Some(frame));
            }
            if buffer.len() < HEAD_LEN {
                return Ok(None);
            }
            let mut head = &buffer[..HEAD_LEN];
            let (first, second) = (head.get_u32(), head.get_u32());
            let (flags, len) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
            if first & !MASK_31 == 0 {
                buffer.advance(HEAD_LEN);
                let (stream, fin) = (first, flags & FLAG_FIN != 0);
                match len {
                    0 if fin => return Ok(Some(Frame::Data { stream, fin, data: Bytes::new() })),
                    0 => continue,
                    left => self.partial = Some(Partial { stream, fin, left }),
                }
                continue;
            }
            let version = (first >> 16) as u16 & 0x7fff;
            if version != VERSION {
                return Err(Error::Version(version));
            }
            if len > CONTROL_LEN_MAX {
                return Err(Error::TooLong(len));
            }
            if buffer.len() < HEAD_LEN + len {
                return Ok(None);
            }
            let frame = buffer.split_to(HEAD_LEN + len);
            if let Some(frame) = self.control(first as u16, flags, &frame[HEAD_LEN..])? {
                return Ok(Some(frame));
            }
        }
    }

    /// Reads a control frame; `None` for a type without meaning to us.
    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Option<Frame>, Error> {
        let short = |_| Error::Length(kind);
        let fin = flags & FLAG_FIN != 0;
        let frame = match kind {
            SYN_STREAM => {
                let stream = body.try_get_u32().map_err(short)? & MASK_31;
                let associated = body.try_get_u32().map_err(short)? & MASK_31;
                let priority = (body.try_get_u16().map_err(short)? >> 13) as u8;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                let headers = self.headers(body)?;
                Frame::SynStream { stream, associated, priority, fin, unidirectional, headers }
            }
            SYN_REPLY => {
                let stream = body.try_get_u32().map_err(short)? & MASK_31;
                Frame::SynReply { stream, fin, headers: self.headers(body)? }
            }
            HEADERS => {
                let stream = body.try_get_u32().map_err(short)? & MASK_31;
                Frame::Headers { stream, fin, headers: self.headers(body)? }
            }
            SETTINGS => {
                let count = body.try_get_u32().map_err(short)? as usize;
                if count.checked_mul(8) != Some(body.len()) {
                    return Err(Error::Length(kind));
                }
                let entries =
                    body.chunks_exact(8).map(|mut e| (e.get_u32() & 0x00ff_ffff, e.get_u32())).collect();
                Frame::Settings { entries }
            }
            PING => Frame::Ping { id: exactly(kind, body, 4)?.get_u32() },
            RST_STREAM => {
                let mut body = exactly(kind, body, 8)?;
                Frame::RstStream { stream: body.get_u32() & MASK_31, status: body.get_u32() }
            }
            GOAWAY => {
                let mut body = exactly(kind, body, 8)?;
                Frame::GoAway { last_stream: body.get_u32() & MASK_31, status: body.get_u32() }
            }
            WINDOW_UPDATE => {
                let mut body = exactly(kind, body, 8)?;
                Frame::WindowUpdate { stream: body.get_u32() & MASK_31, delta: body.get_u32() & MASK_31 }
            }
            // The protocol wants unknown types ignored.
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }

    fn headers(&mut self, mut compressed: &[u8]) -> Result<Headers, Error> {
        let mut plain = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let result = self.inflate.decompress(compressed, &mut chunk, FlushDecompress::Sync);
            let used = (self.inflate.total_in() - before_in) as usize;
            let made = (self.inflate.total_out() - before_out) as usize;
            compressed = &compressed[used..];
            plain.extend_from_slice(&chunk[..made]);
            if plain.len() > HEADERS_LEN_MAX {
                return Err(Error::Headers("over the limit"));
            }
            match result {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(Error::Headers("compression ended")),
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.inflate.set_dictionary(&DICTIONARY);
                    set.map_err(|_| Error::Headers("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Error::Headers("damaged compression")),
            }
            if made == chunk.len() {
                continue;
            }
            if compressed.is_empty() {
                return Headers::read(&plain);
            }
            if used == 0 && made == 0 {
                return Err(Error::Headers("damaged compression"));
            }
        }
    }
}

fn exactly(kind: u16, body: &[u8], len: usize) -> Result<&[u8], Error> {
    if body.len() == len { Ok(body) } else { Err(Error::Length(kind)) }
}

/// Writes the frames of one direction.
#[derive(Debug)]
pub(crate) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    /// An encoder at the beginning of a connection.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&DICTIONARY).map_err(|_| Error::Headers("no dictionary"))?;
        Ok(Encoder { deflate })
    }

    /// Appends a frame to `to`.
    pub(crate) fn encode(&mut self, frame: &Frame, to: &mut BytesMut) -> Result<(), Error> {
        let fin_flag = |fin: bool| if fin { FLAG_FIN } else { 0 };
        let mut body = BytesMut::new();
        let (kind, flags) = match frame {
            Frame::Data { stream, fin, data } => {
                to.reserve(HEAD_LEN + data.len());
                to.put_u32(stream & MASK_31);
                to.put_u32(u32::from(fin_flag(*fin)) << 24 | data.len() as u32 & 0x00ff_ffff);
                to.put_slice(data);
                return Ok(());
            }
            Frame::SynStream { stream, associated, priority, fin, unidirectional, headers } => {
                body.put_u32(*stream);
                body.put_u32(*associated);
                body.put_u16(u16::from(*priority) << 13);
                self.headers(headers, &mut body)?;
                let unidirectional = if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                (SYN_STREAM, fin_flag(*fin) | unidirectional)
            }
            Frame::SynReply { stream, fin, headers } => {
                body.put_u32(*stream);
                self.headers(headers, &mut body)?;
                (SYN_REPLY, fin_flag(*fin))
            }
            Frame::Headers { stream, fin, headers } => {
                body.put_u32(*stream);
                self.headers(headers, &mut body)?;
                (HEADERS, fin_flag(*fin))
            }
            Frame::RstStream { stream, status } => {
                body.put_u32(*stream);
                body.put_u32(*status);
                (RST_STREAM, 0)
            }
            Frame::Settings { entries } => {
                body.put_u32(entries.len() as u32);
                for (id, value) in entries {
                    body.put_u32(*id & 0x00ff_ffff);
                    body.put_u32(*value);
                }
                (SETTINGS, 0)
            }
            Frame::Ping { id } => {
                body.put_u32(*id);
                (PING, 0)
            }
            Frame::GoAway { last_stream, status } => {
                body.put_u32(*last_stream);
                body.put_u32(*status);
                (GOAWAY, 0)
            }
            Frame::WindowUpdate { stream, delta } => {
                body.put_u32(*stream);
                body.put_u32(*delta);
                (WINDOW_UPDATE, 0)
            }
        };
        to.put_u16(0x8000 | VERSION);
        to.put_u16(kind);
        to.put_u32(u32::from(flags) << 24 | body.len() as u32);
        to.extend_from_slice(&body);
        Ok(())
    }

    fn headers(&mut self, headers: &Headers, to: &mut BytesMut) -> Result<(), Error> {
        let mut plain = BytesMut::new();
        headers.write(&mut plain);
        let mut rest = &plain[..];
        let mut chunk = [0; 1024];
        loop {
            let (before_in, before_out) = (self.deflate.total_in(), self.deflate.total_out());
            let result = self.deflate.compress(rest, &mut chunk, FlushCompress::Sync);
            result.map_err(|_| Error::Headers("cannot be compressed"))?;
            rest = &rest[(self.deflate.total_in() - before_in) as usize..];
            let made = (self.deflate.total_out() - before_out) as usize;
            to.put_slice(&chunk[..made]);
            // Room left over means that all was flushed.
            if rest.is_empty() && made < chunk.len() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
