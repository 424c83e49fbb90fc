//! How many seats a level wants over time: highest, mean and deviation of an interval, and a smoothed figure that
//! forgets slowly.

/// Share of the old figure that stays with every look (upstream's).
const KEPT: f64 = 0.977;

/// A number that changes over time.
#[derive(Debug, Default)]
pub struct Demand {
    value: f64,
    since: f64,
    began: f64,
    sum: f64,
    squares: f64,
    highest: f64,
}

/// An interval's figures.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Highest.
    pub highest: f64,
    /// Mean over time.
    pub mean: f64,
    /// Standard deviation over time.
    pub deviation: f64,
}

impl Demand {
    fn pass(&mut self, now: f64) {
        let passed = (now - self.since).max(0.0);
        self.sum += passed * self.value;
        self.squares += passed * self.value * self.value;
        self.since = self.since.max(now);
    }

    /// The number from now on.
    pub fn set(&mut self, now: f64, value: f64) {
        self.pass(now);
        self.value = value;
        self.highest = self.highest.max(value);
    }

    /// The figures since the last look; the next interval begins.
    pub fn take(&mut self, now: f64) -> Seen {
        self.pass(now);
        let length = self.since - self.began;
        let (mean, squares) = match length > 0.0 {
            true => (self.sum / length, self.squares / length),
            false => (self.value, self.value * self.value),
        };
        let seen = Seen { highest: self.highest, mean, deviation: (squares - mean * mean).max(0.0).sqrt() };
        (self.sum, self.squares, self.highest, self.began) = (0.0, 0.0, self.value, self.since);
        seen
    }
}

/// The smoothed figure after an interval: it rises at once and falls slowly.
pub fn smoothed(before: f64, seen: Seen) -> f64 {
    let envelope = (seen.mean + seen.deviation).min(seen.highest);
    envelope.max(KEPT * before + (1.0 - KEPT) * envelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_an_interval() {
        let mut demand = Demand::default();
        demand.set(0.0, 2.0);
        demand.set(5.0, 4.0);
        let seen = demand.take(10.0);
        assert_eq!((seen.highest, seen.mean, seen.deviation), (4.0, 3.0, 1.0));
        // The next interval begins with what is wanted now.
        demand.set(11.0, 0.0);
        assert_eq!(demand.take(20.0), Seen { highest: 4.0, mean: 0.4, deviation: 1.44f64.sqrt() });
        assert_eq!(smoothed(0.0, seen), 4.0);
        assert!(smoothed(10.0, seen) > 9.8);
    }
}
