//! Container logs in the CRI format: `2006-01-02T15:04:05.999999999Z stdout F line`.
//!
//! A line that is too long is written in parts tagged `P`, its last part `F`. With a rotation configured a file
//! that has grown to its limit is renamed to `<log>.<yyyymmdd-hhmmss>`, as the kubelet names them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cri::LogRotation;
use jiff::Timestamp;

/// Longest part of a line in one entry, as in containerd and CRI-O.
const LINE_LEN_MAX: usize = 16 << 10;

/// Most bytes of entries gathered for one write: short lines grow a lot by their stamps.
const PENDING_LEN_MAX: usize = 64 << 10;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub(super) struct Partial(Vec<u8>);

/// A container's log file.
#[derive(Debug)]
pub(super) struct LogWriter {
    path: PathBuf,
    file: File,
    len: u64,
    rotation: Option<LogRotation>,
    /// Stamp of the last rotation, and how many there were with it.
    last_rotation: (String, u32),
    entries: Vec<u8>,
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

impl LogWriter {
    pub(super) fn open(path: &Path, rotation: Option<LogRotation>) -> io::Result<LogWriter> {
        let file = open(path)?;
        let len = file.metadata()?.len();
        let last_rotation = (String::new(), 0);
        Ok(LogWriter { path: path.to_owned(), file, len, rotation, last_rotation, entries: Vec::new() })
    }

    /// Opens the file anew, after someone renamed it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.len = self.file.metadata()?.len();
        Ok(())
    }

    /// Appends what came from a stream; the last line without its end waits in `partial`.
    pub(super) fn write(&mut self, stream: Stream, partial: &mut Partial, mut data: &[u8], now: Timestamp) {
        while !data.is_empty() {
            let room = LINE_LEN_MAX - partial.0.len();
            let window = &data[..data.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    partial.0.extend_from_slice(&data[..end]);
                    self.entry(stream, 'F', &partial.0, now);
                    partial.0.clear();
                    data = &data[end + 1..];
                }
                None => {
                    partial.0.extend_from_slice(window);
                    data = &data[window.len()..];
                    if partial.0.len() == LINE_LEN_MAX {
                        self.entry(stream, 'P', &partial.0, now);
                        partial.0.clear();
                    }
                }
            }
        }
        // The buffer of an idle container is given back.
        if partial.0.is_empty() {
            partial.0 = Vec::new();
        }
        self.flush(now);
    }

    /// Writes the line that never ended: as a part, so that readers put no newline behind it.
    pub(super) fn finish(&mut self, stream: Stream, partial: &mut Partial, now: Timestamp) {
        if !partial.0.is_empty() {
            self.entry(stream, 'P', &std::mem::take(&mut partial.0), now);
            self.flush(now);
        }
    }

    fn entry(&mut self, stream: Stream, tag: char, line: &[u8], now: Timestamp) {
        // Writing to memory cannot fail.
        let _ = write!(self.entries, "{now} {} {tag} ", stream.name());
        self.entries.extend_from_slice(line);
        self.entries.push(b'\n');
        let full = self.rotation.is_some_and(|r| self.len + self.entries.len() as u64 >= r.max_bytes);
        if full || self.entries.len() >= PENDING_LEN_MAX {
            self.flush(now);
        }
    }

    fn flush(&mut self, now: Timestamp) {
        if self.entries.is_empty() {
            return;
        }
        // A full disk loses lines but must not stop the container.
        if self.file.write_all(&self.entries).is_ok() {
            self.len += self.entries.len() as u64;
        }
        self.entries = Vec::new();
        if let Some(rotation) = self.rotation
            && self.len >= rotation.max_bytes
        {
            // Where renaming fails the old file simply goes on.
            let _ = self.rotate(rotation, now);
        }
    }

    fn rotate(&mut self, rotation: LogRotation, now: Timestamp) -> io::Result<()> {
        let stamp = now.to_string();
        let digits: String = stamp.chars().take(19).filter(char::is_ascii_digit).collect();
        let base = format!("{}.{}-{}", self.path.display(), &digits[..8], &digits[8..]);
        // Several within a second keep their order by a number.
        let n = if self.last_rotation.0 == base { self.last_rotation.1 + 1 } else { 0 };
        let target = if n == 0 { PathBuf::from(&base) } else { PathBuf::from(format!("{base}-{n:06}")) };
        self.last_rotation = (base, n);
        fs::rename(&self.path, &target)?;
        self.reopen()?;
        let mut old = rotated(&self.path)?;
        let keep = (rotation.max_files.max(2) - 1) as usize;
        old.sort();
        let surplus = old.len().saturating_sub(keep);
        old[..surplus].iter().try_for_each(fs::remove_file)
    }
}

/// Rotated files of a log.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = fs::read_dir(dir)?.flatten();
    Ok(entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).map(|e| e.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn lines_parts_and_the_unfinished_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/c/0.log");
        let mut log = LogWriter::open(&path, None).unwrap();
        let (mut out, mut err) = (Partial::default(), Partial::default());
        let now = at("2026-01-02T03:04:05.000000006Z");
        log.write(Stream::Stdout, &mut out, b"one\ntw", now);
        log.write(Stream::Stderr, &mut err, b"oops\n", now);
        log.write(Stream::Stdout, &mut out, b"o\n\nlast", now);
        log.finish(Stream::Stdout, &mut out, now);
        let stamp = "2026-01-02T03:04:05.000000006Z";
        let want = [
            format!("{stamp} stdout F one"),
            format!("{stamp} stderr F oops"),
            format!("{stamp} stdout F two"),
            format!("{stamp} stdout F "),
            format!("{stamp} stdout P last"),
        ];
        assert_eq!(fs::read_to_string(&path).unwrap().lines().collect::<Vec<_>>(), want);

        let long = vec![b'x'; LINE_LEN_MAX + 5];
        log.write(Stream::Stdout, &mut out, &long, now);
        log.write(Stream::Stdout, &mut out, b"\n", now);
        let text = fs::read_to_string(&path).unwrap();
        let tail: Vec<&str> = text.lines().skip(5).collect();
        assert!(tail[0].contains(" stdout P xx") && tail[0].ends_with(&"x".repeat(LINE_LEN_MAX)));
        assert!(tail[1].ends_with(" stdout F xxxxx"));
    }

    #[test]
    fn rotates_by_size_and_keeps_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let rotation = LogRotation { max_bytes: 100, max_files: 3 };
        let mut log = LogWriter::open(&path, Some(rotation)).unwrap();
        let mut partial = Partial::default();
        for n in 0..6 {
            let line = format!("{n} {}\n", "y".repeat(100));
            log.write(Stream::Stdout, &mut partial, line.as_bytes(), at("2026-01-02T03:04:05Z"));
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        let mut old = rotated(&path).unwrap();
        old.sort();
        assert_eq!(old.len(), 2);
        assert!(old[0].to_string_lossy().contains("0.log.20260102-030405"));
        assert!(fs::read_to_string(&old[1]).unwrap().contains("stdout F 5 "));
    }

    #[test]
    fn reopening_starts_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogWriter::open(&path, None).unwrap();
        let mut partial = Partial::default();
        log.write(Stream::Stdout, &mut partial, b"a\n", at("2026-01-02T03:04:05Z"));
        fs::rename(&path, dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, &mut partial, b"b\n", at("2026-01-02T03:04:05Z"));
        assert!(fs::read_to_string(&path).unwrap().ends_with("stdout F b\n"));
    }
}
