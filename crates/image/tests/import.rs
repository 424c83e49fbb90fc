//! Imports: layers on disk, whiteouts, escapes, names, removal.

mod support;

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use cri::ImageService;
use image::{Error, ImageStore, ImportOptions, ResolvedImage};
use support::{Layer, docker_archive, gzip, open};
use tar::EntryType;

async fn import(
    store: &std::sync::Arc<ImageStore>,
    archive: Vec<u8>,
) -> Result<Vec<image::ImportedImage>, Error> {
    store.clone().import(Cursor::new(archive), ImportOptions::default()).await
}

async fn import_one(root: &Path, layers: &[Vec<u8>]) -> Result<ResolvedImage, Error> {
    let store = open(root);
    import(&store, docker_archive(&[(&["team/app:1"], layers, r#"{"Cmd":["sh"]}"#)])).await?;
    Ok(store.resolve("team/app:1")?.unwrap())
}

#[tokio::test]
async fn layers_keep_what_the_tar_says() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::new()
        .dir("./", 0o750)
        .dir("bin/", 0o711)
        .file_mode("bin/tool", 0o4755, b"elf")
        .link(EntryType::Symlink, "bin/alias", "/bin/tool")
        .link(EntryType::Link, "bin/same", "bin/tool")
        .link(EntryType::Symlink, "lib", "usr/lib")
        .dir("usr/lib/", 0o755)
        .file("lib/through-link", b"here")
        .link(EntryType::Fifo, "pipe", "")
        .xattr("marked", "user.colour", b"red")
        .done();
    let image = import_one(dir.path(), &[layer]).await.unwrap();
    let root = &image.layers[0];
    assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o7777, 0o750);
    let tool = fs::metadata(root.join("bin/tool")).unwrap();
    assert_eq!((tool.permissions().mode() & 0o7777, tool.uid(), tool.gid()), (0o4755, 7, 8));
    assert_eq!((tool.mtime(), tool.nlink()), (1_600_000_000, 2));
    assert_eq!(fs::metadata(root.join("bin")).unwrap().mtime(), 1_600_000_000);
    assert_eq!(fs::read_link(root.join("bin/alias")).unwrap(), Path::new("/bin/tool"));
    assert_eq!(fs::read(root.join("usr/lib/through-link")).unwrap(), b"here");
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    let mut value = [0; 8];
    let n = rustix::fs::getxattr(root.join("marked"), "user.colour", &mut value[..]).unwrap();
    assert_eq!(&value[..n], b"red");
    assert_eq!(image.config.cmd, ["sh"]);
}

#[tokio::test]
async fn whiteouts_become_overlay_whiteouts() {
    let dir = tempfile::tempdir().unwrap();
    let lower = Layer::new().file("etc/a", b"a").file("etc/b", b"b").file("var/x", b"x").done();
    let upper = Layer::new()
        .file("etc/.wh.a", b"")
        .file("var/.wh..wh..opq", b"")
        .file("var/new", b"n")
        .file("etc/kept", b"k")
        .file("etc/.wh.kept", b"")
        .done();
    let image = import_one(dir.path(), &[lower, upper]).await.unwrap();
    let top = &image.layers[1];
    let hidden = fs::symlink_metadata(top.join("etc/a")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    assert_eq!(fs::read(top.join("etc/kept")).unwrap(), b"k", "a whiteout does not hide its own layer");
    let mut value = [0; 4];
    assert_eq!(rustix::fs::getxattr(top.join("var"), "trusted.overlay.opaque", &mut value[..]), Ok(1));
    assert!(!top.join("etc/.wh.a").exists());
    let text = |path: &str| ImageStore::read_text(&image.layers, Path::new(path)).unwrap();
    assert_eq!(
        (text("etc/a"), text("etc/b"), text("var/x"), text("var/new")),
        (String::new(), "b".into(), String::new(), "n".into())
    );
}

#[tokio::test]
async fn nothing_is_written_outside() {
    let table = [
        Layer::new().file("../evil", b"x").done(),
        Layer::new().file("a/../../evil", b"x").done(),
        Layer::new().link(EntryType::Link, "a", "../../evil").done(),
    ];
    for layer in table {
        let dir = tempfile::tempdir().unwrap();
        let error = import_one(&dir.path().join("store"), &[layer]).await.unwrap_err();
        assert!(matches!(error, Error::Escape { .. }), "{error}");
        assert!(!dir.path().join("evil").exists());
        assert_eq!(fs::read_dir(dir.path().join("store/layers")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path().join("store/tmp")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn planted_links_lead_back_inside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    let up = format!("../../../../../../../../{}", target.trim_start_matches('/'));
    for link in [target, &up] {
        let layer = Layer::new()
            .dir(target.trim_start_matches('/'), 0o755)
            .link(EntryType::Symlink, "way", link)
            .file("way/file", b"x")
            .done();
        let store = tempfile::tempdir().unwrap();
        let image = import_one(store.path(), &[layer]).await.unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{link}");
        assert!(image.layers[0].join(target.trim_start_matches('/')).join("file").exists());
    }
}

#[tokio::test]
async fn a_layer_that_is_not_its_diff_id_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::new().file("a", b"a").done();
    let mut archive = docker_archive(&[(&["x:1"], &[layer], "{}")]);
    // Flip one byte of the file's content inside the archive.
    let at = archive.windows(512).position(|w| w[0] == b'a' && w[1..].iter().all(|b| *b == 0)).unwrap();
    archive[at] = b'b';
    let store = open(dir.path());
    let error = import(&store, archive).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert!(store.references().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test]
async fn many_images_one_archive_compressed_and_removal() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (base, a, b) = (
        Layer::new().file("base", b"0").done(),
        Layer::new().file("a", b"1").done(),
        Layer::new().file("b", b"2").done(),
    );
    let archive = docker_archive(&[
        (&["one:1", "one:latest"], &[base.clone(), a], "{}"),
        (&["localhost:5000/two"], &[base, b], r#"{"User":"web:x","Env":["A=b"]}"#),
    ]);
    let images = import(&store, gzip(&archive)).await.unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images[0].names, ["docker.io/library/one:1", "docker.io/library/one:latest"]);
    let layers = || {
        fs::read_dir(dir.path().join("layers"))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().is_dir())
            .count()
    };
    assert_eq!(layers(), 3);
    let listed = store.list().await.unwrap();
    assert_eq!(listed.len(), 2);
    let two = store.status("localhost:5000/two:latest").await.unwrap().unwrap();
    assert_eq!((two.image.username.as_str(), two.image.uid), ("web", None));
    assert_eq!(store.status(&two.image.id).await.unwrap().unwrap(), two);
    assert_eq!(store.status(&two.image.id[7..19]).await.unwrap().unwrap(), two);

    assert!(store.remove_reference("one:1").unwrap());
    assert!(store.status("one:1").await.unwrap().is_none());
    assert!(store.status("one").await.unwrap().is_some());
    assert_eq!(layers(), 3);
    // While someone holds the image its layers stay, though its name is gone.
    let held = store.resolve("one").unwrap().unwrap();
    store.remove("one").await.unwrap();
    assert!(held.layers.iter().all(|l| l.is_dir()));
    drop(held);
    store.remove("one").await.unwrap();
    store.remove("localhost:5000/two").await.unwrap();
    assert_eq!(layers(), 0);
    assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    assert_eq!(store.fs_info().await.unwrap().used_bytes, 0);
}

#[tokio::test]
async fn references_survive_reopening_and_leftovers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let image = import_one(dir.path(), &[Layer::new().file("a", b"a").done()]).await.unwrap();
    drop(image);
    fs::create_dir(dir.path().join("tmp/half")).unwrap();
    fs::write(dir.path().join("blobs/sha256").join("0".repeat(64)), b"orphan").unwrap();
    let store = open(dir.path());
    let id = store.resolve("team/app:1").unwrap().unwrap().id;
    assert!(!dir.path().join("tmp/half").exists());
    assert!(!dir.path().join("blobs/sha256").join("0".repeat(64)).exists());
    // An image whose configuration is lost is dropped; the store still opens.
    drop(store);
    fs::remove_file(dir.path().join("blobs/sha256").join(id.hex())).unwrap();
    let store = open(dir.path());
    assert!(store.references().is_empty());
}
