//! The verbs of the API as methods: requests are built here, answers are read here, nothing is sent here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};
use meta::{Gvr, Status, UserInfo};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::body::{self, Body};
use crate::error::{Error, Result};
use crate::params::{DeleteParams, ListParams, Patch, WatchParams, WriteParams, escape_into};
use crate::transport::{Io, Transport, TransportError};
use crate::watch::WatchStream;

/// Largest answer read into memory: a list of 100,000 pods is about 200 MB.
const MAX_RESPONSE_BYTES: usize = 1 << 30;
/// Time limit of everything but watches and upgrades: the server's own limit is 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(65);

/// How often a server that is too busy is asked again (client-go's limit).
const BUSY_RETRIES_MAX: u32 = 10;

const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// Talks to the API server. Cheap to clone.
///
/// `namespace` arguments are empty for cluster-scoped resources and for all namespaces.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user_agent: HeaderValue,
    identity: Option<Arc<UserInfo>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A page of a list: items as the bytes the server sent, which they share.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Resource version of the whole list: where a watch continues.
    pub resource_version: String,
    /// Token of the next page; empty on the last.
    pub continue_token: String,
    /// Objects as JSON, without `apiVersion` and `kind`.
    pub items: Vec<Bytes>,
}

#[derive(Deserialize, Default)]
struct ListMeta {
    #[serde(default, rename = "resourceVersion")]
    resource_version: String,
    #[serde(default, rename = "continue")]
    continue_token: String,
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

impl List {
    /// Cuts the bytes of a list into items.
    pub fn parse(bytes: &Bytes) -> Result<Self> {
        let raw: RawList<'_> = serde_json::from_slice(bytes)?;
        let items = raw.items.unwrap_or_default();
        Ok(List {
            resource_version: raw.metadata.resource_version,
            continue_token: raw.metadata.continue_token,
            items: items.into_iter().map(|item| bytes.slice_ref(item.get().as_bytes())).collect(),
        })
    }
}

/// The path of an object or of one of its subresources.
fn object_path(gvr: &Gvr, namespace: &str, name: &str, subresource: &str) -> String {
    let mut path = collection_path(gvr, namespace);
    path.push('/');
    escape_into(&mut path, name);
    if !subresource.is_empty() {
        path.push('/');
        path.push_str(subresource);
    }
    path
}

/// The path of a collection.
fn collection_path(gvr: &Gvr, namespace: &str) -> String {
    gvr.path(Some(namespace).filter(|ns| !ns.is_empty()))
}

impl Client {
    /// A client over `transport` that calls itself `user_agent`. Without an identity the transport's own
    /// credentials count (over the network), or the caller is anonymous (in-process).
    pub fn new(transport: Arc<dyn Transport>, user_agent: &str) -> Self {
        let user_agent = HeaderValue::from_str(user_agent).unwrap_or(HeaderValue::from_static("ferry"));
        Client { transport, user_agent, identity: None }
    }

    /// The same client speaking as `user`: by extension in-process, by impersonation over the network.
    pub fn as_user(&self, user: UserInfo) -> Client {
        Client { identity: Some(Arc::new(user)), ..self.clone() }
    }

    /// The same client under another user agent, which is also the default field manager.
    pub fn with_user_agent(&self, user_agent: &str) -> Client {
        let user_agent = HeaderValue::from_str(user_agent).unwrap_or_else(|_| self.user_agent.clone());
        Client { user_agent, ..self.clone() }
    }

    /// Who this client speaks as, where it is not the transport's own identity.
    pub fn identity(&self) -> Option<&UserInfo> {
        self.identity.as_deref()
    }

    /// A request with this client's identity and user agent; `path` includes the query.
    pub fn request(&self, method: Method, path: &str, accept: &str, body: Bytes) -> Result<Request<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(ACCEPT, accept)
            .header(USER_AGENT, &self.user_agent);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, JSON);
        }
        let mut request = request.body(body)?;
        if let Some(user) = &self.identity {
            request.extensions_mut().insert(UserInfo::clone(user));
        }
        Ok(request)
    }

    /// Sends a request as it is and returns the answer, whatever its status, with its body unread.
    pub async fn raw(&self, request: Request<Bytes>) -> Result<Response<Body>> {
        Ok(self.transport.send(request).await?)
    }

    /// Sends a request and returns the body of a successful answer; any other is [`Error::Status`]. A server
    /// that is too busy and says when to come back (429) is asked again then, a few times.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Bytes> {
        let mut attempt = 0;
        loop {
            let error = match tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(request.clone())).await {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(error)) => error,
                Err(_) => return Err(TransportError::Timeout(REQUEST_TIMEOUT).into()),
            };
            let pause = error.status().filter(|s| s.code == 429).and_then(|s| s.details.as_deref());
            let pause = pause.map_or(0, |details| details.retry_after_seconds);
            attempt += 1;
            if pause <= 0 || attempt > BUSY_RETRIES_MAX {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_secs(pause as u64).min(REQUEST_TIMEOUT)).await;
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Bytes> {
        let (head, body) = self.transport.send(request).await?.into_parts();
        let bytes = body::collect(body, MAX_RESPONSE_BYTES).await.map_err(TransportError::Body)?;
        if head.status.is_success() { Ok(bytes) } else { Err(failure(head.status, &bytes)) }
    }

    /// Sends a request without a body to a path with query, for what is not a resource: `/version`, `/apis`.
    pub async fn get_path(&self, path: &str) -> Result<Bytes> {
        self.send(self.request(Method::GET, path, JSON, Bytes::new())?).await
    }

    /// Asks for an upgraded connection (exec, attach, port-forward).
    pub async fn upgrade(&self, request: Request<Bytes>) -> Result<(Response<Body>, Box<dyn Io>)> {
        match self.transport.upgrade(request).await? {
            (head, Some(io)) => Ok((head, io)),
            (response, None) => {
                let status = response.status();
                let bytes = body::collect(response.into_body(), MAX_RESPONSE_BYTES)
                    .await
                    .map_err(TransportError::Body)?;
                Err(if status.is_success() {
                    TransportError::NotUpgraded(status).into()
                } else {
                    failure(status, &bytes)
                })
            }
        }
    }

    /// Reads one object.
    pub async fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.get_bytes(gvr, namespace, name).await?)?)
    }

    /// Reads one object as the server's bytes.
    pub async fn get_bytes(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<Bytes> {
        self.get_path(&object_path(gvr, namespace, name, "")).await
    }

    /// Reads the metadata of one object, as `PartialObjectMetadata`.
    pub async fn get_metadata(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<Value> {
        let path = object_path(gvr, namespace, name, "");
        let bytes = self.send(self.request(Method::GET, &path, METADATA, Bytes::new())?).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Lists one page of objects.
    pub async fn list(&self, gvr: &Gvr, namespace: &str, params: &ListParams) -> Result<List> {
        let path = collection_path(gvr, namespace) + &params.query();
        let accept = if params.metadata_only { METADATA_LIST } else { JSON };
        List::parse(&self.send(self.request(Method::GET, &path, accept, Bytes::new())?).await?)
    }

    /// Starts a watch; resolves when the server has accepted it.
    pub async fn watch(&self, gvr: &Gvr, namespace: &str, params: &WatchParams) -> Result<WatchStream> {
        let path = collection_path(gvr, namespace) + &params.query();
        let accept = if params.metadata_only { METADATA } else { JSON };
        let request = self.request(Method::GET, &path, accept, Bytes::new())?;
        let response = match tokio::time::timeout(REQUEST_TIMEOUT, self.transport.send(request)).await {
            Ok(response) => response?,
            Err(_) => return Err(TransportError::Timeout(REQUEST_TIMEOUT).into()),
        };
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            return Ok(WatchStream::new(body));
        }
        let bytes = body::collect(body, MAX_RESPONSE_BYTES).await.map_err(TransportError::Body)?;
        Err(failure(head.status, &bytes))
    }

    /// Creates an object and returns it as stored.
    pub async fn create(&self, gvr: &Gvr, namespace: &str, object: &Value) -> Result<Value> {
        self.write(Method::POST, &collection_path(gvr, namespace), object).await
    }

    /// Creates an object with options.
    pub async fn create_with(
        &self,
        gvr: &Gvr,
        namespace: &str,
        object: &Value,
        params: &WriteParams,
    ) -> Result<Value> {
        let path = collection_path(gvr, namespace) + &params.query().finish();
        self.write(Method::POST, &path, object).await
    }

    /// Creates a subresource: `binding`, `eviction`, `token`.
    pub async fn create_subresource(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: &Value,
    ) -> Result<Value> {
        self.write(Method::POST, &object_path(gvr, namespace, name, subresource), object).await
    }

    /// Replaces an object; its `resourceVersion`, if set, must still be current.
    pub async fn update(&self, gvr: &Gvr, namespace: &str, name: &str, object: &Value) -> Result<Value> {
        self.update_subresource(gvr, namespace, name, "", object).await
    }

    /// Replaces the status of an object.
    pub async fn update_status(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> Result<Value> {
        self.update_subresource(gvr, namespace, name, "status", object).await
    }

    /// Replaces a subresource: `status`, `scale`, `finalize`, `approval`; or with "" the object itself.
    pub async fn update_subresource(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: &Value,
    ) -> Result<Value> {
        self.write(Method::PUT, &object_path(gvr, namespace, name, subresource), object).await
    }

    /// Patches an object or, with a non-empty `subresource`, its subresource.
    pub async fn patch(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Patch,
    ) -> Result<Value> {
        self.patch_with(gvr, namespace, name, subresource, patch, &WriteParams::default()).await
    }

    /// Patches with options.
    pub async fn patch_with(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Patch,
        params: &WriteParams,
    ) -> Result<Value> {
        let mut params = params.clone();
        let mut forced = false;
        if let Patch::Apply { manager, force, .. } = patch {
            params.field_manager.clone_from(manager);
            forced = *force;
        }
        let path =
            object_path(gvr, namespace, name, subresource) + &params.query().flag("force", forced).finish();
        let body = Bytes::from(serde_json::to_vec(patch.document())?);
        let mut request = self.request(Method::PATCH, &path, JSON, body)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(patch.content_type()));
        Ok(serde_json::from_slice(&self.send(request).await?)?)
    }

    /// Deletes an object. The answer is the object while it is terminating, or a `Status` when it is gone.
    pub async fn delete(
        &self,
        gvr: &Gvr,
        namespace: &str,
        name: &str,
        params: &DeleteParams,
    ) -> Result<Value> {
        self.write(Method::DELETE, &object_path(gvr, namespace, name, ""), &params.body()).await
    }

    /// Deletes everything in a collection that `filter` selects.
    pub async fn delete_collection(
        &self,
        gvr: &Gvr,
        namespace: &str,
        params: &DeleteParams,
        filter: &ListParams,
    ) -> Result<Value> {
        let path = collection_path(gvr, namespace) + &filter.query();
        self.write(Method::DELETE, &path, &params.body()).await
    }

    /// Sends a JSON document and reads the JSON answer.
    async fn write(&self, method: Method, path: &str, object: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(
            &self.write_bytes(method, path, serde_json::to_vec(object)?.into()).await?,
        )?)
    }

    /// Sends encoded JSON and returns the answer's bytes: for hot loops that do not read the answer.
    pub async fn write_bytes(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        self.send(self.request(method, path, JSON, body)?).await
    }
}

/// The error of an unsuccessful answer: the server's `Status`, or one made from what it sent instead.
fn failure(code: http::StatusCode, bytes: &[u8]) -> Error {
    serde_json::from_slice::<Status>(bytes)
        .unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(bytes);
            let text = text.trim();
            let message = if text.is_empty() { code.to_string() } else { text.chars().take(2048).collect() };
            Status::new(code.as_u16(), meta::Reason::Unknown, message)
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pods = Gvr::new("", "v1", "pods");
        assert_eq!(object_path(&pods, "ns", "a", "binding"), "/api/v1/namespaces/ns/pods/a/binding");
        assert_eq!(object_path(&Gvr::new("", "v1", "nodes"), "", "a/b", ""), "/api/v1/nodes/a%2Fb");
        assert_eq!(collection_path(&Gvr::new("apps", "v1", "deployments"), ""), "/apis/apps/v1/deployments");
    }

    #[test]
    fn lists_are_cut_without_copies() {
        let bytes = Bytes::from_static(
            br#"{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":[{"a":1}, {"b":2}]}"#,
        );
        let list = List::parse(&bytes).unwrap();
        assert_eq!((list.resource_version.as_str(), list.items.len()), ("9", 2));
        assert_eq!(&list.items[1][..], b"{\"b\":2}");
        assert!(
            List::parse(&Bytes::from_static(br#"{"metadata":{},"items":null}"#)).unwrap().items.is_empty()
        );
    }

    #[test]
    fn failures_without_a_status() {
        let error = failure(http::StatusCode::BAD_GATEWAY, b"nope\n");
        assert_eq!(error.to_string(), "nope");
        assert_eq!(error.status().map(|s| s.code), Some(502));
    }
}
