//! Who may use the images that are on the node. A pull with a secret is noted; a pod that does not have that secret
//! pulls again, and so shows its registry that it may have the image, although the image is there.
//!
//! Notes are files below `image_manager` of the kubelet's directory: `pulling` while a pull runs, `pulled` after it.
//! What cannot be read counts as unknown, and costs a pull.

pub mod policy;
pub mod record;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use cri::{Image, ImageAuth};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::images::repository;
pub use policy::Verification;
pub use record::{Access, Credentials, Intent, Record, Secret};

/// Largest note that is read: one with the most secrets is well below.
const FILE_LEN_MAX: u64 = 1 << 20;
/// Names of notes begin so.
const PREFIX: &str = "sha256-";
/// Names of notes that are being written end so.
const UNFINISHED: &str = ".tmp";

/// The notes of a node.
#[derive(Debug)]
pub struct Pulled {
    pulling: PathBuf,
    pulled: PathBuf,
    policy: Verification,
    /// Pulls that run, by image; held over every look at the files and every change of them.
    running: Mutex<HashMap<String, usize>>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file_name(text: &str) -> String {
    format!("{PREFIX}{}", hex(&Sha256::digest(text)))
}

/// A hash of credentials: of upstream's JSON of them, so that its notes and these agree.
pub fn hash(auth: &ImageAuth) -> String {
    #[derive(Serialize)]
    struct Form<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        username: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        password: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        identitytoken: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        registrytoken: &'a str,
    }
    let form = Form {
        username: &auth.username,
        password: &auth.password,
        identitytoken: &auth.identity_token,
        registrytoken: &auth.registry_token,
    };
    // Go escapes what HTML would take for its own; a failure leaves a hash that fits nothing.
    let Ok(text) = serde_json::to_string(&form) else { return String::new() };
    let text = text.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
    hex(&Sha256::digest(text))
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > FILE_LEN_MAX => Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => std::fs::read(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a note whole or not at all.
fn write(directory: &Path, name: &str, note: &impl Serialize) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let unfinished = directory.join(format!("{name}{UNFINISHED}"));
    let made = (|| {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        io::Write::write_all(&mut file, &serde_json::to_vec(note)?)?;
        std::fs::rename(&unfinished, directory.join(name))
    })();
    if made.is_err() {
        // Perhaps it was never there.
        let _ = std::fs::remove_file(&unfinished);
    }
    made
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The files of notes in a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_note = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(PREFIX) && !name.ends_with(UNFINISHED)
    };
    entries.map(|entry| entry.path()).filter(is_note).collect()
}

/// A name with its registry and tag spelled out.
fn canonical(image: &str) -> String {
    let repository = repository(image);
    let short = image.split('@').next().unwrap_or_default();
    let tag = match (image.split_once('@'), short.rsplit_once(':')) {
        (Some((_, digest)), _) => return format!("{repository}@{digest}"),
        (None, Some((_, tag))) if !tag.contains('/') => tag,
        _ => "latest",
    };
    format!("{repository}:{tag}")
}

impl Pulled {
    /// The notes below a kubelet's directory.
    pub fn new(root: &Path, policy: Verification) -> Pulled {
        let directory = root.join("image_manager");
        Pulled {
            pulling: directory.join("pulling"),
            pulled: directory.join("pulled"),
            policy,
            running: Mutex::default(),
        }
    }

    /// Pulls that were running when the kubelet ended may have been done: such an image is known to be pulled, and
    /// nobody to have access.
    pub fn recover(&self, images: &[Image], now: Timestamp) {
        let _running = self.running.lock();
        let intents = files(&self.pulling).into_iter().filter_map(|path| {
            let intent = Intent::decode(&read(&path).ok()??)?;
            Some((path, intent))
        });
        for (path, intent) in intents {
            let name = canonical(&intent.image);
            let is_it = |image: &&Image| {
                image.repo_tags.iter().chain(&image.repo_digests).any(|other| canonical(other) == name)
            };
            let Some(image) = images.iter().find(is_it) else { continue };
            let noted = self.note(&intent.image, &image.id, None, now).and_then(|()| remove(&path));
            if let Err(error) = noted {
                tracing::warn!(image = intent.image, %error, "a pull could not be noted");
            }
        }
    }

    /// Notes that a pull begins; to be followed by [`Pulled::succeeded`] or [`Pulled::failed`].
    pub fn begin(&self, image: &str) -> io::Result<()> {
        let mut running = self.running.lock();
        write(&self.pulling, &file_name(image), &Intent::new(image))?;
        *running.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Notes that a pull of an image has brought one with this id, and for whom.
    pub fn succeeded(&self, image: &str, id: &str, credentials: Credentials, now: Timestamp) {
        let noted = {
            let _running = self.running.lock();
            self.note(image, id, Some(credentials), now)
        };
        match noted {
            Ok(()) => self.failed(image),
            // The intent stays, and with it what makes others show their credentials.
            Err(error) => tracing::warn!(image, %error, "a pulled image could not be noted"),
        }
    }

    /// Notes that a pull is over.
    pub fn failed(&self, image: &str) {
        let mut running = self.running.lock();
        let left = running.get(image).copied().unwrap_or_default().saturating_sub(1);
        if left > 0 {
            running.insert(image.to_owned(), left);
            return;
        }
        match remove(&self.pulling.join(file_name(image))) {
            Ok(()) => drop(running.remove(image)),
            Err(error) => tracing::warn!(image, %error, "the note of a pull could not be removed"),
        }
    }

    fn note(
        &self,
        image: &str,
        id: &str,
        credentials: Option<Credentials>,
        now: Timestamp,
    ) -> io::Result<()> {
        let (mut record, mut changed) = match self.record(id) {
            Ok(Some(record)) => (record, false),
            Ok(None) => (Record::new(id, now), true),
            Err(error) => {
                tracing::warn!(id, %error, "the note of a pulled image could not be read; it is written anew");
                (Record::new(id, now), true)
            }
        };
        if let Some(credentials) = credentials {
            changed |= record.merge(&repository(image), credentials, now);
        }
        if changed { write(&self.pulled, &file_name(id), &record) } else { Ok(()) }
    }

    fn record(&self, id: &str) -> io::Result<Option<Record>> {
        let Some(bytes) = read(&self.pulled.join(file_name(id)))? else { return Ok(None) };
        let record = Record::decode(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok((record.image_ref == id).then_some(record))
    }

    fn is_being_pulled(&self, running: &HashMap<String, usize>, image: &str) -> io::Result<bool> {
        if running.get(image).is_some_and(|pulls| *pulls > 0) {
            return Ok(true);
        }
        let Some(bytes) = read(&self.pulling.join(file_name(image)))? else { return Ok(false) };
        let intent = Intent::decode(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(intent.image == image)
    }

    /// Whether a pod with these secrets has to pull an image that is there with this id.
    pub fn must_pull(&self, image: &str, id: &str, secrets: &[Secret], now: Timestamp) -> bool {
        let running = self.running.lock();
        let known = self.record(id).and_then(|record| match record {
            Some(record) => Ok((Some(record), true)),
            None => Ok((None, self.is_being_pulled(&running, image)?)),
        });
        let (record, pulled_here) = match known {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(image, %error, "the notes of pulled images could not be read");
                return true;
            }
        };
        if !self.policy.is_required(image, pulled_here) {
            return false;
        }
        let Some(record) = record else { return true };
        match record.access(&repository(image), secrets) {
            Access::Unknown => true,
            Access::Granted => false,
            Access::GrantedBy(secret) => {
                let noted = self.note(image, id, Some(Credentials::of_secret(secret)), now);
                if let Err(error) = noted {
                    tracing::warn!(image, %error, "a secret that fits an image could not be noted");
                }
                false
            }
        }
    }

    /// Forgets images that are gone; `images` are the ids of those that were there at `until`.
    pub fn prune(&self, images: &[String], until: Timestamp) {
        let _running = self.running.lock();
        for path in files(&self.pulled) {
            let record = read(&path).ok().flatten().and_then(|bytes| Record::decode(&bytes));
            let Some(record) = record else { continue };
            // One of the same second may be of an image that came since.
            let is_old = record.last_updated_time.as_second() < until.as_second();
            if is_old
                && !images.contains(&record.image_ref)
                && let Err(error) = remove(&path)
            {
                tracing::warn!(image = record.image_ref, %error, "the note of an image that is gone could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn secret(uid: &str) -> Secret {
        Secret { uid: uid.into(), namespace: "n".into(), name: "s".into(), credential_hash: uid.into() }
    }

    fn image(id: &str, tag: &str) -> Image {
        Image {
            id: id.into(),
            repo_tags: vec![tag.into()],
            repo_digests: Vec::new(),
            size_bytes: 1,
            uid: None,
            username: String::new(),
            pinned: false,
            added_at: None,
        }
    }

    #[test]
    fn who_has_to_pull() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Pulled::new(dir.path(), Verification::default());
        let must = |notes: &Pulled, secrets: &[Secret]| notes.must_pull("r.io/a:1", "id", secrets, at(9));
        assert!(!must(&notes, &[]), "nobody here has pulled it");
        notes.begin("r.io/a:1").unwrap();
        assert!(must(&notes, &[]), "it is being pulled");
        // Another process knows from the file.
        assert!(must(&Pulled::new(dir.path(), Verification::default()), &[]));
        notes.succeeded("r.io/a:1", "id", Credentials::of_secret(secret("one")), at(1));
        assert_eq!(files(&notes.pulling).len(), 0);
        assert!(must(&notes, &[]) && must(&notes, &[secret("two")]) && !must(&notes, &[secret("one")]));
        assert!(!must(&Pulled::new(dir.path(), Verification::Never), &[]));
        std::fs::write(files(&notes.pulled).remove(0), "x").unwrap();
        assert!(must(&notes, &[secret("one")]), "it cannot be read");
        notes.succeeded("r.io/a:1", "id", Credentials::of_node(), at(2));
        assert!(!must(&notes, &[]));
        assert!(must(&Pulled::new(&dir.path().join("other"), Verification::Always), &[]));
    }

    #[test]
    fn pulls_side_by_side_and_after_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Pulled::new(dir.path(), Verification::default());
        notes.begin("a").unwrap();
        notes.begin("a").unwrap();
        notes.failed("a");
        assert_eq!(files(&notes.pulling).len(), 1);
        notes.begin("gone:1").unwrap();
        let next = Pulled::new(dir.path(), Verification::default());
        next.recover(&[image("id", "docker.io/library/a:latest"), image("other", "b:1")], at(5));
        assert_eq!(files(&next.pulling).len(), 1, "what is not there stays to be pulled");
        assert!(next.must_pull("a", "id", &[secret("one")], at(6)), "nobody is known to have access");
        next.prune(&["id".into()], at(100));
        assert_eq!(files(&next.pulled).len(), 1);
        next.prune(&[], at(5));
        assert_eq!(files(&next.pulled).len(), 1, "as young as the list");
        next.prune(&[], at(6));
        assert_eq!(files(&next.pulled).len(), 0);
    }

    #[test]
    fn names_and_hashes() {
        let table = [
            ("a", "docker.io/library/a:latest"),
            ("r.io:5000/a", "r.io:5000/a:latest"),
            ("r.io/a:1@sha256:0", "r.io/a@sha256:0"),
            ("x/a:2", "docker.io/x/a:2"),
        ];
        for (image, expected) in table {
            assert_eq!(canonical(image), expected);
        }
        let auth = ImageAuth { username: "u".into(), password: "<&>".into(), ..ImageAuth::default() };
        let form = r#"{"username":"u","password":"\u003c\u0026\u003e"}"#;
        assert_eq!(hash(&auth), hex(&Sha256::digest(form)));
    }
}
