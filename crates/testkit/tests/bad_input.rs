//! What clients can get wrong, against a real server: every row must be refused with upstream's code and
//! words (or answered, where upstream is lenient too), none may be an internal error.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;

/// Longest wait for an answer on a bare connection.
const ANSWER_MAX: Duration = Duration::from_secs(20);

const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Method, path (NS is the namespace), content type, body; code and a part of the message.
struct Row(&'static str, &'static str, &'static str, Vec<u8>, u16, &'static str);

fn text(body: impl Into<String>) -> Vec<u8> {
    body.into().into_bytes()
}

const MAPS: &str = "/api/v1/namespaces/NS/configmaps";
const ONE: &str = "/api/v1/namespaces/NS/configmaps/one";

fn bodies() -> Vec<Row> {
    let deep = |n: usize| format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n));
    let map = |rest: &str| text(format!("{{\"metadata\":{{\"name\":\"x\"}}{rest}}}"));
    vec![
        Row(
            "POST",
            MAPS,
            JSON,
            text(""),
            400,
            "couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
        ),
        Row(
            "POST",
            MAPS,
            JSON,
            text("{"),
            400,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({)",
        ),
        Row("POST", MAPS, JSON, text("nonsense"), 400, "json parse error: invalid character"),
        Row("POST", MAPS, JSON, text("[]"), 400, ""),
        Row("POST", MAPS, JSON, text("null"), 400, ""),
        Row(
            "POST",
            MAPS,
            JSON,
            map(",\"data\":{\"a\":1}"),
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data",
        ),
        Row(
            "POST",
            MAPS,
            JSON,
            text(r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}"#),
            400,
            "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion",
        ),
        Row(
            "POST",
            MAPS,
            JSON,
            text(r#"{"apiVersion":"v1","kind":"Widget","metadata":{"name":"x"}}"#),
            400,
            "no kind \"Widget\" is registered for version \"v1\" in scheme",
        ),
        Row(
            "POST",
            MAPS,
            JSON,
            text(r#"{"apiVersion":"apps/v1","kind":"ConfigMap","metadata":{"name":"x"}}"#),
            400,
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        Row(
            "POST",
            MAPS,
            JSON,
            text(r#"{"metadata":{"name":"x","namespace":"other"}}"#),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        Row(
            "POST",
            MAPS,
            JSON,
            text(r#"{"metadata":{"name":"a\u0000b"}}"#),
            422,
            "metadata.name: Invalid value",
        ),
        Row("POST", MAPS, JSON, text(r#"{"metadata":{}}"#), 422, "name or generateName is required"),
        Row(
            "POST",
            MAPS,
            JSON,
            b"{\"metadata\":{\"name\":\"x\"},\"data\":{\"a\":\"\xff\xfe\"}}".to_vec(),
            400,
            "",
        ),
        Row("POST", MAPS, JSON, map(&format!(",\"data\":{}", deep(20_000))), 400, ""),
        Row("POST", MAPS, JSON, text(deep(200_000)), 422, "name or generateName is required"),
        Row(
            "POST",
            MAPS,
            JSON,
            vec![b' '; 3 * 1024 * 1024 + 1],
            413,
            "Request entity too large: limit is 3145728",
        ),
        Row(
            "POST",
            MAPS,
            "application/xml",
            text("<a/>"),
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        ),
        Row("POST", MAPS, "application/yaml", text("a: [1"), 400, ""),
        Row(
            "POST",
            MAPS,
            "application/yaml",
            text(format!(
                "a: &a [x]\n{}",
                (0..40)
                    .map(|i| {
                        format!(
                            "b{i}: &b{i} [{}]\n",
                            [format!("*{}", if i == 0 { "a".to_owned() } else { format!("b{}", i - 1) })
                                .as_str(); 9]
                                .join(",")
                        )
                    })
                    .collect::<String>()
            )),
            400,
            "",
        ),
        Row("POST", MAPS, PROTOBUF, text("{}"), 400, ""),
        Row("POST", MAPS, PROTOBUF, b"k8s\0\x0a\xff\xff\xff\xff\x0f".to_vec(), 400, ""),
        Row(
            "POST",
            MAPS,
            PROTOBUF,
            [b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x03".as_slice(), &[0x0a, 0xff, 1]].concat(),
            400,
            "",
        ),
        Row(
            "POST",
            with_query("?fieldValidation=Strict"),
            JSON,
            map(",\"bogus\":1"),
            400,
            "strict decoding error: unknown field \"bogus\"",
        ),
        Row(
            "POST",
            with_query("?fieldValidation=Strict"),
            JSON,
            text(r#"{"metadata":{"name":"x","name":"y"}}"#),
            400,
            "strict decoding error: duplicate field \"metadata.name\"",
        ),
        Row(
            "POST",
            with_query("?fieldValidation=Never"),
            JSON,
            map(""),
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Never\"",
        ),
        Row(
            "POST",
            with_query("?dryRun=Some"),
            JSON,
            map(""),
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: []string{\"Some\"}: supported values: \"All\"",
        ),
        Row(
            "POST",
            with_query("?fieldManager=a%0Ab"),
            JSON,
            map(""),
            422,
            "should only contain printable characters",
        ),
        Row(
            "POST",
            ONE,
            JSON,
            map(""),
            405,
            "the server does not allow this method on the requested resource",
        ),
    ]
}

/// The collection's path with a query.
fn with_query(query: &str) -> &'static str {
    // The rows live as long as the test.
    Box::leak(format!("{MAPS}{query}").into_boxed_str())
}

fn patches() -> Vec<Row> {
    let operations =
        |n: usize| format!("[{}]", vec![r#"{"op":"test","path":"/kind","value":"ConfigMap"}"#; n].join(","));
    let copies = vec![r#"{"op":"copy","from":"/data/x","path":"/data/x/-"}"#; 60].join(",");
    let doubling = format!(r#"[{{"op":"add","path":"/data/x","value":["{}"]}},{copies}]"#, "y".repeat(1000));
    vec![
        Row(
            "PATCH",
            ONE,
            JSON,
            text("{}"),
            415,
            "accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
        ),
        Row("PATCH", ONE, JSON_PATCH, text("{}"), 400, ""),
        Row(
            "PATCH",
            ONE,
            JSON_PATCH,
            text(operations(10_001)),
            413,
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001",
        ),
        Row("PATCH", ONE, JSON_PATCH, text(operations(10_000)), 200, ""),
        Row(
            "PATCH",
            ONE,
            JSON_PATCH,
            text(doubling),
            413,
            "Request entity too large: Unable to complete the copy",
        ),
        Row(
            "PATCH",
            ONE,
            JSON_PATCH,
            text(r#"[{"op":"remove","path":"/data/absent"}]"#),
            422,
            "the server rejected our request due to an error in our request",
        ),
        Row("PATCH", ONE, JSON_PATCH, text(r#"[{"op":"replace","path":"","value":1}]"#), 400, ""),
        Row("PATCH", ONE, MERGE, text("{"), 400, ""),
        Row("PATCH", ONE, MERGE, text("[1]"), 400, ""),
        Row("PATCH", ONE, MERGE, text("null"), 400, ""),
        Row(
            "PATCH",
            ONE,
            MERGE,
            text(r#"{"metadata":{"name":"other"}}"#),
            400,
            "the name of the object (other) does not match the name on the URL (one)",
        ),
        Row(
            "PATCH",
            ONE,
            MERGE,
            text(r#"{"metadata":{"resourceVersion":"x"}}"#),
            422,
            "metadata.resourceVersion",
        ),
        Row("PATCH", ONE, STRATEGIC, text(r#"{"data":{"$patch":"nonsense"}}"#), 400, ""),
        Row("PATCH", ONE, STRATEGIC, text("[]"), 400, ""),
        Row("PATCH", ONE, APPLY, text("a: ["), 400, ""),
        Row("PATCH", ONE, APPLY, text("apiVersion: v1\nkind: ConfigMap\nmetadata: 1\n"), 400, ""),
        Row(
            "PATCH",
            leak(&format!("{ONE}?force=true")),
            MERGE,
            text("{}"),
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
        ),
    ]
}

fn leak(path: &str) -> &'static str {
    Box::leak(path.to_owned().into_boxed_str())
}

fn queries() -> Vec<Row> {
    let list = |query: &str, code: u16, message: &'static str| {
        Row("GET", leak(&format!("{MAPS}?{query}")), JSON, Vec::new(), code, message)
    };
    let delete = |query: &str, code: u16, message: &'static str| {
        Row("DELETE", leak(&format!("{MAPS}/absent?{query}")), JSON, Vec::new(), code, message)
    };
    let many = (0..2000).map(|i| format!("k{i}%3Dv{i}")).collect::<Vec<_>>().join(",");
    vec![
        list("limit=-1", 200, ""),
        list("limit=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        list("limit=99999999999999999999", 400, "strconv.ParseInt"),
        list(
            "resourceVersion=x",
            400,
            "resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
        list("resourceVersion=-5", 400, "resourceVersion: Invalid value"),
        list(
            "resourceVersionMatch=Exact",
            422,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        list(
            "resourceVersion=1&resourceVersionMatch=Sometimes",
            422,
            "resourceVersionMatch: Unsupported value: \"Sometimes\"",
        ),
        list(
            "resourceVersion=0&resourceVersionMatch=Exact",
            422,
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        list(
            "resourceVersion=1&resourceVersionMatch=NotOlderThan&continue=abc",
            422,
            "resourceVersionMatch is forbidden when continue is provided",
        ),
        list("continue=%25%25", 400, "continue key is not valid"),
        list("continue=eyJ2IjoieCJ9", 400, "continue key is not valid"),
        list("sendInitialEvents=true", 422, "sendInitialEvents is forbidden for list"),
        list(
            "watch=1&resourceVersionMatch=NotOlderThan",
            422,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        list(
            "watch=1&sendInitialEvents=true",
            422,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        list("labelSelector=a+in+(", 400, ""),
        list("labelSelector=%00", 400, ""),
        list(&format!("labelSelector={many}"), 200, ""),
        list(
            "fieldSelector=spec.x%3Dy",
            400,
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        list("fieldSelector=a%3D%3D%3D", 400, ""),
        Row(
            "GET",
            "/api/v1/namespaces/NS/pods?fieldSelector=spec.x%3Dy",
            JSON,
            Vec::new(),
            400,
            "field label not supported: spec.x",
        ),
        delete(
            "propagationPolicy=Later",
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Later\"",
        ),
        delete(
            "propagationPolicy=Orphan&orphanDependents=true",
            422,
            "orphanDependents and deletionPropagation cannot be both set",
        ),
        delete("gracePeriodSeconds=soon", 400, "strconv.ParseInt: parsing \"soon\": invalid syntax"),
        delete("dryRun=Maybe", 422, "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value"),
        Row("DELETE", ONE, JSON, text("{"), 400, ""),
        Row(
            "DELETE",
            ONE,
            JSON,
            text(r#"{"preconditions":{"uid":"x"}}"#),
            409,
            "the UID in the precondition (x) does not match the UID in record",
        ),
        Row(
            "GET",
            "/api/v1/namespaces/NS/widgets",
            JSON,
            Vec::new(),
            404,
            "the server could not find the requested resource",
        ),
        Row(
            "GET",
            "/apis/apps/v9/deployments",
            JSON,
            Vec::new(),
            404,
            "the server could not find the requested resource",
        ),
        Row(
            "GET",
            "/apis/resource.k8s.io/v1beta1/deviceclasses",
            JSON,
            Vec::new(),
            404,
            "the server could not find the requested resource",
        ),
        Row("GET", "/api/v1/namespaces/NS/configmaps/one/two", JSON, Vec::new(), 404, ""),
        Row("GET", "/api/v1/namespaces/NS/configmaps/%00", JSON, Vec::new(), 404, ""),
        Row("GET", "/api/v1/namespaces/NS/configmaps/%2e%2e%2fsecrets", JSON, Vec::new(), 404, ""),
        Row("GET", "/api/v1/namespaces/NS/configmaps/%ff%fe", JSON, Vec::new(), 404, ""),
        Row("TRACE", ONE, JSON, Vec::new(), 405, ""),
        Row("BREW", ONE, JSON, Vec::new(), 405, ""),
        Row(
            "PUT",
            MAPS,
            JSON,
            text("{}"),
            405,
            "the server does not allow this method on the requested resource",
        ),
        Row("DELETE", "/version", JSON, Vec::new(), 405, ""),
    ]
}

fn check(scope: &Scope<'_>, row: &Row) -> anyhow::Result<()> {
    let Row(method, path, content_type, body, code, message) = row;
    let path = path.replace("NS", &scope.namespace);
    let method: Method = method.parse()?;
    let headers = [("content-type", *content_type)];
    let (found, _, answer) = scope.raw(method, &path, &headers, body.clone())?;
    let status: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let said = status["message"].as_str().unwrap_or_default();
    ensure!(found == *code && said.contains(message), "{found}: {said}\n    instead of {code}: {message}");
    ensure!(found < 400 || (status["kind"] == "Status" && status["code"] == found), "no Status: {status}");
    Ok(())
}

/// Sends bytes as they are over TLS; answers what came back until the server closed or a second passed.
fn bare(cluster: &Cluster, request: &[u8]) -> anyhow::Result<String> {
    let kubeconfig = client::Kubeconfig::load(&cluster.data().join("admin.kubeconfig"))?;
    let config = kubeconfig.https_config(None, &cluster.data())?;
    let tls = client::tls::client_config(&config.trust, config.certificate.as_ref(), &[b"http/1.1"])?;
    let authority = config.server.authority().context("no address")?.clone();
    let stream = TcpStream::connect(authority.as_str())?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let name = rustls::pki_types::ServerName::try_from(authority.host().to_owned())?;
    let mut connection = rustls::ClientConnection::new(Arc::clone(&tls), name)?;
    let mut socket = stream;
    let mut both = rustls::Stream::new(&mut connection, &mut socket);
    // The server may answer and close before everything is written.
    let _ = both.write_all(request);
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n) = both.read(&mut piece) {
        answer.extend_from_slice(&piece[..n]);
        if n == 0 || answer.windows(4).any(|w| w == b"\r\n\r\n") {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn framing(cluster: &Cluster) -> Vec<String> {
    let many: String = (0..5000).map(|i| format!("x-{i}: y\r\n")).collect();
    let long = "a".repeat(2 * 1024 * 1024);
    let rows: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("no HTTP at all", b"\x00\x01\x02\x03\r\n\r\n".to_vec(), &["400", ""]),
        ("too many headers", format!("GET /version HTTP/1.1\r\nhost: x\r\n{many}\r\n").into_bytes(), &["431", ""]),
        ("a huge URL", format!("GET /version?{long} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes(), &["414", "431", "400", ""]),
        ("two lengths", b"POST /api/v1/namespaces HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}".to_vec(), &["400", ""]),
        ("a bad chunk", b"POST /api/v1/namespaces HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(), &["400", ""]),
    ];
    let mut problems = Vec::new();
    for (what, request, codes) in rows {
        match bare(cluster, &request) {
            Ok(answer) => {
                let code = answer.split(' ').nth(1).unwrap_or_default();
                if !codes.contains(&code) {
                    problems.push(format!("{what}: {}", answer.lines().next().unwrap_or_default()));
                }
            }
            Err(error) => problems.push(format!("{what}: {error:#}")),
        }
    }
    problems
}

/// Resident memory of the server in kilobytes.
fn resident(cluster: &Cluster) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid().context("not running")?))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

/// How much more memory the server may hold after all rows; allocators keep some of what was used.
const GROWTH_KB_MAX: u64 = 96 * 1024;

#[test]
fn bad_input_is_refused_with_upstreams_words() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let scope = cluster.namespace("bad")?;
    scope.create("configmaps", json!({"metadata": {"name": "one"}, "data": {"a": "b".repeat(1000)}}))?;
    let before = resident(&cluster)?;
    let mut problems = Vec::new();
    for row in bodies().iter().chain(&patches()).chain(&queries()) {
        if let Err(error) = check(&scope, row) {
            let body = String::from_utf8_lossy(&row.3[..row.3.len().min(80)]).into_owned();
            problems.push(format!("{} {} {body:?}: {error:#}", row.0, &row.1[..row.1.len().min(120)]));
        }
    }
    problems.extend(framing(&cluster));
    ensure!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    let after = resident(&cluster)?;
    ensure!(after < before + GROWTH_KB_MAX, "memory grew from {before} to {after} kB");
    Ok(())
}
