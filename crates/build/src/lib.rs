//! Building images: Dockerfiles, cache keys, steps in real containers.
//!
//! ```text
//! text -> dockerfile (lines, words, instructions) -> plan (stages, what is needed)
//!      -> state (instruction by instruction: configuration and actions)        all pure
//!      -> exec (keys, cache, COPY into overlays, RUN in containers, image)     the shell
//! ```
//!
//! Stages are shared futures that begin when somebody waits for them, so independent ones run side by side and
//! needless ones never. Every step has a key of all it depends on: the layers below, the text, arguments and
//! environment, the digests of the files it reads. A key that an earlier build had gives its layer again.
//!
//! **Invariant:** nothing here knows of Kubernetes; containers come from a `cri::RuntimeService`.
//!
//! **Invariant:** secrets are never part of a key, a layer, a history or a file on a disk.

pub mod dockerfile;
mod error;
mod exec;
pub mod pattern;
pub mod plan;
pub mod state;

pub use error::{Error, Result};
pub use exec::{BUILD_LABEL, Builder, Changes, Event, Outcome, Request};
