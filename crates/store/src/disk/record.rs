//! How one committed write lies on disk: the value stored under its big-endian revision.
//!
//! Layout, integers little-endian: format byte, create revision, previous revision, version (0 for a
//! deletion), key length, key, value.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Error, Event, EventKind, Revision};

/// Format of the records written today.
const FORMAT: u8 = 1;
/// Bytes before the key.
const HEADER: usize = 1 + 8 + 8 + 8 + 4;

/// A record, borrowed from what the engine returned.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Revision that created the key.
    pub create_revision: Revision,
    /// Revision of the write before; 0 for creations.
    pub previous_revision: Revision,
    /// Writes since creation; 0 for a deletion.
    pub version: u64,
    /// The key.
    pub key: &'a str,
    /// The value; empty for a deletion.
    pub value: &'a [u8],
}

/// The key a revision is stored under: big-endian, so that order on disk is order of commit.
pub fn disk_key(revision: Revision) -> [u8; 8] {
    revision.to_be_bytes()
}

/// The revision a record is stored under.
pub fn revision_of(disk_key: &[u8]) -> Result<Revision, Error> {
    let bytes = disk_key.try_into().map_err(|_| Error::Corrupt("a revision key is not 8 bytes".into()))?;
    Ok(Revision::from_be_bytes(bytes))
}

/// The record of a committed change.
pub fn encode(event: &Event) -> Vec<u8> {
    let value = event.value.as_deref().unwrap_or_default();
    let mut out = Vec::with_capacity(HEADER + event.key.len() + value.len());
    out.push(FORMAT);
    out.extend_from_slice(&event.create_revision.to_le_bytes());
    out.extend_from_slice(&event.previous_revision.to_le_bytes());
    out.extend_from_slice(&event.version.to_le_bytes());
    out.extend_from_slice(&(event.key.len() as u32).to_le_bytes());
    out.extend_from_slice(event.key.as_bytes());
    out.extend_from_slice(value);
    out
}

/// Reads a record.
pub fn decode(bytes: &[u8]) -> Result<Record<'_>, Error> {
    let damaged = || Error::Corrupt("a record is cut short or of an unknown format".into());
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or_else(damaged)?;
    if header[0] != FORMAT {
        return Err(damaged());
    }
    let number = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let mut length = [0; 4];
    length.copy_from_slice(&header[25..29]);
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(length) as usize).ok_or_else(damaged)?;
    let key = std::str::from_utf8(key).map_err(|_| damaged())?;
    Ok(Record { create_revision: number(1), previous_revision: number(9), version: number(17), key, value })
}

impl Record<'_> {
    /// The event this record tells, given the value before it.
    pub fn to_event(&self, revision: Revision, previous: Option<Bytes>) -> Event {
        let kind = if self.version == 0 { EventKind::Delete } else { EventKind::Put };
        Event {
            revision,
            key: Arc::from(self.key),
            kind,
            value: (kind == EventKind::Put).then(|| Bytes::copy_from_slice(self.value)),
            previous,
            create_revision: self.create_revision,
            previous_revision: self.previous_revision,
            version: self.version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(value: Option<&'static [u8]>) -> Event {
        Event {
            revision: 9,
            key: "/registry/pods/a/b".into(),
            kind: if value.is_some() { EventKind::Put } else { EventKind::Delete },
            value: value.map(Bytes::from_static),
            previous: None,
            create_revision: 3,
            previous_revision: 7,
            version: if value.is_some() { 4 } else { 0 },
        }
    }

    #[test]
    fn round_trip() {
        for value in [Some(&b"hello"[..]), Some(&b""[..]), None] {
            let event = event(value);
            let bytes = encode(&event);
            assert_eq!(decode(&bytes).unwrap().to_event(9, None), event);
        }
    }

    #[test]
    fn damage_is_told() {
        let good = encode(&event(Some(b"hello")));
        for cut in 0..HEADER + 18 {
            assert!(decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut unknown = good.clone();
        unknown[0] = 99;
        assert!(decode(&unknown).is_err());
        assert!(revision_of(b"short").is_err());
        assert_eq!(revision_of(&disk_key(77)).unwrap(), 77);
    }
}
