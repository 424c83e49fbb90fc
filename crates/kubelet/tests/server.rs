//! The node's server over TLS: who may call, and logs from file to reader.

mod support;

use std::net::Ipv4Addr;
use std::sync::Arc;

use auth::pki::{Issued, Names, Pki};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kubelet::{Config, Kubelet, ServerConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use support::{FakeApi, FakeRuntime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

fn tls(pki: &Pki, identity: Option<&Issued>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(pki.ca_der().to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let cert = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    })
}

async fn get(port: u16, tls: Arc<ClientConfig>, path: &str) -> http::Response<Incoming> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(tls).connect(name, stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::get(path).header("host", "n1").body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(request).await.unwrap()
}

async fn text(response: http::Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn logs_for_the_api_server_only() {
    let directory = tempfile::tempdir().unwrap();
    let clock = stdx::SystemClock::shared();
    let pki = Pki::open_or_create(&directory.path().join("pki"), clock.clone()).unwrap();
    let names = Names { dns: vec![], ips: vec![Ipv4Addr::LOCALHOST.into()] };
    let serving = auth::tls::ServingCertificate::new(&pki.issue_server("n1", &names).unwrap()).unwrap();
    let own = pki.issue_client("kube-apiserver-kubelet-client", &[]).unwrap();
    let leaf = CertificateDer::from_pem_slice(own.cert_pem.as_bytes()).unwrap().to_vec();
    let mut config = Config::new("n1", directory.path().to_owned());
    // What else is on the disk of the machine must not decide about tests.
    config.eviction.thresholds.clear();
    config.server = Some(ServerConfig {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        tls: auth::tls::server_config(serving, auth::tls::client_verifier(pki.ca_der()).unwrap()).unwrap(),
        peer: Arc::new(move |peer| match peer == Some(&leaf[..]) {
            true => kubelet::server::Peer::ApiServer,
            false => kubelet::server::Peer::Nobody,
        }),
    });
    let (api, runtime, cancel) = (FakeApi::new(), FakeRuntime::new(), CancellationToken::new());
    let kubelet = Kubelet::new(config, api.client(), runtime.clone(), runtime.clone(), clock);
    let running = tokio::spawn(kubelet.run(cancel.clone()));
    let node = api.until("/api/v1/nodes/n1", "registered", |node| node.is_some()).await.unwrap();
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap() as u16;
    let path = "/api/v1/namespaces/default/pods/p";
    api.put(
        path,
        json!({"metadata": {"name": "p", "namespace": "default", "uid": "u1"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "i:1"}]}}),
    );
    api.until(path, "running", |pod| {
        pod.is_some_and(|pod| pod["status"]["containerStatuses"][0]["ready"] == true)
    })
    .await;

    for stranger in [None, Some(pki.issue_client("eve", &["system:masters"]).unwrap())] {
        let refused = get(port, tls(&pki, stranger.as_ref()), "/pods").await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    }
    let own = tls(&pki, Some(&own));
    assert_eq!(text(get(port, own.clone(), "/healthz").await).await, "ok");
    assert!(text(get(port, own.clone(), "/pods").await).await.contains("\"uid\":\"u1\""));
    assert!(text(get(port, own.clone(), "/metrics").await).await.contains("kubelet_running_pods 1\n"));
    let missing = get(port, own.clone(), "/containerLogs/default/p/b").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);

    let log = runtime.log_path("a");
    std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stdout F two\n").unwrap();
    let last = get(port, own.clone(), "/containerLogs/default/p/a?tailLines=1").await;
    assert_eq!(text(last).await, "two\n");
    let mut followed = get(port, own.clone(), "/containerLogs/default/p/a?follow=true").await.into_body();
    assert_eq!(followed.frame().await.unwrap().unwrap().into_data().unwrap(), "one\ntwo\n");
    let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut file, b"2026-01-01T00:00:02Z stdout F three\n").unwrap();
    assert_eq!(followed.frame().await.unwrap().unwrap().into_data().unwrap(), "three\n");
    // The log ends with the container.
    runtime.exit("a", 0);
    assert!(followed.frame().await.is_none());
    cancel.cancel();
    running.await.unwrap().unwrap();
}
