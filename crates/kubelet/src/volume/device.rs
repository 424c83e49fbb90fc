//! Block volumes: devices that pods get as they are, without a file system.
//!
//! As upstream has it, a device is noted twice: a link in the pod's directory leads to it, and a bind mount in the
//! plugin's directory keeps it. A regular file of the node becomes a loop device as long as a pod has it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use super::loops;
use super::mount::is_mounted;
use crate::spec::PodDirs;

/// Where a plugin keeps the devices of a volume, a file per pod.
pub fn global(root: &Path, plugin: &str, volume: &str) -> PathBuf {
    let own = root.join("plugins").join(plugin).join("volumeDevices").join(volume);
    // Drivers have more than devices there.
    if plugin == crate::csi::PLUGIN { own.join("dev") } else { own }
}

/// Says that the loop device of a volume is ours to let go.
fn loop_mark(root: &Path, plugin: &str, volume: &str) -> PathBuf {
    root.join("plugins").join(plugin).join("volumeDevices").join(format!("{volume}.loop"))
}

/// Whether a volume is a file behind a loop device.
pub fn is_loop(root: &Path, plugin: &str, volume: &str) -> bool {
    loop_mark(root, plugin, volume).exists()
}

/// The device behind a path of the node: itself, or a loop device on a file. Blocks.
pub fn open(root: &Path, plugin: &str, volume: &str, path: &Path) -> io::Result<PathBuf> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_block_device() {
        return Ok(path.to_owned());
    }
    if kind.is_file() {
        let mark = loop_mark(root, plugin, volume);
        if let Some(parent) = mark.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&mark, path.as_os_str().as_encoded_bytes())?;
        return loops::attach(&path.canonicalize()?);
    }
    Err(io::Error::other(format!("{} is not a block device", path.display())))
}

/// Notes that a pod has a device; what comes back is where containers are given it from. Blocks.
pub fn map(
    root: &Path,
    dirs: &PodDirs,
    plugin: &str,
    volume: &str,
    uid: &str,
    device: &Path,
) -> io::Result<PathBuf> {
    let link = dirs.device(plugin, volume);
    if fs::read_link(&link).ok().as_deref() != Some(device) {
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent)?;
        }
        remove_file(&link)?;
        symlink(device, &link)?;
    }
    let kept = global(root, plugin, volume).join(uid);
    if !is_mounted(&kept)? {
        if let Some(parent) = kept.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(&kept)?;
        nix::mount::mount(Some(device), &kept, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(link)
}

/// The devices a pod has: plugin, volume and the link.
pub fn mapped(dirs: &PodDirs) -> Vec<(String, String, PathBuf)> {
    let plugins = fs::read_dir(dirs.root.join("volumeDevices")).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for plugin in plugins {
        let name = plugin.file_name().to_string_lossy().replace('~', "/");
        for link in fs::read_dir(plugin.path()).into_iter().flatten().flatten() {
            found.push((name.clone(), link.file_name().to_string_lossy().into_owned(), link.path()));
        }
    }
    found
}

/// Keeps a device no longer; the link, which says that the pod has it, stays. Blocks.
pub fn unkeep(root: &Path, plugin: &str, volume: &str, uid: &str) -> io::Result<()> {
    let kept = global(root, plugin, volume).join(uid);
    if is_mounted(&kept)? {
        nix::mount::umount2(&kept, MntFlags::MNT_DETACH)?;
    }
    remove_file(&kept)
}

/// Takes away what [`map`] made. The device itself is its driver's. Blocks.
pub fn unmap(root: &Path, plugin: &str, volume: &str, uid: &str, link: &Path) -> io::Result<()> {
    let device = fs::read_link(link).ok();
    unkeep(root, plugin, volume, uid)?;
    remove_file(link)?;
    let last = fs::remove_dir(global(root, plugin, volume)).is_ok();
    let mark = loop_mark(root, plugin, volume);
    if let Some(device) = device.filter(|_| last && mark.exists()) {
        loops::detach(&device)?;
        remove_file(&mark)?;
    }
    Ok(())
}

/// Lets every loop device go that pods had: those of marked volumes, wherever their files are, and any other on a file
/// below `data`. For a node that goes away, with nothing of it running or mounted any more. Blocks.
pub fn release_all(root: &Path, data: &Path) -> io::Result<()> {
    let mut devices = loops::below(data);
    let plugins = fs::read_dir(root.join("plugins/kubernetes.io")).into_iter().flatten().flatten();
    for plugin in plugins {
        let volumes = fs::read_dir(plugin.path().join("volumeDevices")).into_iter().flatten().flatten();
        for entry in volumes {
            if entry.path().extension().is_none_or(|extension| extension != "loop") {
                continue;
            }
            let file = PathBuf::from(std::ffi::OsString::from_vec(fs::read(entry.path())?));
            // A file that is gone has no device that could be told from another's.
            devices.extend(file.canonicalize().ok().and_then(|file| loops::of(&file)));
        }
    }
    devices.sort();
    devices.dedup();
    devices.iter().try_for_each(|device| loops::detach(device))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
