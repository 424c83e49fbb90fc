//! The node's ends: packets to shims, and descriptors as asynchronous streams.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::spec::SOCKET_FILE;
use crate::wire::{self, Reply, Request};

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// One connection to a shim or to the zygote.
#[derive(Debug)]
pub(super) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Connection> {
        set_nonblocking(fd.as_fd())?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and unchanged until it is dropped.
        Ok(Connection(unsafe { AsyncFd::register(fd) }?))
    }

    /// Connects to the shim of the sandbox in `dir`. The directory may lie deeper than a socket path can be long.
    pub(super) fn connect(dir: &Path) -> io::Result<Connection> {
        let handle = File::open(dir)?;
        let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", handle.as_raw_fd());
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
        Connection::new(fd)
    }

    pub(super) async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |fd| wire::send(fd.as_fd(), message, fds)).await
    }

    pub(super) async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.0.async_io(Interest::READABLE, |fd| wire::receive(fd.as_fd())).await
    }

    /// The next reply; the end of the connection is an error.
    pub(super) async fn reply(&self) -> io::Result<(Reply, Vec<OwnedFd>)> {
        self.receive().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Asks a shim one thing.
pub(super) async fn ask(dir: &Path, request: &Request) -> io::Result<(Connection, Reply, Vec<OwnedFd>)> {
    let connection = Connection::connect(dir)?;
    connection.send(request, &[]).await?;
    let (reply, fds) = connection.reply().await?;
    Ok((connection, reply, fds))
}

/// A pipe or terminal as a stream.
#[derive(Debug)]
pub(super) struct FdStream(AsyncFd<OwnedFd>);

impl FdStream {
    pub(super) fn new(fd: OwnedFd) -> io::Result<FdStream> {
        set_nonblocking(fd.as_fd())?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and unchanged until it is dropped.
        Ok(FdStream(unsafe { AsyncFd::register(fd) }?))
    }
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buf.initialize_unfilled())?));
            match read {
                Ok(Ok(len)) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                // A terminal whose other side is closed: the end.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), buf)?)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An input whose shutdown closes it, so that the process sees its end.
#[derive(Debug)]
pub(super) struct InputStream(Option<FdStream>);

impl InputStream {
    pub(super) fn new(fd: OwnedFd) -> io::Result<InputStream> {
        Ok(InputStream(Some(FdStream::new(fd)?)))
    }
}

impl AsyncWrite for InputStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(stream) => Pin::new(stream).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}
