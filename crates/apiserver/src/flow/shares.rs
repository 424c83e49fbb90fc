//! How the server's seats are shared among levels: by nominal shares, and by what each can lend and borrow.

use super::config::Limits;

/// The bounds of a level's seats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// What it is entitled to.
    pub nominal: u64,
    /// What it keeps in any case.
    pub lower: u64,
    /// What it may have at most.
    pub upper: u64,
}

/// The bounds of every level, in the given order, of a server with `total` seats.
pub fn bounds(total: u64, levels: &[Limits]) -> Vec<Bounds> {
    let shares: f64 = levels.iter().map(|l| f64::from(l.shares)).sum();
    levels
        .iter()
        .map(|level| {
            let share = if shares > 0.0 { total as f64 * f64::from(level.shares) / shares } else { 0.0 };
            let nominal = share.ceil() as u64;
            let part = |percent: u32| (nominal as f64 * f64::from(percent) / 100.0).round() as u64;
            let borrow = level.borrowing_percent.map_or(total, part);
            Bounds {
                nominal,
                lower: nominal - part(level.lendable_percent).min(nominal),
                upper: nominal + borrow,
            }
        })
        .collect()
}

/// What a level wants, between what it must and may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Want {
    /// Least.
    pub lower: f64,
    /// Most.
    pub upper: f64,
    /// Wanted.
    pub target: f64,
}

/// Looks for the common factor this often halving the range: beyond that seats do not change any more.
const HALVINGS: usize = 64;
/// A level that wants nothing still has its part of what is left.
const TARGET_MIN: f64 = 0.001;

/// Shares `total` seats: everybody gets the same multiple of its target within its bounds. Also answers the
/// multiple. Bounds that cannot be met give way: all get their least, or their most.
pub fn allocate(total: f64, wants: &[Want]) -> (Vec<f64>, f64) {
    let given = |factor: f64| -> Vec<f64> {
        wants
            .iter()
            .map(|w| (factor * w.target.max(TARGET_MIN)).clamp(w.lower, w.upper.max(w.lower)))
            .collect()
    };
    let top = wants.iter().map(|w| w.upper / w.target.max(TARGET_MIN)).fold(0.0, f64::max);
    let (mut low, mut high) = (0.0, top);
    if given(high).iter().sum::<f64>() <= total {
        return (given(high), high);
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if given(middle).iter().sum::<f64>() > total { high = middle } else { low = middle }
    }
    (given(low), low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_levels_have_upstreams_seats() {
        let level = |shares, lendable_percent| Limits { shares, lendable_percent, borrowing_percent: None };
        // exempt, catch-all, system, node-high, leader-election, workload-high, workload-low, global-default
        let all = [(0, 0), (5, 0), (30, 33), (40, 25), (10, 0), (40, 50), (100, 90), (20, 50)];
        let found = bounds(600, &all.map(|(s, l)| level(s, l)));
        let nominal: Vec<u64> = found.iter().map(|b| b.nominal).collect();
        assert_eq!(nominal, [0, 13, 74, 98, 25, 98, 245, 49]);
        let lower: Vec<u64> = found.iter().map(|b| b.lower).collect();
        assert_eq!(lower, [0, 13, 50, 73, 25, 49, 24, 24]);
        assert_eq!(found[1].upper, 613);
        let strict = Limits { shares: 1, lendable_percent: 0, borrowing_percent: Some(50) };
        assert_eq!(bounds(10, &[strict])[0], Bounds { nominal: 10, lower: 10, upper: 15 });
    }

    #[test]
    fn seats_go_where_they_are_wanted() {
        let want = |lower, upper, target| Want { lower, upper, target };
        for (total, wants, expected) in [
            (10.0, vec![want(2.0, 20.0, 2.0), want(2.0, 20.0, 8.0)], vec![2.0, 8.0]),
            (20.0, vec![want(2.0, 20.0, 2.0), want(2.0, 20.0, 8.0)], vec![4.0, 16.0]),
            // Who must keep five keeps five.
            (10.0, vec![want(5.0, 20.0, 5.0), want(0.0, 20.0, 20.0)], vec![5.0, 5.0]),
            // Who may not have more leaves it to others.
            (12.0, vec![want(0.0, 4.0, 6.0), want(0.0, 20.0, 6.0)], vec![4.0, 8.0]),
            (3.0, vec![want(2.0, 9.0, 2.0), want(2.0, 9.0, 2.0)], vec![2.0, 2.0]),
            (30.0, vec![want(2.0, 9.0, 2.0), want(2.0, 9.0, 2.0)], vec![9.0, 9.0]),
        ] {
            let (found, _) = allocate(total, &wants);
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        }
    }
}
