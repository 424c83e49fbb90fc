//! The queues of one priority level: fair among flows, deterministic, without a clock of their own.
//!
//! A flow is dealt a hand of queues and waits in the shortest of them. Queues take turns by virtual time: every
//! queue has a place on a common scale of work done for it, and the one that would be served least is next. What
//! a request will cost is a guess until it ends, and is then put right.

use std::collections::VecDeque;

use super::demand::Demand;

/// What a request is taken to last until it has ended (upstream's guess).
const GUESS_SECONDS: f64 = 0.003;
/// Largest hand that a shuffle deals.
pub const HAND_MAX: usize = 15;

/// How requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queuing {
    /// Queues that flows are dealt.
    pub queues: usize,
    /// Queues per flow.
    pub hand: usize,
    /// Requests per queue.
    pub length: usize,
}

/// What a level does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All run at once.
    Exempt,
    /// Those over the limit are refused.
    Reject,
    /// Those over the limit wait.
    Queue(Queuing),
}

/// Why a request may not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// All queues of its flow are full.
    QueueFull,
    /// The level has no queues, and no seat was free.
    ConcurrencyLimit,
    /// It waited too long.
    TimeOut,
    /// The client went away.
    Cancelled,
}

impl Refusal {
    /// The `reason` of upstream's metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::QueueFull => "queue-full",
            Refusal::ConcurrencyLimit => "concurrency-limit",
            Refusal::TimeOut => "time-out",
            Refusal::Cancelled => "cancelled",
        }
    }
}

/// A running request's seats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seat {
    /// Queue it is accounted to.
    pub queue: Option<usize>,
    /// Seats it takes.
    pub seats: u64,
    /// When it began.
    pub started: f64,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    /// It runs.
    Run(Seat),
    /// It waits under this number.
    Wait(u64),
    /// It is refused.
    Refused(Refusal),
}

/// One that waits.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Its number.
    pub id: u64,
    /// Seats it needs.
    pub seats: u64,
    /// When it came.
    pub arrived: f64,
    /// What to tell when its turn comes.
    pub item: T,
}

/// A queue.
#[derive(Debug)]
pub struct Queue<T> {
    /// In order of arrival.
    pub waiting: VecDeque<Waiting<T>>,
    /// Requests of it that run.
    pub executing: u64,
    /// Seats they take.
    pub seats: u64,
    /// Where its next request begins on the common scale.
    pub next: f64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { waiting: VecDeque::new(), executing: 0, seats: 0, next: 0.0 }
    }
}

/// The state of a level.
#[derive(Debug)]
pub struct QueueSet<T> {
    mode: Mode,
    limit: u64,
    /// The queues; ones that a smaller configuration no longer deals still empty themselves.
    pub queues: Vec<Queue<T>>,
    /// Requests running.
    pub executing: u64,
    /// Seats taken.
    pub seats: u64,
    /// Requests waiting.
    pub waiting: u64,
    waiting_seats: u64,
    numbers: u64,
    robin: usize,
    now: f64,
    virtual_now: f64,
    /// Seats wanted over time.
    pub demand: Demand,
}

impl<T> QueueSet<T> {
    /// An empty one with `limit` seats.
    pub fn new(mode: Mode, limit: u64) -> Self {
        let mut set = QueueSet {
            mode,
            limit,
            queues: Vec::new(),
            executing: 0,
            seats: 0,
            waiting: 0,
            waiting_seats: 0,
            numbers: 0,
            robin: 0,
            now: 0.0,
            virtual_now: 0.0,
            demand: Demand::default(),
        };
        set.configure(mode);
        set
    }

    /// Changes how requests wait; those that wait already stay where they are.
    pub fn configure(&mut self, mode: Mode) {
        self.mode = mode;
        if let Mode::Queue(q) = mode
            && self.queues.len() < q.queues
        {
            self.queues.resize_with(q.queues, Queue::default);
        }
    }

    /// The seats there are.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Changes the number of seats.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.executing == 0 && self.waiting == 0
    }

    /// Moves time on: queues with work share the seats evenly.
    fn tick(&mut self, now: f64) {
        let passed = (now - self.now).max(0.0);
        self.now = self.now.max(now);
        if passed == 0.0 || !matches!(self.mode, Mode::Queue(_)) || self.is_idle() {
            return;
        }
        let active = self.queues.iter().filter(|q| !q.waiting.is_empty() || q.executing > 0).count();
        if active > 0 {
            let served = (self.seats + self.waiting_seats).min(self.limit) as f64;
            self.virtual_now += passed * served / active as f64;
        }
    }

    fn note(&mut self) {
        self.demand.set(self.now, (self.seats + self.waiting_seats) as f64);
    }

    fn fits(&self, seats: u64) -> bool {
        // Who wants more than there is runs alone.
        self.seats + seats <= self.limit || (self.seats == 0 && self.limit > 0)
    }

    fn seat(&mut self, queue: Option<usize>, seats: u64) -> Seat {
        self.executing += 1;
        self.seats += seats;
        if let Some(q) = queue.and_then(|i| self.queues.get_mut(i)) {
            q.executing += 1;
            q.seats += seats;
            q.next += seats as f64 * GUESS_SECONDS;
        }
        Seat { queue, seats, started: self.now }
    }

    /// A request arrives. `item` is made only if it has to wait.
    pub fn arrive(&mut self, now: f64, flow: u64, seats: u64, item: impl FnOnce() -> T) -> Arrival {
        self.tick(now);
        let arrival = match self.mode {
            Mode::Exempt => Arrival::Run(self.seat(None, seats)),
            Mode::Reject if self.fits(seats) => Arrival::Run(self.seat(None, seats)),
            Mode::Reject => Arrival::Refused(Refusal::ConcurrencyLimit),
            Mode::Queue(queuing) => self.queue_up(queuing, flow, seats, item),
        };
        self.note();
        arrival
    }

    fn queue_up(&mut self, queuing: Queuing, flow: u64, seats: u64, item: impl FnOnce() -> T) -> Arrival {
        let Some(index) = self.shortest(queuing, flow) else {
            return Arrival::Refused(Refusal::QueueFull);
        };
        let (free, virtual_now) = (self.waiting == 0 && self.fits(seats), self.virtual_now);
        let Some(queue) = self.queues.get_mut(index) else {
            return Arrival::Refused(Refusal::QueueFull);
        };
        if queue.waiting.is_empty() && queue.executing == 0 {
            // An idle queue saves nothing up.
            queue.next = queue.next.max(virtual_now);
        }
        if free {
            return Arrival::Run(self.seat(Some(index), seats));
        }
        if queue.waiting.len() >= queuing.length {
            return Arrival::Refused(Refusal::QueueFull);
        }
        self.numbers += 1;
        queue.waiting.push_back(Waiting { id: self.numbers, seats, arrived: self.now, item: item() });
        self.waiting += 1;
        self.waiting_seats += seats;
        Arrival::Wait(self.numbers)
    }

    /// The queue of a flow's hand with the least work before it.
    fn shortest(&self, queuing: Queuing, flow: u64) -> Option<usize> {
        let mut hand = [0; HAND_MAX];
        let dealt = deal(flow, queuing.queues, queuing.hand, &mut hand);
        let load = |i: &usize| {
            let queue = self.queues.get(*i)?;
            let waiting: u64 = queue.waiting.iter().map(|w| w.seats).sum();
            Some((waiting + queue.seats, *i))
        };
        // The first of equals, as dealt.
        let mut best: Option<(u64, usize)> = None;
        for (seats, index) in dealt.iter().filter_map(load) {
            if best.is_none_or(|(least, _)| seats < least) {
                best = Some((seats, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// The requests whose turn has come.
    pub fn dispatch(&mut self, now: f64) -> Vec<(Waiting<T>, Seat)> {
        self.tick(now);
        let mut out = Vec::new();
        while self.waiting > 0 {
            let Some(index) = self.next_queue() else { break };
            let Some(queue) = self.queues.get_mut(index) else { break };
            let Some(seats) = queue.waiting.front().map(|w| w.seats) else { break };
            // Nobody overtakes a request that needs much: it would never run.
            if !(self.seats + seats <= self.limit || (self.seats == 0 && self.limit > 0)) {
                break;
            }
            let Some(waiting) = queue.waiting.pop_front() else { break };
            self.waiting -= 1;
            self.waiting_seats -= seats;
            self.robin = index + 1;
            let seat = self.seat(Some(index), seats);
            out.push((waiting, seat));
        }
        if !out.is_empty() {
            self.note();
        }
        out
    }

    /// The queue whose oldest request would end first on the common scale.
    fn next_queue(&self) -> Option<usize> {
        let n = self.queues.len();
        let mut best: Option<(f64, usize)> = None;
        for i in (0..n).map(|i| (self.robin + i) % n.max(1)) {
            let Some(queue) = self.queues.get(i) else { continue };
            let Some(first) = queue.waiting.front() else { continue };
            let end = queue.next + first.seats as f64 * GUESS_SECONDS;
            if best.is_none_or(|(least, _)| end < least) {
                best = Some((end, i));
            }
        }
        best.map(|(_, i)| i)
    }

    /// A request has ended.
    pub fn finish(&mut self, now: f64, seat: Seat) {
        self.tick(now);
        self.executing = self.executing.saturating_sub(1);
        self.seats = self.seats.saturating_sub(seat.seats);
        if let Some(q) = seat.queue.and_then(|i| self.queues.get_mut(i)) {
            q.executing = q.executing.saturating_sub(1);
            q.seats = q.seats.saturating_sub(seat.seats);
            // The guess gives way to what it was.
            q.next += seat.seats as f64 * ((self.now - seat.started) - GUESS_SECONDS);
        }
        self.note();
    }

    /// A request waits no longer. Whether it still waited.
    pub fn leave(&mut self, now: f64, id: u64) -> bool {
        self.tick(now);
        for queue in &mut self.queues {
            if let Some(at) = queue.waiting.iter().position(|w| w.id == id) {
                if let Some(left) = queue.waiting.remove(at) {
                    self.waiting -= 1;
                    self.waiting_seats -= left.seats;
                }
                self.note();
                return true;
            }
        }
        false
    }
}

/// Deals a hand of different queues by a hash: two flows rarely share all of them.
pub fn deal(mut hash: u64, deck: usize, hand: usize, cards: &mut [usize; HAND_MAX]) -> &[usize] {
    let hand = hand.min(HAND_MAX).min(deck);
    for i in 0..hand {
        let left = (deck - i) as u64;
        cards[i] = (hash % left) as usize;
        hash /= left;
    }
    for i in (0..hand).rev() {
        for j in (0..i).rev() {
            if cards[i] >= cards[j] {
                cards[i] += 1;
            }
        }
    }
    &cards[..hand]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(queues: usize, hand: usize, length: usize, limit: u64) -> QueueSet<&'static str> {
        QueueSet::new(Mode::Queue(Queuing { queues, hand, length }), limit)
    }

    fn names(out: Vec<(Waiting<&'static str>, Seat)>) -> Vec<&'static str> {
        out.into_iter().map(|(w, _)| w.item).collect()
    }

    #[test]
    fn hands_are_different_queues() {
        for seed in 0..2000u64 {
            let hash = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut cards = [0; HAND_MAX];
            let mut hand = deal(hash, 16, 6, &mut cards).to_vec();
            assert!(hand.iter().all(|c| *c < 16), "{hand:?}");
            hand.sort_unstable();
            hand.dedup();
            assert_eq!(hand.len(), 6);
        }
        let mut cards = [0; HAND_MAX];
        assert_eq!(deal(7, 1, 8, &mut cards), [0]);
    }

    #[test]
    fn who_rejects_has_no_queue_and_who_is_exempt_no_limit() {
        let mut set = QueueSet::<()>::new(Mode::Reject, 1);
        let Arrival::Run(seat) = set.arrive(0.0, 1, 1, || ()) else { panic!() };
        assert_eq!(set.arrive(0.0, 1, 1, || ()), Arrival::Refused(Refusal::ConcurrencyLimit));
        set.finish(1.0, seat);
        assert!(matches!(set.arrive(1.0, 1, 1, || ()), Arrival::Run(_)));
        let mut set = QueueSet::<()>::new(Mode::Exempt, 0);
        assert!((0..100).all(|i| matches!(set.arrive(0.0, i, 1, || ()), Arrival::Run(_))));
        assert_eq!(set.executing, 100);
    }

    #[test]
    fn full_queues_refuse() {
        let mut set = queued(1, 1, 2, 1);
        assert!(matches!(set.arrive(0.0, 0, 1, || "a"), Arrival::Run(_)));
        assert!(matches!(set.arrive(0.0, 0, 1, || "b"), Arrival::Wait(1)));
        assert!(matches!(set.arrive(0.0, 0, 1, || "c"), Arrival::Wait(2)));
        assert_eq!(set.arrive(0.0, 0, 1, || "d"), Arrival::Refused(Refusal::QueueFull));
        assert!(set.leave(0.0, 1) && !set.leave(0.0, 1));
        assert!(matches!(set.arrive(0.0, 0, 1, || "e"), Arrival::Wait(3)));
    }

    #[test]
    fn a_flow_of_many_does_not_starve_a_flow_of_few() {
        // Flow 0 is dealt queue 0, flow 1 queue 1.
        let mut set = queued(2, 1, 100, 1);
        let Arrival::Run(mut seat) = set.arrive(0.0, 0, 1, || "many") else { panic!() };
        (0..20).for_each(|_| assert!(matches!(set.arrive(0.0, 0, 1, || "many"), Arrival::Wait(_))));
        assert!(matches!(set.arrive(0.0, 1, 1, || "few"), Arrival::Wait(_)));
        assert!(matches!(set.arrive(0.0, 1, 1, || "few"), Arrival::Wait(_)));
        let mut order = Vec::new();
        for i in 1..=6 {
            let now = f64::from(i) * 0.01;
            set.finish(now, seat);
            let mut out = set.dispatch(now);
            assert_eq!(out.len(), 1);
            let (waiting, next) = out.remove(0);
            order.push(waiting.item);
            seat = next;
        }
        assert_eq!(order.iter().filter(|n| **n == "few").count(), 2, "{order:?}");
        assert_eq!(order[0], "few");
    }

    #[test]
    fn wide_requests_are_not_overtaken_and_run_alone_if_they_must() {
        let mut set = queued(1, 1, 100, 4);
        let Arrival::Run(first) = set.arrive(0.0, 0, 2, || "x") else { panic!() };
        assert!(matches!(set.arrive(0.0, 0, 9, || "wide"), Arrival::Wait(_)));
        assert!(matches!(set.arrive(0.0, 0, 1, || "thin"), Arrival::Wait(_)));
        assert!(set.dispatch(0.1).is_empty());
        set.finish(0.2, first);
        let out = set.dispatch(0.2);
        let seat = out[0].1;
        assert_eq!(names(out), ["wide"]);
        set.finish(0.3, seat);
        assert_eq!(names(set.dispatch(0.3)), ["thin"]);
    }

    #[test]
    fn more_seats_let_more_run_and_fewer_queues_still_empty() {
        let mut set = queued(4, 1, 100, 1);
        assert!(matches!(set.arrive(0.0, 3, 1, || "a"), Arrival::Run(_)));
        assert!(matches!(set.arrive(0.0, 3, 1, || "b"), Arrival::Wait(_)));
        assert!(matches!(set.arrive(0.0, 2, 1, || "c"), Arrival::Wait(_)));
        set.configure(Mode::Queue(Queuing { queues: 1, hand: 1, length: 1 }));
        set.set_limit(3);
        assert_eq!(set.dispatch(0.0).len(), 2);
        assert_eq!((set.seats, set.waiting), (3, 0));
    }

    /// Random arrivals, ends, departures and limits: counts always add up and nobody waits beside a free seat.
    #[test]
    fn counts_add_up() {
        let mut state = 42u64;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut set = queued(8, 2, 5, 4);
        let (mut running, mut waiting, mut now) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..20_000 {
            now += random(100) as f64 / 1e4;
            match random(5) {
                0 | 1 => match set.arrive(now, random(1 << 40), 1 + random(3), || "r") {
                    Arrival::Run(seat) => running.push(seat),
                    Arrival::Wait(id) => waiting.push(id),
                    Arrival::Refused(_) => {}
                },
                2 if !running.is_empty() => {
                    let seat = running.swap_remove(random(running.len() as u64) as usize);
                    set.finish(now, seat);
                }
                3 if !waiting.is_empty() => {
                    let id = waiting.swap_remove(random(waiting.len() as u64) as usize);
                    assert!(set.leave(now, id));
                }
                _ => set.set_limit(1 + random(6)),
            }
            for (w, seat) in set.dispatch(now) {
                waiting.retain(|id| *id != w.id);
                running.push(seat);
            }
            assert_eq!(set.executing, running.len() as u64);
            assert_eq!(set.waiting, waiting.len() as u64);
            assert_eq!(set.seats, running.iter().map(|s| s.seats).sum::<u64>());
            assert_eq!(set.waiting as usize, set.queues.iter().map(|q| q.waiting.len()).sum::<usize>());
            assert!(set.waiting == 0 || set.seats > 0, "somebody waits for nothing");
        }
    }
}
