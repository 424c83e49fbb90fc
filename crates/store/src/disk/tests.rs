//! What only this engine promises: locking, reopening, poisoning, compaction on disk.

use bytes::Bytes;

use super::*;
use crate::Expect;

fn put(key: &str, value: &'static str) -> Write {
    Write { key: key.into(), expect: Expect::Any, change: Change::Put(Bytes::from_static(value.as_bytes())) }
}

fn open(directory: &Path) -> DiskStore {
    DiskStore::open(directory, Options::default()).unwrap()
}

#[tokio::test]
async fn a_second_opening_is_refused_and_a_later_one_continues() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.write(put("a", "1")).await.unwrap();
    let second = DiskStore::open(directory.path(), Options::default());
    assert!(matches!(second, Err(Error::Locked { .. })));
    drop(store);

    let store = open(directory.path());
    let outcome = store.write(put("a", "2")).await.unwrap();
    let WriteOutcome::Committed { revision: 3, previous: Some(previous) } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((&previous.value[..], previous.version), (&b"1"[..], 1));
}

#[tokio::test]
async fn a_failed_commit_ends_all_writing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.write(put("a", "1")).await.unwrap();
    store.shared.fail_next_commit.store(true, Ordering::Release);
    assert!(matches!(store.write(put("a", "2")).await, Err(Error::Failed { .. })));
    store.shared.fail_next_commit.store(false, Ordering::Release);
    assert!(matches!(store.write(put("a", "3")).await, Err(Error::Failed { .. })));
    assert!(matches!(store.compact(2).await, Err(Error::Failed { .. })));
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "1");
    assert_eq!(store.revision().await.unwrap(), 2);
}

#[tokio::test]
async fn revisions_do_not_repeat_when_compaction_drops_the_last_tombstone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.write(put("a", "1")).await.unwrap();
    let delete = Write { key: "a".into(), expect: Expect::Any, change: Change::Delete };
    store.write(delete).await.unwrap();
    store.compact(3).await.unwrap();
    drop(store);
    let store = open(directory.path());
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.revision, stats.compacted, stats.keys, stats.revisions), (3, 3, 0, 0));
    assert!(matches!(store.watch("", 2).await, Err(Error::Compacted { oldest: 3 })));
    let outcome = store.write(put("a", "2")).await.unwrap();
    assert!(matches!(outcome, WriteOutcome::Committed { revision: 4, previous: None }));
}

#[tokio::test]
async fn a_compaction_that_was_cut_short_is_finished_when_opening() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for value in ["1", "2", "3"] {
        store.write(put("a", value)).await.unwrap();
    }
    // The position is durable, nothing is dropped yet: as after a crash in between.
    store.shared.meta.insert(META_COMPACTED, record::disk_key(4)).unwrap();
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.stats().await.unwrap().revisions, 1);
    assert_eq!(store.shared.log.len().unwrap(), 1);
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "3");
}
