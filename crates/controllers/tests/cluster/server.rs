//! A control plane in one process, on a data directory of its own.

use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{Client, InProcess};
use meta::UserInfo;
use reconcile::Context;
use serde_json::{Value, json};
use stdx::{SystemClock, ThreadRandom};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for something to become true.
const PATIENCE: Duration = Duration::from_secs(30);

/// A control plane that ends with the test.
pub struct Cluster {
    /// Client of an administrator.
    pub client: Client,
    /// The same over HTTPS, by a kubeconfig.
    pub remote: Client,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts everything.
    pub async fn start() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let (clock, random) = (SystemClock::shared(), Arc::new(ThreadRandom));
        let store =
            store::disk::DiskStore::open(&directory.path().join("store"), Default::default()).unwrap();
        let config = registry::Config {
            service_cidr: "10.43.0.0/16".into(),
            node_ports: 30000..=32767,
            runtime: Default::default(),
        };
        let registry =
            registry::Registry::start(Arc::new(store), &config, clock.clone(), random.clone()).await.unwrap();
        let pki = auth::pki::Pki::open_or_create(&directory.path().join("pki"), clock.clone()).unwrap();
        let issuer = "https://kubernetes.default.svc.cluster.local";
        let key = pki.service_account_key().unwrap();
        let tokens = Arc::new(auth::token::TokenSigner::new(issuer, &key, clock.clone()));
        let verifier = auth::tls::client_verifier(pki.ca_der()).unwrap();
        let lookup = apiserver::lookup::RegistryLookup::new(registry.clone());
        let authenticator = auth::authenticate::Authenticator::new(
            Some(verifier.clone()),
            tokens.clone(),
            lookup,
            vec![],
            clock.clone(),
        );
        let tls =
            client::tls::client_config(&client::tls::Trust::Ca(pki.ca_pem().into()), None, &[]).unwrap();
        let cancel = CancellationToken::new();
        let server = apiserver::Server::new(apiserver::Config {
            authorizers: Vec::new(),
            registry,
            authenticator: Arc::new(authenticator),
            tokens,
            kubelets: apiserver::kubelet::KubeletClient::new(tls),
            random: random.clone(),
            shutdown: cancel.clone(),
            limits: apiserver::server::Limits::default(),
            audit: None,
        });
        let addresses = apiserver::bootstrap::Addresses {
            service: "10.43.0.1".parse().unwrap(),
            advertise: "127.0.0.1".parse().unwrap(),
            port: 6443,
        };
        apiserver::bootstrap::run(&server, &addresses).await.unwrap();
        let names =
            auth::pki::Names { dns: vec!["localhost".into()], ips: vec!["127.0.0.1".parse().unwrap()] };
        let serving = auth::tls::ServingCertificate::new(&pki.issue_server("test", &names).unwrap()).unwrap();
        let tls = auth::tls::server_config(serving, verifier).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let admin = pki.issue_client("remote", &["system:masters"]).unwrap();
        let (ca, certificate) = (pki.ca_pem().as_bytes(), admin.cert_pem.as_bytes());
        let kubeconfig = client::Kubeconfig::single("test", &url, ca, certificate, admin.key_pem.as_bytes());
        kubeconfig.save(&directory.path().join("kubeconfig")).unwrap();
        let remote = client::Kubeconfig::client(&directory.path().join("kubeconfig"), None, "test").unwrap();
        let listening = apiserver::serve::listen(server.clone(), listener, tls);
        let transport = Arc::new(InProcess::new(Arc::new(move |request| server.handle(request))));
        let base = Client::new(transport, "test");
        let client = base.as_user(UserInfo::authenticated("admin", &["system:masters"]));
        let context = Context::new(client.clone(), clock, random, cancel.clone());
        let options = controllers::Options { root_ca: Some(pki.ca_pem().into()), ..Default::default() };
        let scheduling = context.clone();
        let tasks = vec![
            tokio::spawn(listening),
            tokio::spawn(async move {
                reconcile::run_all(controllers::descriptors(&options), context).await.unwrap();
            }),
            tokio::spawn(async move { scheduler::run(&scheduling).await }),
        ];
        Cluster { client, remote, cancel, tasks, _directory: directory }
    }

    /// Ends everything in order.
    pub async fn stop(self) {
        self.cancel.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    /// Creates an object of YAML-like JSON in a namespace.
    pub async fn create<T: Typed>(&self, value: Value) -> T {
        self.client.create_typed(&T::from_value(value).unwrap()).await.unwrap()
    }

    /// Adds a node that is ready and stays so: its Lease is renewed far in the future's stead by nobody, and
    /// the test is shorter than the grace period.
    pub async fn add_node(&self, name: &str) {
        self.create::<Node>(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "allocatable": {"cpu": "32", "memory": "64Gi", "pods": "110"},
                "capacity": {"cpu": "32", "memory": "64Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        }))
        .await;
        let status = json!({"status": {
            "allocatable": {"cpu": "32", "memory": "64Gi", "pods": "110"},
            "capacity": {"cpu": "32", "memory": "64Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        self.client.patch(&Node::GVR, "", name, "status", &client::Patch::Merge(status)).await.unwrap();
    }

    /// Does what a kubelet would to one pod: it runs and is ready at once, and ends when it is told to.
    pub async fn play_kubelet(&self, pod: &Pod) {
        let params = client::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        if pod.is_terminating() {
            let _ = self.client.delete_typed::<Pod>(pod.namespace(), pod.name(), &params).await;
            return;
        }
        let ip = format!("10.42.0.{}", pod.uid().bytes().map(u32::from).sum::<u32>() % 250 + 1);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let patch = client::Patch::Strategic(status);
        let _ = self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await;
    }

    /// Runs fake kubelets for all pods that are bound, until the cluster stops.
    pub fn run_kubelets(&mut self) {
        let client = self.client.clone();
        let cancel = self.cancel.clone();
        let cluster = Cluster {
            client: client.clone(),
            remote: client.clone(),
            cancel: cancel.clone(),
            tasks: vec![],
            _directory: tempfile::tempdir().unwrap(),
        };
        self.tasks.push(tokio::spawn(async move {
            let work = async {
                let params = client::WatchParams::default();
                let mut events = client.watch(&Pod::GVR, "", &params).await.unwrap();
                while let Some(Ok(event)) = events.next().await {
                    let pod = Pod::decode(&event.object).unwrap();
                    let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
                    let running = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
                    if bound && event.kind != client::EventKind::Deleted && (!running || pod.is_terminating())
                    {
                        cluster.play_kubelet(&pod).await;
                    }
                }
            };
            tokio::select! { () = cancel.cancelled() => {}, () = work => {} }
        }));
    }

    /// Waits until `check` of an object holds; fails the test with the object when it does not in time.
    pub async fn until<T: Typed>(&self, namespace: &str, name: &str, check: impl Fn(&T) -> bool) -> T {
        let mut last = None;
        let wait = async {
            loop {
                if let Ok(object) = self.client.get_typed::<T>(namespace, name).await {
                    if check(&object) {
                        return object;
                    }
                    last = Some(object);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(object) => object,
            Err(_) => panic!("never came true: {last:#?}"),
        }
    }

    /// Waits until an object is gone.
    pub async fn until_gone<T: Typed>(&self, namespace: &str, name: &str) {
        let wait = async {
            while !self.client.get_typed::<T>(namespace, name).await.is_err_and(|e| e.is_not_found()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("still there: {:#?}", self.client.get_typed::<T>(namespace, name).await);
        }
    }

    /// All objects of a kind in a namespace.
    pub async fn list<T: Typed>(&self, namespace: &str) -> Vec<T> {
        self.client.list_typed(namespace, &Default::default()).await.unwrap().0
    }
}
