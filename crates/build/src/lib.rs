//! Building images: Dockerfiles, cache keys, steps in real containers.
pub mod dockerfile;
pub mod pattern;
pub mod plan;
pub mod state;
