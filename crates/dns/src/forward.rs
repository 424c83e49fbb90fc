//! Asking other servers: over UDP, over TCP where an answer does not fit, the next server where one is silent.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer over UDP.
const UDP_MAX: usize = 4096;

/// Why nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no other server.
    #[error("no upstream resolver is configured")]
    Nobody,
    /// The network failed.
    #[error("{server}: {source}")]
    Io {
        /// Who was asked.
        server: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The server was silent.
    #[error("{0} did not answer in time")]
    Timeout(SocketAddr),
    /// The server's answer makes no sense.
    #[error("{server}: {reason}")]
    Garbled {
        /// Who was asked.
        server: SocketAddr,
        /// What is wrong.
        reason: String,
    },
}

/// The resolvers of a `resolv.conf`.
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    servers.filter_map(|word| word.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// Asks the servers in order; the first answer counts. The answer's id is the question's.
pub async fn ask(servers: &[SocketAddr], question: &Message) -> Result<Message, ForwardError> {
    let mut failure = ForwardError::Nobody;
    for server in servers {
        match tokio::time::timeout(PATIENCE, ask_one(*server, question)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = ForwardError::Timeout(*server),
        }
    }
    Err(failure)
}

async fn ask_one(server: SocketAddr, question: &Message) -> Result<Message, ForwardError> {
    let io = |source| ForwardError::Io { server, source };
    let garbled = |reason: String| ForwardError::Garbled { server, reason };
    // A fresh id and, by a fresh socket, a fresh port: what a forger would have to guess.
    let mut own = question.clone();
    own.metadata.id = Message::query().metadata.id;
    let bytes = own.to_vec().map_err(|e| garbled(e.to_string()))?;
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    socket.send(&bytes).await.map_err(io)?;
    let mut buffer = vec![0; UDP_MAX];
    let answer = loop {
        let length = socket.recv(&mut buffer).await.map_err(io)?;
        match Message::from_vec(&buffer[..length]) {
            // Anything else on this socket is a forgery or a straggler.
            Ok(answer) if is_answer_to(&answer, &own) => break answer,
            _ => {}
        }
    };
    let mut answer = if answer.metadata.truncation {
        let whole = ask_tcp(server, &bytes).await.map_err(io)?;
        Message::from_vec(&whole).map_err(|e| garbled(e.to_string()))?
    } else {
        answer
    };
    answer.metadata.id = question.metadata.id;
    Ok(answer)
}

fn is_answer_to(answer: &Message, question: &Message) -> bool {
    let same = |a: &hickory_proto::op::Query, b: &hickory_proto::op::Query| {
        a.name().to_ascii().eq_ignore_ascii_case(&b.name().to_ascii()) && a.query_type() == b.query_type()
    };
    answer.metadata.id == question.metadata.id
        && match (answer.queries.first(), question.queries.first()) {
            (Some(a), Some(b)) => same(a, b),
            _ => false,
        }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text =
            "# by hand\nsearch a b\nnameserver 10.0.0.2\nnameserver fd00::1\nnameserver fe80::1%eth0\n";
        let servers: Vec<String> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.2:53", "[fd00::1]:53"]);
    }
}
