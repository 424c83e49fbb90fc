//! `process_*`: what the operating system says of this process.

use std::fmt::Write;

/// Clock ticks of a second in `/proc` (the kernel's ABI on every platform we run on).
const TICKS: f64 = 100.0;
/// Bytes of a page there.
const PAGE_BYTES: u64 = 4096;

/// The figures in `/proc/self/stat`: processor seconds, start in seconds after boot, virtual and resident bytes.
fn parse(stat: &str) -> Option<(f64, f64, u64, u64)> {
    // The command's name is in parentheses and may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    let pages = number(21)?;
    Some((ticks as f64 / TICKS, number(19)? as f64 / TICKS, number(20)?, pages * PAGE_BYTES))
}

fn boot_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())
}

fn descriptors_max() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Writes the metrics; what cannot be read is left out.
pub fn render(out: &mut String) {
    let mut gauge = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    };
    let stat = std::fs::read_to_string("/proc/self/stat").ok().and_then(|s| parse(&s));
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|d| d.count() as f64);
    gauge(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        stat.map(|s| s.0),
    );
    gauge(
        "process_max_fds",
        "gauge",
        "Maximum number of open file descriptors.",
        descriptors_max().map(|n| n as f64),
    );
    gauge("process_open_fds", "gauge", "Number of open file descriptors.", open);
    gauge(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        stat.map(|s| s.3 as f64),
    );
    let start = stat.and_then(|s| Some(boot_seconds()? + s.1));
    gauge(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        start,
    );
    gauge("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", stat.map(|s| s.2 as f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let line =
            "7 (a b) c) S 1 7 7 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 4 0 1000 8192 3 18446744073709551615";
        assert_eq!(parse(line), Some((2.0, 10.0, 8192, 3 * 4096)));
        assert_eq!(parse("nothing"), None);
    }
}
