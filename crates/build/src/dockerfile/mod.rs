//! Dockerfiles: from text to typed instructions, each with the line it stands on. Pure.

mod expand;
mod instruction;
mod lines;
mod mount;
mod words;

pub(crate) use expand::expand_text;
pub use expand::{ExpandError, Variables, expand};
pub use instruction::{
    Command, Copy, Dockerfile, From, Healthcheck, Instruction, Kind, Run, Source, parse, parse_trigger,
};
pub use lines::Heredoc;
pub use mount::{RunMount, RunMountKind, Sharing, parse_mount};
pub(crate) use words::words;

/// What is wrong with a Dockerfile, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: usize, message: impl Into<String>) -> ParseError {
        ParseError { line, message: message.into() }
    }
}
