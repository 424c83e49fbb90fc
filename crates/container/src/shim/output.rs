//! A container's output on its way to the log and to whoever is attached.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use jiff::Timestamp;

use super::log::{LogWriter, Partial, Stream};

/// Most bytes kept for an attached client that does not read; then it is let go, as no client may stop a
/// container.
const BACKLOG_LEN_MAX: usize = 1 << 20;
/// Most reads from one stream before others get their turn.
const READS_PER_TURN: usize = 16;

/// Our side of one of the container's output streams.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) fd: OwnedFd,
    pub(super) stream: Stream,
    partial: Partial,
}

/// An attached client's pipe.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) fd: OwnedFd,
    backlog: VecDeque<u8>,
}

/// A client that is attached over connection `connection`.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) connection: u64,
    pub(super) stdout: Option<Sink>,
    pub(super) stderr: Option<Sink>,
}

impl Sink {
    pub(super) fn new(fd: OwnedFd) -> Sink {
        Sink { fd, backlog: VecDeque::new() }
    }

    pub(super) fn wants_to_write(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Takes data; false if the client is gone or too slow.
    fn push(&mut self, data: &[u8]) -> bool {
        let sent = if self.backlog.is_empty() {
            match write_some(&self.fd, data) {
                Ok(sent) => sent,
                Err(_) => return false,
            }
        } else {
            0
        };
        self.backlog.extend(&data[sent..]);
        self.backlog.len() <= BACKLOG_LEN_MAX
    }

    /// Sends what waits; false if the client is gone.
    pub(super) fn flush(&mut self) -> bool {
        while !self.backlog.is_empty() {
            match write_some(&self.fd, self.backlog.as_slices().0) {
                Ok(0) => return true,
                Ok(sent) => drop(self.backlog.drain(..sent)),
                Err(_) => return false,
            }
        }
        self.backlog.shrink_to_fit();
        true
    }
}

/// Writes without waiting; 0 if nothing fits now.
fn write_some(fd: &OwnedFd, data: &[u8]) -> io::Result<usize> {
    match nix::unistd::write(fd, data) {
        Ok(n) => Ok(n),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

/// Whether a stream has more to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    Ended,
}

impl Output {
    pub(super) fn new(fd: OwnedFd, stream: Stream) -> Output {
        Output { fd, stream, partial: Partial::default() }
    }

    /// Reads what is there (`all`: until nothing is left) and passes it on.
    pub(super) fn pump(
        &mut self,
        buffer: &mut [u8],
        log: &mut Option<LogWriter>,
        attached: &mut [Attached],
        now: Timestamp,
        all: bool,
    ) -> Progress {
        let mut turns = 0;
        while all || turns < READS_PER_TURN {
            turns += 1;
            let len = match nix::unistd::read(self.fd.as_fd(), buffer) {
                Ok(0) => return Progress::Ended,
                Ok(len) => len,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(nix::errno::Errno::EAGAIN) => return Progress::Open,
                // A terminal whose other side has closed says EIO.
                Err(_) => return Progress::Ended,
            };
            if let Some(log) = log {
                log.write(self.stream, &mut self.partial, &buffer[..len], now);
            }
            for client in attached.iter_mut() {
                let sink = match self.stream {
                    Stream::Stdout => &mut client.stdout,
                    Stream::Stderr => &mut client.stderr,
                };
                if sink.as_mut().is_some_and(|s| !s.push(&buffer[..len])) {
                    *sink = None;
                }
            }
        }
        Progress::Open
    }

    /// Writes the last line if it had no end.
    pub(super) fn finish(&mut self, log: &mut Option<LogWriter>, now: Timestamp) {
        if let Some(log) = log {
            log.finish(self.stream, &mut self.partial, now);
        }
    }
}
