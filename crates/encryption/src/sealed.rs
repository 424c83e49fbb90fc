//! The store that seals: wraps another and changes nothing but values.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use store::{
    Batch, Change, Error, Event, Expect, KeyValue, Range, RangeResult, Revision, Stats, Store, WatchStream,
    Write, WriteOutcome,
};

use crate::Rules;

/// Objects read at once while stale ones are looked for.
const PAGE: usize = 500;

/// A store whose values are sealed by [`Rules`], which may be replaced at any time.
pub struct Sealed {
    inner: Arc<dyn Store>,
    rules: Arc<ArcSwap<Rules>>,
}

impl Sealed {
    /// Seals what goes into `inner`.
    pub fn new(inner: Arc<dyn Store>, rules: Arc<ArcSwap<Rules>>) -> Sealed {
        Sealed { inner, rules }
    }

    fn open_item(&self, mut item: KeyValue) -> Result<KeyValue, Error> {
        item.value = open(&self.rules.load(), &item.key, item.value)?;
        Ok(item)
    }

    fn open_some(&self, item: Option<KeyValue>) -> Result<Option<KeyValue>, Error> {
        item.map(|item| self.open_item(item)).transpose()
    }
}

/// Opens a stored value with whichever key sealed it.
fn open(rules: &Rules, key: &str, stored: Bytes) -> Result<Bytes, Error> {
    // Ranges without values have nothing to open.
    let Some(ciphers) = rules.of(key).filter(|_| !stored.is_empty()) else { return Ok(stored) };
    let corrupt = |why: &dyn std::fmt::Display| Error::Corrupt(format!("the value of {key}: {why}"));
    let mut refusal = None;
    for cipher in ciphers.iter().filter(|c| c.wrote(&stored)) {
        match cipher.open(key, &stored) {
            Ok(plain) => return Ok(plain.into()),
            Err(error) => refusal = Some(error),
        }
    }
    Err(match refusal {
        Some(error) => corrupt(&error),
        None => corrupt(&"no key of the encryption configuration matches"),
    })
}

fn seal(rules: &Rules, key: &str, plain: Bytes) -> Result<Bytes, Error> {
    match rules.of(key).and_then(|ciphers| ciphers.first()) {
        None => Ok(plain),
        Some(cipher) => {
            cipher.seal(key, &plain).map(Bytes::from).map_err(|e| Error::failed("encrypting a value", e))
        }
    }
}

/// Opens the values of a batch; one without sealed values is passed on as it is.
fn open_batch(rules: &Rules, batch: Batch) -> Result<Batch, Error> {
    if batch.events.iter().all(|e| rules.of(&e.key).is_none()) {
        return Ok(batch);
    }
    let open_event = |event: &Event| {
        let mut event = event.clone();
        let opened = |value: Option<Bytes>| value.map(|v| open(rules, &event.key, v)).transpose();
        let (value, previous) = (opened(event.value.clone())?, opened(event.previous.clone())?);
        (event.value, event.previous) = (value, previous);
        Ok(event)
    };
    let events = batch.events.iter().map(open_event).collect::<Result<Arc<[Event]>, Error>>()?;
    Ok(Batch { revision: batch.revision, events })
}

#[async_trait]
impl Store for Sealed {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.open_some(self.inner.get(key).await?)
    }

    async fn get_at(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>, Error> {
        self.open_some(self.inner.get_at(key, revision).await?)
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let mut result = self.inner.range(range).await?;
        let items = std::mem::take(&mut result.items);
        result.items = items.into_iter().map(|item| self.open_item(item)).collect::<Result<_, _>>()?;
        Ok(result)
    }

    async fn write(&self, mut write: Write) -> Result<WriteOutcome, Error> {
        if let Change::Put(value) = write.change {
            write.change = Change::Put(seal(&self.rules.load(), &write.key, value)?);
        }
        Ok(match self.inner.write(write).await? {
            WriteOutcome::Committed { revision, previous } => {
                // The write is durable; an old value that cannot be opened must not make it look failed.
                let previous = self.open_some(previous).unwrap_or_default();
                WriteOutcome::Committed { revision, previous }
            }
            WriteOutcome::Conflict { current } => {
                WriteOutcome::Conflict { current: self.open_some(current)? }
            }
        })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        let rules = self.rules.clone();
        let stream = self.inner.watch(prefix, from).await?;
        Ok(stream.mapped(Box::new(move |batch| open_batch(&rules.load(), batch))))
    }

    async fn request_progress(&self) -> Result<(), Error> {
        self.inner.request_progress().await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn compact(&self, upto: Revision) -> Result<(), Error> {
        self.inner.compact(upto).await
    }

    async fn stats(&self) -> Result<Stats, Error> {
        self.inner.stats().await
    }
}

/// Writes every value anew that is not sealed with the first key of its rule. Returns how many there were.
///
/// Such a write changes no object; it only takes a revision. One that somebody else changes meanwhile is left
/// to them: their write seals it.
pub async fn rewrite_stale(inner: &Arc<dyn Store>, rules: &Rules) -> Result<usize, Error> {
    let mut rewritten = 0;
    for prefix in rules.prefixes() {
        let mut range = Range { limit: PAGE, ..Range::prefix(&prefix) };
        loop {
            let page = inner.range(range.clone()).await?;
            for item in &page.items {
                let first = rules.of(&item.key).and_then(|ciphers| ciphers.first());
                if first.is_none_or(|cipher| cipher.wrote(&item.value)) {
                    continue;
                }
                let plain = open(rules, &item.key, item.value.clone())?;
                let write = Write {
                    key: item.key.to_string(),
                    expect: Expect::Revision(item.mod_revision),
                    change: Change::Put(seal(rules, &item.key, plain)?),
                };
                if matches!(inner.write(write).await?, WriteOutcome::Committed { .. }) {
                    rewritten += 1;
                }
            }
            match page.items.last() {
                Some(last) if page.more => range.start = format!("{}\0", last.key),
                _ => break,
            }
        }
    }
    Ok(rewritten)
}
