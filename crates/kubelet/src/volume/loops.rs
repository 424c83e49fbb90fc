//! Loop devices: files of the node as block devices.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;

const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4c07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
/// Length of `struct loop_config`, all zero but for the descriptor it begins with: the kernel's defaults.
const CONFIG_BYTES: usize = 304;
/// Others take loop devices too: how often one that was free a moment ago may be gone.
const TRIES_MAX: usize = 16;

/// The loop device of a file, as large as the file is now; made if there is none.
pub fn attach(file: &Path) -> io::Result<PathBuf> {
    if let Some(known) = of(file) {
        refresh(&known)?;
        return Ok(known);
    }
    let backing = OpenOptions::new().read(true).write(true).open(file)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut config = [0u8; CONFIG_BYTES];
        config[..4].copy_from_slice(&backing.as_raw_fd().to_ne_bytes());
        // SAFETY: `config` is as long as the kernel's structure and outlives the call.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, config.as_ptr()) };
        if done == 0 {
            return Ok(path);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || tries >= TRIES_MAX {
            return Err(error);
        }
    }
}

/// Lets a loop device see that its file has become longer.
pub fn refresh(device: &Path) -> io::Result<()> {
    let device = File::open(device)?;
    // SAFETY: the call takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY as _, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a loop device go; one that is in use goes with its last user. Other devices are left alone.
pub fn detach(device: &Path) -> io::Result<()> {
    let Some(name) = device.file_name().filter(|name| name.to_string_lossy().starts_with("loop")) else {
        return Ok(());
    };
    if !Path::new("/sys/block").join(name).join("loop").exists() {
        return Ok(());
    }
    let opened = File::open(device)?;
    // SAFETY: the call takes no argument.
    match unsafe { libc::ioctl(opened.as_raw_fd(), LOOP_CLR_FD as _, 0) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            error => Err(error),
        },
    }
}

/// The loop device that a file is behind.
pub fn of(file: &Path) -> Option<PathBuf> {
    attached().find(|(_, backing)| backing == file).map(|(device, _)| device)
}

/// The loop devices whose files lie below a directory, deleted ones too.
pub fn below(directory: &Path) -> Vec<PathBuf> {
    attached().filter(|(_, backing)| backing.starts_with(directory)).map(|(device, _)| device).collect()
}

/// Every loop device of the machine that has a file, and the file as the kernel names it.
fn attached() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.file_name());
    devices.filter_map(|name| {
        let file = fs::read(Path::new("/sys/block").join(&name).join("loop/backing_file")).ok()?;
        let file = std::ffi::OsStr::from_bytes(file.strip_suffix(b"\n").unwrap_or(&file));
        Some((Path::new("/dev").join(name), PathBuf::from(file)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_devices_for_a_while() {
        if !Path::new("/dev/loop-control").exists() || !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(of(&file), None);
        let device = attach(&file).unwrap();
        assert_eq!((attach(&file).unwrap(), of(&file)), (device.clone(), Some(device.clone())));
        let sectors = |device: &Path| {
            let name = device.file_name().unwrap().to_str().unwrap();
            fs::read_to_string(format!("/sys/block/{name}/size")).unwrap().trim().parse::<u64>().unwrap()
        };
        assert_eq!(sectors(&device), (1 << 20) / 512);
        OpenOptions::new().write(true).open(&file).unwrap().set_len(2 << 20).unwrap();
        refresh(&device).unwrap();
        assert_eq!(sectors(&device), (2 << 20) / 512);
        assert_eq!(below(&directory.path().join("other")), Vec::<PathBuf>::new());
        // The kernel still knows where a deleted file was.
        fs::remove_file(&file).unwrap();
        assert_eq!(below(directory.path()), std::slice::from_ref(&device));
        detach(&device).unwrap();
        detach(Path::new("/dev/null")).unwrap();
        assert_eq!(of(&file), None);
    }
}
