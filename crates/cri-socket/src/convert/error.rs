//! Errors: gRPC codes as containerd gives them, and Kubernetes' reasons from what a runtime answers.

use std::time::Duration;

use cri::Error;
use rpc::tonic::{Code, Status};

/// The status that tells of an error.
pub fn to(error: Error) -> Status {
    let message = error.to_string();
    let code = match &error {
        Error::ImageNotFound { .. } | Error::SandboxNotFound { .. } | Error::ContainerNotFound { .. } => {
            Code::NotFound
        }
        Error::InvalidImageName { .. } | Error::CreateContainerConfig { .. } => Code::InvalidArgument,
        Error::InvalidState { .. } => Code::FailedPrecondition,
        Error::Timeout { .. } => Code::DeadlineExceeded,
        Error::Unsupported { .. } => Code::Unimplemented,
        Error::RegistryUnavailable { .. } => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, message)
}

/// What a call was about, to give its failure Kubernetes' reason.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// Making a sandbox.
    RunSandbox,
    /// Making a container.
    Create,
    /// Starting one.
    Start,
    /// Something with this sandbox.
    Sandbox(&'a str),
    /// Something with this container.
    Container(&'a str),
    /// A command that may take so long.
    Exec(&'a [String], Duration),
    /// Pulling this image.
    Pull(&'a str),
    /// Anything else.
    Other,
}

/// The error behind the answer to a call.
pub fn from(status: &Status, call: Call<'_>) -> Error {
    let remote = |reason, message| Error::Remote { reason, message };
    let full = || format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message());
    let plain = || status.message().to_owned();
    match (status.code(), call) {
        (Code::NotFound, Call::Sandbox(id)) => Error::SandboxNotFound { id: id.to_owned() },
        (Code::NotFound, Call::Container(id)) => Error::ContainerNotFound { id: id.to_owned() },
        (Code::DeadlineExceeded, Call::Exec(command, after)) => {
            Error::Timeout { what: format!("command {:?}", command.join(" ")), after }
        }
        (Code::Unavailable, Call::Pull(image)) => remote_pull("RegistryUnavailable", image, full()),
        (_, Call::Pull(image)) => remote_pull("ErrImagePull", image, full()),
        (_, Call::RunSandbox) => remote("FailedCreatePodSandBox", full()),
        // Upstream shows users the runtime's words alone here.
        (_, Call::Create) => remote("CreateContainerError", plain()),
        (_, Call::Start) => remote("RunContainerError", plain()),
        (_, Call::Exec(..)) => remote("ExecError", full()),
        _ => remote("Unknown", full()),
    }
}

fn remote_pull(reason: &'static str, image: &str, message: String) -> Error {
    if message.contains("failed to parse image reference") || message.contains("invalid reference format") {
        return Error::InvalidImageName { image: image.to_owned(), message };
    }
    Error::Remote { reason, message }
}

/// A code as Go prints it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_as_containerd_has_them() {
        let table = [
            (Error::ContainerNotFound { id: "a".into() }, Code::NotFound),
            (Error::InvalidImageName { image: "A".into(), message: "x".into() }, Code::InvalidArgument),
            (Error::InvalidState { message: "x".into() }, Code::FailedPrecondition),
            (Error::Timeout { what: "x".into(), after: Duration::ZERO }, Code::DeadlineExceeded),
            (Error::Unsupported { message: "x".into() }, Code::Unimplemented),
            (Error::CreateContainer { message: "x".into() }, Code::Unknown),
        ];
        for (error, code) in table {
            assert_eq!(to(error).code(), code);
        }
    }

    #[test]
    fn reasons_of_answers() {
        let status = |code, text: &str| Status::new(code, text);
        let reason = |code, call| from(&status(code, "no"), call).reason();
        assert_eq!(reason(Code::Unknown, Call::Start), "RunContainerError");
        assert_eq!(reason(Code::NotFound, Call::Create), "CreateContainerError");
        assert_eq!(reason(Code::NotFound, Call::Container("x")), "NotFound");
        assert_eq!(reason(Code::NotFound, Call::Pull("x")), "ErrImagePull");
        assert!(from(&status(Code::NotFound, "no"), Call::Sandbox("x")).is_not_found());
        assert_eq!(from(&status(Code::Unknown, "no"), Call::Start).to_string(), "no");
        let sandbox = from(&status(Code::Unknown, "no"), Call::RunSandbox).to_string();
        assert_eq!(sandbox, "rpc error: code = Unknown desc = no");
        let command = ["sleep".to_owned(), "9".to_owned()];
        let late = from(&status(Code::DeadlineExceeded, ""), Call::Exec(&command, Duration::from_secs(1)));
        assert_eq!(late.to_string(), "command \"sleep 9\" timed out after 1s");
    }
}
