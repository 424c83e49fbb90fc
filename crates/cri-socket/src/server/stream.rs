//! The streaming server: Exec, Attach and PortForward answer with a URL that is good for one connection, within
//! a minute. It listens on loopback from its first use on, so that a runtime nobody streams from costs nothing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::RuntimeService;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rpc::cri as pb;
use rpc::tonic::Status;
use streaming::{Handler, Operation, Session};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a URL is good.
const TICKET_MAX_AGE: Duration = Duration::from_secs(60);
/// URLs that wait to be used.
const TICKETS_MAX: usize = 1000;

/// What a URL stands for.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    operation: Operation,
    sandbox_id: String,
    container_id: Option<String>,
    tty: bool,
    query: String,
}

/// Streams of a request that must want at least one.
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn check(&self) -> Result<(), Status> {
        if self.tty && self.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        match self.stdin || self.stdout || self.stderr {
            true => Ok(()),
            false => Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set")),
        }
    }

    fn query(&self) -> String {
        let flag = |name: &str, on: bool| if on { format!("&{name}=1") } else { String::new() };
        [
            flag("input", self.stdin),
            flag("output", self.stdout),
            flag("error", self.stderr),
            flag("tty", self.tty),
        ]
        .concat()
    }
}

/// Percent-encodes all but letters, digits and a few marks.
fn encode(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

impl Ticket {
    /// For a command in this container.
    pub(super) fn exec(request: &pb::ExecRequest, container: String) -> Result<Ticket, Status> {
        let pb::ExecRequest { stdin, stdout, stderr, tty, .. } = *request;
        let wanted = Wanted { stdin, stdout, stderr, tty };
        wanted.check()?;
        let command: String = request.cmd.iter().map(|word| format!("&command={}", encode(word))).collect();
        let query = format!("{command}{}", wanted.query());
        let (sandbox_id, container_id) = (String::new(), Some(container));
        Ok(Ticket { operation: Operation::Exec, sandbox_id, container_id, tty, query })
    }

    /// For the first process of this container.
    pub(super) fn attach(request: &pb::AttachRequest, container: String) -> Result<Ticket, Status> {
        let pb::AttachRequest { stdin, stdout, stderr, tty, .. } = *request;
        let wanted = Wanted { stdin, stdout, stderr, tty };
        wanted.check()?;
        let (sandbox_id, container_id) = (String::new(), Some(container));
        Ok(Ticket { operation: Operation::Attach, sandbox_id, container_id, tty, query: wanted.query() })
    }

    /// For ports of this sandbox.
    pub(super) fn forward(request: &pb::PortForwardRequest, sandbox_id: String) -> Ticket {
        let query = request.port.iter().map(|port| format!("&port={port}")).collect();
        Ticket { operation: Operation::PortForward, sandbox_id, container_id: None, tty: false, query }
    }
}

/// The server.
pub(super) struct Streamer {
    runtime: Arc<dyn RuntimeService>,
    handler: Handler,
    tickets: Mutex<HashMap<String, (Ticket, Instant)>>,
    listening: tokio::sync::Mutex<Option<(SocketAddr, DropGuard)>>,
}

impl std::fmt::Debug for Streamer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streamer").field("tickets", &self.tickets.lock().len()).finish_non_exhaustive()
    }
}

impl Streamer {
    pub(super) fn new(runtime: Arc<dyn RuntimeService>) -> Streamer {
        Streamer {
            runtime,
            handler: streaming::handler(),
            tickets: Mutex::default(),
            listening: tokio::sync::Mutex::default(),
        }
    }

    /// A URL for a ticket.
    pub(super) async fn url(self: &Arc<Self>, ticket: Ticket) -> Result<String, Status> {
        let address = self
            .address()
            .await
            .map_err(|error| Status::internal(format!("the streaming server cannot listen: {error}")))?;
        let what = match ticket.operation {
            Operation::Exec => "exec",
            Operation::Attach => "attach",
            Operation::PortForward => "portforward",
        };
        let token = format!("{:032x}", rand::random::<u128>());
        let mut tickets = self.tickets.lock();
        tickets.retain(|_, (_, made)| made.elapsed() < TICKET_MAX_AGE);
        if tickets.len() >= TICKETS_MAX {
            return Err(Status::resource_exhausted("maximum number of in-flight requests exceeded"));
        }
        tickets.insert(token.clone(), (ticket, Instant::now()));
        Ok(format!("http://{address}/{what}/{token}"))
    }

    async fn address(self: &Arc<Self>) -> std::io::Result<SocketAddr> {
        let mut listening = self.listening.lock().await;
        if let Some((address, _)) = &*listening {
            return Ok(*address);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let cancel = CancellationToken::new();
        // Weak: the server ends with the last service that gives out URLs.
        tokio::spawn(accept(Arc::downgrade(self), listener, cancel.clone()));
        *listening = Some((address, cancel.drop_guard()));
        Ok(address)
    }

    /// Takes the ticket behind a path; it cannot be used again.
    fn take(&self, path: &str) -> Option<Ticket> {
        let token = path.rsplit('/').next()?;
        let (ticket, made) = self.tickets.lock().remove(token)?;
        (made.elapsed() < TICKET_MAX_AGE).then_some(ticket)
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<client::Body> {
        let refused = |status: StatusCode| {
            let mut response =
                Response::new(client::body::full(status.canonical_reason().unwrap_or_default()));
            *response.status_mut() = status;
            response
        };
        let Some(ticket) = self.take(request.uri().path()) else { return refused(StatusCode::NOT_FOUND) };
        let Ok(uri) = format!("/?{}", ticket.query.trim_start_matches('&')).parse() else {
            return refused(StatusCode::BAD_REQUEST);
        };
        *request.uri_mut() = uri;
        (self.handler)(Session {
            operation: ticket.operation,
            sandbox_id: ticket.sandbox_id,
            container_id: ticket.container_id,
            container_tty: ticket.tty,
            runtime: self.runtime.clone(),
            request,
        })
        .await
    }
}

async fn accept(streamer: std::sync::Weak<Streamer>, listener: TcpListener, cancel: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Some(streamer) = streamer.upgrade() else { return };
        let Ok((io, _)) = accepted else {
            // Out of descriptors, most likely: turning at once would only burn CPU.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let streamer = streamer.clone();
                async move { Ok::<_, Infallible>(streamer.answer(request).await) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            if let Err(error) = server.serve_connection(TokioIo::new(io), service).with_upgrades().await {
                tracing::debug!(%error, "a streaming connection ended");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets() {
        let request =
            pb::ExecRequest { cmd: vec!["a b".into(), "&".into()], stdout: true, ..Default::default() };
        let ticket = Ticket::exec(&request, "c".into()).unwrap();
        assert_eq!(ticket.query, "&command=a%20b&command=%26&output=1");
        let refused =
            |request: &pb::ExecRequest| Ticket::exec(request, "c".into()).unwrap_err().message().to_owned();
        assert_eq!(refused(&pb::ExecRequest::default()), "one of stdin, stdout, or stderr must be set");
        let both = pb::ExecRequest { tty: true, stderr: true, ..Default::default() };
        assert_eq!(refused(&both), "tty and stderr cannot both be true");
        let ports = pb::PortForwardRequest { port: vec![80, 443], ..Default::default() };
        assert_eq!(Ticket::forward(&ports, "s".into()).query, "&port=80&port=443");
    }
}
