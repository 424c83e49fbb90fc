//! A tool for pods that busybox is not enough for: servers and clients of UDP, of gRPC's health protocol and
//! of the guestbook. It is this very program: pods get it with its libraries from the host, read-only.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use testkit::pods::pod;

/// First argument that makes this program the tool.
pub const NAME: &str = "agnhost";
/// Where pods find it.
const PATH: &str = "/agnhost";
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A pod that runs the tool with these arguments.
pub fn tool(name: &str, arguments: &[&str]) -> anyhow::Result<Value> {
    let program = std::env::current_exe()?;
    let listed = testkit::cluster::succeed(Command::new("ldd").arg(&program))?;
    // Lines like `libc.so.6 => /lib/libc.so.6 (0x1)` and `/lib64/ld.so (0x1)`.
    let libraries =
        listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let mut files = vec![(program.display().to_string(), PATH.to_owned())];
    files.extend(libraries.map(|path| (path.to_owned(), path.to_owned())));
    let volume = |(i, file): (usize, &(String, String))| json!({"name": format!("v{i}"), "hostPath": {"path": file.0, "type": "File"}});
    let mount = |(i, file): (usize, &(String, String))| json!({"name": format!("v{i}"), "mountPath": file.1, "readOnly": true});
    let command: Vec<&str> = [PATH, NAME].iter().chain(arguments).copied().collect();
    Ok(pod(name, "", |spec| {
        spec["volumes"] = files.iter().enumerate().map(volume).collect();
        let container = &mut spec["containers"][0];
        container["volumeMounts"] = files.iter().enumerate().map(mount).collect();
        container["command"] = json!(command);
    }))
}

/// What a pod with the tool is told by a server; `None` if it gets no answer.
pub fn ask(
    s: &testkit::Scope<'_>,
    from: &str,
    protocol: &str,
    host: &str,
    port: &str,
) -> anyhow::Result<Option<String>> {
    let out = s.kubectl_raw(&["exec", from, "--", PATH, NAME, "ask", protocol, host, port])?;
    Ok(out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned()))
}

/// The tool itself.
pub fn main(arguments: &[String]) -> ExitCode {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let option = |name: &str| {
        let at = arguments.iter().position(|a| *a == name);
        at.and_then(|at| arguments.get(at + 1)).copied()
    };
    let port = |name: &str, default: u16| option(name).map_or(Ok(default), str::parse);
    match arguments {
        ["ask", protocol, host, port] => {
            println!("{}", client(protocol, host, port.parse()?)?);
            Ok(())
        }
        ["netexec", ..] => {
            let (http, udp) = (port("--http-port", 8080)?, port("--udp-port", 8081)?);
            let socket = UdpSocket::bind(("0.0.0.0", udp))?;
            std::thread::spawn(move || echo(&socket));
            serve(http, |_, _, _| Ok(hostname()))
        }
        ["guestbook", ..] => {
            guestbook(option("--backend-port"), option("--replicaof"), port("--http-port", 80)?)
        }
        ["grpc-health-checking", ..] => health(port("--port", 5000)?),
        other => bail!("cannot {other:?}"),
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Tells everybody who sends `hostname` what that is, and others what they said.
fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let said = String::from_utf8_lossy(&buffer[..length]).trim().to_owned();
        let answer = if said.eq_ignore_ascii_case("hostname") { hostname() } else { said };
        // A client that has left gets nothing.
        socket.send_to(answer.as_bytes(), from).ok();
    }
}

/// Asks a server of this tool for its name.
fn client(protocol: &str, host: &str, port: u16) -> anyhow::Result<String> {
    match protocol {
        "udp" => {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect((host, port))?;
            socket.send(b"hostname")?;
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        }
        _ => get(host, port, "/hostname"),
    }
}

/// GET by hand: the body of a good answer.
fn get(host: &str, port: u16, path: &str) -> anyhow::Result<String> {
    use std::net::ToSocketAddrs;
    let address = (host, port).to_socket_addrs()?.next().context("no address")?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Serves `grpc.health.v1.Health/Check`, which is always well.
fn health(port: u16) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
        loop {
            let (tcp, _) = listener.accept().await?;
            let service = service_fn(|request: Request<Incoming>| async move {
                let known = request.uri().path() == "/grpc.health.v1.Health/Check";
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(if known { "0" } else { "12" }));
                // `HealthCheckResponse{status: SERVING}` in a frame of gRPC.
                let serving = known.then(|| Frame::data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])));
                let frames = serving.into_iter().chain([Frame::trailers(trailers)]).map(Ok::<_, Infallible>);
                let frames: Vec<_> = frames.collect();
                let response = Response::builder().header("content-type", "application/grpc");
                response.body(StreamBody::new(futures_util::stream::iter(frames)))
            });
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.serve_connection(TokioIo::new(tcp), service).await.ok();
            });
        }
    })
}

/// The guestbook: a store that tells its replicas, a replica, or a front end for both.
fn guestbook(backend: Option<&str>, replica_of: Option<&str>, port: u16) -> anyhow::Result<()> {
    let store: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let replicas: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let Some(backend) = backend.map(str::parse::<u16>).transpose()? else {
        bail!("no --backend-port");
    };
    let role = replica_of.map_or("frontend", |of| if of.is_empty() { "primary" } else { "replica" });
    if let Some(primary) = replica_of.filter(|of| !of.is_empty()) {
        // The primary may come later: we tell it where we are until it has heard us.
        let (primary, store) = (primary.to_owned(), store.clone());
        std::thread::spawn(move || {
            loop {
                let known = get(&primary, backend, &format!("/register?port={port}"));
                match known.and_then(|text| Ok(serde_json::from_str::<BTreeMap<String, String>>(&text)?)) {
                    Ok(all) => return store.lock().extend(all),
                    // Nobody tells when it is there.
                    Err(_) => std::thread::park_timeout(PATIENCE / 10),
                }
            }
        });
    }
    serve(port, move |path, query, from| {
        let of = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let (key, value) = (of("key"), of("value"));
        match (role, path) {
            ("primary", "/register") => {
                replicas.lock().push(SocketAddr::new(from.ip(), of("port").parse()?));
                Ok(serde_json::to_string(&*store.lock())?)
            }
            ("primary" | "replica", "/set") => {
                store.lock().insert(key.to_owned(), value.to_owned());
                for replica in replicas.lock().iter() {
                    get(&replica.ip().to_string(), replica.port(), &format!("/set?key={key}&value={value}"))?;
                }
                Ok(json!({"data": "Updated"}).to_string())
            }
            ("primary" | "replica", "/get") => {
                Ok(json!({"data": store.lock().get(key).cloned().unwrap_or_default()}).to_string())
            }
            ("frontend", "/guestbook") if of("cmd") == "set" => {
                get("agnhost-primary", backend, &format!("/set?key={key}&value={value}"))
            }
            ("frontend", "/guestbook") => get("agnhost-replica", backend, &format!("/get?key={key}")),
            _ => bail!("no {path} at the {role}"),
        }
    })
}

/// Serves HTTP: from path, query and who asks to the answer. Every connection has one request.
fn serve(
    port: u16,
    answer: impl Fn(&str, &BTreeMap<String, String>, SocketAddr) -> anyhow::Result<String> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let answer = Arc::new(answer);
    let listener = std::net::TcpListener::bind(("0.0.0.0", port))?;
    loop {
        let (mut tcp, from) = listener.accept()?;
        let answer = answer.clone();
        std::thread::spawn(move || -> anyhow::Result<()> {
            tcp.set_read_timeout(Some(PATIENCE))?;
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && tcp.read(&mut byte)? == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head);
            let target = head.split_whitespace().nth(1).unwrap_or("/");
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let (code, text) = match answer(path, &parameters(query), from) {
                Ok(text) => ("200 OK", text),
                Err(error) => ("500 Internal Server Error", format!("{error:#}")),
            };
            let length = text.len();
            write!(tcp, "HTTP/1.1 {code}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}")?;
            Ok(())
        });
    }
}
