//! How failures of the store show to clients.

use meta::{Reason, Status};

/// A store failure as a `Status`.
pub fn status(error: &store::Error) -> Status {
    match error {
        store::Error::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        store::Error::TooLarge { limit } => Status::new(
            413,
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {limit}"),
        ),
        store::Error::Closed => Status::unavailable("the store is closed: the server is shutting down"),
        other => Status::internal(chain(other)),
    }
}

/// A store failure at the beginning of a watch.
pub fn watch_status(error: &store::Error) -> Status {
    match error {
        store::Error::Compacted { oldest } => {
            Status::expired(format!("too old resource version: (oldest is {oldest})"))
        }
        store::Error::FutureRevision { requested, current } => {
            too_large_resource_version(*requested, *current)
        }
        other => status(other),
    }
}

/// 504 for a revision the server has not seen (yet).
pub fn too_large_resource_version(requested: u64, current: u64) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {requested}, current: {current}"));
    let cause = meta::status::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    status.details = Some(Box::new(meta::status::Details {
        causes: vec![cause],
        retry_after_seconds: 1,
        ..Default::default()
    }));
    status
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
