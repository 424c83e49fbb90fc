//! Timestamps and durations as the language writes them.

use jiff::Timestamp;

/// Nanoseconds of a second.
pub(crate) const SECOND: i64 = 1_000_000_000;

/// RFC 3339.
pub(crate) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    // jiff reads more than RFC 3339: a space for the T, times without seconds.
    let fits = text.len() >= 20
        && text.as_bytes().get(10).is_some_and(|c| matches!(c, b'T' | b't'))
        && text.as_bytes().get(16) == Some(&b':');
    if fits { text.parse().ok() } else { None }
}

/// RFC 3339 with as many digits of a second as are needed.
pub(crate) fn show_timestamp(t: Timestamp) -> String {
    t.to_string()
}

/// Go's notation, e.g. `1h30m` or `-1.5s`, in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("s", SECOND),
        ("m", 60 * SECOND),
        ("h", 3600 * SECOND),
    ];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return None;
        }
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let unit = i128::from(UNITS.iter().find(|(u, _)| *u == &after[..unit_end])?.1);
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        if !fraction.is_empty() {
            let digits = &fraction[..fraction.len().min(18)];
            let scale = 10i128.pow(digits.len() as u32);
            total += digits.parse::<i128>().ok()? * unit / scale;
        }
        rest = &after[unit_end..];
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Seconds and `s`, as CEL's `string(duration)` gives them.
pub(crate) fn show_duration(nanos: i64) -> String {
    let (seconds, fraction) = (nanos.unsigned_abs() / SECOND as u64, nanos.unsigned_abs() % SECOND as u64);
    let sign = if nanos < 0 { "-" } else { "" };
    if fraction == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{fraction:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// The offset of a time zone: its name, or `+hh:mm`.
pub(crate) fn zone(name: &str) -> Option<jiff::tz::TimeZone> {
    if let Some((hours, minutes)) = name.split_once(':') {
        let negative = hours.starts_with('-');
        let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
        let minutes: i32 = minutes.parse().ok()?;
        let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
        let offset = jiff::tz::Offset::from_seconds(if negative { -seconds } else { seconds }).ok()?;
        return Some(offset.to_time_zone());
    }
    match name {
        "" | "UTC" => Some(jiff::tz::TimeZone::UTC),
        _ => jiff::tz::TimeZone::get(name).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("1s", Some(SECOND)),
            ("1h30m", Some(5400 * SECOND)),
            ("-1.5s", Some(-1_500_000_000)),
            ("0", Some(0)),
            ("100ms", Some(100_000_000)),
            (".5s", Some(500_000_000)),
            ("1", None),
            ("", None),
            ("s", None),
            ("1d", None),
            ("99999999999h", None),
        ] {
            assert_eq!(parse_duration(text), nanos, "{text}");
        }
        assert_eq!(show_duration(-1_500_000_000), "-1.5s");
        assert_eq!(show_duration(60 * SECOND), "60s");
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        assert!(parse_timestamp("2026-01-02T03:04:05Z").is_some());
        assert!(parse_timestamp("2026-01-02T03:04:05.123+01:00").is_some());
        assert!(parse_timestamp("2026-01-02 03:04:05Z").is_none());
        assert!(parse_timestamp("2026-01-02").is_none());
    }
}
