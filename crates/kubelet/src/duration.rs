//! Durations as Go writes them: `1h30m`, `2m0s`, `100ms`.

use std::time::Duration;

/// Nanoseconds of each unit; longer names before those they begin with.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Reads a duration; `None` for what is none, negative ones included. A plain `0` is one.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let (_, nanoseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total += number * nanoseconds;
        rest = tail;
    }
    // Go's durations end at 2^63 nanoseconds.
    (total < i64::MAX as f64).then(|| Duration::from_nanos(total.round() as u64))
}

/// Writes a duration.
pub fn format(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let short = |unit: f64, name: &str| format!("{}{name}", nanoseconds as f64 / unit);
    match nanoseconds {
        0 => return "0s".into(),
        1..1_000 => return short(1.0, "ns"),
        1_000..1_000_000 => return short(1e3, "µs"),
        1_000_000..1_000_000_000 => return short(1e6, "ms"),
        _ => {}
    }
    let whole = duration.as_secs();
    let (hours, minutes) = (whole / 3600, whole / 60 % 60);
    let seconds = (whole % 60) as f64 + f64::from(duration.subsec_nanos()) / 1e9;
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_has_them() {
        let table = [
            ("0", 0, "0s"),
            ("100ms", 100, "100ms"),
            ("1.5s", 1500, "1.5s"),
            ("2m", 120_000, "2m0s"),
            ("1h30m", 5_400_000, "1h30m0s"),
            ("26h", 93_600_000, "26h0m0s"),
        ];
        for (text, milliseconds, written) in table {
            let read = parse(text).unwrap();
            assert_eq!(read, Duration::from_millis(milliseconds), "{text}");
            assert_eq!(format(read), written);
        }
        for bad in ["", "1", "s", "-1s", "1x", "1s1", "1..s", "9999999999h"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
