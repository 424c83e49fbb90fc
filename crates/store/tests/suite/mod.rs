//! What every engine must do. An engine's test opens a fresh store per case and runs the case on it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use store::{
    Change, Error, Event, EventKind, Expect, Range, Revision, Store, WATCH_BUFFER_BATCHES, WatchStream,
    Write, WriteOutcome,
};

type Case = fn(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Every case by name.
pub fn cases() -> Vec<(&'static str, Case)> {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), (|store| Box::pin($name(store))) as Case)),*] };
    }
    cases![
        revisions_and_versions,
        expectations,
        ranges_and_pages,
        snapshots_stay,
        watch_from_anywhere,
        watch_prefix_and_progress,
        slow_watcher_is_told,
        compaction,
        concurrent_increments,
        limits,
        matches_a_model,
    ]
}

fn put(key: &str, expect: Expect, value: impl Into<Bytes>) -> Write {
    Write { key: key.into(), expect, change: Change::Put(value.into()) }
}

fn delete(key: &str, expect: Expect) -> Write {
    Write { key: key.into(), expect, change: Change::Delete }
}

async fn commit(store: &Arc<dyn Store>, write: Write) -> Revision {
    match store.write(write.clone()).await.unwrap() {
        WriteOutcome::Committed { revision, .. } => revision,
        conflict => panic!("{write:?}: {conflict:?}"),
    }
}

async fn refused(store: &Arc<dyn Store>, write: Write) -> Option<Revision> {
    match store.write(write.clone()).await.unwrap() {
        WriteOutcome::Conflict { current } => current.map(|current| current.mod_revision),
        committed => panic!("{write:?}: {committed:?}"),
    }
}

/// Events until (and with) `last`.
async fn events_until(watch: &mut WatchStream, last: Revision) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|event| event.revision < last) {
        let batch = watch.next().await.expect("the watch ended").expect("the watch failed");
        events.extend(batch.events.iter().cloned());
    }
    events
}

async fn revisions_and_versions(store: Arc<dyn Store>) {
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(store.get("/a").await.unwrap(), None);
    assert_eq!(commit(&store, put("/a", Expect::Absent, "1")).await, 2);
    assert_eq!(commit(&store, put("/a", Expect::Any, "2")).await, 3);
    let found = store.get("/a").await.unwrap().unwrap();
    assert_eq!((&*found.key, &found.value[..]), ("/a", &b"2"[..]));
    assert_eq!((found.create_revision, found.mod_revision, found.version), (2, 3, 2));
    assert_eq!(commit(&store, delete("/a", Expect::Revision(3))).await, 4);
    assert_eq!(store.get("/a").await.unwrap(), None);
    assert_eq!(commit(&store, put("/a", Expect::Absent, "")).await, 5);
    let found = store.get("/a").await.unwrap().unwrap();
    assert_eq!((found.create_revision, found.version, found.value.len()), (5, 1, 0));
    assert_eq!(store.revision().await.unwrap(), 5);
}

async fn expectations(store: Arc<dyn Store>) {
    let outcome = store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    assert_eq!(outcome, WriteOutcome::Committed { revision: 2, previous: None });
    assert_eq!(refused(&store, put("/a", Expect::Absent, "x")).await, Some(2));
    assert_eq!(refused(&store, put("/a", Expect::Revision(1), "x")).await, Some(2));
    assert_eq!(refused(&store, delete("/a", Expect::Revision(9))).await, Some(2));
    assert_eq!(refused(&store, put("/b", Expect::Revision(2), "x")).await, None);
    assert_eq!(refused(&store, delete("/b", Expect::Any)).await, None);
    assert_eq!(store.revision().await.unwrap(), 2, "a refused write takes no revision");
    let outcome = store.write(delete("/a", Expect::Any)).await.unwrap();
    let WriteOutcome::Committed { revision: 3, previous: Some(previous) } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((&previous.value[..], previous.mod_revision), (&b"1"[..], 2));
}

async fn ranges_and_pages(store: Arc<dyn Store>) {
    for n in 0..40 {
        commit(&store, put(&format!("/r/{n:02}"), Expect::Any, format!("v{n}"))).await;
    }
    commit(&store, put("/s", Expect::Any, "outside")).await;
    let all = store.range(Range::prefix("/r/")).await.unwrap();
    assert_eq!((all.items.len(), all.more, all.remaining_count, all.revision), (40, false, 0, 42));
    assert!(all.items.iter().enumerate().all(|(n, item)| item.value == format!("v{n}")));

    let mut start = "/r/".to_owned();
    let mut at = None;
    let mut seen = Vec::new();
    loop {
        let page = Range { start, limit: 15, at, ..Range::prefix("/r/") };
        let page = store.range(page).await.unwrap();
        at = Some(page.revision);
        seen.extend(page.items.iter().map(|item| item.key.to_string()));
        assert_eq!(page.remaining_count as usize, 40 - seen.len());
        if !page.more {
            break;
        }
        start = format!("{}\0", seen.last().unwrap());
        // Changes between pages are not seen.
        commit(&store, put(&format!("/r/{}", 50 + seen.len()), Expect::Any, "late")).await;
    }
    assert_eq!(seen.len(), 40);
    let keys = store.range(Range { keys_only: true, limit: 3, ..Range::prefix("/r/") }).await.unwrap();
    assert!(keys.items.iter().all(|item| item.value.is_empty()) && keys.more);
    assert_eq!(keys.items[0].mod_revision, 2);
    let everything = store.range(Range::default()).await.unwrap();
    assert_eq!(everything.items.len(), 43);
}

async fn snapshots_stay(store: Arc<dyn Store>) {
    commit(&store, put("/a", Expect::Any, "1")).await;
    commit(&store, put("/b", Expect::Any, "2")).await;
    commit(&store, delete("/a", Expect::Any)).await;
    commit(&store, put("/b", Expect::Any, "3")).await;
    assert_eq!(store.get_at("/a", 3).await.unwrap().unwrap().value, "1");
    assert_eq!(store.get_at("/a", 4).await.unwrap(), None);
    assert_eq!(store.get_at("/b", 4).await.unwrap().unwrap().value, "2");
    assert_eq!(store.get_at("/b", 1).await.unwrap(), None);
    let old = store.range(Range { at: Some(3), ..Range::prefix("/") }).await.unwrap();
    let values: Vec<_> = old.items.iter().map(|item| item.value.clone()).collect();
    assert_eq!((values, old.revision), (vec![Bytes::from("1"), Bytes::from("2")], 3));
    let future = store.range(Range { at: Some(6), ..Range::prefix("/") }).await;
    assert!(matches!(future, Err(Error::FutureRevision { requested: 6, current: 5 })), "{future:?}");
    assert!(matches!(store.get_at("/a", 6).await, Err(Error::FutureRevision { .. })));
}

async fn watch_from_anywhere(store: Arc<dyn Store>) {
    let mut from_start = store.watch("", 1).await.unwrap();
    commit(&store, put("/a", Expect::Any, "1")).await;
    commit(&store, put("/a", Expect::Any, "2")).await;
    commit(&store, delete("/a", Expect::Any)).await;
    let events = events_until(&mut from_start, 4).await;
    let told: Vec<_> =
        events.iter().map(|e| (e.revision, e.kind, e.value.clone(), e.previous.clone())).collect();
    let (one, two) = (Some(Bytes::from("1")), Some(Bytes::from("2")));
    assert_eq!(
        told,
        [
            (2, EventKind::Put, one.clone(), None),
            (3, EventKind::Put, two.clone(), one),
            (4, EventKind::Delete, None, two)
        ]
    );
    assert!(events[0].is_create() && !events[1].is_create() && !events[2].is_create());
    assert_eq!((events[1].previous_revision, events[2].create_revision, events[2].version), (2, 2, 0));

    let mut late = store.watch("", 2).await.unwrap();
    assert_eq!(events_until(&mut late, 4).await, events[1..]);
    let mut current = store.watch("", 4).await.unwrap();
    commit(&store, put("/b", Expect::Any, "3")).await;
    assert_eq!(events_until(&mut current, 5).await.len(), 1);
    assert!(matches!(store.watch("", 6).await, Err(Error::FutureRevision { .. })));
}

async fn watch_prefix_and_progress(store: Arc<dyn Store>) {
    let mut watch = store.watch("/a/", 1).await.unwrap();
    commit(&store, put("/a/1", Expect::Any, "x")).await;
    commit(&store, put("/b/1", Expect::Any, "x")).await;
    store.request_progress().await.unwrap();
    let mut seen = 0;
    let mut revision = 0;
    while revision < 3 {
        let batch = watch.next().await.unwrap().unwrap();
        assert!(batch.events.iter().all(|event| event.key.starts_with("/a/")));
        seen += batch.events.len();
        revision = batch.revision;
    }
    assert_eq!(seen, 1);
}

async fn slow_watcher_is_told(store: Arc<dyn Store>) {
    let mut slow = store.watch("", 1).await.unwrap();
    // One at a time, so that each is a batch of its own.
    let last = WATCH_BUFFER_BATCHES as u64 + 10;
    for n in 2..=last {
        commit(&store, put("/k", Expect::Any, n.to_string())).await;
    }
    let mut seen = Vec::new();
    let error = loop {
        match slow.next().await.expect("an error comes before the end") {
            Ok(batch) => seen.extend(batch.events.iter().map(|event| event.revision)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::SlowWatcher), "{error:?}");
    assert!(slow.next().await.is_none());
    // It resumes where it was cut off.
    let from = *seen.last().unwrap();
    assert!(seen.iter().copied().eq(2..=from) && from < last);
    let mut resumed = store.watch("", from).await.unwrap();
    let rest: Vec<_> = events_until(&mut resumed, last).await.iter().map(|event| event.revision).collect();
    assert!(rest.iter().copied().eq(from + 1..=last));
}

async fn compaction(store: Arc<dyn Store>) {
    for n in 0..6 {
        commit(&store, put("/a", Expect::Any, n.to_string())).await;
    }
    commit(&store, put("/b", Expect::Any, "b")).await;
    commit(&store, delete("/b", Expect::Any)).await;
    assert!(matches!(store.compact(10).await, Err(Error::FutureRevision { .. })));
    store.compact(5).await.unwrap();
    store.compact(3).await.unwrap();
    assert!(matches!(store.get_at("/a", 4).await, Err(Error::Compacted { oldest: 5 })));
    assert!(matches!(store.watch("", 4).await, Err(Error::Compacted { oldest: 5 })));
    let old = store.range(Range { at: Some(4), ..Range::prefix("/") }).await;
    assert!(matches!(old, Err(Error::Compacted { .. })), "{old:?}");
    assert_eq!(store.get_at("/a", 5).await.unwrap().unwrap().value, "3");
    assert_eq!(store.get_at("/b", 8).await.unwrap().unwrap().value, "b");
    let mut watch = store.watch("", 5).await.unwrap();
    let events = events_until(&mut watch, 9).await;
    assert_eq!(events[0].previous.as_deref(), Some(&b"3"[..]));
    assert_eq!(events[3].previous.as_deref(), Some(&b"b"[..]));
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.revision, stats.compacted, stats.keys), (9, 5, 1));
}

async fn concurrent_increments(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 50;
    let watch = store.watch("/n", 1).await.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let mut revisions = Vec::new();
            while revisions.len() < ROUNDS {
                let current = store.get("/n").await.unwrap();
                let number: u64 =
                    current.as_ref().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
                let expect = current.map_or(Expect::Absent, |kv| Expect::Revision(kv.mod_revision));
                match store.write(put("/n", expect, (number + 1).to_string())).await.unwrap() {
                    WriteOutcome::Committed { revision, .. } => revisions.push(revision),
                    WriteOutcome::Conflict { current } => assert!(current.is_some()),
                }
            }
            revisions
        }));
    }
    let mut revisions = Vec::new();
    for task in tasks {
        let mine = task.await.unwrap();
        assert!(mine.is_sorted());
        revisions.extend(mine);
    }
    revisions.sort_unstable();
    let total = (WRITERS * ROUNDS) as u64;
    assert!(revisions.iter().copied().eq(2..total + 2), "every revision belongs to one write");
    let mut watch = watch;
    for (n, event) in events_until(&mut watch, total + 1).await.iter().enumerate() {
        assert_eq!(event.value.as_deref(), Some((n + 1).to_string().as_bytes()));
        assert_eq!(event.version, n as u64 + 1);
    }
}

async fn limits(store: Arc<dyn Store>) {
    assert!(matches!(store.write(put("", Expect::Any, "x")).await, Err(Error::InvalidKey(_))));
    assert!(matches!(store.write(put(&"k".repeat(5000), Expect::Any, "x")).await, Err(Error::InvalidKey(_))));
    let large = vec![b'x'; 1 << 20];
    commit(&store, put("/large", Expect::Any, large.clone())).await;
    assert_eq!(store.get("/large").await.unwrap().unwrap().value, large);
}

/// Random writes, reads and compactions against a model of a few lines.
async fn matches_a_model(store: Arc<dyn Store>) {
    let mut random = SmallRng::seed_from_u64(0xFE22);
    let mut states: Vec<BTreeMap<String, (Bytes, Revision)>> = vec![BTreeMap::new(), BTreeMap::new()];
    let mut compacted = 0;
    for step in 0..1500u64 {
        let key = format!("/m/{}", random.random_range(0..25));
        let mut next = states.last().unwrap().clone();
        let revision = states.len() as Revision;
        match random.random_range(0..10) {
            0..6 => {
                let value = Bytes::from(format!("{step}{}", "x".repeat(random.random_range(0..300))));
                next.insert(key.clone(), (value.clone(), revision));
                assert_eq!(commit(&store, put(&key, Expect::Any, value)).await, revision);
                states.push(next);
            }
            6 | 7 => {
                if next.remove(&key).is_some() {
                    assert_eq!(commit(&store, delete(&key, Expect::Any)).await, revision);
                    states.push(next);
                } else {
                    assert_eq!(refused(&store, delete(&key, Expect::Any)).await, None);
                }
            }
            8 => {
                let at = random.random_range(0..revision);
                let result = store.range(Range { at: Some(at), ..Range::prefix("/m/") }).await;
                if at < compacted {
                    assert!(matches!(result, Err(Error::Compacted { .. })));
                    continue;
                }
                let found: Vec<_> = result
                    .unwrap()
                    .items
                    .into_iter()
                    .map(|kv| (kv.key.to_string(), (kv.value, kv.mod_revision)))
                    .collect();
                assert!(states[at as usize].clone().into_iter().eq(found), "at {at}");
            }
            _ => {
                let upto = random.random_range(compacted.max(1)..revision.max(compacted + 1).max(2));
                if step % 5 == 0 && upto < revision {
                    store.compact(upto).await.unwrap();
                    compacted = compacted.max(upto);
                }
            }
        }
    }
    // The history that is left, told by a watch, leads from the compacted state to the last one.
    let mut state = states[compacted as usize].clone();
    let last = states.len() as Revision - 1;
    let mut watch = store.watch("/m/", compacted).await.unwrap();
    for event in events_until(&mut watch, last).await {
        let before = state.get(&*event.key).map(|(value, _)| value.clone());
        assert_eq!(event.previous, before, "previous value at {}", event.revision);
        match event.value {
            Some(value) => state.insert(event.key.to_string(), (value, event.revision)),
            None => state.remove(&*event.key),
        };
        assert_eq!(state, states[event.revision as usize]);
    }
}
