//! What a build needs of the runtime besides its interface.

use std::path::PathBuf;

/// What the runtime tells beyond its interface: where a container's changes are.
pub trait Changes: Send + Sync + std::fmt::Debug {
    /// The directory of what a container has changed, until it is removed.
    fn upper(&self, container: &str) -> Option<PathBuf>;
}
