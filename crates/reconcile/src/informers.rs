//! One informer per resource and process: controllers, scheduler and kubelet share caches through this.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use api::Typed;
use client::Client;
use meta::Gvr;
use parking_lot::Mutex;
use stdx::Random;
use tokio_util::sync::CancellationToken;

use crate::cached::Cached;
use crate::informer::Informer;
use crate::reflector::{self, Sink, Source};

/// A part of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Namespace; empty for all.
    pub namespace: String,
    /// Label selector as text.
    pub label_selector: String,
    /// Field selector as text.
    pub field_selector: String,
}

type Entries = HashMap<(TypeId, Gvr, Scope), (Arc<dyn Any + Send + Sync>, CancellationToken)>;

/// The process' informers. An informer starts when it is first asked for and runs until the cancellation.
pub struct Informers {
    client: Client,
    random: Arc<dyn Random>,
    cancel: CancellationToken,
    entries: Mutex<Entries>,
}

impl Informers {
    /// Informers that read through `client` until `cancel`.
    pub fn new(client: Client, random: Arc<dyn Random>, cancel: CancellationToken) -> Arc<Self> {
        Arc::new(Informers { client, random, cancel, entries: Mutex::default() })
    }

    /// The informer of all objects of a kind. Needs to be called inside a tokio runtime.
    pub fn get<T: Typed>(&self) -> Arc<Informer<T>> {
        self.get_dynamic(T::GVR, Scope::default(), false)
    }

    /// The informer of some objects of a kind.
    pub fn get_scoped<T: Typed>(&self, scope: Scope) -> Arc<Informer<T>> {
        self.get_dynamic(T::GVR, scope, false)
    }

    /// The informer of a resource known at run time only, of whole objects or of their metadata.
    pub fn get_dynamic<T: Cached>(&self, gvr: Gvr, scope: Scope, metadata_only: bool) -> Arc<Informer<T>> {
        let mut entries = self.entries.lock();
        let entry_key = (TypeId::of::<T>(), gvr.clone(), scope.clone());
        if let Some((entry, _)) = entries.get(&entry_key)
            && let Ok(informer) = entry.clone().downcast()
        {
            return informer;
        }
        let informer = Arc::new(Informer::<T>::default());
        let cancel = self.cancel.child_token();
        let source = Source {
            gvr,
            namespace: scope.namespace,
            label_selector: scope.label_selector,
            field_selector: scope.field_selector,
            metadata_only,
        };
        let sink: Arc<dyn Sink> = informer.clone();
        tokio::spawn(reflector::run(self.client.clone(), source, sink, self.random.clone(), cancel.clone()));
        entries.insert(entry_key, (informer.clone(), cancel));
        informer
    }

    /// Stops and forgets the informer of a resource that is no longer served. Its cache stays as it was.
    pub fn stop<T: Cached>(&self, gvr: &Gvr) {
        let entry_key = (TypeId::of::<T>(), gvr.clone(), Scope::default());
        if let Some((_, cancel)) = self.entries.lock().remove(&entry_key) {
            cancel.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::informer::Event;
    use api::prelude::*;
    use client::{BoxFuture, InProcess, body};
    use http::{Request, Response};
    use tokio::sync::mpsc;

    /// Answers each request with the next line of the script and notes what was asked.
    fn scripted(script: Vec<(u16, &'static str)>) -> (Client, mpsc::UnboundedReceiver<String>) {
        let (asked, log) = mpsc::unbounded_channel();
        let script = Mutex::new(script.into_iter());
        let handler = Arc::new(move |request: Request<client::Body>| -> BoxFuture<'static, _> {
            let _ = asked.send(request.uri().to_string());
            let step = script.lock().next();
            Box::pin(async move {
                let Some((code, text)) = step else { return std::future::pending().await };
                let mut response = Response::new(body::full(text));
                *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
                response
            })
        });
        (Client::new(Arc::new(InProcess::new(handler)), "test"), log)
    }

    #[tokio::test(start_paused = true)]
    async fn follows_a_server_through_expiry() {
        let (client, mut log) = scripted(vec![
            (
                200,
                r#"{"metadata":{"resourceVersion":"10"},"items":[
                {"metadata":{"namespace":"n","name":"a","resourceVersion":"1","managedFields":[{"manager":"x"}]}},
                {"metadata":{"namespace":"n","name":"b","resourceVersion":"2"}}]}"#,
            ),
            (
                200,
                concat!(
                    r#"{"type":"ADDED","object":{"metadata":{"namespace":"n","name":"c","resourceVersion":"11"}}}"#,
                    "\n",
                    r#"{"type":"DELETED","object":{"metadata":{"namespace":"n","name":"b","resourceVersion":"12"}}}"#,
                    "\n",
                    r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"20"}}}"#,
                    "\n"
                ),
            ),
            (
                200,
                "{\"type\":\"ERROR\",\"object\":{\"code\":410,\"reason\":\"Expired\",\"message\":\"old\"}}\n",
            ),
            (
                200,
                r#"{"metadata":{"resourceVersion":"30"},"items":[
                {"metadata":{"namespace":"n","name":"a","resourceVersion":"25"}}]}"#,
            ),
        ]);
        let informers =
            Informers::new(client, Arc::new(stdx::SeededRandom::new(1)), CancellationToken::new());
        let pods = informers.get::<Pod>();
        let (tell, mut told) = mpsc::unbounded_channel();
        pods.on_event(move |event| {
            let what = match event {
                Event::Added(_) => "+",
                Event::Updated { .. } => "~",
                Event::Deleted(_) => "-",
            };
            let _ = tell.send(format!("{what}{}", event.object().name()));
        });
        pods.synced().await;
        assert!(pods.store().get("n/a").unwrap().metadata.managed_fields.is_none());
        let mut events = Vec::new();
        for _ in 0..6 {
            events.push(told.recv().await.unwrap());
        }
        assert_eq!(events, ["+a", "+b", "+c", "-b", "-c", "~a"]);
        let mut asked = Vec::new();
        for _ in 0..5 {
            asked.push(log.recv().await.unwrap());
        }
        assert_eq!(asked[0], "/api/v1/pods?resourceVersion=0");
        assert!(asked[1].starts_with("/api/v1/pods?watch=true&resourceVersion=10&allowWatchBookmarks=true&"));
        assert!(asked[2].contains("resourceVersion=20"), "{}", asked[2]);
        assert_eq!(asked[3], "/api/v1/pods", "after expiry the list must be consistent");
        assert!(asked[4].contains("resourceVersion=30"), "{}", asked[4]);
        assert!(Arc::ptr_eq(&pods, &informers.get::<Pod>()), "one informer per resource");
    }
}
