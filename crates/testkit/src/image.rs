//! The one image of the tests, made from the host's static busybox: no registry, no network.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Name under which pods ask for the image.
pub const BUSYBOX: &str = "docker.io/library/busybox:1";

/// Name of the image that holds a pod's namespaces open, for runtimes that need one.
pub const PAUSE: &str = "docker.io/library/pause:1";

/// Bytes of a tar record: every header and every file is padded to it.
const RECORD: usize = 512;

/// Writes the docker archive of [`BUSYBOX`] to `target`.
///
/// # Errors
/// When `/bin/busybox` is missing or the file cannot be written.
pub fn write_busybox(target: &Path) -> anyhow::Result<()> {
    write(target, BUSYBOX, &json!({"Cmd": ["sh", "-c", "echo image default"], "Env": ["PATH=/bin"]}))
}

/// Writes the docker archive of [`PAUSE`] to `target`: it waits, and reaps what is left to it.
///
/// # Errors
/// As [`write_busybox`].
pub fn write_pause(target: &Path) -> anyhow::Result<()> {
    let forever = ["sh", "-c", "while :; do sleep 2147483 & wait; done"];
    write(target, PAUSE, &json!({"Entrypoint": forever, "Env": ["PATH=/bin"]}))
}

fn write(target: &Path, name: &str, run: &serde_json::Value) -> anyhow::Result<()> {
    let busybox = std::fs::read("/bin/busybox").context("the tests need a static /bin/busybox")?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    ensure!(applets.status.success(), "/bin/busybox --list failed");
    let mut layer = Vec::new();
    for (directory, mode) in [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700)] {
        append(&mut layer, &format!("{directory}/"), Entry::Directory, mode);
    }
    append(
        &mut layer,
        "etc/passwd",
        Entry::File(b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
        0o644,
    );
    append(&mut layer, "etc/group", Entry::File(b"root:x:0:\nnogroup:x:65534:\n"), 0o644);
    append(&mut layer, "bin/busybox", Entry::File(&busybox), 0o755);
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        append(&mut layer, &format!("bin/{applet}"), Entry::Link("busybox"), 0o777);
    }
    layer.resize(layer.len() + 2 * RECORD, 0);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        "history": [{"created_by": "testkit"}],
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let mut archive = Vec::new();
    append(&mut archive, "config.json", Entry::File(config.to_string().as_bytes()), 0o644);
    append(&mut archive, "layer.tar", Entry::File(&layer), 0o644);
    append(&mut archive, "manifest.json", Entry::File(manifest.to_string().as_bytes()), 0o644);
    archive.resize(archive.len() + 2 * RECORD, 0);
    std::fs::write(target, archive).with_context(|| format!("cannot write {}", target.display()))
}

/// The name of content in images: how it is addressed.
pub fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer with these files, by path.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    files.iter().for_each(|(name, content)| append(&mut out, name, Entry::File(content), 0o644));
    out.resize(out.len() + 2 * RECORD, 0);
    out
}

enum Entry<'a> {
    File(&'a [u8]),
    Link(&'a str),
    Directory,
}

/// Appends one ustar entry.
fn append(out: &mut Vec<u8>, name: &str, entry: Entry<'_>, mode: u32) {
    let (kind, link, content): (u8, &str, &[u8]) = match entry {
        Entry::File(content) => (b'0', "", content),
        Entry::Link(target) => (b'2', target, &[]),
        Entry::Directory => (b'5', "", &[]),
    };
    let mut header = [0u8; RECORD];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\u{0}00");
    header[156] = kind;
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(RECORD), 0);
}
