//! UDP and TCP: questions in, answers out. What the zone knows is answered on the spot; what has to be asked
//! elsewhere gets a task of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use parking_lot::{Mutex, RwLock};
use reconcile::{Context, Event, Informer};
use stdx::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::cache::{Cache, Key};
use crate::directory::{self, Directory};
use crate::forward;
use crate::zone::{Answer, Zone};

/// Questions being asked elsewhere at once; more are refused.
const FORWARDS_MAX: usize = 1024;
/// TCP connections at once.
const CONNECTIONS_MAX: usize = 256;
/// A TCP connection without a question for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Largest UDP answer, so that none is fragmented (the DNS flag day's recommendation).
const UDP_MAX: u16 = 1232;
/// UDP answer to clients that do not say how much they take.
const UDP_DEFAULT: u16 = 512;
/// Index of slices by `namespace/service`.
const BY_SERVICE: &str = "dns-service";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Domain of the cluster, e.g. `cluster.local`.
    pub domain: String,
    /// Servers for everything else; see [`forward::parse_resolv_conf`].
    pub upstreams: Vec<SocketAddr>,
}

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The domain is not a name.
    #[error("cluster domain: {0}")]
    Domain(#[from] hickory_proto::ProtoError),
}

struct Server {
    zone: Zone,
    upstreams: Vec<SocketAddr>,
    directory: RwLock<Directory>,
    cache: Mutex<Cache>,
    clock: Arc<dyn Clock>,
    forwards: Arc<Semaphore>,
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
}

/// Answers on these sockets until the context is cancelled. Questions that come before the first lists have
/// been taken in wait for them in the sockets.
///
/// # Errors
/// When the domain is not a name.
pub async fn run(context: &Context, config: Config, udp: UdpSocket, tcp: TcpListener) -> Result<(), Error> {
    let server = Arc::new(Server {
        zone: Zone::new(&config.domain)?,
        upstreams: config.upstreams,
        directory: RwLock::default(),
        cache: Mutex::default(),
        clock: context.clock.clone(),
        forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
        services: context.informers.get::<Service>(),
        slices: context.informers.get::<EndpointSlice>(),
    });
    let namespaces = context.informers.get::<Namespace>();
    let it = server.clone();
    namespaces.on_event(move |event| {
        let present = !matches!(event, Event::Deleted(_));
        it.directory.write().set_namespace(event.object().name(), present);
    });
    server.follow();
    let serve = async {
        namespaces.synced().await;
        server.services.synced().await;
        server.slices.synced().await;
        tokio::join!(server.clone().serve_udp(Arc::new(udp)), server.clone().serve_tcp(tcp));
    };
    tokio::select! {
        () = context.cancel.cancelled() => {}
        () = serve => {}
    }
    Ok(())
}

fn service_key(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME));
    name.map(|name| format!("{}/{name}", slice.namespace())).into_iter().collect()
}

/// An answer that is ready, or a question for somebody else.
enum Step {
    Answer(Box<Message>),
    Forward(Key),
}

impl Server {
    /// Keeps the directory in step with Services and slices.
    fn follow(self: &Arc<Self>) {
        self.slices.store().add_index(BY_SERVICE, service_key);
        let it = self.clone();
        self.services.on_event(move |event| {
            let service = event.object();
            match event {
                Event::Deleted(_) => it.directory.write().set(service.namespace(), service.name(), None),
                _ => it.refresh(&service.key()),
            }
        });
        let it = self.clone();
        self.slices.on_event(move |event| {
            service_key(event.object()).iter().for_each(|key| it.refresh(key));
            if let Event::Updated { old, .. } = event {
                service_key(old).iter().for_each(|key| it.refresh(key));
            }
        });
    }

    fn refresh(&self, key: &str) {
        let Some(service) = self.services.store().get(key) else { return };
        let slices = self.slices.store().by_index(BY_SERVICE, key);
        let entry = directory::entry(&service, &slices);
        self.directory.write().set(service.namespace(), service.name(), Some(entry));
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; usize::from(UDP_MAX) * 4];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An ICMP refusal of an earlier answer shows up here and means nothing.
                    tracing::debug!(%error, "receiving a question failed");
                    continue;
                }
            };
            let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
            if question.metadata.message_type != MessageType::Query {
                continue;
            }
            match self.step(&question) {
                Step::Answer(answer) => send_udp(&socket, peer, &question, *answer).await,
                Step::Forward(key) => {
                    let (server, socket) = (self.clone(), socket.clone());
                    tokio::spawn(async move {
                        let answer = server.forward(&question, key).await;
                        send_udp(&socket, peer, &question, answer).await;
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "accepting a connection failed");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let server = self.clone();
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = server.serve_stream(stream).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
    }

    async fn serve_stream(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let question = async {
                let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut bytes).await?;
                Ok::<_, std::io::Error>(bytes)
            };
            let Ok(bytes) = tokio::time::timeout(IDLE_MAX, question).await else { return Ok(()) };
            let question = Message::from_vec(&bytes?).map_err(std::io::Error::other)?;
            let answer = match self.step(&question) {
                Step::Answer(answer) => *answer,
                Step::Forward(key) => self.forward(&question, key).await,
            };
            let bytes = answer.to_vec().map_err(std::io::Error::other)?;
            let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend_from_slice(&bytes);
            stream.write_all(&framed).await?;
        }
    }

    /// Answers a question, unless somebody else has to be asked.
    fn step(&self, question: &Message) -> Step {
        let refuse = |code| Step::Answer(Box::new(reply(question, code)));
        let query = match question.queries.as_slice() {
            [query] => query,
            _ => return refuse(ResponseCode::FormErr),
        };
        if question.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        if query.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let serial = u32::try_from(self.clock.now().as_second()).unwrap_or(u32::MAX);
        let kind = query.query_type();
        let answer = self.zone.answer(&self.directory.read(), query.name(), kind, serial);
        let mut message = reply(question, ResponseCode::NoError);
        message.metadata.authoritative = true;
        match answer {
            Answer::Found { answers, additionals } => {
                // Another name outside the zone: the client wants to know what is behind it.
                let alias = matches!(answers.first().map(|r| &r.data), Some(RData::CNAME(_)));
                if alias && matches!(kind, RecordType::A | RecordType::AAAA) {
                    return Step::Forward(Key::new(query, wants_dnssec(question)));
                }
                message.answers = answers;
                message.additionals = additionals;
            }
            Answer::NoData => message.authorities.push(self.zone.soa(serial)),
            Answer::NoName => {
                message.metadata.response_code = ResponseCode::NXDomain;
                message.authorities.push(self.zone.soa(serial));
            }
            Answer::Elsewhere => {
                let key = Key::new(query, wants_dnssec(question));
                let Some(kept) = self.cache.lock().get(&key, self.clock.instant()) else {
                    return Step::Forward(key);
                };
                message = readdressed(kept, question);
            }
        }
        Step::Answer(Box::new(message))
    }

    /// Asks somebody else, following the zone's own aliases first.
    async fn forward(&self, question: &Message, key: Key) -> Message {
        let Ok(_permit) = self.forwards.try_acquire() else { return reply(question, ResponseCode::ServFail) };
        let mut asked = question.clone();
        let mut aliases = Vec::new();
        if let Some(query) = asked.queries.first_mut()
            && let Answer::Found { answers, .. } =
                self.zone.answer(&self.directory.read(), query.name(), query.query_type(), 0)
            && let Some(RData::CNAME(target)) = answers.first().map(|r| &r.data)
        {
            query.set_name(target.0.clone());
            aliases = answers.clone();
        }
        if !aliases.is_empty()
            && let Some(query) = asked.queries.first()
        {
            // The alias may lead to another Service of this cluster.
            let (name, kind) = (query.name(), query.query_type());
            if let Answer::Found { answers, .. } = self.zone.answer(&self.directory.read(), name, kind, 0) {
                let mut message = reply(question, ResponseCode::NoError);
                message.answers = aliases;
                message.answers.extend(answers);
                return message;
            }
        }
        match forward::ask(&self.upstreams, &asked).await {
            Ok(mut answer) => {
                if aliases.is_empty() {
                    self.cache.lock().put(key, answer.clone(), self.clock.instant());
                } else {
                    answer.answers.splice(0..0, aliases);
                }
                readdressed(answer, question)
            }
            Err(error) => {
                tracing::debug!(%error, "forwarding a question failed");
                reply(question, ResponseCode::ServFail)
            }
        }
    }
}

fn wants_dnssec(question: &Message) -> bool {
    question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
}

/// An answer without content.
fn reply(question: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries = question.queries.clone();
    message.edns = question.edns.as_ref().map(|_| own_edns());
    message
}

fn own_edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MAX);
    edns
}

/// Somebody else's answer as the answer to this question.
fn readdressed(mut answer: Message, question: &Message) -> Message {
    answer.metadata.id = question.metadata.id;
    answer.metadata.recursion_available = true;
    answer.metadata.authoritative = false;
    answer.queries = question.queries.clone();
    let dnssec = wants_dnssec(question);
    answer.edns = question.edns.as_ref().map(|_| {
        let mut edns = own_edns();
        edns.set_dnssec_ok(dnssec);
        edns
    });
    answer
}

async fn send_udp(socket: &UdpSocket, peer: SocketAddr, question: &Message, answer: Message) {
    let room = question.edns.as_ref().map_or(UDP_DEFAULT, |e| e.max_payload().clamp(UDP_DEFAULT, UDP_MAX));
    let bytes = match answer.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(room) => Ok(bytes),
        Ok(_) => answer.truncate().to_vec(),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => {
            if let Err(error) = socket.send_to(&bytes, peer).await {
                tracing::debug!(%error, %peer, "sending an answer failed");
            }
        }
        Err(error) => tracing::warn!(%error, "an answer cannot be encoded"),
    }
}
