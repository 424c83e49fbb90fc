//! What a request's query asks for. The API server passes the client's query on unchanged, so the API's names
//! (`stdin`, `stdout`, `stderr`, `ports`) are understood as well as the kubelet's (`input`, `output`,
//! `error`, `port`).

/// Most ports of one WebSocket: each takes two of the channel numbers that fit a byte.
const PORTS_MAX: usize = 127;

/// What is wrong with a query; the text is the answer to the client.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Error {
    /// No stream at all is wanted.
    #[error("you must specify at least 1 of stdin, stdout, stderr")]
    NoStream,
    /// Nothing to run.
    #[error("you must specify a command")]
    NoCommand,
    /// No port.
    #[error("query parameter \"port\" is required")]
    NoPort,
    /// Not a number between 1 and 65535.
    #[error("unable to parse {0:?} as a port")]
    Port(String),
    /// Port 0.
    #[error("port {0:?} must be > 0")]
    PortZero(String),
    /// More ports than channels.
    #[error("at most {PORTS_MAX} ports can be forwarded on one WebSocket")]
    Ports,
}

/// What exec and attach ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    /// Never with a terminal, which mixes both.
    pub(super) stderr: bool,
    pub(super) tty: bool,
    pub(super) command: Vec<String>,
}

/// The pairs of a query, decoded.
fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// Undoes percent encoding; what is no code stays as it is.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok().filter(|hex| !hex.starts_with('+'))?;
            u8::from_str_radix(hex, 16).ok()
        });
        rest = match (byte, code) {
            (b'%', Some(code)) => {
                out.push(code);
                &after[2..]
            }
            (byte, _) => {
                out.push(if byte == b'+' { b' ' } else { byte });
                after
            }
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads the query of exec (with `needs_command`) or attach.
pub(super) fn remote(query: &str, needs_command: bool) -> Result<Remote, Error> {
    let mut options = Remote::default();
    for (name, value) in pairs(query) {
        let on = matches!(value.as_str(), "1" | "t" | "T" | "true" | "True" | "TRUE");
        match name.as_str() {
            "stdin" | "input" => options.stdin |= on,
            "stdout" | "output" => options.stdout |= on,
            "stderr" | "error" => options.stderr |= on,
            "tty" => options.tty |= on,
            "command" => options.command.push(value),
            _ => {}
        }
    }
    if options.tty {
        options.stderr = false;
    }
    if !(options.stdin || options.stdout || options.stderr) {
        return Err(Error::NoStream);
    }
    if needs_command && options.command.is_empty() {
        return Err(Error::NoCommand);
    }
    Ok(options)
}

/// A port number as text.
pub(super) fn port(text: &str) -> Result<u16, Error> {
    match text.parse::<u16>() {
        Ok(0) => Err(Error::PortZero(text.to_owned())),
        Ok(port) => Ok(port),
        Err(_) => Err(Error::Port(text.to_owned())),
    }
}

/// The ports that a WebSocket's query asks for, in the order of its channels.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, Error> {
    let mut found = Vec::new();
    for (_, value) in pairs(query).filter(|(name, _)| matches!(name.as_str(), "port" | "ports")) {
        for text in value.split(',') {
            found.push(port(text.trim())?);
        }
    }
    match found.len() {
        0 => Err(Error::NoPort),
        1..=PORTS_MAX => Ok(found),
        _ => Err(Error::Ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_naming() {
        let wanted = Remote {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
            command: vec!["sh".into(), "-c".into(), "echo 100% a+b".into()],
        };
        let command = "command=sh&command=-c&command=echo+100%25%20a%2Bb";
        let api = format!("{command}&container=c&stdin=true&stdout=true&stderr=true&tty=false");
        let kubelet = format!("{command}&input=1&output=1&error=1");
        assert_eq!(remote(&api, true), Ok(wanted.clone()));
        assert_eq!(remote(&kubelet, true), Ok(wanted));
    }

    #[test]
    fn what_cannot_be() {
        let terminal = remote("stdout=1&stderr=1&tty=1&command=a", true).unwrap();
        assert!(terminal.tty && !terminal.stderr, "a terminal has one output");
        assert_eq!(remote("stderr=1&tty=1&command=a", true), Err(Error::NoStream));
        assert_eq!(remote("stdout=1", true), Err(Error::NoCommand));
        assert!(remote("stdout=1", false).is_ok());
    }

    #[test]
    fn ports_of_a_query() {
        let table: [(&str, Result<Vec<u16>, Error>); 6] = [
            ("ports=80&ports=443", Ok(vec![80, 443])),
            ("port=80%2C81", Ok(vec![80, 81])),
            ("", Err(Error::NoPort)),
            ("port=0", Err(Error::PortZero("0".into()))),
            ("port=70000", Err(Error::Port("70000".into()))),
            ("port=x", Err(Error::Port("x".into()))),
        ];
        for (query, want) in table {
            assert_eq!(ports(query), want, "{query}");
        }
        assert_eq!(ports(&"port=1&".repeat(128)), Err(Error::Ports));
    }

    #[test]
    fn codes() {
        for (text, want) in [("a%2", "a%2"), ("%zz", "%zz"), ("%+1", "% 1"), ("%C3%BC", "\u{fc}"), ("%", "%")]
        {
            assert_eq!(decode(text), want);
        }
    }
}
