//! Answers of other servers, kept for as long as they allow.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record};

/// Answers kept at most.
const ENTRIES_MAX: usize = 10_000;
/// Longest time an answer is kept, whatever it allows.
const KEEP_MAX: Duration = Duration::from_secs(3600);
/// How long a refusal without a SOA record is kept.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(5);

/// What an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    name: String,
    kind: u16,
    class: u16,
    dnssec: bool,
}

impl Key {
    /// The key of a question; `dnssec` if signatures are wanted.
    pub fn new(query: &Query, dnssec: bool) -> Key {
        Key {
            name: query.name().to_ascii().to_ascii_lowercase(),
            kind: query.query_type().into(),
            class: query.query_class().into(),
            dnssec,
        }
    }
}

struct Kept {
    message: Message,
    since: Instant,
    until: Instant,
}

/// The answers. Time is passed in.
#[derive(Default)]
pub struct Cache(HashMap<Key, Kept>);

fn lifetime(message: &Message) -> Duration {
    let least = message.answers.iter().map(|r| r.ttl).min();
    let negative = || {
        let soa = message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
            _ => None,
        });
        soa.map_or(NEGATIVE_DEFAULT, |seconds| Duration::from_secs(u64::from(seconds)))
    };
    least.map_or_else(negative, |seconds| Duration::from_secs(u64::from(seconds))).min(KEEP_MAX)
}

impl Cache {
    /// A kept answer, with lifetimes as they are now.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Message> {
        let kept = self.0.get(key).filter(|kept| kept.until > now)?;
        let age = u32::try_from(now.duration_since(kept.since).as_secs()).unwrap_or(u32::MAX);
        let mut message = kept.message.clone();
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            let record: &mut Record = record;
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    /// Keeps an answer, if it is one worth keeping.
    pub fn put(&mut self, key: Key, message: Message, now: Instant) {
        let worth = matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
        let lifetime = lifetime(&message);
        if !worth || message.metadata.truncation || lifetime.is_zero() {
            return;
        }
        if self.0.len() >= ENTRIES_MAX {
            self.0.retain(|_, kept| kept.until > now);
        }
        if self.0.len() >= ENTRIES_MAX {
            // Still full: any half will do, for what is asked often comes back.
            let mut keep = false;
            self.0.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        self.0.insert(key, Kept { message, since: now, until: now + lifetime });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RecordType};
    use std::str::FromStr;

    #[test]
    fn answers_age() {
        let name = Name::from_str("Example.com.").unwrap();
        let query = Query::query(name.clone(), RecordType::A);
        let mut message = Message::response(1, OpCode::Query);
        message.answers.push(Record::from_rdata(name, 60, RData::A(A::new(1, 2, 3, 4))));
        let (mut cache, now) = (Cache::default(), Instant::now());
        let key = Key::new(&query, false);
        cache.put(key.clone(), message, now);
        assert_eq!(cache.get(&key, now + Duration::from_secs(20)).unwrap().answers[0].ttl, 40);
        assert!(cache.get(&key, now + Duration::from_secs(60)).is_none());
        assert!(cache.get(&Key::new(&query, true), now).is_none());
        let mut failed = Message::response(1, OpCode::Query);
        failed.metadata.response_code = ResponseCode::ServFail;
        cache.put(key.clone(), failed, now + Duration::from_secs(100));
        assert!(cache.get(&key, now + Duration::from_secs(100)).is_none());
    }
}
