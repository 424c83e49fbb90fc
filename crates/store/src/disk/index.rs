//! The ordered index in memory: key -> its revisions. Values stay on disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{Error, Event, Revision};

/// One write to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rev {
    /// Revision of the write.
    pub revision: Revision,
    /// Revision that created the key.
    pub create_revision: Revision,
    /// Writes since creation; 0 for a deletion.
    pub version: u64,
}

impl Rev {
    /// Whether the write deleted the key.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

/// Every kept write of one key, oldest first. Most keys have one.
type History = SmallVec<[Rev; 1]>;

/// Key -> revisions, with the positions that belong to the same instant.
#[derive(Debug)]
pub struct Index {
    keys: BTreeMap<Arc<str>, History>,
    /// Latest revision.
    pub revision: Revision,
    /// Revision before which history is gone.
    pub compacted: Revision,
    /// Keys that exist.
    pub live: u64,
    /// Revisions kept.
    pub kept: u64,
}

/// A page of a range, without values.
#[derive(Debug, Default)]
pub struct Page {
    /// Revision of the snapshot.
    pub revision: Revision,
    /// Keys with the write that set them.
    pub items: Vec<(Arc<str>, Rev)>,
    /// Keys after the last item.
    pub remaining: u64,
}

/// What one step of a compaction removed, and where the next one goes on.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Revisions that are no longer needed.
    pub revisions: Vec<Revision>,
    /// Last key looked at; `None` when every key has been.
    pub resume: Option<Arc<str>>,
}

impl Index {
    /// An empty index: the revision of a new store is 1.
    pub fn new(compacted: Revision) -> Self {
        Index { keys: BTreeMap::new(), revision: compacted.max(1), compacted, live: 0, kept: 0 }
    }

    /// Adds a committed change. Changes must come in order of revision.
    pub fn apply(&mut self, key: &Arc<str>, rev: Rev) {
        let history = self.keys.entry(key.clone()).or_default();
        let was_live = history.last().is_some_and(|last| !last.is_tombstone());
        history.push(rev);
        self.kept += 1;
        match (was_live, rev.is_tombstone()) {
            (false, false) => self.live += 1,
            (true, true) => self.live -= 1,
            _ => {}
        }
        self.revision = self.revision.max(rev.revision);
    }

    /// Adds a committed event.
    pub fn apply_event(&mut self, event: &Event) {
        let rev =
            Rev { revision: event.revision, create_revision: event.create_revision, version: event.version };
        self.apply(&event.key, rev);
    }

    /// The latest write to `key`, if the key exists.
    pub fn current(&self, key: &str) -> Option<(Arc<str>, Rev)> {
        let (key, history) = self.keys.get_key_value(key)?;
        history.last().filter(|rev| !rev.is_tombstone()).map(|rev| (key.clone(), *rev))
    }

    /// The write that `key` showed at `revision`, if the key existed.
    pub fn at(&self, key: &str, revision: Revision) -> Option<(Arc<str>, Rev)> {
        let (key, history) = self.keys.get_key_value(key)?;
        visible(history, revision).map(|rev| (key.clone(), rev))
    }

    /// Whether `revision` can be read.
    pub fn check_readable(&self, revision: Revision) -> Result<(), Error> {
        if revision < self.compacted {
            Err(Error::Compacted { oldest: self.compacted })
        } else if revision > self.revision {
            Err(Error::FutureRevision { requested: revision, current: self.revision })
        } else {
            Ok(())
        }
    }

    /// The keys of `start..end` (no end when empty) as they were at `at`, at most `limit` (0 means all).
    pub fn page(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        let revision = at.unwrap_or(self.revision);
        self.check_readable(revision)?;
        let mut page = Page { revision, ..Page::default() };
        if !end.is_empty() && end <= start {
            return Ok(page);
        }
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        for (key, history) in self.keys.range::<str, _>((Bound::Included(start), upper)) {
            let Some(rev) = visible(history, revision) else { continue };
            if limit != 0 && page.items.len() == limit {
                page.remaining += 1;
            } else {
                page.items.push((key.clone(), rev));
            }
        }
        Ok(page)
    }

    /// Forgets superseded revisions of at most `keys` keys after `resume`, as of the compacted revision.
    pub fn drop_superseded(&mut self, resume: Option<&Arc<str>>, keys: usize) -> Dropped {
        let upto = self.compacted;
        let lower = resume.map_or(Bound::Unbounded, |key| Bound::Excluded(&**key));
        let mut dropped = Dropped::default();
        let mut emptied = Vec::new();
        let mut seen = 0;
        for (key, history) in self.keys.range_mut::<str, _>((lower, Bound::Unbounded)) {
            if seen == keys {
                break;
            }
            seen += 1;
            dropped.resume = Some(key.clone());
            drop_from(history, upto, &mut dropped.revisions);
            if history.is_empty() {
                emptied.push(key.clone());
            }
        }
        if seen < keys {
            dropped.resume = None;
        }
        for key in emptied {
            self.keys.remove(&key);
        }
        self.kept -= dropped.revisions.len() as u64;
        dropped
    }
}

/// The write of a history that shows at `revision`.
fn visible(history: &History, revision: Revision) -> Option<Rev> {
    let after = history.partition_point(|rev| rev.revision <= revision);
    let rev = history[..after].last()?;
    (!rev.is_tombstone()).then_some(*rev)
}

/// Removes what nobody can read from `upto` on: everything before the write that shows at `upto`, and that
/// write too when it is a deletion.
fn drop_from(history: &mut History, upto: Revision, dropped: &mut Vec<Revision>) {
    let after = history.partition_point(|rev| rev.revision <= upto);
    if after == 0 {
        return;
    }
    let gone = if history[after - 1].is_tombstone() { after } else { after - 1 };
    if gone == 0 {
        return;
    }
    dropped.extend(history[..gone].iter().map(|rev| rev.revision));
    history.drain(..gone);
    history.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(writes: &[(&str, Revision, Revision, u64)]) -> Index {
        let mut index = Index::new(0);
        for &(key, revision, create_revision, version) in writes {
            index.apply(&Arc::from(key), Rev { revision, create_revision, version });
        }
        index
    }

    fn names(page: &Page) -> Vec<&str> {
        page.items.iter().map(|(key, _)| &**key).collect()
    }

    #[test]
    fn snapshots_see_their_own_time() {
        let index = index(&[("a", 2, 2, 1), ("b", 3, 3, 1), ("a", 4, 2, 0), ("c", 5, 5, 1), ("a", 6, 6, 1)]);
        let cases: [(Revision, &[&str]); 5] =
            [(2, &["a"]), (3, &["a", "b"]), (4, &["b"]), (5, &["b", "c"]), (6, &["a", "b", "c"])];
        for (at, expected) in cases {
            assert_eq!(names(&index.page("", "", 0, Some(at)).unwrap()), expected, "at {at}");
        }
        let page = index.page("a", "c", 1, None).unwrap();
        assert_eq!((names(&page), page.remaining, page.revision), (vec!["a"], 1, 6));
        assert!(index.page("c", "a", 0, None).unwrap().items.is_empty());
        assert!(matches!(index.page("", "", 0, Some(7)), Err(Error::FutureRevision { .. })));
        assert_eq!((index.live, index.kept), (3, 5));
    }

    #[test]
    fn compaction_keeps_what_shows() {
        let mut index =
            index(&[("a", 2, 2, 1), ("b", 3, 3, 1), ("a", 4, 2, 2), ("b", 5, 3, 0), ("a", 6, 2, 3)]);
        index.compacted = 5;
        let mut dropped = Vec::new();
        let mut resume = None;
        loop {
            let step = index.drop_superseded(resume.as_ref(), 1);
            dropped.extend(step.revisions);
            resume = step.resume;
            if resume.is_none() {
                break;
            }
        }
        dropped.sort_unstable();
        assert_eq!(dropped, [2, 3, 5]);
        assert_eq!(index.at("a", 5).unwrap().1.revision, 4);
        assert!(index.at("b", 5).is_none());
        assert!(matches!(index.page("", "", 0, Some(4)), Err(Error::Compacted { oldest: 5 })));
        assert_eq!((index.live, index.kept, index.revision), (1, 2, 6));
    }
}
