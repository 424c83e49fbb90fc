//! The image that measured pods run: the host's static busybox as a docker-archive of one layer.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What it is called.
pub const NAME: &str = "bench.local/busybox:1";
/// What the image is called that holds a pod's namespaces open on containerd.
pub const PAUSE: &str = "bench.local/pause:1";
/// Where the program is found.
const BUSYBOX: &str = "/bin/busybox";

/// Writes the archive of the image that pods run.
pub fn write(path: &Path) -> anyhow::Result<()> {
    write_named(path, NAME, &["/bin/sh"])
}

/// Writes the archive of the image that only waits.
pub fn write_pause(path: &Path) -> anyhow::Result<()> {
    write_named(path, PAUSE, &["/bin/sleep", "2147483"])
}

fn write_named(path: &Path, name: &str, command: &[&str]) -> anyhow::Result<()> {
    let program =
        std::fs::read(BUSYBOX).with_context(|| format!("{BUSYBOX} is needed (install a static busybox)"))?;
    let mut layer = Builder::new(Vec::new());
    add(&mut layer, "bin/busybox", 0o755, &program)?;
    for link in ["bin/sh", "bin/sleep"] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, link, "busybox")?;
    }
    let layer = layer.into_inner()?;
    let digest: String = Sha256::digest(&layer).iter().map(|b| format!("{b:02x}")).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created_by": "bench"}],
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let mut archive = Builder::new(File::create(path)?);
    add(&mut archive, "config.json", 0o644, config.to_string().as_bytes())?;
    add(&mut archive, "layer.tar", 0o644, &layer)?;
    add(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
    archive.finish()?;
    Ok(())
}

fn add(tar: &mut Builder<impl std::io::Write>, name: &str, mode: u32, data: &[u8]) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, data)
}
