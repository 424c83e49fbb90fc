//! Somebody else's runtime as [`cri::RuntimeService`] and [`cri::ImageService`].
//!
//! Three things that `cri` promises and the protocol does not: statuses in lists (`cache`), what a container
//! was made with after a restart (`records`), and events from runtimes that have none (`events`). Logs are
//! rotated here too, as upstream's kubelet does for its runtimes (`logs`).

mod cache;
mod events;
mod images;
mod logs;
mod records;
mod runtime;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::ContainerEvent;
use rpc::Channel;
use rpc::cri::image_service_client::ImageServiceClient;
use rpc::cri::runtime_service_client::RuntimeServiceClient;
use rpc::tonic::{Response, Status};
use tokio::sync::broadcast;

use self::cache::Cache;
use self::records::Records;
use crate::convert::error::{self, Call};

/// Label that names the owner, so that several clusters can share a runtime.
const OWNER_LABEL: &str = "ferry.dev/cluster";
/// Most time for an ordinary call: upstream's `runtimeRequestTimeout`.
const CALL_MAX: Duration = Duration::from_secs(120);
/// Events kept for a slow listener before it is told to list anew.
const EVENTS_MAX: usize = 4096;

/// Where a runtime is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The socket of its RuntimeService.
    pub runtime: PathBuf,
    /// The socket of its ImageService, which is usually the same.
    pub images: PathBuf,
    /// A directory for what the runtime does not keep.
    pub state: PathBuf,
    /// Whose sandboxes and containers these are: others' in the same runtime are not seen.
    pub owner: String,
}

/// The socket's path in an endpoint, `unix:///run/containerd/containerd.sock` or the bare path.
pub fn endpoint(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(format!("{text:?} is no endpoint: expected unix:///path/to/socket")),
    }
}

/// A runtime behind a socket.
#[derive(Debug)]
pub struct Remote {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    records: Records,
    cache: Cache,
    owner: String,
    events: broadcast::Sender<ContainerEvent>,
}

impl Remote {
    /// A runtime at these sockets, which need not be there yet. Must be called within an asynchronous runtime.
    ///
    /// # Errors
    /// When the state directory cannot be used.
    pub fn open(options: &Options) -> std::io::Result<Arc<Remote>> {
        let channel = Channel::new(&options.runtime);
        let images = match options.images == options.runtime {
            true => channel.clone(),
            false => Channel::new(&options.images),
        };
        let remote = Arc::new(Remote {
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(rpc::MESSAGE_BYTES_MAX),
            images: ImageServiceClient::new(images).max_decoding_message_size(rpc::MESSAGE_BYTES_MAX),
            records: Records::open(&options.state)?,
            cache: Cache::default(),
            owner: options.owner.clone(),
            events: broadcast::channel(EVENTS_MAX).0,
        });
        tokio::spawn(events::follow(Arc::downgrade(&remote)));
        tokio::spawn(logs::rotate(Arc::downgrade(&remote)));
        Ok(remote)
    }
}

impl Remote {
    /// Ids of all sandboxes that were recorded: those that may be there while the runtime is not.
    pub fn recorded(&self) -> Vec<String> {
        self.records.ids()
    }

    /// Marks as the owner's, or selects those that are.
    fn own(&self, labels: &mut BTreeMap<String, String>) {
        labels.insert(OWNER_LABEL.to_owned(), self.owner.clone());
    }
}

/// Waits for an answer, but no longer than `limit`.
async fn answer<T>(
    limit: Duration,
    about: Call<'_>,
    call: impl Future<Output = Result<Response<T>, Status>> + Send,
) -> cri::Result<T> {
    let outcome = match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    };
    outcome.map(Response::into_inner).map_err(|status| error::from(&status, about))
}

/// Whether a path names something of this process's machine that is there.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let ok = Ok(PathBuf::from("/run/x.sock"));
        assert_eq!((endpoint("unix:///run/x.sock"), endpoint("/run/x.sock")), (ok.clone(), ok));
        assert!(endpoint("tcp://127.0.0.1:1").is_err() && endpoint("unix://x").is_err());
    }
}
