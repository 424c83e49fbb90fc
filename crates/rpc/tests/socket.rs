//! A client and a server of the same protocol over a socket: answers, errors, and a server that comes back.

use std::path::Path;
use std::sync::Arc;

use rpc::pluginregistration::registration_client::RegistrationClient;
use rpc::pluginregistration::registration_server::{Registration, RegistrationServer};
use rpc::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use rpc::podresources::ListPodResourcesRequest;
use rpc::podresources::pod_resources_lister_client::PodResourcesListerClient;
use rpc::tonic::{Code, Request, Response, Status, async_trait};
use rpc::{Channel, Routes};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

struct Plugin;

#[async_trait]
impl Registration for Plugin {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        let supported_versions = (0..10_000).map(|n| format!("v{n}")).collect();
        Ok(Response::new(PluginInfo { name: "x".into(), supported_versions, ..Default::default() }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        Err(Status::failed_precondition(request.into_inner().error))
    }
}

async fn start(path: &Path) -> (Arc<Notify>, JoinHandle<()>) {
    let stop = Arc::new(Notify::new());
    let (told, path) = (stop.clone(), path.to_owned());
    let socket = path.clone();
    let task = tokio::spawn(async move {
        let routes = Routes::new().with(RegistrationServer::new(Plugin));
        rpc::serve(&path, routes, async move { told.notified().await }).await.unwrap();
    });
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    (stop, task)
}

#[tokio::test]
async fn calls_and_errors_pass_and_a_server_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let channel = Channel::new(&path);
    let mut client = RegistrationClient::new(channel.clone());

    let gone = client.get_info(InfoRequest {}).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");
    assert!(gone.message().contains("connect: no such file or directory"), "{gone:?}");

    let (stop, task) = start(&path).await;
    let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.name.as_str(), info.supported_versions.len()), ("x", 10_000));
    let refused = client
        .notify_registration_status(RegistrationStatus { error: "über".into(), ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "über"));
    let unknown =
        PodResourcesListerClient::new(channel.clone()).list(ListPodResourcesRequest {}).await.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.message()),
        (Code::Unimplemented, "unknown service v1.PodResourcesLister")
    );

    stop.notify_one();
    task.await.unwrap();
    assert!(!path.exists(), "the socket goes with its server");
    assert_eq!(client.get_info(InfoRequest {}).await.unwrap_err().code(), Code::Unavailable);

    let (stop, task) = start(&path).await;
    client.get_info(InfoRequest {}).await.unwrap();
    stop.notify_one();
    task.await.unwrap();
}
