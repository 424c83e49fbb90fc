//! Figures as aligned tables, and the arithmetic behind them: medians and percentiles of samples.

use std::time::Duration;

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// Nothing.
    None,
    /// Smaller is better.
    AtMost(f64),
    /// Larger is better.
    AtLeast(f64),
}

/// One line of a table.
struct Row {
    what: String,
    measured: f64,
    unit: &'static str,
    floor: Option<f64>,
    target: Target,
}

/// A section's figures.
pub struct Table {
    title: String,
    rows: Vec<Row>,
}

impl Table {
    /// A table without rows.
    pub fn new(title: &str) -> Self {
        Table { title: title.into(), rows: Vec::new() }
    }

    /// Adds a figure.
    pub fn row(
        &mut self,
        what: impl Into<String>,
        measured: f64,
        unit: &'static str,
        floor: Option<f64>,
        target: Target,
    ) {
        self.rows.push(Row { what: what.into(), measured, unit, floor, target });
    }

    /// Prints it.
    pub fn print(&self) {
        println!("\n{}", self.title);
        let width = self.rows.iter().map(|r| r.what.chars().count()).max().unwrap_or(0);
        println!(
            "  {:width$} {:>12} {:8} {:>12} {:>8} {:>12}",
            "", "measured", "unit", "floor", "x floor", "target"
        );
        for row in &self.rows {
            let floor = row.floor.map_or("-".into(), number);
            let ratio = row.floor.map_or("-".into(), |f| number(row.measured / f));
            let (target, verdict) = match row.target {
                Target::None => ("-".into(), ""),
                Target::AtMost(limit) => (format!("<= {}", number(limit)), met(row.measured <= limit)),
                Target::AtLeast(limit) => (format!(">= {}", number(limit)), met(row.measured >= limit)),
            };
            println!(
                "  {:width$} {:>12} {:8} {floor:>12} {ratio:>8} {target:>12} {verdict}",
                row.what,
                number(row.measured),
                row.unit
            );
        }
    }
}

fn met(yes: bool) -> &'static str {
    if yes { "met" } else { "MISSED" }
}

/// Three significant digits where there are not more before the point.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The value that `percent` of the samples do not pass (nearest rank); 0 without samples.
pub fn percentile(samples: &[Duration], percent: f64) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The middle sample in milliseconds.
pub fn median_ms(samples: &[Duration]) -> f64 {
    ms(percentile(samples, 50.0))
}

/// Milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Says what the figures were measured on.
pub fn machine() {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("", |m| m.1);
    let memory = read("/proc/meminfo");
    let kib: f64 =
        memory.lines().next().and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default();
    println!("{cores} cores {model}, {:.0} GiB, Linux {}", kib / f64::from(1 << 20), kernel.trim());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let samples: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        for (percent, expected) in [(50.0, 50), (99.0, 99), (100.0, 100), (0.0, 1)] {
            assert_eq!(percentile(&samples, percent), Duration::from_millis(expected), "p{percent}");
        }
        assert_eq!(percentile(&[Duration::from_millis(7)], 99.0), Duration::from_millis(7));
        assert_eq!(percentile(&[], 50.0), Duration::ZERO);
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in [(12345.6, "12346"), (42.25, "42.2"), (1.234, "1.23"), (0.0123, "0.0123")] {
            assert_eq!(number(value), text);
        }
    }
}
