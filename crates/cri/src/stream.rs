//! Live streams into containers: exec, attach and port-forward.
//!
//! The node server copies bytes between these and whatever protocol the client speaks.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::error::Result;

/// Something to read from.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// Something to write to; shutting it down (or dropping it) closes the other side's input.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;
/// Resolves to the exit code once the process has ended and its output was drained by the runtime.
pub type ExitFuture = BoxFuture<'static, Result<i32>>;

/// A bidirectional byte stream, as of a socket.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Size of a terminal in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A command to run in a running container, with live streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Container to run in.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal; then there is no separate stderr.
    pub tty: bool,
    /// Whether standard input is wanted.
    pub stdin: bool,
    /// Whether standard output is wanted.
    pub stdout: bool,
    /// Whether standard error is wanted.
    pub stderr: bool,
}

/// Streams of a container's first process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Container to attach to.
    pub container_id: String,
    /// Whether the container was made with a terminal.
    pub tty: bool,
    /// Whether standard input is wanted.
    pub stdin: bool,
    /// Whether standard output is wanted.
    pub stdout: bool,
    /// Whether standard error is wanted.
    pub stderr: bool,
}

/// A process that is running, seen through its streams. Dropping it lets go of the streams, not of the process.
pub struct StreamSession {
    /// Its input.
    pub stdin: Option<BoxWrite>,
    /// Its output; everything where there is a terminal.
    pub stdout: Option<BoxRead>,
    /// Its errors.
    pub stderr: Option<BoxRead>,
    /// Tells the terminal's size; absent without a terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// Its end.
    pub exit: ExitFuture,
}

impl std::fmt::Debug for StreamSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSession")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish()
    }
}

/// What a short command said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, up to the runtime's limit.
    pub stdout: Bytes,
    /// Standard error, up to the runtime's limit.
    pub stderr: Bytes,
    /// Exit code.
    pub exit_code: i32,
}
