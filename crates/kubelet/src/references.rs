//! ConfigMaps and Secrets that pods of this node refer to: one watched cache per object, shared by pods,
//! dropped with the last of them.
//!
//! A node may read single objects only, so each has a watch of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::Client;
use parking_lot::Mutex;
use reconcile::reflector::{self, Sink, Source};
use reconcile::{Cached, Informer};
use stdx::Random;
use tokio_util::sync::CancellationToken;

/// How long a first read may take before it counts as failed.
const FIRST_READ: Duration = Duration::from_secs(10);

/// Called with the uid of a pod when something it refers to has changed.
pub type Changed = Arc<dyn Fn(&str) + Send + Sync>;

/// The object could not be read in time.
#[derive(Debug, Clone, thiserror::Error)]
#[error("timed out waiting for {kind} {namespace}/{name}")]
pub struct TimedOut {
    kind: &'static str,
    namespace: String,
    name: String,
}

struct Entry<T> {
    informer: Arc<Informer<T>>,
    pods: Arc<Mutex<HashSet<String>>>,
    cancel: CancellationToken,
}

type Entries<T> = Mutex<HashMap<(String, String), Entry<T>>>;

/// The caches.
pub struct References {
    client: Client,
    random: Arc<dyn Random>,
    cancel: CancellationToken,
    changed: Changed,
    config_maps: Entries<ConfigMap>,
    secrets: Entries<Secret>,
}

impl References {
    /// No caches yet; they read through `client` and end with `cancel`.
    pub fn new(client: Client, random: Arc<dyn Random>, changed: Changed, cancel: CancellationToken) -> Self {
        References {
            client,
            random,
            cancel,
            changed,
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
        }
    }

    /// A ConfigMap of the pod's namespace, watched from now on for this pod.
    pub async fn config_map(&self, pod: &Pod, name: &str) -> Result<Option<Arc<ConfigMap>>, TimedOut> {
        self.read(&self.config_maps, "configmap", pod, name).await
    }

    /// A Secret of the pod's namespace, watched from now on for this pod.
    pub async fn secret(&self, pod: &Pod, name: &str) -> Result<Option<Arc<Secret>>, TimedOut> {
        self.read(&self.secrets, "secret", pod, name).await
    }

    async fn read<T: Typed + Cached>(
        &self,
        entries: &Entries<T>,
        kind: &'static str,
        pod: &Pod,
        name: &str,
    ) -> Result<Option<Arc<T>>, TimedOut> {
        let key = (pod.namespace().to_owned(), name.to_owned());
        let informer = {
            let mut entries = entries.lock();
            let entry = entries.entry(key).or_insert_with(|| self.open(pod.namespace(), name));
            entry.pods.lock().insert(pod.uid().to_owned());
            entry.informer.clone()
        };
        let timed_out = |_| TimedOut { kind, namespace: pod.namespace().to_owned(), name: name.to_owned() };
        tokio::time::timeout(FIRST_READ, informer.synced()).await.map_err(timed_out)?;
        Ok(informer.store().get_in(pod.namespace(), name))
    }

    fn open<T: Typed + Cached>(&self, namespace: &str, name: &str) -> Entry<T> {
        let informer = Arc::new(Informer::<T>::default());
        let pods: Arc<Mutex<HashSet<String>>> = Arc::default();
        let (told, changed) = (pods.clone(), self.changed.clone());
        informer.on_event(move |_| {
            let pods: Vec<String> = told.lock().iter().cloned().collect();
            pods.iter().for_each(|uid| changed(uid));
        });
        let cancel = self.cancel.child_token();
        let source = Source {
            gvr: T::GVR,
            namespace: namespace.to_owned(),
            label_selector: String::new(),
            field_selector: format!("metadata.name={name}"),
            metadata_only: false,
        };
        let sink: Arc<dyn Sink> = informer.clone();
        tokio::spawn(reflector::run(self.client.clone(), source, sink, self.random.clone(), cancel.clone()));
        Entry { informer, pods, cancel }
    }

    /// The pod needs nothing any more.
    pub fn release(&self, pod_uid: &str) {
        release(&self.config_maps, pod_uid);
        release(&self.secrets, pod_uid);
    }
}

fn release<T>(entries: &Entries<T>, pod_uid: &str) {
    entries.lock().retain(|_, entry| {
        let mut pods = entry.pods.lock();
        pods.remove(pod_uid);
        if pods.is_empty() {
            entry.cancel.cancel();
        }
        !pods.is_empty()
    });
}
