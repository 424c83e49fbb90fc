//! What the node and a pod's shim say to each other, and how: one JSON document per packet over a Unix
//! `SOCK_SEQPACKET` socket, with descriptors beside it.
//!
//! A connection serves one purpose. Most carry one request and one reply; `Subscribe` keeps getting events;
//! `Exec` and `Attach` live as long as the process they watch. What may be large (specifications) lies in files,
//! so packets are small.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::spec::{ContainerRecord, ExitRecord, ProcessSpec, SandboxSpec};

/// Largest packet: the command line of an exec, which the kernel itself limits to this.
pub(crate) const PACKET_LEN_MAX: usize = 2 << 20;
/// Most descriptors with one packet.
const FDS_MAX: usize = 4;

/// To the zygote: make a shim. The packet carries the shim's end of the first connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spawn {
    pub(crate) dir: std::path::PathBuf,
    pub(crate) spec: SandboxSpec,
}

/// To a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Reply with the state, then send events for ever.
    Subscribe,
    /// Start the container whose specification lies in its directory.
    Start { container: String },
    /// Let a container go on that waits for its hooks on the node, which went well or not; on the connection that
    /// starts it.
    Continue { container: String, failure: Option<Failure> },
    /// Kill a container whose start has failed after its program ran.
    Fail { container: String, failure: Failure },
    /// Send a signal to a container's first process.
    Signal { container: String, signal: i32 },
    /// Start another process in a running container.
    Exec { container: String, process: Box<ProcessSpec>, stdin: bool, stdout: bool, stderr: bool },
    /// Join a container's streams.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// Terminal size, on an exec or attach connection.
    Resize { width: u16, height: u16 },
    /// Kill the process of this exec connection.
    Kill,
    /// Connect to a port on the pod's loopback.
    Dial { port: u16 },
    /// Open a container's log anew.
    Reopen { container: String },
    /// Forget an ended container.
    Forget { container: String },
    /// Kill everything and end.
    Shutdown,
}

/// From a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Done.
    Ok,
    /// The shim is up (first packet on its first connection, and the answer to `Subscribe`).
    State { pid: i32, containers: Vec<(String, ContainerRecord)> },
    /// The container's root stands, and it waits for `Continue`.
    Created { pid: i32 },
    /// A container or process runs.
    Started { record: ContainerRecord },
    /// Descriptors for the streams that were asked for follow in this packet, in this order.
    Streams { stdin: bool, stdout: bool, stderr: bool, terminal: bool },
    /// A process of this connection has ended.
    Exited { code: i32 },
    /// It did not work.
    Failed { failure: Failure },
    /// Event: a container's first process has started.
    ContainerStarted { container: String, record: ContainerRecord },
    /// Event: a container's first process has ended.
    ContainerExited { container: String, exit: ExitRecord },
}

/// Why something did not work.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// In the runtime's words.
    pub(crate) message: String,
    /// 126, 127 or 128.
    pub(crate) code: i32,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 128 }
    }

    /// With what was being done.
    pub(crate) fn during(context: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
        move |e| Failure::new(format!("{context}: {e}"))
    }
}

/// A socket pair of the kind used here.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one packet. Whether it blocks is up to the socket.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > PACKET_LEN_MAX {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    let iov = [io::IoSlice::new(&bytes)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => {}
            // Grow the buffer once for the rare large packet.
            Err(nix::errno::Errno::EMSGSIZE) if grow(socket)? => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Makes room for the largest packet; false if that was done before.
fn grow(socket: BorrowedFd<'_>) -> io::Result<bool> {
    use nix::sys::socket::{getsockopt, setsockopt, sockopt};
    if getsockopt(&socket, sockopt::SndBuf)? >= PACKET_LEN_MAX {
        return Ok(false);
    }
    setsockopt(&socket, sockopt::SndBufForce, &(PACKET_LEN_MAX * 2))?;
    Ok(true)
}

/// Receives one packet; `None` at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; packet_len(socket)?];
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let (len, fds) = {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        let mut iov = [io::IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just installed these descriptors for us.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, fds)
    };
    let message = serde_json::from_slice(&bytes[..len])?;
    Ok(Some((message, fds)))
}

/// Length of the packet that waits; 0 at the end of the connection.
fn packet_len(socket: BorrowedFd<'_>) -> io::Result<usize> {
    loop {
        let mut probe = [0u8; 1];
        // SAFETY: the buffer outlives the call; with MSG_TRUNC the whole length is returned.
        let len = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                probe.as_mut_ptr().cast(),
                probe.len(),
                libc::MSG_PEEK | libc::MSG_TRUNC,
            )
        };
        match usize::try_from(len) {
            Ok(len) if len > PACKET_LEN_MAX => return Err(io::ErrorKind::InvalidData.into()),
            Ok(len) => return Ok(len),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn packets_carry_descriptors_and_large_commands() {
        let (a, b) = pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), &Request::Dial { port: 7 }, &[write.as_fd()]).unwrap();
        let (request, fds) = receive::<Request>(b.as_fd()).unwrap().unwrap();
        assert!(matches!(request, Request::Dial { port: 7 }));
        nix::unistd::write(&fds[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&read, &mut byte).unwrap(), 1);

        let long = "x".repeat(1 << 20);
        let process = ProcessSpec { argv: vec![long.clone()], ..ProcessSpec::default() };
        let exec = Request::Exec {
            container: "c".into(),
            process: Box::new(process),
            stdin: false,
            stdout: true,
            stderr: true,
        };
        send(a.as_fd(), &exec, &[]).unwrap();
        let (request, _) = receive::<Request>(b.as_fd()).unwrap().unwrap();
        assert!(matches!(request, Request::Exec { process, .. } if process.argv[0] == long));
        drop(a);
        assert!(receive::<Request>(b.as_fd()).unwrap().is_none());
    }
}
