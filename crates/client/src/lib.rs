//! One API client for every component, over HTTPS or in-process, plus kubeconfig and REST mapping.
//!
//! A [`Client`] turns verbs into requests and answers into values; a [`Transport`] carries them: [`Https`]
//! over the network, [`InProcess`] straight into the API server's handler. Components are written against
//! `Client` and cannot tell which one they have.
//!
//! **Invariant:** knows nothing of the API server's insides and of any one kind.

pub mod body;
pub mod client;
pub mod discovery;
pub mod error;
pub mod https;
pub mod in_process;
pub mod kubeconfig;
pub mod params;
pub mod pool;
pub mod tls;
pub mod transport;
pub mod typed;
pub mod watch;

pub use body::{Body, BoxError};
pub use client::{Client, List};
pub use discovery::{ApiResource, RestMapper};
pub use error::{Error, Result};
pub use http::Method;
pub use https::{FileToken, Https, HttpsConfig, StaticToken, TokenSource};
pub use in_process::{Handler, InProcess};
pub use kubeconfig::{Kubeconfig, KubeconfigError};
pub use params::{DeleteParams, ListParams, Patch, Propagation, WatchParams, WriteParams};
pub use transport::{BoxFuture, Io, Transport, TransportError};
pub use watch::{EventKind, WatchEvent, WatchStream};
