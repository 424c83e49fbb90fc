//! What can go wrong with images, and how it maps to the runtime interface's reasons.

use std::io;
use std::path::{Path, PathBuf};

/// Result within this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failures of the image store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference does not follow Docker's grammar.
    #[error("invalid reference format: {0}")]
    InvalidReference(String),
    /// The digest is not `sha256:` and 64 hexadecimal digits.
    #[error("unsupported digest {0:?}")]
    InvalidDigest(String),
    /// The image is not in the store.
    #[error("image {0:?} not found")]
    NotFound(String),
    /// The registry does not have it.
    #[error("failed to resolve reference {reference:?}: {reference}: not found")]
    RemoteNotFound {
        /// The reference asked for.
        reference: String,
    },
    /// The registry wants other credentials.
    #[error(
        "failed to resolve reference {reference:?}: pull access denied, repository does not exist or may \
         require authorization: {message}"
    )]
    Denied {
        /// The reference asked for.
        reference: String,
        /// What the server said.
        message: String,
    },
    /// The registry could not be reached or is failing.
    #[error("failed to do request: {url}: {message}")]
    Unavailable {
        /// What was asked for.
        url: String,
        /// What happened.
        message: String,
    },
    /// The registry answered with something that makes no sense.
    #[error("unexpected status from {url}: {message}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong.
        message: String,
    },
    /// Content is not what its digest says.
    #[error("unexpected commit digest {actual}, expected {expected}: failed precondition")]
    DigestMismatch {
        /// Digest that was asked for.
        expected: String,
        /// Digest of what came.
        actual: String,
    },
    /// A registry sent something else than was asked for.
    #[error(
        "failed to copy: {url}: unexpected commit digest {actual}, expected {expected}: failed precondition"
    )]
    LyingBlob {
        /// What was asked for.
        url: String,
        /// Digest that was asked for.
        expected: String,
        /// Digest of what came.
        actual: String,
    },
    /// A manifest, configuration or archive is malformed.
    #[error("{0}")]
    Malformed(String),
    /// No image for this machine.
    #[error("no match for platform in manifest {0}: not found")]
    NoPlatform(String),
    /// A layer would write outside of its directory.
    #[error("layer entry {path:?} would be written outside of the root file system")]
    Escape {
        /// Path of the entry.
        path: String,
    },
    /// Something is larger than the store accepts.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit, bytes or entries.
        limit: u64,
    },
    /// The store's directory takes no writes.
    #[error("cannot write to the image store {}: {why}", directory.display())]
    Unwritable {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// An operating system error.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Wraps an operating system error with what was being done.
    pub fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let context = context.into();
        move |source| Error::Io { context, source }
    }

    /// Names the store's directory where that is what cannot be written to.
    pub(crate) fn about_store(self, directory: &Path) -> Error {
        let why = match &self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem => "it is on a read-only file system",
                io::ErrorKind::StorageFull => "no space is left on its file system",
                io::ErrorKind::QuotaExceeded => "its quota is used up",
                _ => return self,
            },
            _ => return self,
        };
        Error::Unwritable { directory: directory.to_owned(), why }
    }

    /// Whether another attempt may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Error::Unavailable { .. } | Error::DigestMismatch { .. } | Error::LyingBlob { .. })
    }

    /// The error of the runtime interface, for a pull of `image`.
    pub(crate) fn into_pull_error(self, image: &str) -> cri::Error {
        let image = image.to_owned();
        let message = self.to_string();
        match self {
            Error::InvalidReference(_) => cri::Error::InvalidImageName { image, message },
            Error::Unavailable { .. } => cri::Error::RegistryUnavailable { image, message },
            _ => cri::Error::ImagePull { image, message },
        }
    }
}

impl From<Error> for cri::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(image) => cri::Error::ImageNotFound { image },
            Error::InvalidReference(message) => cri::Error::InvalidImageName {
                image: message.clone(),
                message: "invalid reference format".into(),
            },
            Error::Io { context, source } => cri::Error::Io { context, source },
            other => cri::Error::Internal { message: other.to_string() },
        }
    }
}
