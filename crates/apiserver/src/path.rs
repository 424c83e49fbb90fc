//! What a URL asks for: the parts of a resource request, and its verb.

use http::Method;

/// A parsed request line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// Kubernetes verb; the HTTP method in lower case for what is not a resource.
    pub verb: &'static str,
    /// Whether it is about a resource.
    pub is_resource: bool,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace or empty.
    pub namespace: String,
    /// Plural resource.
    pub resource: String,
    /// Name or empty.
    pub name: String,
    /// Subresource or empty.
    pub subresource: String,
    /// What follows the subresource, for proxies.
    pub rest: String,
}

/// Decoded query parameters, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (percent_decode(k), percent_decode(v))
        });
        Query(pairs.collect())
    }

    /// First value of a parameter; empty when absent.
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether a parameter is there.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// A boolean as Go's ParseBool reads it; an empty value counts as true.
    pub fn flag(&self, key: &str) -> bool {
        self.has(key) && matches!(self.get(key), "" | "1" | "t" | "T" | "true" | "TRUE" | "True")
    }
}

/// Decodes `%41` and `+`.
pub fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|c| (*c as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(a), Some(b)) => {
                out.push((a * 16 + b) as u8);
                i += 2;
            }
            (b'+', ..) => out.push(b' '),
            (c, ..) => out.push(c),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads method, path and query.
pub fn parse(method: &Method, path: &str, query: &Query) -> RequestInfo {
    let parts: Vec<String> = path.trim_matches('/').split('/').map(decode_segment).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return RequestInfo { verb: lower(method), ..Default::default() },
    };
    let mut info =
        RequestInfo { is_resource: true, group: group.into(), version: version.into(), ..Default::default() };
    let (rest, old_watch) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
        _ => (rest, false),
    };
    match rest {
        // A namespace's own subresources are addressed below the namespace.
        ["namespaces", name, sub @ ("finalize" | "status")] => {
            info.resource = "namespaces".into();
            info.name = (*name).into();
            info.namespace = (*name).into();
            info.subresource = (*sub).into();
        }
        ["namespaces", namespace, resource, rest @ ..] => {
            info.namespace = (*namespace).into();
            info.set(resource, rest);
        }
        ["namespaces", name] => {
            info.resource = "namespaces".into();
            info.name = (*name).into();
            info.namespace = (*name).into();
        }
        [resource, rest @ ..] => info.set(resource, rest),
        [] => {}
    }
    let watching = old_watch || (query.flag("watch") && *method == Method::GET);
    info.verb = match (method.as_str(), info.name.is_empty()) {
        ("GET" | "HEAD", _) if watching && info.subresource.is_empty() => "watch",
        ("GET" | "HEAD", true) => "list",
        ("GET" | "HEAD", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => "",
    };
    // A selection of one name counts as that name: nodes may watch just what their pods need.
    if matches!(info.verb, "list" | "watch" | "deletecollection")
        && info.name.is_empty()
        && let Ok(selector) = meta::FieldSelector::parse(query.get("fieldSelector"))
        && let Some(name) = selector.exact("metadata.name")
    {
        info.name = name.to_owned();
    }
    info
}

fn decode_segment(segment: &str) -> String {
    // `+` is itself in a path.
    if segment.contains('%') { percent_decode(&segment.replace('+', "%2B")) } else { segment.to_owned() }
}

fn lower(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "",
    }
}

impl RequestInfo {
    /// Whether the request takes as long as its client likes: no time limit and no seats beyond its beginning.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || (self.is_resource
                && matches!(self.subresource.as_str(), "attach" | "exec" | "log" | "portforward" | "proxy"))
    }

    fn set(&mut self, resource: &str, rest: &[&str]) {
        self.resource = resource.into();
        match rest {
            [name, sub, more @ ..] => {
                self.name = (*name).into();
                self.subresource = (*sub).into();
                self.rest = more.join("/");
            }
            [name] => self.name = (*name).into(),
            [] => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, url: &str) -> RequestInfo {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        parse(&method.parse().unwrap(), path, &Query::parse(query))
    }

    #[test]
    fn urls() {
        let i = info("GET", "/api/v1/namespaces/a/pods/b/log?follow=true");
        assert_eq!(
            (i.verb, &*i.namespace, &*i.resource, &*i.name, &*i.subresource),
            ("get", "a", "pods", "b", "log")
        );
        let i = info("GET", "/apis/apps/v1/deployments?watch=1");
        assert_eq!((i.verb, &*i.group, &*i.resource), ("watch", "apps", "deployments"));
        let i = info("DELETE", "/api/v1/namespaces/a");
        assert_eq!((i.verb, &*i.resource, &*i.name), ("delete", "namespaces", "a"));
        let i = info("PUT", "/api/v1/namespaces/a/finalize");
        assert_eq!((i.verb, &*i.resource, &*i.subresource), ("update", "namespaces", "finalize"));
        assert_eq!(info("GET", "/api/v1/watch/namespaces/a/pods").verb, "watch");
        assert_eq!(info("DELETE", "/api/v1/namespaces/a/pods").verb, "deletecollection");
        assert!(!info("GET", "/apis/apps/v1").is_resource);
        assert!(!info("GET", "/healthz").is_resource);
        let i = info("GET", "/api/v1/namespaces/a/secrets?watch=1&fieldSelector=metadata.name%3Dx");
        assert_eq!((i.verb, &*i.name), ("watch", "x"));
        assert_eq!(
            info("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode").name,
            "system:node"
        );
        assert_eq!(info("GET", "/api/v1/namespaces/a/pods/b:80/proxy/x/y").rest, "x/y");
    }

    #[test]
    fn queries() {
        let q = Query::parse("labelSelector=a%3Db%2Cc+in+%28d%29&command=x&command=y&watch");
        assert_eq!(q.get("labelSelector"), "a=b,c in (d)");
        assert_eq!(q.all("command").collect::<Vec<_>>(), ["x", "y"]);
        assert!(q.flag("watch") && !q.flag("follow"));
    }
}
