//! What can go wrong in a build: where, at which instruction, and what the command last said.

use std::sync::Arc;

use crate::dockerfile::ParseError;

/// Result within this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failures of a build. Cheap to clone: several stages may wait for the one that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The Dockerfile is wrong, or a step of it failed.
    #[error("{file}:{line}: {text}\n{cause}")]
    Step {
        /// Name of the file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The instruction.
        text: String,
        /// Why.
        cause: Box<Error>,
    },
    /// A command ended badly.
    #[error("{output}process {command:?} did not complete successfully: exit code: {code}{hint}")]
    Command {
        /// The command.
        command: String,
        /// Its exit code.
        code: i32,
        /// The end of what it said.
        output: String,
        /// What may help.
        hint: &'static str,
    },
    /// Something else, in words.
    #[error("{0}")]
    Message(String),
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] Arc<image::Error>),
    /// The runtime failed.
    #[error("{0}")]
    Runtime(Arc<cri::Error>),
    /// An operating system error.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: Arc<std::io::Error>,
    },
}

impl Error {
    /// Wraps an operating system error with what was being done.
    pub(crate) fn io<E: Into<std::io::Error>>(context: impl Into<String>) -> impl FnOnce(E) -> Error {
        let context = context.into();
        move |source| Error::Io { context, source: Arc::new(source.into()) }
    }

    /// Says where it happened, unless that is known.
    pub(crate) fn at(self, file: &str, line: usize, text: &str) -> Error {
        match self {
            known @ Error::Step { .. } => known,
            cause => Error::Step { file: file.into(), line, text: text.into(), cause: Box::new(cause) },
        }
    }

    /// The mistake in a file.
    pub(crate) fn parse(error: ParseError, file: &str, source: &str) -> Error {
        let text = source.lines().nth(error.line.saturating_sub(1)).unwrap_or_default().trim().to_owned();
        let cause =
            Error::Message(format!("dockerfile parse error on line {}: {}", error.line, error.message));
        cause.at(file, error.line, &text)
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Error {
        Error::Image(Arc::new(error))
    }
}

impl From<cri::Error> for Error {
    fn from(error: cri::Error) -> Error {
        Error::Runtime(Arc::new(error))
    }
}

/// A failure in words.
pub(crate) fn message(text: impl Into<String>) -> Error {
    Error::Message(text.into())
}
