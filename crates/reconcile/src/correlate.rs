//! Which events are written, and how: equal ones count up, floods are combined, spam is dropped.
//!
//! The decisions of upstream's EventCorrelator as a pure function of what was seen before.

use std::collections::{HashMap, HashSet};

use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

/// Objects and reasons remembered at most; the oldest are forgotten first.
const ENTRIES_MAX: usize = 4096;
/// Different messages of one object and reason within the window before they are combined.
const SIMILAR_MAX: usize = 10;
/// Events that are further apart are not related.
const WINDOW: SignedDuration = SignedDuration::from_secs(600);
/// Events of one object at once, before the rate counts.
const BURST: f64 = 25.0;
/// Events of one object per second after that.
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

/// Something that happened to an object.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The object.
    pub object: ObjectReference,
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    /// Machine-readable reason in CamelCase.
    pub reason: String,
    /// Sentence for people.
    pub message: String,
    /// Who reports.
    pub component: String,
    /// Node of the reporter; may be empty.
    pub host: String,
    /// Annotations of the event; usually none.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// What to write.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A new event.
    Create(Box<Event>),
    /// An event again: the event with its new count, last time and message.
    Count(Box<Event>),
    /// Nothing: the object has had more than its share.
    Drop,
}

struct Series {
    event: Event,
    last: Timestamp,
}

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
}

/// What was seen before.
#[derive(Default)]
pub struct Correlator {
    series: HashMap<String, Series>,
    similar: HashMap<String, Similar>,
    buckets: HashMap<String, Bucket>,
}

/// Makes room in a table by forgetting the older half.
fn make_room<V>(table: &mut HashMap<String, V>, last: impl Fn(&V) -> Timestamp) {
    if table.len() < ENTRIES_MAX {
        return;
    }
    let mut times: Vec<Timestamp> = table.values().map(&last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    table.retain(|_, value| last(value) > middle);
}

fn object_key(o: &Observation) -> String {
    let r = &o.object;
    let part = |field: &Option<String>| field.clone().unwrap_or_default();
    [
        &o.component,
        &o.host,
        &part(&r.api_version),
        &part(&r.kind),
        &part(&r.namespace),
        &part(&r.name),
        &part(&r.uid),
        &part(&r.field_path),
    ]
    .map(String::as_str)
    .join("\u{1}")
}

impl Correlator {
    /// Decides about an observation made at `now`.
    pub fn observe(&mut self, mut o: Observation, now: Timestamp) -> Write {
        let object = object_key(&o);
        let group = format!("{object}\u{1}{}\u{1}{}", o.kind, o.reason);
        let mut key = format!("{group}\u{1}{}", o.message);
        if self.is_flood(&group, &o.message, now) {
            o.message = format!("(combined from similar events): {}", o.message);
            key = group;
        }
        if !self.take_token(&object, now) {
            return Write::Drop;
        }
        if let Some(series) = self.series.get_mut(&key)
            && now.duration_since(series.last) <= WINDOW
        {
            series.last = now;
            series.event.count = Some(series.event.count.unwrap_or(1).saturating_add(1));
            series.event.last_timestamp = Some(Time(now));
            series.event.message = Some(o.message);
            return Write::Count(Box::new(series.event.clone()));
        }
        make_room(&mut self.series, |series| series.last);
        let event = new_event(o, now);
        self.series.insert(key, Series { event: event.clone(), last: now });
        Write::Create(Box::new(event))
    }

    fn is_flood(&mut self, group: &str, message: &str, now: Timestamp) -> bool {
        make_room(&mut self.similar, |similar| similar.last);
        let similar = self
            .similar
            .entry(group.to_owned())
            .or_insert_with(|| Similar { messages: HashSet::new(), last: now });
        if now.duration_since(similar.last) > WINDOW {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.len() < SIMILAR_MAX {
            similar.messages.insert(message.to_owned());
            return false;
        }
        !similar.messages.contains(message)
    }

    fn take_token(&mut self, object: &str, now: Timestamp) -> bool {
        make_room(&mut self.buckets, |bucket| bucket.last);
        let bucket = self.buckets.entry(object.to_owned()).or_insert(Bucket { tokens: BURST, last: now });
        let gained = now.duration_since(bucket.last).as_secs_f64().max(0.0) * REFILL_PER_SECOND;
        bucket.tokens = (bucket.tokens + gained).min(BURST);
        bucket.last = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

fn new_event(o: Observation, now: Timestamp) -> Event {
    let namespace = o.object.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or("default".into());
    let name = format!("{}.{:x}", o.object.name.as_deref().unwrap_or_default(), now.as_nanosecond());
    let present = |text: String| Some(text).filter(|t| !t.is_empty());
    let mut event = Event {
        involved_object: o.object,
        type_: Some(o.kind.into()),
        reason: Some(o.reason),
        message: Some(o.message),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        reporting_component: present(o.component.clone()),
        reporting_instance: present(o.host.clone()),
        ..Default::default()
    };
    let mut source = event.source.take().unwrap_or_default();
    source.component = present(o.component);
    source.host = present(o.host);
    event.source = Some(source);
    event.metadata.annotations = Some(o.annotations).filter(|all| !all.is_empty());
    event.metadata.namespace = Some(namespace);
    event.metadata.name = Some(name);
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(reason: &str, message: &str) -> Observation {
        Observation {
            object: ObjectReference {
                kind: Some("Pod".into()),
                namespace: Some("n".into()),
                name: Some("p".into()),
                ..Default::default()
            },
            kind: "Normal",
            reason: reason.into(),
            message: message.into(),
            component: "c".into(),
            host: String::new(),
            annotations: Default::default(),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn equal_events_count_up() {
        let mut correlator = Correlator::default();
        let Write::Create(first) = correlator.observe(seen("R", "m"), at(0)) else { panic!() };
        let Write::Count(second) = correlator.observe(seen("R", "m"), at(5)) else { panic!() };
        assert_eq!((second.metadata.name.clone(), second.count), (first.metadata.name.clone(), Some(2)));
        assert_eq!(second.last_timestamp, Some(Time(at(5))));
        assert!(matches!(correlator.observe(seen("R", "other"), at(6)), Write::Create(_)));
        assert!(matches!(correlator.observe(seen("R", "m"), at(1000)), Write::Create(_)), "long ago is new");
    }

    #[test]
    fn floods_are_combined_and_spam_is_dropped() {
        let mut correlator = Correlator::default();
        for n in 0..10 {
            assert!(matches!(correlator.observe(seen("R", &n.to_string()), at(n)), Write::Create(_)));
        }
        let Write::Create(first) = correlator.observe(seen("R", "x"), at(11)) else { panic!() };
        assert_eq!(first.message.as_deref(), Some("(combined from similar events): x"));
        let Write::Count(next) = correlator.observe(seen("R", "y"), at(12)) else { panic!() };
        assert_eq!(next.message.as_deref(), Some("(combined from similar events): y"));
        for n in 0..13 {
            assert!(!matches!(correlator.observe(seen("R", "z"), at(13 + n)), Write::Drop), "{n}");
        }
        assert!(matches!(correlator.observe(seen("Q", "z"), at(30)), Write::Drop));
        assert!(!matches!(correlator.observe(seen("Q", "z"), at(400)), Write::Drop), "tokens come back");
    }
}
