//! Audit events in a file: a line of JSON each, files that grow are put aside, old ones removed.
//!
//! A thread of its own writes: requests only put events into its bounded queue.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Sink;

/// Events that may wait for the disk (upstream's buffer).
const QUEUE_MAX: usize = 10_000;
/// Bytes that may wait for the disk.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Where events go and how much is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// File; `-` for the standard output.
    pub path: PathBuf,
    /// Longest time that files are kept.
    pub age_max: Option<Duration>,
    /// Most files kept beside the current one; 0 for all.
    pub backups_max: usize,
    /// Size at which a file is put aside; 0 for never.
    pub size_max: u64,
}

/// The queue to the writing thread.
pub struct Log {
    queue: SyncSender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl Log {
    /// Opens the file and begins to write.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(options: Options) -> io::Result<Log> {
        let (queue, events) = sync_channel::<Bytes>(QUEUE_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = waiting.clone();
        let mut output = Output::open(options)?;
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            if let Err(error) = write_all(&mut output, &events, &counted) {
                tracing::error!(%error, "the audit log is not written any more");
            }
        })?;
        Ok(Log { queue, waiting })
    }
}

impl Sink for Log {
    fn write(&self, event: &Bytes) -> bool {
        if self.waiting.load(Ordering::Relaxed) + event.len() > QUEUE_BYTES_MAX {
            return false;
        }
        self.waiting.fetch_add(event.len(), Ordering::Relaxed);
        let sent = self.queue.try_send(event.clone()).is_ok();
        if !sent {
            self.waiting.fetch_sub(event.len(), Ordering::Relaxed);
        }
        sent
    }
}

/// Writes until nobody sends any more; what is there is written before the next wait.
fn write_all(output: &mut Output, events: &Receiver<Bytes>, waiting: &AtomicUsize) -> io::Result<()> {
    while let Ok(first) = events.recv() {
        let mut next = Some(first);
        while let Some(event) = next {
            waiting.fetch_sub(event.len(), Ordering::Relaxed);
            output.line(&event)?;
            next = events.try_recv().ok();
        }
        output.flush()?;
    }
    Ok(())
}

struct Output {
    options: Options,
    /// None for the standard output.
    file: Option<BufWriter<File>>,
    size: u64,
}

fn append(path: &Path) -> io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt;
    // What people did is nobody's business but the administrator's.
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

impl Output {
    fn open(options: Options) -> io::Result<Output> {
        if options.path.as_os_str() == "-" {
            return Ok(Output { options, file: None, size: 0 });
        }
        if let Some(parent) = options.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        let (file, size) = append(&options.path)?;
        Ok(Output { options, file: Some(BufWriter::new(file)), size })
    }

    fn line(&mut self, event: &[u8]) -> io::Result<()> {
        let size = event.len() as u64 + 1;
        if self.file.is_some()
            && self.options.size_max > 0
            && self.size > 0
            && self.size + size > self.options.size_max
        {
            self.rotate(SystemTime::now())?;
        }
        self.size += size;
        match &mut self.file {
            Some(file) => file.write_all(event).and_then(|()| file.write_all(b"\n")),
            None => {
                let mut out = io::stdout().lock();
                out.write_all(event).and_then(|()| out.write_all(b"\n"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.flush(),
            None => io::stdout().flush(),
        }
    }

    /// Puts the file aside under a name with the time in it, and begins another.
    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        self.flush()?;
        let (stem, extension) = self.names();
        let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        std::fs::rename(
            &self.options.path,
            self.options.path.with_file_name(format!("{stem}-{nanos:020}{extension}")),
        )?;
        let (file, size) = append(&self.options.path)?;
        (self.file, self.size) = (Some(BufWriter::new(file)), size);
        self.prune(now)
    }

    fn names(&self) -> (String, String) {
        let text = |s: Option<&std::ffi::OsStr>| s.map(|s| s.to_string_lossy().into_owned());
        let extension = text(self.options.path.extension()).map(|e| format!(".{e}")).unwrap_or_default();
        (text(self.options.path.file_stem()).unwrap_or_default(), extension)
    }

    fn prune(&self, now: SystemTime) -> io::Result<()> {
        let (stem, extension) = self.names();
        let directory =
            self.options.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut backups: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let middle = name.strip_prefix(&format!("{stem}-")).and_then(|n| n.strip_suffix(&*extension));
            if middle.is_some_and(|m| m.len() == 20 && m.bytes().all(|c| c.is_ascii_digit())) {
                backups.push(entry.path());
            }
        }
        backups.sort_unstable_by(|a, b| b.cmp(a));
        for (i, path) in backups.iter().enumerate() {
            let age =
                || path.metadata().and_then(|m| m.modified()).ok().and_then(|t| now.duration_since(t).ok());
            let old = self.options.age_max.is_some_and(|most| age().is_some_and(|a| a > most));
            if old || (self.options.backups_max > 0 && i >= self.options.backups_max) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_put_aside_and_removed() {
        let directory = std::env::temp_dir().join(format!("ferry-audit-{}", std::process::id()));
        let path = directory.join("audit.log");
        let options = Options { path: path.clone(), age_max: None, backups_max: 2, size_max: 20 };
        let mut output = Output::open(options).unwrap();
        for i in 0..6 {
            output.line(format!("event number {i}").as_bytes()).unwrap();
        }
        output.flush().unwrap();
        let mut files: Vec<String> = std::fs::read_dir(&directory)
            .unwrap()
            .flatten()
            .map(|f| std::fs::read_to_string(f.path()).unwrap())
            .collect();
        files.sort();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(files, ["event number 3\n", "event number 4\n", "event number 5\n"]);
    }

    #[test]
    fn a_full_queue_drops_and_says_so() {
        // Nobody reads: the queue fills up.
        let (queue, _events) = sync_channel(2);
        let log = Log { queue, waiting: Arc::default() };
        let event = Bytes::from_static(b"x");
        assert_eq!([log.write(&event), log.write(&event), log.write(&event)], [true, true, false]);
        assert!(!log.write(&Bytes::from(vec![0; QUEUE_BYTES_MAX + 1])));
    }
}
