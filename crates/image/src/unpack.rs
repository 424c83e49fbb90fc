//! Unpacks one layer into a directory that overlayfs takes as a lower layer.
//!
//! Whiteouts become what overlayfs understands: `.wh.name` a character device 0/0, `.wh..wh..opq` the
//! attribute `trusted.overlay.opaque`. Every path is resolved by the kernel inside the layer's root
//! (`RESOLVE_IN_ROOT`), so that neither `..` nor a planted symbolic link leads outside.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    self as rfs, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use serde::{Deserialize, Serialize};
use tar::{Entry, EntryType};

use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result};

/// Most entries in one layer: more than any real image, few enough to bound time and inodes.
const ENTRIES_MAX: u64 = 2_000_000;
/// Largest unpacked layer; keeps a compression bomb from filling the disk.
const LAYER_LEN_MAX: u64 = 64 << 30;
/// Longest path, as the kernel has it.
const PATH_LEN_MAX: usize = 4096;

/// Memory that reading xz may take, in KiB: the strongest setting of `xz` needs half of it, and a file may ask
/// for 4 GiB.
const XZ_MEMORY_MAX_KIB: u32 = 128 << 10;

/// How much of a file tells whether it is a tar: its first record.
const HEAD_LEN: u64 = 512;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerUsage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Wraps a blob in the decompressor that its first bytes call for.
pub(crate) fn decompress<'a, R: BufRead + 'a>(mut blob: R) -> Result<Box<dyn Read + 'a>> {
    let head = blob.fill_buf().map_err(Error::io("read layer"))?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(blob).map_err(Error::io("read zstd layer"))?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(blob, true, XZ_MEMORY_MAX_KIB))
        }
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(blob)),
        _ => Box::new(blob),
    })
}

/// Unpacks `blob` into the new directory `dest` and returns the digest of the tar (the diff id) and its use
/// of the disk. The caller compares the digest before it uses the directory.
pub(crate) fn unpack_layer<R: BufRead>(blob: R, dest: &Path) -> Result<(Digest, LayerUsage)> {
    fs::create_dir(dest).map_err(Error::io("create layer directory"))?;
    rfs::chmod(dest, Mode::from_raw_mode(0o755)).map_err(|e| Error::io("set mode of layer")(e.into()))?;
    let root = rfs::open(dest, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open layer directory")(e.into()))?;
    let mut unpacker = Unpacker::new(root, false);
    let mut archive = tar::Archive::new(HashingReader::new(decompress(blob)?.take(LAYER_LEN_MAX)));
    for entry in archive.entries().map_err(Error::io("read layer"))? {
        unpacker.entry(&mut entry.map_err(Error::io("read layer"))?)?;
        if unpacker.usage.inodes > ENTRIES_MAX {
            return Err(Error::TooLarge { what: "number of files in a layer".into(), limit: ENTRIES_MAX });
        }
    }
    unpacker.finish_directories()?;
    let digest = archive.into_inner().finish().map_err(Error::io("read layer"))?;
    let dir = File::open(dest).map_err(Error::io("open layer directory"))?;
    rfs::syncfs(&dir).map_err(|e| Error::io("sync layer")(e.into()))?;
    Ok((digest, unpacker.usage))
}

struct Unpacker {
    root: OwnedFd,
    /// The directory of the entry before: tars are ordered, so this saves most look-ups.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories and their times, set at the end as filling them changes them.
    directories: Vec<(PathBuf, Timespec)>,
    usage: LayerUsage,
    /// Names that mean whiteouts in layers are names like others.
    literal: bool,
}

/// Whether a file is a tar, plain or compressed.
pub fn is_archive(file: &Path) -> Result<bool> {
    let context = || format!("read {}", file.display());
    let mut blob = io::BufReader::new(File::open(file).map_err(Error::io(context()))?);
    if blob.fill_buf().map_err(Error::io(context()))?.len() < 4 {
        return Ok(false);
    }
    let mut head = Vec::new();
    let read = decompress(blob).ok().map(|r| r.take(HEAD_LEN).read_to_end(&mut head));
    // What begins like a compressed file but is none is a plain file.
    Ok(matches!(read, Some(Ok(_))) && head.get(257..262).is_some_and(|magic| magic == b"ustar"))
}

/// Unpacks a tar, plain or compressed, into an open directory. Nothing is written outside of it.
pub fn extract_archive(file: &Path, dest: OwnedFd) -> Result<()> {
    let blob = File::open(file).map_err(Error::io(format!("open {}", file.display())))?;
    let mut unpacker = Unpacker::new(dest, true);
    let mut archive = tar::Archive::new(decompress(io::BufReader::new(blob))?.take(LAYER_LEN_MAX));
    for entry in archive.entries().map_err(Error::io("read archive"))? {
        unpacker.entry(&mut entry.map_err(Error::io("read archive"))?)?;
        if unpacker.usage.inodes > ENTRIES_MAX {
            return Err(Error::TooLarge { what: "number of files in an archive".into(), limit: ENTRIES_MAX });
        }
    }
    unpacker.finish_directories()
}

/// The path within the layer, `None` for the root itself.
fn clean_path(raw: &[u8]) -> Result<Option<PathBuf>> {
    let escape = || Error::Escape { path: String::from_utf8_lossy(raw).into_owned() };
    if raw.len() > PATH_LEN_MAX || raw.contains(&0) {
        return Err(escape());
    }
    let mut clean = PathBuf::new();
    for part in Path::new(std::ffi::OsStr::from_bytes(raw)).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(escape()),
        }
    }
    Ok(if clean.as_os_str().is_empty() { None } else { Some(clean) })
}

fn fs_error(what: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    let context = format!("{what} {}", path.display());
    move |e| Error::Io { context, source: e.into() }
}

impl Unpacker {
    fn new(root: OwnedFd, literal: bool) -> Unpacker {
        Unpacker { root, parent: None, directories: Vec::new(), usage: LayerUsage::default(), literal }
    }

    fn open_in_root(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rfs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Opens the directory `path`, making what is missing of it.
    fn open_dir(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match self.open_in_root(path, flags) {
            Err(rustix::io::Errno::NOENT) => {}
            other => return other.map_err(fs_error("open", path)),
        }
        let mut built = PathBuf::new();
        for part in path.components() {
            let above = if built.as_os_str().is_empty() { PathBuf::from(".") } else { built.clone() };
            built.push(part);
            match self.open_in_root(&built, flags) {
                Ok(_) => continue,
                Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(fs_error("open", &built)(e)),
            }
            let dir = self.open_in_root(&above, flags).map_err(fs_error("open", &above))?;
            rfs::mkdirat(&dir, part.as_os_str(), Mode::from_raw_mode(0o755))
                .map_err(fs_error("create", &built))?;
        }
        self.open_in_root(path, flags).map_err(fs_error("open", path))
    }

    /// The open directory of `path`, and its last component.
    fn parent_of<'a>(&mut self, path: &'a Path) -> Result<(OwnedFd, &'a std::ffi::OsStr)> {
        let name = path.file_name().ok_or_else(|| Error::Escape { path: path.display().to_string() })?;
        let dir = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(known, _)| known != dir) {
            self.parent = Some((dir.to_owned(), self.open_dir(dir)?));
        }
        let fd = self.parent.as_ref().map(|(_, fd)| fd.try_clone()).transpose();
        let fd = fd.map_err(Error::io("duplicate descriptor"))?;
        Ok((fd.ok_or_else(|| Error::Escape { path: path.display().to_string() })?, name))
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let Some(path) = clean_path(&entry.path_bytes())? else {
            return self.root_entry(entry);
        };
        let (dir, name) = self.parent_of(&path)?;
        if !self.literal && name.as_bytes() == OPAQUE_MARKER {
            return set_opaque(&dir, Path::new("."), &path);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX).filter(|_| !self.literal) {
            return self.whiteout(&dir, std::ffi::OsStr::from_bytes(hidden), &path);
        }
        let replaced_whiteout = self.make_room(&dir, name, kind, &path)?;
        self.create(entry, kind, &dir, name, &path)?;
        if replaced_whiteout && kind == EntryType::Directory {
            set_opaque(&dir, Path::new(name), &path)?;
        }
        self.usage.inodes += 1;
        Ok(())
    }

    fn root_entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        if entry.header().entry_type() != EntryType::Directory {
            return Err(Error::Escape { path: "/".into() });
        }
        let dir = self.open_dir(Path::new("."))?;
        let above = Path::new("/");
        let attributes = Attributes::of(entry)?;
        attributes.apply(&dir, Path::new("."), EntryType::Directory, above)?;
        self.directories.push((PathBuf::from("."), attributes.mtime));
        Ok(())
    }

    fn whiteout(&mut self, dir: &OwnedFd, hidden: &std::ffi::OsStr, path: &Path) -> Result<()> {
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(Error::Escape { path: path.display().to_string() });
        }
        // What this very layer brings is not hidden by its own whiteout.
        match rfs::mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(fs_error("create whiteout", path)(e)),
        }
    }

    /// Removes what stands where an entry goes, save a directory for a directory. Tells whether it was a
    /// whiteout.
    fn make_room(
        &mut self,
        dir: &OwnedFd,
        name: &std::ffi::OsStr,
        kind: EntryType,
        path: &Path,
    ) -> Result<bool> {
        let stat = match rfs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            Err(e) => return Err(fs_error("stat", path)(e)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if kind == EntryType::Directory => Ok(false),
            FileType::Directory => {
                self.parent = None;
                let full = proc_path(dir, Path::new(name));
                fs::remove_dir_all(&full).map_err(Error::io(format!("replace {}", path.display())))?;
                Ok(false)
            }
            found => {
                rfs::unlinkat(dir, name, AtFlags::empty()).map_err(fs_error("replace", path))?;
                Ok(found == FileType::CharacterDevice && stat.st_rdev == 0)
            }
        }
    }

    fn create<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        dir: &OwnedFd,
        name: &std::ffi::OsStr,
        path: &Path,
    ) -> Result<()> {
        let attributes = Attributes::of(entry)?;
        match kind {
            EntryType::Directory => {
                match rfs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(fs_error("create", path)(e)),
                }
                self.directories.push((path.to_owned(), attributes.mtime));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rfs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
                    .map_err(fs_error("create", path))?;
                let copied = io::copy(entry, &mut File::from(fd));
                self.usage.bytes += copied.map_err(Error::io(format!("write {}", path.display())))?;
            }
            EntryType::Symlink => {
                let target = link_target(entry, path)?;
                rfs::symlinkat(std::ffi::OsStr::from_bytes(&target), dir, name)
                    .map_err(fs_error("create", path))?;
            }
            EntryType::Link => {
                let target = link_target(entry, path)?;
                return self.hard_link(&target, dir, name, path);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => make_node(entry, kind, dir, name, path)?,
            other => return Err(Error::Malformed(format!("layer entry {}: type {other:?}", path.display()))),
        }
        attributes.apply(dir, Path::new(name), kind, path)
    }

    fn hard_link(&mut self, target: &[u8], dir: &OwnedFd, name: &std::ffi::OsStr, path: &Path) -> Result<()> {
        let target = clean_path(target)?.ok_or_else(|| Error::Escape { path: path.display().to_string() })?;
        let from = self.open_dir(target.parent().unwrap_or(Path::new("")))?;
        let from_name = target.file_name().unwrap_or_default();
        rfs::linkat(&from, from_name, dir, name, AtFlags::empty()).map_err(fs_error("link", path))
    }

    fn finish_directories(&mut self) -> Result<()> {
        for (path, mtime) in self.directories.iter().rev() {
            let Ok(dir) = self.open_in_root(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW) else {
                continue;
            };
            let times = Timestamps { last_access: *mtime, last_modification: *mtime };
            rfs::utimensat(&dir, ".", &times, AtFlags::empty()).map_err(fs_error("set time of", path))?;
        }
        Ok(())
    }
}

fn link_target<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<Vec<u8>> {
    let target = entry.link_name_bytes().filter(|t| !t.is_empty() && t.len() <= PATH_LEN_MAX);
    let target =
        target.ok_or_else(|| Error::Malformed(format!("layer entry {}: no link target", path.display())))?;
    Ok(target.into_owned())
}

fn make_node<R: Read>(
    entry: &Entry<'_, R>,
    kind: EntryType,
    dir: &OwnedFd,
    name: &std::ffi::OsStr,
    path: &Path,
) -> Result<()> {
    let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
    let (major, minor) = (number(entry.header().device_major()), number(entry.header().device_minor()));
    let kind = match kind {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = if kind == FileType::Fifo { 0 } else { rfs::makedev(major, minor) };
    rfs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), device).map_err(fs_error("create", path))
}

/// A path to `name` in an open directory, for calls that take no directory descriptor.
fn proc_path(dir: impl AsFd, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(name)
}

fn set_opaque(dir: &OwnedFd, name: &Path, path: &Path) -> Result<()> {
    rfs::lsetxattr(proc_path(dir, name), "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(fs_error("mark opaque", path))
}

/// Owner, mode, time and extended attributes of an entry.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    fn of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Attributes> {
        let malformed = |e: io::Error| Error::Malformed(format!("layer entry: {e}"));
        let header = entry.header();
        let mut attributes = Attributes {
            // Some writers leave fields empty; tar reads that as 0.
            uid: header.uid().unwrap_or(0) as u32,
            gid: header.gid().unwrap_or(0) as u32,
            mode: header.mode().unwrap_or(0) & 0o7777,
            mtime: Timespec { tv_sec: header.mtime().unwrap_or(0).min(i64::MAX as u64) as i64, tv_nsec: 0 },
            xattrs: Vec::new(),
        };
        let Some(extensions) = entry.pax_extensions().map_err(malformed)? else { return Ok(attributes) };
        for extension in extensions {
            let extension = extension.map_err(malformed)?;
            let (Ok(key), value) = (extension.key(), extension.value_bytes()) else { continue };
            let text = std::str::from_utf8(value).unwrap_or("");
            match key {
                "uid" => attributes.uid = text.parse().unwrap_or(attributes.uid),
                "gid" => attributes.gid = text.parse().unwrap_or(attributes.gid),
                "mtime" => attributes.mtime = parse_time(text).unwrap_or(attributes.mtime),
                _ => {
                    // overlayfs' own attributes in an image would let it look into other layers.
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                        && !name.starts_with("trusted.overlay.")
                    {
                        attributes.xattrs.push((name.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Ok(attributes)
    }

    fn apply(&self, dir: &OwnedFd, name: &Path, kind: EntryType, path: &Path) -> Result<()> {
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        rfs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fs_error("chown", path))?;
        if kind != EntryType::Symlink {
            let mode = Mode::from_raw_mode(self.mode);
            rfs::chmodat(dir, name, mode, AtFlags::empty()).map_err(fs_error("chmod", path))?;
        }
        for (key, value) in &self.xattrs {
            match rfs::lsetxattr(proc_path(dir, name), key.as_str(), value, XattrFlags::empty()) {
                // Not every file system has them, and links take none; Docker goes on too.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
                Err(e) => return Err(fs_error("set attribute of", path)(e)),
            }
        }
        let times = Timestamps { last_access: self.mtime, last_modification: self.mtime };
        rfs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(fs_error("set time of", path))
    }
}

/// `1700000000.123456789` of a pax header.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: digits.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        let table: [(&[u8], Option<&str>); 5] = [
            (b"./", None),
            (b"/", None),
            (b"./etc/passwd", Some("etc/passwd")),
            (b"/etc//x/", Some("etc/x")),
            (b"a/./b", Some("a/b")),
        ];
        for (raw, want) in table {
            assert_eq!(clean_path(raw).unwrap(), want.map(PathBuf::from));
        }
        for bad in [&b"../x"[..], b"a/../../x", b"..", b"a\0b"] {
            assert!(matches!(clean_path(bad), Err(Error::Escape { .. })));
        }
    }

    #[test]
    fn pax_times() {
        let time = parse_time("1700000000.5").unwrap();
        assert_eq!((time.tv_sec, time.tv_nsec), (1_700_000_000, 500_000_000));
        assert_eq!(parse_time("12").unwrap().tv_nsec, 0);
        assert!(parse_time("x").is_none());
    }
}
