//! What a call to the API can fail with.

use meta::Status;

use crate::transport::TransportError;

/// Result of a call to the API.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failure of a call to the API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with a failure.
    #[error("{0}")]
    Status(#[source] Box<Status>),
    /// The request or the answer did not get through.
    #[error("cannot reach the API server: {0}")]
    Transport(#[from] TransportError),
    /// The answer is not what the request asked for.
    #[error("cannot read the answer of the API server: {0}")]
    Decode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request cannot be built from its arguments, for example from a name with a line break.
    #[error("cannot build the request: {0}")]
    Request(#[from] http::Error),
}

impl Error {
    /// The server's answer, where it gave one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Whether the object or resource does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }
    /// Whether somebody else changed the object in between.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(Status::is_conflict)
    }
    /// Whether the name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }
    /// Whether the resource version asked for is no longer known (410).
    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(|s| s.code == 410)
    }
    /// Whether the object was refused because its namespace is being deleted.
    pub fn is_namespace_terminating(&self) -> bool {
        self.status()
            .and_then(|s| s.details.as_deref())
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }
    /// Whether the object itself was refused by validation (422).
    pub fn is_invalid(&self) -> bool {
        self.status().is_some_and(|s| s.code == 422)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Error::Status(Box::new(status))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::Decode(Box::new(error))
    }
}

impl From<api::DecodeError> for Error {
    fn from(error: api::DecodeError) -> Self {
        Error::Decode(Box::new(error))
    }
}
