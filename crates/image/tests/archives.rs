//! Archives as `ADD` takes them: in every compression that Dockerfiles meet, made by another program.

use std::fs;
use std::process::Command;

use rustix::fs::{Mode, OFlags};

/// Makes `a.tar`, `a.tar.gz`, ... in the directory that is its argument, an xz that asks for more memory than it may
/// have, and files that only look like archives.
const MAKE: &str = "
import io, lzma, os, sys, tarfile
os.chdir(sys.argv[1])
for suffix, mode in (('tar', 'w'), ('tar.gz', 'w:gz'), ('tar.bz2', 'w:bz2'), ('tar.xz', 'w:xz')):
    with tarfile.open('a.' + suffix, mode) as tar:
        entry = tarfile.TarInfo('dir/file')
        entry.size = 300000
        tar.addfile(entry, io.BytesIO(b'x' * 300000))
greedy = [{'id': lzma.FILTER_LZMA2, 'dict_size': 1 << 30}]
with lzma.open('greedy.xz', 'w', filters=greedy) as f:
    f.write(open('a.tar', 'rb').read())
with lzma.open('text.xz', 'w') as f:
    f.write(b'no archive')
open('broken.xz', 'wb').write(bytes.fromhex('fd377a585a00') + b'no more')
open('broken.bz2', 'wb').write(b'BZh9 no more')
";

#[test]
fn every_compression_and_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let made = Command::new("python3").args(["-c", MAKE]).arg(directory.path()).status().unwrap();
    assert!(made.success());
    for suffix in ["tar", "tar.gz", "tar.bz2", "tar.xz"] {
        let (archive, to) = (path(&format!("a.{suffix}")), path(&format!("out-{suffix}")));
        assert!(image::is_archive(&archive).unwrap(), "{suffix}");
        fs::create_dir(&to).unwrap();
        let dest = rustix::fs::open(&to, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        image::extract_archive(&archive, dest).unwrap();
        assert_eq!(fs::read(to.join("dir/file")).unwrap(), vec![b'x'; 300_000], "{suffix}");
    }
    for name in ["greedy.xz", "text.xz", "broken.xz", "broken.bz2"] {
        assert!(!image::is_archive(&path(name)).unwrap(), "{name} is a plain file");
    }
}
