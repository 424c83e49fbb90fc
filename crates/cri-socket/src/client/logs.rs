//! Rotation of container logs, which with CRI is the kubelet's: every ten seconds the sizes are looked at, as
//! upstream does.
//!
//! A log that has grown too big is renamed with the time as its ending and the runtime opens a new one; of the
//! rotated ones all but the newest are compressed, and what is more than the allowed number goes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use cri::{LogRotation, RuntimeService};
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;

use super::Remote;

/// Upstream's `containerLogMonitorInterval`.
const PERIOD: Duration = Duration::from_secs(10);

/// Looks after logs until the runtime is dropped.
pub(super) async fn rotate(remote: Weak<Remote>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(this) = remote.upgrade() else { return };
        for status in this.cache.running() {
            let made = this.records.container(&status.sandbox_id, &status.id);
            let Some(rotation) = made.and_then(|made| made.log_rotation) else { continue };
            let big = fs::metadata(&status.log_path).is_ok_and(|file| file.len() > rotation.max_bytes);
            if big && let Err(error) = rotate_one(&this, &status.id, &status.log_path, rotation).await {
                tracing::warn!(container = status.id, %error, "a log could not be rotated");
            }
        }
    }
}

async fn rotate_one(remote: &Remote, id: &str, log: &Path, rotation: LogRotation) -> io::Result<()> {
    let path = log.to_owned();
    let cleaned = tokio::task::spawn_blocking(move || clean(&path, rotation.max_files)).await;
    cleaned.map_err(io::Error::other)??;
    let renamed = with_ending(log, &Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string());
    fs::rename(log, &renamed)?;
    if let Err(error) = remote.reopen_container_log(id).await {
        // The runtime still writes to the old file: it gets its name back.
        fs::rename(&renamed, log)?;
        return Err(io::Error::other(error));
    }
    Ok(())
}

fn with_ending(log: &Path, ending: &str) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Rotated files of a log, oldest first.
fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let start = format!("{}.", name.to_string_lossy());
    let mut found: Vec<PathBuf> = fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&start))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

/// Makes room for one more rotated file and compresses those there are.
fn clean(log: &Path, max_files: u32) -> io::Result<()> {
    let is = |path: &Path, ending: &str| path.extension().is_some_and(|e| e == ending);
    for file in rotated(log)?.iter().filter(|file| is(file, "tmp")) {
        fs::remove_file(file)?;
    }
    let files = rotated(log)?;
    // The log itself and the one about to be rotated count.
    let keep = max_files.saturating_sub(2) as usize;
    let (old, kept) = files.split_at(files.len().saturating_sub(keep));
    for file in old {
        fs::remove_file(file)?;
    }
    for file in kept.iter().filter(|file| !is(file, "gz")) {
        compress(file)?;
    }
    Ok(())
}

fn compress(file: &Path) -> io::Result<()> {
    let fresh = with_ending(file, "tmp");
    let mut encoder = GzEncoder::new(File::create(&fresh)?, Compression::default());
    io::copy(&mut File::open(file)?, &mut encoder)?;
    encoder.finish()?;
    fs::rename(&fresh, with_ending(file, "gz"))?;
    fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn old_logs_are_compressed_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for ending in ["20260101-000000.gz", "20260102-000000.gz", "20260103-000000", "20260103-000000.tmp"] {
            fs::write(with_ending(&log, ending), ending).unwrap();
        }
        fs::write(&log, "now").unwrap();
        clean(&log, 4).unwrap();
        let names: Vec<String> = rotated(&log)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["0.log.20260102-000000.gz", "0.log.20260103-000000.gz"]);
        let mut text = String::new();
        let file = File::open(with_ending(&log, "20260103-000000.gz")).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "20260103-000000");
    }
}
