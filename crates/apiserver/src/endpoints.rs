//! Paths that are no resources: health, version, metrics, discovery, OpenAPI, token keys.

use std::sync::atomic::Ordering;

use http::{HeaderValue, Method, Request, header};
use meta::{Reason, Status};
use serde_json::json;

use crate::body::{self, Answer, Body};
use crate::negotiate;
use crate::path::Query;
use crate::server::Server;

/// The Kubernetes version that is reproduced.
pub const GIT_VERSION: &str = "v1.37.0+ferry";

/// Answers a path that is no resource.
pub fn serve(server: &Server, request: &Request<Body>, query: &Query) -> Result<Answer, Status> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Status::new(
            405,
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        ));
    }
    let path = request.uri().path();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        ["healthz" | "livez", ..] => Ok(health(server, "livez", query)),
        ["readyz", ..] => Ok(health(server, "readyz", query)),
        ["version"] => Ok(body::json(200, &version())),
        ["metrics"] => {
            let objects: Vec<(String, usize)> = server
                .registry
                .cacher()
                .counts()
                .into_iter()
                .map(|(prefix, n)| {
                    (prefix.trim_start_matches("/registry/").trim_end_matches('/').to_owned(), n)
                })
                .collect();
            let mut text = server.metrics.render(&objects) + &server.flow.metrics();
            server.more_metrics.read().iter().for_each(|more| more(&mut text));
            let accept = request.headers().get(http::header::ACCEPT).and_then(|v| v.to_str().ok());
            if accept.is_some_and(|a| a.contains("application/openmetrics-text")) {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                return Ok(body::typed(200, kind, crate::metrics::open_metrics(&text)));
            }
            Ok(body::typed(200, "text/plain; version=0.0.4; charset=utf-8", text))
        }
        ["metrics", "slis"] => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            Ok(body::typed(200, kind, crate::metrics::slis(&checks(server))))
        }
        ["debug", "api_priority_and_fairness", which] => {
            let now = server.registry.clock().now();
            let ago = |seconds: f64| {
                let then = now.checked_sub(std::time::Duration::from_secs_f64(seconds.max(0.0)));
                schema::time::micros(then.unwrap_or(now))
            };
            let details = !query.get("includeRequestDetails").is_empty();
            server
                .flow
                .dump(which, details, &ago)
                .map(|text| body::text(200, text))
                .ok_or_else(Status::path_not_found)
        }
        [".well-known", "openid-configuration"] => {
            let keys = format!("{}/openid/v1/jwks", server.tokens.issuer());
            cacheable(body::json(200, &server.tokens.discovery(&keys)))
        }
        ["openid", "v1", "jwks"] => {
            cacheable(body::typed(200, "application/jwk-set+json", server.tokens.key_set().to_string()))
        }
        ["openapi", "v2"] => crate::openapi::v2(server, request.headers()),
        ["openapi", "v3"] => Ok(crate::openapi::index(server, request.headers())),
        ["openapi", "v3", group @ ..] => {
            crate::openapi::v3(server, &group.join("/"), request.headers(), query)
        }
        [] => Ok(body::json(200, &json!({"paths": crate::discovery::paths(server)}))),
        ["api" | "apis", ..] => {
            crate::discovery::serve(server, &parts, negotiate::accept(request.headers())?, request.headers())
        }
        _ => Err(Status::path_not_found()),
    }
}

/// Keys change rarely; upstream lets clients keep them for an hour.
fn cacheable(mut answer: Answer) -> Result<Answer, Status> {
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    Ok(answer)
}

/// The answer of `/version`.
pub fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "37", "gitVersion": GIT_VERSION, "gitCommit": env!("CARGO_PKG_VERSION"),
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// The checks behind the health endpoints, as `/metrics/slis` shows them: name, endpoint, state.
fn checks(server: &Server) -> Vec<(&'static str, &'static str, bool)> {
    let (ready, stopping) = (server.ready.load(Ordering::Acquire), server.shutdown.is_cancelled());
    vec![
        ("ping", "healthz", true),
        ("ping", "livez", true),
        ("ping", "readyz", true),
        ("poststarthook/bootstrap", "readyz", ready),
        ("shutdown", "readyz", !stopping),
    ]
}

fn health(server: &Server, check: &str, query: &Query) -> Answer {
    let ready = server.ready.load(Ordering::Acquire);
    let stopping = server.shutdown.is_cancelled();
    let checks = [
        ("ping", true),
        ("poststarthook/bootstrap", ready || check == "livez"),
        ("shutdown", !stopping || check == "livez"),
    ];
    let fine = checks.iter().all(|(_, ok)| *ok);
    if fine && !query.has("verbose") {
        return body::text(200, "ok");
    }
    let mut text: String = checks
        .iter()
        .map(
            |(name, ok)| {
                if *ok { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") }
            },
        )
        .collect();
    text.push_str(&format!("{check} check {}\n", if fine { "passed" } else { "failed" }));
    body::text(if fine { 200 } else { 500 }, text)
}
