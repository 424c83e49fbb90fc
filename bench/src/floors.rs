//! What the machine itself can do, measured in the same minute: processes, synced appends, HTTPS.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::tls::Trust;
use client::{Client, Https, HttpsConfig};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// Runs per process figure.
const PROCESSES: usize = 50;
/// How long synced appends are counted.
const SYNC_TIME: Duration = Duration::from_secs(2);
/// Bytes per synced append: an object of 1 KiB with its key, framing and checksum.
const SYNC_BYTES: usize = 2048;

/// Times of fork, exec and exit of /bin/true; with `namespaces` in a mount, UTS, IPC, network and PID
/// namespace of its own, which is what a pod costs the kernel at the least.
pub fn processes(namespaces: bool) -> std::io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(PROCESSES);
    for _ in 0..PROCESSES {
        let mut command = Command::new("/bin/true");
        if namespaces {
            let flags = libc::CLONE_NEWNS
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWPID;
            // SAFETY: unshare is one system call and touches no memory of the parent.
            unsafe {
                command.pre_exec(move || match libc::unshare(flags) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
        }
        let started = Instant::now();
        command.status()?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// Appends that are on disk before the next one begins, per second.
pub fn synced_appends(directory: &Path) -> std::io::Result<f64> {
    let path = directory.join("synced");
    let mut file = File::create(&path)?;
    let (record, started, mut count) = ([b'x'; SYNC_BYTES], Instant::now(), 0u32);
    while started.elapsed() < SYNC_TIME {
        file.write_all(&record)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = f64::from(count) / started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}

/// An HTTPS server that answers a POST with its body and `GET /N` with N bytes.
pub struct Echo {
    address: SocketAddr,
    /// There until the drop, which ends the server.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        // A runtime may not wait for its threads within another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Echo {
    /// Starts it on a free port, on threads of its own.
    pub async fn start() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((tcp, _)) = listener.accept().await {
                let _ = tcp.set_nodelay(true);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
                });
            }
        });
        Ok(Echo { address, runtime: Some(runtime) })
    }

    /// A client with connections of its own.
    pub fn connect(&self) -> anyhow::Result<Client> {
        let mut config = HttpsConfig::new(format!("https://{}", self.address).parse()?);
        config.trust = Trust::Anybody;
        Ok(Client::new(Arc::new(Https::new(&config)?), "bench"))
    }
}

/// As many bytes as asked for, made before they are measured: a piece of the largest so far.
fn payload(size: usize) -> Bytes {
    static LARGEST: Mutex<Bytes> = Mutex::new(Bytes::new());
    let mut largest = LARGEST.lock().unwrap_or_else(PoisonError::into_inner);
    if largest.len() < size {
        *largest = vec![b'x'; size].into();
    }
    largest.slice(..size)
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.uri().path().trim_start_matches('/').parse::<usize>() {
        Ok(size) => payload(size),
        Err(_) => request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default(),
    };
    Ok(Response::new(Full::new(body)))
}
