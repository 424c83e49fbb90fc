//! A runtime offered as CRI v1 on a Unix socket, to `crictl`, to tests of runtimes, or to another kubelet.
//!
//! Whoever connects sees everything that runs here, Ferry's own pods too. Ferry's kubelet in turn leaves alone
//! what others make, unless it bears the kubelets' label `io.kubernetes.pod.uid` for a pod that the cluster
//! does not have: that it takes for an orphan of its own when it starts, as upstream's does. So another kubelet
//! wants a Ferry whose node part does nothing else.
//!
//! Ids may be cut short, as containerd allows it, as long as they are unambiguous.

mod images;
mod info;
mod metrics;
mod runtime;
mod select;
mod stream;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use cri::{ImageService, RuntimeService};
use rpc::Routes;
use rpc::cri::image_service_server::ImageServiceServer;
use rpc::cri::runtime_service_server::RuntimeServiceServer;
use rpc::tonic::{Response, Status};

use self::stream::Streamer;

/// The services behind a socket.
#[derive(Debug, Clone)]
pub struct Server {
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    streamer: Arc<Streamer>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Server {
    /// Offers a runtime and its images.
    pub fn new(runtime: Arc<dyn RuntimeService>, images: Arc<dyn ImageService>) -> Server {
        let streamer = Arc::new(Streamer::new(runtime.clone()));
        Server { runtime, images, streamer }
    }

    /// Serves on a socket until `stop`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn serve(self, socket: &Path, stop: impl Future<Output = ()> + Send) -> std::io::Result<()> {
        let runtime =
            RuntimeServiceServer::new(self.clone()).max_decoding_message_size(rpc::MESSAGE_BYTES_MAX);
        let images = ImageServiceServer::new(self).max_decoding_message_size(rpc::MESSAGE_BYTES_MAX);
        rpc::serve(socket, Routes::new().with(runtime).with(images), stop).await
    }
}

/// An answer.
fn ok<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

/// What a call of the runtime answers, with its error as a status.
fn told<T>(outcome: cri::Result<T>) -> Result<T, Status> {
    outcome.map_err(crate::convert::error::to)
}
