//! A real store under the sealing one: what is on disk, what is seen above, what rotation does.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use encryption::keyring::Keyring;
use encryption::{Cipher, Rule, Rules, Sealed, rewrite_stale};
use stdx::FakeClock;
use store::disk::{DiskStore, Options};
use store::{Change, Expect, Range, Store, Write, WriteOutcome};

const SECRET: &str = "/registry/secrets/n/x";
const CONFIG: &str = "/registry/configmaps/n/x";

fn disk(directory: &tempfile::TempDir) -> Arc<dyn Store> {
    Arc::new(DiskStore::open(directory.path(), Options::default()).unwrap())
}

fn put(key: &str, value: &'static [u8], expect: Expect) -> Write {
    Write { key: key.into(), expect, change: Change::Put(Bytes::from_static(value)) }
}

async fn raw(store: &Arc<dyn Store>, key: &str) -> Bytes {
    store.get(key).await.unwrap().unwrap().value
}

fn rules(ciphers: Vec<Cipher>) -> Arc<ArcSwap<Rules>> {
    Arc::new(ArcSwap::from_pointee(Rules(vec![Rule { resources: vec!["secrets".into()], ciphers }])))
}

#[tokio::test]
async fn everything_above_sees_plain_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let inner = disk(&directory);
    let sealed = Sealed::new(inner.clone(), rules(vec![Cipher::aes_gcm("k", vec![9; 32]).unwrap()]));
    let from = sealed.revision().await.unwrap();
    let mut watch = sealed.watch("/registry/", from).await.unwrap();
    sealed.write(put(SECRET, b"one", Expect::Absent)).await.unwrap();
    sealed.write(put(CONFIG, b"plain", Expect::Absent)).await.unwrap();
    let outcome = sealed.write(put(SECRET, b"two", Expect::Any)).await.unwrap();
    assert!(matches!(&outcome, WriteOutcome::Committed { previous: Some(p), .. } if &p.value[..] == b"one"));
    let outcome = sealed.write(put(SECRET, b"three", Expect::Absent)).await.unwrap();
    assert!(matches!(&outcome, WriteOutcome::Conflict { current: Some(c) } if &c.value[..] == b"two"));

    assert!(raw(&inner, SECRET).await.starts_with(b"k8s:enc:aesgcm:v1:k:"));
    assert_eq!(&raw(&inner, CONFIG).await[..], b"plain");
    assert_eq!(&sealed.get(SECRET).await.unwrap().unwrap().value[..], b"two");
    assert_eq!(&sealed.get_at(SECRET, from + 1).await.unwrap().unwrap().value[..], b"one");
    let listed = sealed.range(Range::prefix("/registry/")).await.unwrap();
    let values: Vec<&[u8]> = listed.items.iter().map(|i| &i.value[..]).collect();
    assert_eq!(values, [&b"plain"[..], b"two"]);
    let names = sealed.range(Range { keys_only: true, ..Range::prefix("/registry/") }).await.unwrap();
    assert_eq!(names.items.len(), 2);

    let mut seen = Vec::new();
    while seen.len() < 3 {
        let batch = watch.next().await.unwrap().unwrap();
        seen.extend(batch.events.iter().map(|e| (e.value.clone().unwrap(), e.previous.clone())));
    }
    assert_eq!(&seen[0].0[..], b"one");
    assert_eq!((&seen[2].0[..], seen[2].1.as_deref()), (&b"two"[..], Some(&b"one"[..])));
}

#[tokio::test]
async fn a_value_without_its_key_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let inner = disk(&directory);
    let first = Sealed::new(inner.clone(), rules(vec![Cipher::aes_gcm("a", vec![1; 32]).unwrap()]));
    first.write(put(SECRET, b"v", Expect::Absent)).await.unwrap();
    for ciphers in [
        vec![Cipher::secretbox("b", vec![1; 32]).unwrap(), Cipher::identity()],
        vec![Cipher::aes_gcm("a", vec![2; 32]).unwrap()],
    ] {
        let error = Sealed::new(inner.clone(), rules(ciphers)).get(SECRET).await.unwrap_err();
        assert!(error.to_string().contains(SECRET), "{error}");
    }
}

#[tokio::test]
async fn keys_are_replaced_in_time() {
    let (directory, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let inner = disk(&directory);
    inner.write(put(SECRET, b"from before", Expect::Absent)).await.unwrap();
    let path = keys.path().join("encryption.json");
    let clock = FakeClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let mut ring = Keyring::open_or_create(&path, clock.clone()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let sealed = Sealed::new(inner.clone(), ring.rules());
    assert_eq!(&sealed.get(SECRET).await.unwrap().unwrap().value[..], b"from before");

    let key_of = |stored: Bytes| String::from_utf8_lossy(&stored).split(':').nth(4).unwrap().to_owned();
    let mut names = Vec::new();
    for _ in 0..4 {
        let wait = ring.turn(&inner).await.unwrap();
        assert_eq!(wait, Duration::from_secs(90 * 24 * 3600));
        let stored = raw(&inner, SECRET).await;
        assert!(stored.starts_with(b"k8s:enc:aesgcm:v1:ferry-"));
        let name = key_of(stored);
        assert!(!names.contains(&name), "{name} came back");
        names.push(name);
        assert_eq!(&sealed.get(SECRET).await.unwrap().unwrap().value[..], b"from before");
        let revision = inner.revision().await.unwrap();
        clock.advance(Duration::from_secs(24 * 3600));
        ring.turn(&inner).await.unwrap();
        assert_eq!(inner.revision().await.unwrap(), revision, "nothing is written before it is time");
        clock.advance(wait);
    }

    // The next process reads the same keys.
    let ring = Keyring::open_or_create(&path, clock).unwrap();
    assert_eq!(rewrite_stale(&inner, &ring.rules().load()).await.unwrap(), 0);
    let again = Sealed::new(inner.clone(), ring.rules());
    assert_eq!(&again.get(SECRET).await.unwrap().unwrap().value[..], b"from before");
}
