//! The node's own logs: files below `/var/log` and, where that is switched on, queries for services, whose logs are
//! the journal's or files of their names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use client::{Body, body};
use futures_util::StreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::io::AsyncReadExt;

use super::text;

/// Where logs are.
const ROOT: &str = "/var/log";
/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Limits of a query: upstream's.
const LINES_MAX: i64 = 100_000;
const SERVICES_MAX: usize = 4;
const SERVICE_NAME_MAX: usize = 256;
/// How long the journal may take.
const JOURNAL_MAX: Duration = Duration::from_secs(30);
/// Most bytes of the journal that are held for an answer.
const JOURNAL_BYTES_MAX: usize = 64 << 20;

/// What is asked of the node's services.
#[derive(Debug, Clone, Default, PartialEq)]
struct Query {
    services: Vec<String>,
    files: Vec<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    lines: Option<i64>,
    boot: Option<i64>,
    pattern: String,
}

fn invalid(field: &str, value: impl std::fmt::Debug, why: &str) -> String {
    format!("{field}: Invalid value: {value:?}: {why}")
}

/// Go's complaint of what is no number.
fn number(field: &str, text: &str) -> Result<i64, String> {
    let parse = |_| invalid(field, text, &format!("strconv.Atoi: parsing {text:?}: invalid syntax"));
    text.parse().map_err(parse)
}

fn aggregate(errors: Vec<String>) -> Result<(), String> {
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

impl Query {
    /// Reads a query string; `None` where nothing is asked for.
    fn parse(query: &str) -> Result<Option<Query>, String> {
        let mut made = Query::default();
        let mut errors = Vec::new();
        let (mut asked, mut asked_for) = (false, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = super::logs::decode(value);
            if key == "query" {
                asked = true;
                asked_for.push(value.clone());
                if value.contains(['/', '\\']) {
                    made.files.push(value);
                } else if !value.trim().is_empty() {
                    made.services.push(value);
                }
                continue;
            }
            if value.is_empty() {
                continue;
            }
            let time = || value.parse::<Timestamp>().map_err(|_| invalid(key, &value, "invalid time format"));
            let result = match key {
                "sinceTime" => time().map(|at| made.since = Some(at)),
                "untilTime" => time().map(|at| made.until = Some(at)),
                "boot" => number(key, &value).map(|boot| made.boot = Some(boot)),
                "tailLines" => number(key, &value).map(|lines| made.lines = Some(lines)),
                "pattern" => {
                    made.pattern.clone_from(&value);
                    Ok(())
                }
                _ => Ok(()),
            };
            errors.extend(result.err());
        }
        if asked && made.files.is_empty() && made.services.is_empty() {
            errors.insert(0, invalid("query", &asked_for, "query cannot be empty"));
        }
        aggregate(errors)?;
        Ok(Some(made).filter(|made| *made != Query::default()))
    }

    fn has_options(&self) -> bool {
        let bare = Query { services: self.services.clone(), files: self.files.clone(), ..Query::default() };
        *self != bare
    }

    fn check(&self, root: &Path) -> Result<(), String> {
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_@".contains(c);
        let mut errors = Vec::new();
        for service in &self.services {
            if service.len() > SERVICE_NAME_MAX {
                errors.push(invalid("query", service, "length must be less than 100"));
            } else if !service.chars().all(safe) {
                errors.push(invalid("query", service, "input contains unsupported characters"));
            }
        }
        if self.services.len() > SERVICES_MAX {
            errors.push(format!(
                "query: Too many: {}: must have at most {SERVICES_MAX} items",
                self.services.len()
            ));
        }
        match (self.files.as_slice(), self.services.is_empty()) {
            ([], true) => errors.push("query: Required value: cannot be empty with options".into()),
            ([], false) => {}
            (files, false) => {
                let shown = format!("[{}], [{}]", files.join(" "), self.services.join(" "));
                errors.push(invalid("query", shown, "cannot specify a file and service"));
            }
            (files @ [_], true) if self.has_options() => {
                errors.push(invalid("query", files, "cannot specify file with options"));
            }
            (files @ [file], true) => {
                if within(root, file).is_none() {
                    let why = format!(
                        "stat {}: no such file or directory",
                        root.join(file.trim_start_matches('/')).display()
                    );
                    errors.push(invalid("query", files, &why));
                }
            }
            (files, true) => errors.push(invalid("query", files, "cannot specify more than one file")),
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since > until
        {
            errors.push(invalid("untilTime", until.to_string(), "must be after `sinceTime`"));
        }
        if let Some(boot) = self.boot.filter(|boot| *boot > 0) {
            errors.push(invalid("boot", boot, "must be less than 1"));
        }
        if let Some(lines) = self.lines.filter(|lines| !(0..=LINES_MAX).contains(lines)) {
            errors.push(invalid(
                "tailLines",
                lines,
                &format!("must be between 0 and {LINES_MAX}, inclusive"),
            ));
        }
        aggregate(errors)
    }

    /// Arguments of `journalctl`.
    fn journal(&self, services: &[String]) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--utc", "--no-pager", "--output=short-precise"].map(str::to_owned).into();
        let time = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S").to_string();
        arguments.extend(self.since.map(|at| format!("--since={}", time(at))));
        arguments.extend(self.until.map(|at| format!("--until={}", time(at))));
        arguments.extend(self.lines.map(|lines| format!("--lines={lines}")));
        arguments.extend(services.iter().map(|service| format!("--unit={service}")));
        if !self.pattern.is_empty() {
            arguments.push(format!("--grep={}", self.pattern));
            arguments.push("--case-sensitive=false".into());
        }
        arguments.push(format!("--boot={}", self.boot.unwrap_or(0)));
        arguments
    }
}

/// A file below `root`; links may not lead out of it.
fn within(root: &Path, name: &str) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    let path = root.join(name.trim_start_matches('/')).canonicalize().ok()?;
    path.starts_with(&root).then_some(path)
}

/// Where a service's log may be, in the order of trial.
fn candidates(service: &str) -> [String; 3] {
    [service.to_owned(), format!("{service}.log"), format!("{service}/{service}.log")]
}

async fn run_journal(arguments: &[String]) -> Option<Vec<u8>> {
    let run = tokio::process::Command::new("journalctl").args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(JOURNAL_MAX, run).await.ok()?.ok()?;
    let mut all = output.stdout;
    all.extend(output.stderr);
    all.truncate(JOURNAL_BYTES_MAX);
    output.status.success().then_some(all)
}

/// Whether a service writes to the journal.
async fn is_in_journal(service: &str) -> bool {
    let query = Query { lines: Some(1), ..Query::default() };
    let mut arguments = query.journal(&[service.to_owned()]);
    arguments.retain(|argument| !argument.starts_with("--boot"));
    run_journal(&arguments)
        .await
        .is_some_and(|said| !said.is_empty() && !String::from_utf8_lossy(&said).contains("-- No entries --"))
}

async fn services(query: &Query, root: &Path) -> Vec<u8> {
    let (mut native, mut files) = (Vec::new(), Vec::new());
    for service in &query.services {
        if is_in_journal(service).await { native.push(service.clone()) } else { files.push(service.clone()) }
    }
    let mut out = Vec::new();
    if !native.is_empty() {
        out.extend(run_journal(&query.journal(&native)).await.unwrap_or_default());
    }
    if !files.is_empty() && query.has_options() {
        let shown = files.join(" ");
        let told = format!(
            "\noptions present and query resolved to log files for [{shown}]\ntry without specifying options\n"
        );
        out.extend(told.into_bytes());
        return out;
    }
    for service in &files {
        let found =
            candidates(service).into_iter().find_map(|name| within(root, &name).filter(|p| p.is_file()));
        match found {
            None => out.extend(format!("\nlog not found for {service}\n").into_bytes()),
            Some(path) => match tokio::fs::read(path).await {
                Ok(bytes) => out.extend(bytes),
                Err(error) => {
                    out.extend(format!("\nerror getting log for {service}: {error}\n").into_bytes())
                }
            },
        }
    }
    out
}

fn typed(mut response: Response<Body>, kind: &'static str) -> Response<Body> {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn escape(name: &str) -> String {
    name.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

/// A directory as links, as Go's file server shows it.
fn listing(path: &Path) -> String {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| {
            let mark = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
            format!("{}{mark}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    let link = |name: &String| format!("<a href=\"{0}\">{0}</a>\n", escape(name));
    let links: String = names.iter().map(link).collect();
    format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{links}</pre>\n"
    )
}

async fn file(root: &Path, name: &str) -> Response<Body> {
    let Some(path) = within(root, name) else { return text(StatusCode::NOT_FOUND, "404 page not found\n") };
    if path.is_dir() {
        return typed(text(StatusCode::OK, listing(&path)), "text/html; charset=utf-8");
    }
    let opened = match tokio::fs::File::open(&path).await {
        // Devices and sockets are no logs.
        Ok(opened) if path.is_file() => opened,
        _ => return text(StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    let chunks = futures_util::stream::unfold(opened, |mut opened| async move {
        let mut buffer = vec![0; CHUNK];
        match opened.read(&mut buffer).await {
            Ok(0) => None,
            Ok(length) => {
                buffer.truncate(length);
                Some((Ok(Frame::data(Bytes::from(buffer))), opened))
            }
            Err(error) => Some((Err(error.into()), opened)),
        }
    });
    typed(Response::new(StreamBody::new(chunks.boxed()).boxed_unsync()), "text/plain; charset=utf-8")
}

/// Answers `/logs/NAME?query`.
pub(super) async fn serve(name: &str, query: &str, queries: bool) -> Response<Body> {
    answer(Path::new(ROOT), name, query, queries).await
}

async fn answer(root: &Path, name: &str, query: &str, queries: bool) -> Response<Body> {
    if !queries {
        return file(root, name).await;
    }
    let query = match Query::parse(query) {
        Ok(None) => return file(root, name).await,
        Ok(Some(query)) => query,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    if !name.is_empty() {
        let message = format!("{name} path not allowed in query mode\n");
        return text(StatusCode::NOT_ACCEPTABLE, message);
    }
    if let Err(why) = query.check(root) {
        return text(StatusCode::BAD_REQUEST, format!("{why}\n"));
    }
    match query.files.first() {
        Some(one) => file(root, &one.replace('\\', "/")).await,
        None => {
            let said = services(&query, root).await;
            typed(Response::new(body::full(Bytes::from(said))), "text/plain;charset=UTF-8")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(root: &Path, name: &str, query: &str) -> (u16, String) {
        let response = answer(root, name, query, true).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    #[tokio::test]
    async fn files_and_queries() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("a.log"), "of a\n").unwrap();
        std::fs::create_dir(path("b")).unwrap();
        std::fs::write(path("b/b.log"), "of b\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path("out")).unwrap();
        let list =
            "<pre>\n<a href=\"a.log\">a.log</a>\n<a href=\"b/\">b/</a>\n<a href=\"out\">out</a>\n</pre>\n";
        let table = [
            ("a.log", "", 200, "of a\n"),
            ("b/b.log", "", 200, "of b\n"),
            ("out", "", 404, "404 page not found\n"),
            ("../etc/passwd", "", 404, "404 page not found\n"),
            ("none", "", 404, "404 page not found\n"),
            ("", "query=/a.log", 200, "of a\n"),
            (
                "",
                "query=ferry-a&query=ferry-b",
                200,
                "\nlog not found for ferry-a\n\nlog not found for ferry-b\n",
            ),
            ("a.log", "query=x", 406, "a.log path not allowed in query mode\n"),
            ("", "query=%20", 400, "query: Invalid value: [\" \"]: query cannot be empty\n"),
            (
                "",
                "tailLines=x",
                400,
                "tailLines: Invalid value: \"x\": strconv.Atoi: parsing \"x\": invalid syntax\n",
            ),
            ("", "tailLines=5", 400, "query: Required value: cannot be empty with options\n"),
            (
                "",
                "query=x&tailLines=-1",
                400,
                "tailLines: Invalid value: -1: must be between 0 and 100000, inclusive\n",
            ),
            ("", "query=x&boot=1", 400, "boot: Invalid value: 1: must be less than 1\n"),
            ("", "query=x;y", 400, "query: Invalid value: \"x;y\": input contains unsupported characters\n"),
            (
                "",
                "query=/a.log&boot=0",
                400,
                "query: Invalid value: [\"/a.log\"]: cannot specify file with options\n",
            ),
            (
                "",
                "query=/a&query=/b",
                400,
                "query: Invalid value: [\"/a\", \"/b\"]: cannot specify more than one file\n",
            ),
        ];
        for (name, query, status, expected) in table {
            assert_eq!(get(root.path(), name, query).await, (status, expected.to_owned()), "{name}?{query}");
        }
        let (status, shown) = get(root.path(), "", "").await;
        assert!(status == 200 && shown.ends_with(list), "{shown}");
        // Names are tried in turn; without that being switched on a query is none.
        assert_eq!(
            services(&Query { services: vec!["b".into()], ..Query::default() }, root.path()).await,
            b"of b\n"
        );
        let plain = answer(root.path(), "a.log", "query=x", false).await;
        assert_eq!(plain.status(), 200);
    }

    #[test]
    fn arguments_of_the_journal() {
        let query =
            Query::parse("query=kubelet&sinceTime=2026-01-02T03:04:05Z&tailLines=9&boot=-1&pattern=a%2Bb");
        let arguments = query.unwrap().unwrap().journal(&["kubelet".into()]);
        assert_eq!(
            arguments[2..],
            [
                "--output=short-precise",
                "--since=2026-01-02 03:04:05",
                "--lines=9",
                "--unit=kubelet",
                "--grep=a+b",
                "--case-sensitive=false",
                "--boot=-1"
            ]
        );
    }
}
