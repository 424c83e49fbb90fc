//! The latest events in memory: watchers that are only a little behind, and reads of values written just
//! now, need no disk.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{Event, Revision};

/// Events kept at most: enough for a watcher to reconnect, little enough to stay near 1 MiB of bookkeeping.
pub const RING_EVENTS: usize = 4096;
/// Bytes of values and previous values kept at most.
pub const RING_BYTES: usize = 4 << 20;

/// The latest events, oldest first, without gaps in revision.
#[derive(Debug, Default)]
pub struct Ring {
    events: VecDeque<Event>,
    bytes: usize,
}

/// Memory an event keeps alive. The previous value is usually shared with an older event; counting it
/// again only makes the ring a little shorter.
fn weight(event: &Event) -> usize {
    event.value.as_ref().map_or(0, Bytes::len) + event.previous.as_ref().map_or(0, Bytes::len)
}

impl Ring {
    /// Adds the next event and drops the oldest beyond the limits.
    pub fn push(&mut self, event: Event) {
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.events.len() > 1 && (self.events.len() > RING_EVENTS || self.bytes > RING_BYTES) {
            if let Some(old) = self.events.pop_front() {
                self.bytes -= weight(&old);
            }
        }
    }

    /// The value written at `revision`, if that write is still here and was not a deletion.
    pub fn value(&self, revision: Revision) -> Option<Bytes> {
        let first = self.events.front()?.revision;
        let offset = usize::try_from(revision.checked_sub(first)?).ok()?;
        self.events.get(offset)?.value.clone()
    }

    /// Whether every event after `from` is here, given the latest revision of the store.
    pub fn covers(&self, from: Revision, latest: Revision) -> bool {
        from >= latest || self.events.front().is_some_and(|first| first.revision <= from + 1)
    }

    /// The events after `from` whose keys begin with `prefix`.
    pub fn after(&self, from: Revision, prefix: &str) -> Vec<Event> {
        let skip = self.events.partition_point(|event| event.revision <= from);
        self.events.range(skip..).filter(|event| event.key.starts_with(prefix)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventKind;

    fn event(revision: Revision, size: usize) -> Event {
        Event {
            revision,
            key: format!("k{}", revision % 2).into(),
            kind: EventKind::Put,
            value: Some(Bytes::from(vec![revision as u8; size])),
            previous: None,
            create_revision: revision,
            previous_revision: 0,
            version: 1,
        }
    }

    #[test]
    fn finds_by_revision_and_forgets_the_oldest() {
        let mut ring = Ring::default();
        assert!(ring.covers(5, 5) && !ring.covers(4, 5));
        for revision in 2..2 + RING_EVENTS as u64 + 10 {
            ring.push(event(revision, 1));
        }
        let latest = RING_EVENTS as u64 + 11;
        assert_eq!(ring.value(11), None);
        assert_eq!(ring.value(12).unwrap()[0], 12);
        assert_eq!(ring.value(latest + 1), None);
        assert!(ring.covers(11, latest) && !ring.covers(10, latest));
        assert_eq!(ring.after(latest - 4, "k1").len(), 2);
        assert_eq!(ring.after(latest, "").len(), 0);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut ring = Ring::default();
        for revision in 2..12 {
            ring.push(event(revision, RING_BYTES / 4));
        }
        assert!(ring.bytes <= RING_BYTES);
        assert!(ring.covers(7, 11) && !ring.covers(6, 11));
    }
}
