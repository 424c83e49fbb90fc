//! The one error of the runtime interface, shaped so that the kubelet can give Kubernetes' reasons.

use std::time::Duration;

/// Result of every call of the interface.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a runtime. [`Error::reason`] gives the word that Kubernetes shows to users.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image reference cannot be parsed.
    #[error("couldn't parse image reference {image:?}: {message}")]
    InvalidImageName {
        /// The reference as given.
        image: String,
        /// What is wrong with it.
        message: String,
    },
    /// The image could not be pulled: unknown, forbidden, or damaged on the way.
    #[error("failed to pull and unpack image {image:?}: {message}")]
    ImagePull {
        /// The reference, normalised.
        image: String,
        /// The cause, in containerd's words where it has some.
        message: String,
    },
    /// The registry did not answer: no route, refused, TLS failure, 5xx.
    #[error("failed to pull and unpack image {image:?}: {message}")]
    RegistryUnavailable {
        /// The reference, normalised.
        image: String,
        /// The cause.
        message: String,
    },
    /// The image is not in the store (and this call does not pull).
    #[error("image {image:?} not found")]
    ImageNotFound {
        /// The reference or id asked for.
        image: String,
    },
    /// No such sandbox.
    #[error("pod sandbox {id:?}: not found")]
    SandboxNotFound {
        /// The id asked for.
        id: String,
    },
    /// No such container.
    #[error("container {id:?}: not found")]
    ContainerNotFound {
        /// The id asked for.
        id: String,
    },
    /// The configuration can never work: unknown user, bad mount, bad option.
    #[error("{message}")]
    CreateContainerConfig {
        /// What is wrong.
        message: String,
    },
    /// The container could not be prepared.
    #[error("{message}")]
    CreateContainer {
        /// What went wrong.
        message: String,
    },
    /// The container's first process could not be started. The container is then `Exited` with `exit_code`
    /// and reason `StartError`, as with containerd.
    #[error("failed to create containerd task: failed to create shim task: {message}")]
    RunContainer {
        /// The runtime's message, such as
        /// `exec: "foo": executable file not found in $PATH: unknown`.
        message: String,
        /// 128 as containerd reports it, or 126/127 where the exec itself said so.
        exit_code: i32,
    },
    /// The sandbox could not be made or its network could not be set up.
    #[error("failed to create pod sandbox: {message}")]
    CreateSandbox {
        /// What went wrong.
        message: String,
    },
    /// The network of a sandbox could not be set up or removed.
    #[error("{message}")]
    Network {
        /// What went wrong.
        message: String,
    },
    /// A process inside a running container could not be started.
    #[error("failed to exec in container: {message}")]
    Exec {
        /// The runtime's message.
        message: String,
        /// 126 (not executable) or 127 (not found).
        exit_code: i32,
    },
    /// The call is not allowed in the present state (exec into an exited container and the like).
    #[error("{message}")]
    InvalidState {
        /// The state and what was asked of it.
        message: String,
    },
    /// The time given to the call is over.
    #[error("{what} timed out after {after:?}")]
    Timeout {
        /// The call, such as `command "sleep 10"`.
        what: String,
        /// The limit.
        after: Duration,
    },
    /// The runtime or this kernel cannot do it.
    #[error("{message}")]
    Unsupported {
        /// What is missing.
        message: String,
    },
    /// An operating system error.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A runtime behind a socket has failed, or could not be reached.
    #[error("{message}")]
    Remote {
        /// Kubernetes' word for the failure.
        reason: &'static str,
        /// The runtime's own words.
        message: String,
    },
    /// The runtime contradicts itself or lost contact with its shim.
    #[error("{message}")]
    Internal {
        /// What happened.
        message: String,
    },
}

impl Error {
    /// Wraps an operating system error with what was being done.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io { context: context.into(), source }
    }

    /// Kubernetes' word for this failure, as seen in `state.waiting.reason` and in events.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::InvalidImageName { .. } => "InvalidImageName",
            Error::ImagePull { .. } => "ErrImagePull",
            Error::RegistryUnavailable { .. } => "RegistryUnavailable",
            Error::ImageNotFound { .. } => "ErrImageNeverPull",
            Error::CreateContainerConfig { .. } => "CreateContainerConfigError",
            Error::CreateContainer { .. } => "CreateContainerError",
            Error::RunContainer { .. } => "RunContainerError",
            Error::CreateSandbox { .. } | Error::Network { .. } => "FailedCreatePodSandBox",
            Error::Exec { .. } => "ExecError",
            Error::SandboxNotFound { .. } | Error::ContainerNotFound { .. } => "NotFound",
            Error::InvalidState { .. } => "InvalidState",
            Error::Timeout { .. } => "DeadlineExceeded",
            Error::Unsupported { .. } => "Unimplemented",
            Error::Remote { reason, .. } => reason,
            Error::Io { .. } | Error::Internal { .. } => "Unknown",
        }
    }

    /// Whether the thing asked for does not exist: removing it again is then a success.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Error::ImageNotFound { .. } | Error::SandboxNotFound { .. } | Error::ContainerNotFound { .. }
        )
    }

    /// The exit code that goes with the failure, where it has one.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Error::RunContainer { exit_code, .. } | Error::Exec { exit_code, .. } => Some(*exit_code),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_kubernetes_words() {
        let table = [
            (Error::InvalidImageName { image: "A".into(), message: "x".into() }, "InvalidImageName"),
            (Error::ImagePull { image: "a".into(), message: "x".into() }, "ErrImagePull"),
            (Error::RunContainer { message: "x".into(), exit_code: 128 }, "RunContainerError"),
            (Error::CreateContainerConfig { message: "x".into() }, "CreateContainerConfigError"),
        ];
        for (error, want) in table {
            assert_eq!(error.reason(), want);
        }
    }
}
