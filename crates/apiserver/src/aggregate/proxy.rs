//! Handing a request on to the server behind an APIService.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, header};
use meta::UserInfo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::Remote;
use crate::body::{Answer, Body, text};
use crate::server::Server;

/// Longest time to make a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What the upstream proxy answers when there is nobody to ask.
fn unavailable(why: &str) -> Answer {
    text(503, format!("{why}\n"))
}

/// Sends a request on; the answer comes back as it is.
pub async fn forward(
    server: &Server,
    remote: &Arc<Remote>,
    mut request: Request<Body>,
    user: &UserInfo,
) -> Answer {
    if !remote.available {
        return unavailable("service unavailable");
    }
    identify(request.headers_mut(), user);
    match exchange(server, remote, request).await {
        Ok(answer) => answer,
        Err(why) => unavailable(&why),
    }
}

/// One request to the remote server, whether it is available or not.
pub async fn exchange(server: &Server, remote: &Remote, request: Request<Body>) -> Result<Answer, String> {
    let (host, port) = crate::webhook::endpoint(server, &remote.namespace, &remote.service, remote.port)?;
    let tls = remote.tls.clone()?;
    let dial = TcpStream::connect((host.as_str(), port));
    let timeout = || format!("dial tcp {host}:{port}: i/o timeout");
    let tcp = tokio::time::timeout(CONNECT_MAX, dial).await.map_err(|_| timeout())?;
    let tcp = tcp.map_err(|e| format!("dial tcp {host}:{port}: connect: {}", crate::webhook::plain(&e)))?;
    tcp.set_nodelay(true).ok();
    let name = format!("{}.{}.svc", remote.service, remote.namespace);
    let server_name = ServerName::try_from(name.clone()).map_err(|e| e.to_string())?;
    let shake = tokio_rustls::TlsConnector::from(tls).connect(server_name, tcp);
    let io = tokio::time::timeout(CONNECT_MAX, shake).await.map_err(|_| timeout())?;
    let io = io.map_err(|e| crate::webhook::tls_problem(&e, &name))?;
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let sent = crate::kubelet::forward_over(Box::new(io), request, &path, &name).await;
    sent.map_err(|status| status.message)
}

/// Puts the caller's identity into the headers, and takes out what the caller says itself of who it is.
fn identify(headers: &mut http::HeaderMap, user: &UserInfo) {
    let said: Vec<HeaderName> = headers
        .keys()
        .filter(|n| n.as_str().starts_with("x-remote-") || n.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in said {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
    let mut add = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(name, value);
        }
    };
    add(HeaderName::from_static("x-remote-user"), &user.username);
    if !user.uid.is_empty() {
        add(HeaderName::from_static("x-remote-uid"), &user.uid);
    }
    for group in &user.groups {
        add(HeaderName::from_static("x-remote-group"), group);
    }
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::from_bytes(format!("x-remote-extra-{}", escape(key)).as_bytes()) else {
            continue;
        };
        values.iter().for_each(|value| add(name.clone(), value));
    }
}

/// A key as part of a header's name: what may not stand there is escaped as in a URL.
fn escape(key: &str) -> String {
    let mut out = String::new();
    for b in key.to_ascii_lowercase().bytes() {
        match b {
            b'a'..=b'z'
            | b'0'..=b'9'
            | b'-'
            | b'.'
            | b'_'
            | b'!'
            | b'#'
            | b'$'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'^'
            | b'`'
            | b'|'
            | b'~' => {
                out.push(char::from(b));
            }
            b => out.push_str(&format!("%{b:02x}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_the_servers_to_say() {
        let mut headers = http::HeaderMap::new();
        for (name, value) in
            [("x-remote-user", "root"), ("x-remote-group", "system:masters"), ("authorization", "Bearer x")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        let mut user = UserInfo::authenticated("jane", &["dev"]);
        user.extra.insert("Example.com/a".into(), vec!["1".into(), "2".into()]);
        identify(&mut headers, &user);
        let all = |name: &str| {
            headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["dev", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2fa"), ["1", "2"]);
        assert!(!headers.contains_key("authorization"));
    }
}
