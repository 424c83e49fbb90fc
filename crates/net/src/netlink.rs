//! Netlink, as little of it as is needed: messages with nested attributes, sent and acknowledged.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

/// The kernel or the socket refused.
#[derive(Debug, thiserror::Error)]
#[error("netlink: {doing}")]
pub struct Error {
    /// What was being done.
    pub doing: String,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

impl Error {
    pub(crate) fn new(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error { doing: doing.into(), source: source.into() }
    }

    /// Whether the kernel answered with this errno.
    pub fn is(&self, errno: nix::errno::Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Fail if it exists already.
pub const EXCLUSIVE: u16 = 0x200;
/// Make it if it does not exist.
pub const CREATE: u16 = 0x400;
/// Replace what is there.
pub const REPLACE: u16 = 0x100;
/// Add behind what is there.
pub const APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;
/// Room for answers: acknowledgements carry the failed message's head only.
const ANSWER_BYTES: usize = 32 * 1024;
/// Longest wait for the kernel's answer, seconds.
const ANSWER_SECONDS: i64 = 10;
/// Room for a transaction of many elements in the socket's queue.
const SEND_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// One request under construction.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of a type, with the fixed head that the family wants.
    pub fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(head);
        Message { bytes }
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    /// Adds an attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    /// Adds an attribute in place.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// Adds a string attribute, with the zero at its end.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds a number in the host's order.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network order, as nftables has them.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that contains others.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Self {
        let inner = fill(Message { bytes: Vec::new() });
        self.put(kind | NLA_F_NESTED, &inner.bytes);
        self
    }

    /// Adds bytes as they are: a fixed head inside a nested attribute.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// The attributes written so far, without a message head.
    pub fn into_attributes(self) -> Vec<u8> {
        self.bytes
    }

    /// An attribute list without a message around it.
    pub fn attributes() -> Self {
        Message { bytes: Vec::new() }
    }

    fn finish(mut self, sequence: u32, acknowledge: bool) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        if acknowledge {
            let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | NLM_F_ACK;
            self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.bytes
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// For links, addresses and routes.
    pub fn route() -> Result<Socket, Error> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// For nftables and connection tracking.
    pub fn netfilter() -> Result<Socket, Error> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Socket, Error> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(|e| Error::new("opening a socket", e))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|e| Error::new("binding a socket", e))?;
        let wait = nix::sys::time::TimeVal::new(ANSWER_SECONDS, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait).map_err(|e| Error::new("setting a time limit", e))?;
        // Without privilege over the limit the default stays, which smaller transactions fit.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER_BYTES);
        Ok(Socket(fd))
    }

    /// Sends one request and waits until the kernel has carried it out.
    pub fn request(&self, doing: &str, message: Message) -> Result<(), Error> {
        self.send(doing, &message.finish(1, true))?;
        self.acknowledged(doing, 1).map_err(|(error, _)| error)
    }

    /// Sends several messages at once as one transaction; `last` is acknowledged when all are done. A refusal comes
    /// with the number of the message that it is about, counted from 0, where the kernel tells.
    pub(crate) fn batch(&self, doing: &str, messages: Vec<Message>) -> Result<(), (Error, Option<usize>)> {
        let (mut bytes, mut sequence) = (Vec::new(), 0);
        let count = messages.len();
        for (i, message) in messages.into_iter().enumerate() {
            sequence += 1;
            // Every message but the batch's own begin and end is acknowledged or refused.
            bytes.extend(message.finish(sequence, i != 0 && i + 1 == count - 1));
        }
        self.send(doing, &bytes).map_err(|error| (error, None))?;
        self.acknowledged(doing, sequence - 1)
    }

    fn send(&self, doing: &str, bytes: &[u8]) -> Result<(), Error> {
        send(self.0.as_raw_fd(), bytes, MsgFlags::empty()).map_err(|e| Error::new(doing, e))?;
        Ok(())
    }

    /// Reads answers until the acknowledgement with this number, or the first refusal.
    fn acknowledged(&self, doing: &str, sequence: u32) -> Result<(), (Error, Option<usize>)> {
        let mut buffer = vec![0u8; ANSWER_BYTES];
        loop {
            let n = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|e| (Error::new(doing, e), None))?;
            let mut rest = &buffer[..n];
            while rest.len() >= 16 {
                let word =
                    |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
                let len = (word(0) as usize).clamp(16, rest.len());
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                if kind == NLMSG_ERROR && len >= 20 {
                    let code = word(16) as i32;
                    if code != 0 {
                        let error = Error::new(doing, io::Error::from_raw_os_error(-code));
                        return Err((error, word(8).checked_sub(1).map(|n| n as usize)));
                    }
                    if word(8) == sequence {
                        return Ok(());
                    }
                }
                rest = &rest[(len.div_ceil(4) * 4).min(rest.len())..];
            }
        }
    }
}
