//! Container logs: lines of the CRI format, the last ones, from a time on, followed as they are written.

use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use client::{Body, body};
use cri::{ContainerState, EventKind, RuntimeService};
use futures_util::{StreamExt, stream};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Chunks a slow reader may be behind before the log waits for it.
const CHUNKS_AHEAD: usize = 4;
/// Longest line that is put together; a longer one goes out in pieces.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What is wanted of a log (core/v1 PodLogOptions).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on as it is written.
    pub follow: bool,
    /// That of the container before.
    pub previous: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// The last lines only.
    pub tail_lines: Option<u64>,
    /// Bytes at most.
    pub limit_bytes: Option<u64>,
    /// Seconds back from now.
    pub since_seconds: Option<i64>,
    /// Since this time.
    pub since_time: Option<Timestamp>,
    /// `stdout` or `stderr` only.
    pub stream: Option<&'static str>,
}

/// Undoes percent encoding.
pub(super) fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                let value =
                    std::str::from_utf8(&digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                out.extend(value);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Options {
    /// Reads a query string; an error is a sentence.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut options = Options::default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = decode(value);
            let invalid = || format!("invalid value for {key}: {value:?}");
            let flag = || matches!(value.as_str(), "true" | "1");
            match key {
                "follow" => options.follow = flag(),
                "previous" => options.previous = flag(),
                "timestamps" => options.timestamps = flag(),
                "tailLines" => options.tail_lines = Some(value.parse().map_err(|_| invalid())?),
                "limitBytes" => options.limit_bytes = Some(value.parse().map_err(|_| invalid())?),
                "sinceSeconds" => options.since_seconds = Some(value.parse().map_err(|_| invalid())?),
                "sinceTime" => options.since_time = Some(value.parse().map_err(|_| invalid())?),
                "stream" => {
                    options.stream = match value.as_str() {
                        "Stdout" => Some("stdout"),
                        "Stderr" => Some("stderr"),
                        _ => None,
                    }
                }
                _ => {}
            }
        }
        Ok(options)
    }

    fn since(&self, now: Timestamp) -> Option<Timestamp> {
        let seconds = self.since_seconds.map(|seconds| now - SignedDuration::from_secs(seconds));
        seconds.or(self.since_time)
    }
}

/// Knows when a container has ended.
pub struct Ended {
    runtime: Arc<dyn RuntimeService>,
    id: String,
}

impl Ended {
    /// The end of the container with this id.
    pub fn new(runtime: Arc<dyn RuntimeService>, id: String) -> Self {
        Ended { runtime, id }
    }

    async fn wait(self) {
        let mut events = self.runtime.events();
        loop {
            let running = self.runtime.container_status(&self.id).await;
            if !running.is_ok_and(|status| status.state == ContainerState::Running) {
                return;
            }
            loop {
                let Some(event) = events.next().await else { return };
                let own = event.container_id.as_deref() == Some(&self.id);
                match event.kind {
                    EventKind::ContainerStopped(_) | EventKind::ContainerDeleted if own => return,
                    EventKind::Lagged(_) => break,
                    _ => {}
                }
            }
        }
    }
}

/// Cuts chunks into lines, filters and formats them. Pure.
#[derive(Debug, Default)]
struct Formatter {
    rest: Vec<u8>,
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Option<&'static str>,
    left: Option<u64>,
    /// Whether the line before was a part: then its time has been written.
    within: bool,
}

impl Formatter {
    /// The output for another chunk of the file.
    fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(chunk);
        let mut out = Vec::new();
        let mut begin = 0;
        while let Some(end) = self.rest[begin..].iter().position(|byte| *byte == b'\n') {
            let line = self.rest[begin..begin + end].to_vec();
            self.line(&line, &mut out);
            begin += end + 1;
        }
        self.rest.drain(..begin);
        if self.rest.len() > LINE_BYTES_MAX {
            let line = std::mem::take(&mut self.rest);
            self.line(&line, &mut out);
        }
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out
    }

    fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    /// `TIME STREAM TAG TEXT`, the tag `P` for a part of a line and `F` for its end.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag)) = (fields.next(), fields.next(), fields.next()) else {
            return;
        };
        let text = fields.next().unwrap_or_default();
        if self.stream.is_some_and(|wanted| wanted.as_bytes() != stream) {
            return;
        }
        if let Some(since) = self.since {
            let at = std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if at.is_none_or(|at| at < since) {
                return;
            }
        }
        if self.timestamps && !self.within {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        self.within = tag.first() == Some(&b'P');
        if !self.within {
            out.push(b'\n');
        }
    }
}

/// Where the last `lines` lines of a file begin.
fn tail_offset(file: &mut std::fs::File, lines: u64) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut seen = 0;
    let mut buffer = vec![0; CHUNK];
    while end > 0 {
        let begin = end.saturating_sub(CHUNK as u64);
        let part = &mut buffer[..(end - begin) as usize];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let at = begin + index as u64;
            // The newline that ends the file ends its last line.
            if *byte == b'\n' && at + 1 != length {
                seen += 1;
                if seen == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = begin;
    }
    Ok(0)
}

/// The last lines of a log as plain text, for termination messages.
pub fn last_lines(path: &Path, lines: usize, bytes_max: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let offset = tail_offset(&mut file, lines as u64)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut raw = Vec::new();
        file.take(4 * bytes_max.max(CHUNK as u64)).read_to_end(&mut raw)?;
        Ok(Formatter::default().push(&raw))
    };
    let text = read().unwrap_or_default();
    let from = text.len().saturating_sub(usize::try_from(bytes_max).unwrap_or(usize::MAX));
    String::from_utf8_lossy(&text[from..]).into_owned()
}

/// Answers with a log. With `ended` it is followed until then. A log that cannot be read to its end breaks the
/// answer off: it must not look like the whole.
pub fn serve(path: PathBuf, options: Options, ended: Option<Ended>, now: Timestamp) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_AHEAD);
    tokio::spawn(async move {
        if let Err(error) = copy(&path, &options, ended, now, &sender).await {
            tracing::warn!(path = %path.display(), %error, "a log could not be read to its end");
            // The reader may have gone already.
            let _ = sender.send(Err(error)).await;
        }
    });
    let chunks = stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk.map(Frame::data).map_err(body::BoxError::from), receiver))
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    let kind = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Wakes when the file, or what is called like it, changes.
fn watch(path: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&events, path, WatchFlags::MODIFY | WatchFlags::MOVE_SELF)?;
    if let Some(directory) = path.parent() {
        inotify::add_watch(&events, directory, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    }
    // SAFETY: the descriptor is owned by the registration and always the same one.
    Ok(unsafe { AsyncFd::register(events) }?)
}

async fn changed(watch: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    let mut guard = watch.readable().await?;
    let mut buffer = [0; 4096];
    // Which event it was does not matter: the file tells.
    while rustix::io::read(watch.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
    guard.clear_ready();
    Ok(())
}

async fn copy(
    path: &Path,
    options: &Options,
    ended: Option<Ended>,
    now: Timestamp,
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<()> {
    let mut events = match ended.is_some() {
        true => Some(watch(path)?),
        false => None,
    };
    let tail = options.tail_lines;
    let owned = path.to_owned();
    let file = tokio::task::spawn_blocking(move || -> std::io::Result<std::fs::File> {
        let mut file = std::fs::File::open(owned)?;
        let offset = match tail {
            Some(lines) => tail_offset(&mut file, lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    });
    let mut file = tokio::fs::File::from_std(file.await.map_err(std::io::Error::other)??);
    let mut formatter = Formatter {
        since: options.since(now),
        timestamps: options.timestamps,
        stream: options.stream,
        left: options.limit_bytes,
        ..Formatter::default()
    };
    let mut over = std::pin::pin!(async {
        if let Some(ended) = ended {
            ended.wait().await;
        }
    });
    let mut finished = events.is_none();
    loop {
        if !drain(&mut file, &mut formatter, sender).await? {
            return Ok(());
        }
        if let Some(next) = rotated(path, &file).await? {
            // What was written to the old file after the last read comes first.
            if !drain(&mut file, &mut formatter, sender).await? {
                return Ok(());
            }
            file = next;
            if events.is_some() {
                events = Some(watch(path)?);
            }
            continue;
        }
        let Some(events) = events.as_ref().filter(|_| !finished) else { return Ok(()) };
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = &mut over => finished = true,
            change = changed(events) => change?,
        }
    }
}

/// The file that has taken this one's name, if one has.
async fn rotated(path: &Path, file: &tokio::fs::File) -> std::io::Result<Option<tokio::fs::File>> {
    let own = file.metadata().await?;
    match tokio::fs::File::open(path).await {
        Ok(current) => {
            let other = current.metadata().await?;
            Ok(((own.ino(), own.dev()) != (other.ino(), other.dev())).then_some(current))
        }
        Err(_) => Ok(None),
    }
}

/// Sends everything up to the present end of the file; false when nobody wants more.
async fn drain(
    file: &mut tokio::fs::File,
    formatter: &mut Formatter,
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<bool> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            // Forget that the end was met, so that what is written later is read.
            file.seek(SeekFrom::Current(0)).await?;
            return Ok(!formatter.is_over());
        }
        let out = formatter.push(&buffer[..read]);
        if !out.is_empty() && sender.send(Ok(out.into())).await.is_err() {
            return Ok(false);
        }
        if formatter.is_over() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LOG: &str = "2026-01-01T00:00:00.1Z stdout F one\n2026-01-01T00:00:01Z stderr P tw\n\
                       2026-01-01T00:00:01.5Z stderr F o\n2026-01-01T00:00:02Z stdout F three\n";

    fn format(formatter: Formatter, chunks: usize) -> String {
        let mut formatter = formatter;
        let mut out = Vec::new();
        for chunk in LOG.as_bytes().chunks(chunks) {
            out.extend(formatter.push(chunk));
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn formatting() {
        for chunks in [1, 7, 1000] {
            assert_eq!(format(Formatter::default(), chunks), "one\ntwo\nthree\n");
            let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
            assert_eq!(format(Formatter { since, ..Formatter::default() }, chunks), "three\n");
            assert_eq!(format(Formatter { left: Some(5), ..Formatter::default() }, chunks), "one\nt");
            assert_eq!(format(Formatter { stream: Some("stderr"), ..Formatter::default() }, chunks), "two\n");
            let stamped = format(Formatter { timestamps: true, ..Formatter::default() }, chunks);
            assert!(
                stamped.starts_with("2026-01-01T00:00:00.1Z one\n2026-01-01T00:00:01Z two\n"),
                "{stamped}"
            );
        }
    }

    #[test]
    fn queries() {
        let options =
            Options::parse("follow=true&tailLines=5&sinceTime=2026-01-01T00%3A00%3A00Z&x=y").unwrap();
        assert!(options.follow && options.tail_lines == Some(5) && options.since_time.is_some());
        assert!(Options::parse("tailLines=x").is_err());
    }

    #[test]
    fn tails() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LOG.as_bytes()).unwrap();
        let mut open = std::fs::File::open(file.path()).unwrap();
        let last = LOG.rfind("2026").unwrap() as u64;
        for (lines, offset) in [(0, LOG.len() as u64), (1, last), (4, 0), (9, 0)] {
            assert_eq!(tail_offset(&mut open, lines).unwrap(), offset, "{lines}");
        }
        assert_eq!(last_lines(file.path(), 2, 100), "o\nthree\n");
        assert_eq!(last_lines(file.path(), 9, 3), "ee\n");
        assert_eq!(last_lines(Path::new("/nowhere"), 9, 3), "");
    }

    #[tokio::test]
    async fn follows_through_rotation_without_polling() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, "2026-01-01T00:00:00Z stdout F a\n").unwrap();
        let events = watch(&path).unwrap();
        let mut file = tokio::fs::File::open(&path).await.unwrap();
        let (sender, mut receiver) = mpsc::channel(10);
        let mut formatter = Formatter::default();
        assert!(drain(&mut file, &mut formatter, &sender).await.unwrap());
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "a\n");
        let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writer.write_all(b"2026-01-01T00:00:00Z stdout F b\n").unwrap();
        changed(&events).await.unwrap();
        drain(&mut file, &mut formatter, &sender).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "b\n");
        assert!(rotated(&path, &file).await.unwrap().is_none());
        std::fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "2026-01-01T00:00:00Z stdout F c\n").unwrap();
        changed(&events).await.unwrap();
        let mut file = rotated(&path, &file).await.unwrap().unwrap();
        drain(&mut file, &mut formatter, &sender).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "c\n");
    }
}
