//! API Priority and Fairness: which requests run now, which wait, and which are told to come again.
//!
//! A request matches one FlowSchema, which names a priority level; the level has seats and queues
//! ([`queues`]), the server's seats are shared among levels ([`shares`]), and levels in need borrow from idle
//! ones. The configuration follows the watch cache; the request path takes one lock, of its level, twice.
//!
//! **Invariant:** a [`Ticket`] gives its seats back when it is dropped, wherever that happens.

mod config;
mod defaults;
mod demand;
mod dump;
pub mod estimate;
mod keep;
pub mod queues;
mod shares;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use meta::UserInfo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{Notify, oneshot};

use self::config::{LevelConfig, SchemaConfig};
use self::estimate::Work;
use self::queues::{Arrival, Mode, QueueSet, Refusal, Seat};
use self::shares::{Bounds, Want};
use crate::body::Answer;
use crate::path::RequestInfo;
use stdx::Histogram;

pub use keep::run;

/// Longest wait in a queue: a quarter of the time limit of a request, as upstream has it.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Time between two looks at who needs seats, while anybody does.
const ADJUST_EVERY: Duration = Duration::from_secs(10);
/// Largest `Retry-After`.
const RETRY_AFTER_MAX: u64 = 32;

/// Upper bounds of waiting times (upstream's).
const WAIT_BUCKETS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Upper bounds of running times (upstream's).
const RUN_BUCKETS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// The parts of flow control that requests share.
pub struct Flow(Arc<Parts>);

struct Parts {
    total: u64,
    began: Instant,
    rules: ArcSwap<Rules>,
    objects: Mutex<Objects>,
    levels: Mutex<BTreeMap<String, Arc<Level>>>,
    stats: Mutex<BTreeMap<(String, String), Arc<Stats>>>,
    /// Somebody has to wait: seats may have to move.
    short: Notify,
}

/// The configuration as it was written.
#[derive(Default)]
struct Objects {
    levels: BTreeMap<String, LevelConfig>,
    schemas: BTreeMap<String, SchemaConfig>,
}

/// The configuration as requests use it.
#[derive(Default)]
struct Rules {
    /// In the order in which they are asked.
    schemas: Vec<Arc<Schema>>,
    levels: Vec<(LevelConfig, Arc<Level>)>,
}

struct Schema {
    config: SchemaConfig,
    hash: u64,
    level_uid: String,
    seats_max: u64,
    level: Arc<Level>,
    stats: Arc<Stats>,
}

/// Figures of one schema in one level.
struct Stats {
    dispatched: AtomicU64,
    refused: Mutex<BTreeMap<Refusal, u64>>,
    executing: AtomicU64,
    seats: AtomicU64,
    waited: Histogram,
    ran: Histogram,
}

/// How many were refused of late, for `Retry-After`.
struct Drops {
    since: u64,
    count: u64,
    retry_after: u64,
}

struct Level {
    name: String,
    queues: Mutex<QueueSet<Waker>>,
    bounds: Mutex<Bounds>,
    smoothed: Mutex<f64>,
    drops: Mutex<Drops>,
    counts: [AtomicU64; 4],
}

/// Places in [`Level::counts`].
const DISPATCHED: usize = 0;
const REFUSED: usize = 1;
const TIMED_OUT: usize = 2;
const CANCELLED: usize = 3;

/// What stands in a queue for a request.
struct Waker {
    tell: oneshot::Sender<Ticket>,
    schema: Arc<Schema>,
    flow: String,
    work: Work,
}

/// Seats of a running request.
struct Ticket {
    flow: Arc<Parts>,
    schema: Arc<Schema>,
    seat: Seat,
    work: Work,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (stats, now) = (&self.schema.stats, self.flow.now());
        stats.executing.fetch_sub(1, Ordering::Relaxed);
        stats.ran.observe(now - self.seat.started);
        stats.seats.fetch_sub(self.seat.seats, Ordering::Relaxed);
        let (flow, level, seat) = (self.flow.clone(), self.schema.level.clone(), self.seat);
        if self.work.last > 0
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // Its event is still on the way to many watchers.
            let pause = Duration::from_secs_f64(self.work.extra_seconds);
            runtime.spawn(async move {
                tokio::time::sleep(pause).await;
                level.finish(&flow, seat);
            });
            return;
        }
        level.finish(&flow, seat);
    }
}

/// A request that waits; leaves its queue when it is dropped.
struct Place {
    flow: Arc<Parts>,
    level: Arc<Level>,
    id: u64,
    why: Refusal,
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = self.flow.now();
        if self.level.queues.lock().leave(now, self.id) {
            let count = if self.why == Refusal::TimeOut { TIMED_OUT } else { CANCELLED };
            self.level.counts[count].fetch_add(1, Ordering::Relaxed);
            // It may have stood before others that fit.
            self.level.dispatch(&self.flow);
        }
    }
}

/// A request that may run.
pub struct Permit {
    schema: Option<Arc<Schema>>,
    _ticket: Option<Ticket>,
}

/// A request that may not.
pub struct Refused {
    schema: Arc<Schema>,
    retry_after: u64,
}

/// Names the schema and the level in an answer's headers.
fn mark(schema: &Schema, answer: &mut Answer) {
    let uids = [
        ("x-kubernetes-pf-flowschema-uid", &schema.config.uid),
        ("x-kubernetes-pf-prioritylevel-uid", &schema.level_uid),
    ];
    for (name, uid) in uids {
        if let Ok(value) = http::HeaderValue::from_str(uid) {
            answer.headers_mut().insert(name, value);
        }
    }
}

impl Permit {
    /// Names the schema and the level in an answer's headers.
    pub fn mark(&self, answer: &mut Answer) {
        if let Some(schema) = &self.schema {
            mark(schema, answer);
        }
    }
}

impl Refused {
    /// The answer that asks to come again.
    pub fn answer(&self) -> Answer {
        let mut answer = crate::body::text(429, "Too many requests, please try again later.\n");
        mark(&self.schema, &mut answer);
        answer.headers_mut().insert(http::header::RETRY_AFTER, self.retry_after.into());
        answer
    }
}

/// What is asked of flow control.
pub struct Asked<'a> {
    /// The request.
    pub info: &'a RequestInfo,
    /// Its path.
    pub path: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
}

impl Level {
    fn new(name: &str, mode: Mode) -> Arc<Level> {
        Arc::new(Level {
            name: name.to_owned(),
            queues: Mutex::new(QueueSet::new(mode, 0)),
            bounds: Mutex::default(),
            smoothed: Mutex::new(0.0),
            drops: Mutex::new(Drops { since: 0, count: 0, retry_after: 1 }),
            counts: Default::default(),
        })
    }

    fn finish(&self, flow: &Arc<Parts>, seat: Seat) {
        self.queues.lock().finish(flow.now(), seat);
        self.dispatch(flow);
    }

    /// Lets those run whose turn it is.
    fn dispatch(&self, flow: &Arc<Parts>) {
        let now = flow.now();
        let turn = self.queues.lock().dispatch(now);
        for (waiting, seat) in turn {
            let Waker { tell, schema, work, .. } = waiting.item;
            self.started(&schema, seat, now - waiting.arrived);
            // Who went away meanwhile gets a ticket too, and the drop of it gives the seats on.
            drop(tell.send(Ticket { flow: flow.clone(), schema, seat, work }));
        }
    }

    fn started(&self, schema: &Schema, seat: Seat, waited: f64) {
        self.counts[DISPATCHED].fetch_add(1, Ordering::Relaxed);
        schema.stats.dispatched.fetch_add(1, Ordering::Relaxed);
        schema.stats.executing.fetch_add(1, Ordering::Relaxed);
        schema.stats.seats.fetch_add(seat.seats, Ordering::Relaxed);
        schema.stats.waited.observe(waited);
    }
}

impl Drops {
    /// Counts one; more refusals in a period than could be served soon double the time clients stay away.
    fn count(&mut self, second: u64) -> u64 {
        if second.saturating_sub(self.since) >= self.retry_after {
            self.retry_after = match self.count {
                n if n >= 3 * self.retry_after => (self.retry_after * 2).min(RETRY_AFTER_MAX),
                n if n < self.retry_after => (self.retry_after / 2).max(1),
                _ => self.retry_after,
            };
            (self.since, self.count) = (second, 0);
        }
        self.count += 1;
        self.retry_after
    }
}

/// FNV-1a, to be continued from `hash`.
fn hash(hash: u64, text: &str) -> u64 {
    text.bytes().fold(hash, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Spreads a hash over all of its bits.
fn mixed(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

impl Parts {
    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn stats(&self, level: &str, schema: &str) -> Arc<Stats> {
        let mut all = self.stats.lock();
        let make = || {
            Arc::new(Stats {
                dispatched: AtomicU64::new(0),
                refused: Mutex::default(),
                executing: AtomicU64::new(0),
                seats: AtomicU64::new(0),
                waited: Histogram::new(WAIT_BUCKETS),
                ran: Histogram::new(RUN_BUCKETS),
            })
        };
        all.entry((level.to_owned(), schema.to_owned())).or_insert_with(make).clone()
    }

    /// Makes the rules from what is configured; what must be there is, even without an object.
    fn rebuild(&self) {
        let objects = self.objects.lock();
        let mut configs = objects.levels.clone();
        let mut schemas: Vec<SchemaConfig> = objects.schemas.values().cloned().collect();
        for level in defaults::levels().iter().filter(|d| d.mandatory) {
            let config = LevelConfig::from_json(&level.object);
            configs.entry(config.name.clone()).or_insert(config);
        }
        for schema in defaults::schemas().iter().filter(|d| d.mandatory) {
            let config = SchemaConfig::from_json(&schema.object);
            if !objects.schemas.contains_key(&config.name) {
                schemas.push(config);
            }
        }
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let limits: Vec<_> = configs.values().map(|c| c.limits).collect();
        let all_bounds = shares::bounds(self.total, &limits);
        let mut levels = self.levels.lock();
        // Who is still in a level that is gone keeps it alive until the end.
        levels.retain(|name, _| configs.contains_key(name));
        let mut rules = Rules::default();
        for (config, bounds) in configs.into_values().zip(all_bounds) {
            let make = || Level::new(&config.name, config.mode);
            let level = levels.entry(config.name.clone()).or_insert_with(make).clone();
            if std::mem::replace(&mut *level.bounds.lock(), bounds) != bounds {
                level.queues.lock().set_limit(bounds.nominal);
            }
            level.queues.lock().configure(config.mode);
            rules.levels.push((config, level));
        }
        for config in schemas {
            let Some((level_config, level)) = rules.levels.iter().find(|(c, _)| c.name == config.level)
            else {
                continue;
            };
            let hand = if let Mode::Queue(q) = level_config.mode { q.hand } else { 1 };
            let seats_max = match level_config.mode {
                Mode::Exempt => 0,
                _ => estimate::seats_max(level.bounds.lock().nominal, hand),
            };
            rules.schemas.push(Arc::new(Schema {
                hash: hash(hash(0xcbf2_9ce4_8422_2325, &config.name), "\0"),
                level_uid: level_config.uid.clone(),
                seats_max,
                stats: self.stats(&level.name, &config.name),
                level: level.clone(),
                config,
            }));
        }
        self.rules.store(Arc::new(rules));
    }

    /// Moves seats to the levels that want them. Whether any level wants more than it is entitled to.
    fn adjust(self: &Arc<Self>) -> bool {
        let (rules, now) = (self.rules.load_full(), self.now());
        let mut left = self.total as f64;
        let (mut wants, mut limited, mut busy) = (Vec::new(), Vec::new(), false);
        for (config, level) in &rules.levels {
            let bounds = *level.bounds.lock();
            let seen = level.queues.lock().demand.take(now);
            let smoothed = {
                let mut smoothed = level.smoothed.lock();
                *smoothed = demand::smoothed(*smoothed, seen);
                *smoothed
            };
            if config.mode == Mode::Exempt {
                left -= (bounds.lower as f64).max(seen.highest);
                continue;
            }
            busy |= seen.highest > bounds.nominal as f64;
            let lower = (bounds.lower as f64).max(seen.highest.min(bounds.nominal as f64));
            wants.push(Want { lower, upper: bounds.upper as f64, target: smoothed.max(lower) });
            limited.push(level);
        }
        let (seats, _) = shares::allocate(left.max(0.0), &wants);
        for (level, seats) in limited.into_iter().zip(seats) {
            level.queues.lock().set_limit(seats.round().max(1.0) as u64);
            level.dispatch(self);
        }
        busy
    }
}

impl Flow {
    /// Flow control over `total` seats, with the mandatory configuration until objects say more.
    pub fn new(total: u64) -> Flow {
        let parts = Arc::new(Parts {
            total,
            began: Instant::now(),
            rules: ArcSwap::default(),
            objects: Mutex::default(),
            levels: Mutex::default(),
            stats: Mutex::default(),
            short: Notify::new(),
        });
        parts.rebuild();
        Flow(parts)
    }

    /// Takes a PriorityLevelConfiguration in, or out.
    pub fn set_level(&self, name: &str, object: Option<&Value>) {
        set(&mut self.0.objects.lock().levels, name, object.map(LevelConfig::from_json));
        self.0.rebuild();
    }

    /// Takes a FlowSchema in, or out.
    pub fn set_schema(&self, name: &str, object: Option<&Value>) {
        set(&mut self.0.objects.lock().schemas, name, object.map(SchemaConfig::from_json));
        self.0.rebuild();
    }

    /// Lets a request run, at once or after a wait. `work` is told the most seats it may take.
    pub async fn admit(&self, asked: Asked<'_>, work: impl FnOnce(u64) -> Work) -> Result<Permit, Refused> {
        let rules = self.0.rules.load();
        let found = rules.schemas.iter().find(|s| s.config.matches(asked.info, asked.path, asked.user));
        // Everybody is authenticated or not, and the schemas for both are always there.
        let Some(schema) = found.cloned() else { return Ok(Permit { schema: None, _ticket: None }) };
        drop(rules);
        let work = work(schema.seats_max);
        let distinguisher = schema.config.distinguisher(asked.info, asked.user);
        let flow = mixed(hash(schema.hash, distinguisher));
        let mut receiver = None;
        let arrival = schema.level.queues.lock().arrive(self.0.now(), flow, work.seats(), || {
            let (tell, told) = oneshot::channel();
            receiver = Some(told);
            Waker { tell, schema: schema.clone(), flow: distinguisher.to_owned(), work }
        });
        let id = match arrival {
            Arrival::Run(seat) => {
                schema.level.started(&schema, seat, 0.0);
                let ticket = Ticket { flow: self.0.clone(), schema: schema.clone(), seat, work };
                return Ok(Permit { schema: Some(schema), _ticket: Some(ticket) });
            }
            Arrival::Refused(why) => {
                self.0.short.notify_one();
                return Err(self.refuse(schema, why));
            }
            Arrival::Wait(id) => id,
        };
        self.0.short.notify_one();
        let level = schema.level.clone();
        let mut place = Place { flow: self.0.clone(), level, id, why: Refusal::Cancelled };
        let Some(told) = receiver else { return Err(self.refuse(schema, Refusal::Cancelled)) };
        match tokio::time::timeout(WAIT_MAX, told).await {
            Ok(Ok(ticket)) => Ok(Permit { schema: Some(schema), _ticket: Some(ticket) }),
            _ => {
                place.why = Refusal::TimeOut;
                drop(place);
                Err(self.refuse(schema, Refusal::TimeOut))
            }
        }
    }

    fn refuse(&self, schema: Arc<Schema>, why: Refusal) -> Refused {
        *schema.stats.refused.lock().entry(why).or_default() += 1;
        schema.level.counts[REFUSED].fetch_add(1, Ordering::Relaxed);
        let retry_after = schema.level.drops.lock().count(self.0.began.elapsed().as_secs());
        Refused { schema, retry_after }
    }

    /// Moves seats between levels while any is short of them; sleeps otherwise.
    pub async fn lend(&self) {
        loop {
            self.0.short.notified().await;
            while self.0.adjust() {
                tokio::time::sleep(ADJUST_EVERY).await;
            }
        }
    }
}

fn set<T>(map: &mut BTreeMap<String, T>, name: &str, value: Option<T>) {
    match value {
        Some(value) => map.insert(name.to_owned(), value),
        None => map.remove(name),
    };
}

#[cfg(test)]
mod tests;
