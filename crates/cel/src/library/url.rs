//! URLs, as far as expressions look into them.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, Opaque, quoted, text};
use crate::value::{Key, Map, Text, Value};

/// A parsed absolute URL, or an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
    whole: String,
}

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("url", |a| match a {
        [Value::String(s)] => match Url::parse(s) {
            Ok(url) => Ok(Value::Opaque(Opaque::Url(Rc::new(url)))),
            Err(why) => {
                Err(EvalError::failed(format!("URL parse error during conversion from string: {why}")))
            }
        },
        _ => Err(EvalError::no_overload()),
    }),
    ("isURL", |a| match a {
        [Value::String(s)] => Ok(Value::Bool(Url::parse(s).is_ok())),
        _ => Err(EvalError::no_overload()),
    }),
    ("getScheme", |a| part(a, |u| u.scheme.clone())),
    ("getHost", |a| part(a, |u| u.host.clone())),
    ("getHostname", |a| part(a, |u| u.host_and_port().0.to_owned())),
    ("getPort", |a| part(a, |u| u.host_and_port().1.to_owned())),
    ("getEscapedPath", |a| part(a, |u| escaped(&u.path))),
    ("getQuery", query),
];

fn part<'a>(a: &[Value<'a>], f: fn(&Url) -> String) -> Outcome<'a> {
    match a {
        [Value::Opaque(Opaque::Url(u))] => Ok(text(f(u))),
        _ => Err(EvalError::no_overload()),
    }
}

impl Url {
    /// Parses as Go's `ParseRequestURI` does: an absolute URL or an absolute path.
    pub(crate) fn parse(s: &str) -> Result<Url, String> {
        let fail = |why: &str| Err(format!("parse {}: {why}", quoted(s)));
        if s.is_empty() {
            return fail("empty url");
        }
        if s.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(format!("parse {}: net/url: invalid control character in URL", quoted(s)));
        }
        let (scheme, rest) = match s.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))) {
            Some(0) if s.starts_with(':') => return fail("missing protocol scheme"),
            Some(at)
                if at > 0 && s[at..].starts_with(':') && s.starts_with(|c: char| c.is_ascii_alphabetic()) =>
            {
                (s[..at].to_ascii_lowercase(), &s[at + 1..])
            }
            _ => (String::new(), s),
        };
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !rest.starts_with('/') {
            // Something like `mailto:x` has no parts to look at.
            return if scheme.is_empty() {
                fail("invalid URI for request")
            } else {
                Ok(Url {
                    scheme,
                    host: String::new(),
                    path: String::new(),
                    query: query.into(),
                    whole: s.into(),
                })
            };
        }
        let (host, path) = match rest.strip_prefix("//") {
            Some(after) if !scheme.is_empty() || !rest.starts_with("///") => {
                let end = after.find('/').unwrap_or(after.len());
                let authority = &after[..end];
                (authority.rsplit_once('@').map_or(authority, |(_, h)| h), &after[end..])
            }
            _ => ("", rest),
        };
        if host.contains(' ') {
            return fail("invalid character \" \" in host name");
        }
        let url = Url { scheme, host: host.into(), path: path.into(), query: query.into(), whole: s.into() };
        let port = url.host_and_port().1;
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return fail(&format!("invalid port {:?} after host", format!(":{port}")));
        }
        Ok(url)
    }

    fn host_and_port(&self) -> (&str, &str) {
        if let Some((host, after)) = self.host.strip_prefix('[').and_then(|h| h.split_once(']')) {
            return (host, after.strip_prefix(':').unwrap_or_default());
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }
}

/// The path with what may not stand in one escaped.
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

fn unescaped(s: &str) -> Option<String> {
    let mut out = Vec::with_capacity(s.len());
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let hex = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?
            }
            b => b,
        });
    }
    String::from_utf8(out).ok()
}

fn query<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Opaque(Opaque::Url(url))] = a else { return Err(EvalError::no_overload()) };
    let mut out: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (unescaped(key), unescaped(value)) {
            out.entry(key).or_default().push(text(value));
        }
    }
    let entries = out.into_iter().map(|(k, v)| (Key::String(Text::Shared(k.into())), Value::list(v)));
    Ok(Value::Map(Map::Made(Rc::new(entries.collect()))))
}
