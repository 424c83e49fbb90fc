//! Schedules of CronJobs: the five fields of cron, names and steps, `@daily` and `@every`, in any time zone.
//!
//! Dialect, messages and behaviour at changes of clocks are those that Kubernetes has from its scheduler
//! library: an hour that a change leaves out is skipped, one that comes twice counts twice.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

/// Years to look ahead: a schedule without a time until then has none (30th of February).
const YEARS_MAX: i16 = 5;

/// Set in the mask of a field that was `*` or `?`: days of month and week are then combined with "and".
const STAR: u64 = 1 << 63;

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Points in time by minute, hour, day of month, month, day of week.
    Fields {
        /// Minutes of the hour.
        minute: u64,
        /// Hours of the day.
        hour: u64,
        /// Days of the month.
        day: u64,
        /// Months.
        month: u64,
        /// Days of the week, Sunday first.
        weekday: u64,
    },
    /// A fixed time apart.
    Every(SignedDuration),
}

struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// Reads a schedule and the time zone it may begin with (`TZ=Europe/Paris 0 4 * * *`).
///
/// # Errors
/// What is wrong with it, in the words users know.
pub fn parse(text: &str) -> Result<(Schedule, Option<TimeZone>), String> {
    if text.is_empty() {
        return Err("empty spec string".into());
    }
    let (mut rest, mut zone) = (text, None);
    for prefix in ["TZ=", "CRON_TZ="] {
        if let Some(after) = text.strip_prefix(prefix) {
            let Some((name, fields)) = after.split_once(' ') else {
                return Err(format!("provided bad location {after}: unknown time zone {after}"));
            };
            let found = time_zone(name).map_err(|e| format!("provided bad location {name}: {e}"))?;
            (rest, zone) = (fields.trim(), Some(found));
            break;
        }
    }
    if rest.starts_with('@') {
        return Ok((descriptor(rest)?, zone));
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields.as_slice() else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    };
    let schedule = Schedule::Fields {
        minute: field(minute, &MINUTES)?,
        hour: field(hour, &HOURS)?,
        day: field(day, &DAYS)?,
        month: field(month, &MONTHS)?,
        weekday: field(weekday, &WEEKDAYS)?,
    };
    Ok((schedule, zone))
}

/// A time zone by its name.
///
/// # Errors
/// A message when there is none of that name.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    if name.is_empty() || name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    // Names are looked up in any spelling, but only the right one counts.
    let exact = |zone: TimeZone| (zone.iana_name() == Some(name)).then_some(zone);
    TimeZone::get(name).ok().and_then(exact).ok_or_else(|| format!("unknown time zone {name}"))
}

fn descriptor(text: &str) -> Result<Schedule, String> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(every) = text.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let parsed = go_duration(every).ok_or_else(|| {
                format!("failed to parse duration {text}: time: invalid duration {every:?}")
            })?;
            // Whole seconds, one at least.
            return Ok(Schedule::Every(SignedDuration::from_secs(parsed.as_secs().max(1))));
        }
    };
    parse(fields).map(|(schedule, _)| schedule)
}

/// A duration like `1h30m`.
fn go_duration(text: &str) -> Option<SignedDuration> {
    let mut total = 0.0;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let value: f64 = rest.get(..number)?.parse().ok()?;
        rest = rest.get(number..)?;
        let units =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, seconds) = units.iter().find(|(unit, _)| rest.starts_with(unit))?;
        total += value * seconds;
        rest = rest.get(unit.len()..)?;
    }
    SignedDuration::try_from_secs_f64(total).ok()
}

fn field(text: &str, bounds: &Bounds) -> Result<u64, String> {
    text.split(',').filter(|part| !part.is_empty()).try_fold(0, |mask, part| Ok(mask | range(part, bounds)?))
}

/// `*`, `a`, `a-b`, and each with a step.
fn range(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let mut parts = text.split('/');
    let (base, step) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let mut ends = base.split('-');
    let (low, high) = (ends.next().unwrap_or_default(), ends.next());
    let mut star = 0;
    let (start, mut end) = if low == "*" || low == "?" {
        star = STAR;
        (bounds.min, bounds.max)
    } else {
        let start = number_or_name(low, bounds)?;
        match high {
            None => (start, start),
            Some(high) => (start, number_or_name(high, bounds)?),
        }
    };
    if ends.next().is_some() {
        return Err(format!("too many hyphens: {text}"));
    }
    let step = match step {
        None => 1,
        Some(step) => {
            let step = number(step)?;
            // A single number with a step means from there on.
            if high.is_none() && star == 0 {
                end = bounds.max;
            }
            if step > 1 {
                star = 0;
            }
            step
        }
    };
    let (min, max) = (bounds.min, bounds.max);
    if start < min {
        return Err(format!("beginning of range ({start}) below minimum ({min}): {text}"));
    }
    if end > max {
        return Err(format!("end of range ({end}) above maximum ({max}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let wanted = (start..=end).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    Ok(wanted.fold(star, |mask, n| mask | (1 << n)))
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let place = bounds.names.iter().position(|name| text.eq_ignore_ascii_case(name));
    match place.and_then(|place| u32::try_from(place).ok()) {
        Some(place) => Ok(bounds.min + place),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let negative = text.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok());
    if negative {
        return Err(format!("negative number ({text}) not allowed: {text}"));
    }
    text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })
}

fn has(mask: u64, n: i8) -> bool {
    u32::try_from(n).is_ok_and(|n| mask & (1 << n) != 0)
}

impl Schedule {
    /// The first time after `after`; `None` if there is none in the next years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second()).ok()?;
        let (minutes, hours) = match self {
            Schedule::Every(apart) => return whole.checked_add(*apart).ok(),
            Schedule::Fields { minute, hour, .. } => (*minute, *hour),
        };
        let start = whole.checked_add(1.second()).ok()?;
        // To the next full minute; zones differ from UTC by odd seconds only in the far past.
        let odd = i64::from(zone.to_datetime(start).second());
        let mut now =
            start.checked_add(SignedDuration::from_secs(if odd == 0 { 0 } else { 60 - odd })).ok()?;
        let last_year = zone.to_datetime(now).year().checked_add(YEARS_MAX)?;
        loop {
            let local = zone.to_datetime(now);
            if local.year() > last_year {
                return None;
            }
            if !self.has_day(local.date()) {
                let tomorrow = self.next_day(local.date(), last_year)?;
                now = zone.to_ambiguous_timestamp(tomorrow.at(0, 0, 0, 0)).compatible().ok()?;
            } else if !has(hours, local.hour()) {
                now = now.checked_add(SignedDuration::from_mins(60 - i64::from(local.minute()))).ok()?;
            } else if !has(minutes, local.minute()) {
                now = now.checked_add(1.minute()).ok()?;
            } else {
                return Some(now);
            }
        }
    }

    fn next_day(&self, mut date: Date, last_year: i16) -> Option<Date> {
        loop {
            date = date.tomorrow().ok()?;
            if date.year() > last_year {
                return None;
            }
            if self.has_day(date) {
                return Some(date);
            }
        }
    }

    fn has_day(&self, date: Date) -> bool {
        let Schedule::Fields { day, month, weekday, .. } = self else { return true };
        let of_month = has(*day, date.day());
        let of_week = has(*weekday, date.weekday().to_sunday_zero_offset());
        // Where both are restricted, either will do.
        let either = (day & STAR) == 0 && (weekday & STAR) == 0;
        has(*month, date.month()) && if either { of_month || of_week } else { of_month && of_week }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let (parsed, own) = parse(schedule).unwrap();
        let zone = own.unwrap_or_else(|| time_zone(zone).unwrap());
        match parsed.next(after.parse().unwrap(), &zone) {
            Some(time) => time.to_string(),
            None => "never".into(),
        }
    }

    #[test]
    fn next_times() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:59.5Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:46:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 4 * * *", "2026-01-01T04:25:00Z", "2026-01-01T04:45:00Z"),
            ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", "never"),
            ("0 12 * * mon-FRI", "2026-11-20T12:00:00Z", "2026-11-23T12:00:00Z"),
            ("0 0 13 * fri", "2026-11-14T00:00:00Z", "2026-11-20T00:00:00Z"),
            ("0 0 13 * ?", "2026-11-14T00:00:00Z", "2026-12-13T00:00:00Z"),
            ("0 0 1 jan,jul *", "2026-01-02T00:00:00Z", "2026-07-01T00:00:00Z"),
            ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:10.7Z", "2026-01-01T01:30:10Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn clocks_change() {
        let paris = |schedule, after| next(schedule, after, "Europe/Paris");
        assert_eq!(paris("30 4 * * *", "2026-07-01T00:00:00Z"), "2026-07-01T02:30:00Z");
        // At 2:00 on the 29th of March it is 3:00.
        assert_eq!(paris("30 2 * * *", "2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z");
        // At 3:00 on the 25th of October it is 2:00 again.
        assert_eq!(paris("30 2 * * *", "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(paris("30 2 * * *", "2026-10-25T00:30:00Z"), "2026-10-25T01:30:00Z");
        assert_eq!(next("TZ=Asia/Kolkata 0 0 * * *", "2026-01-01T00:00:00Z", "UTC"), "2026-01-01T18:30:00Z");
    }

    #[test]
    fn errors_are_told() {
        for (schedule, expected) in [
            ("", "empty spec string"),
            ("error", "expected exactly 5 fields, found 1: [error]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("TZ=Mars/Base * * * * *", "provided bad location Mars/Base: unknown time zone Mars/Base"),
        ] {
            assert_eq!(parse(schedule).unwrap_err(), expected, "{schedule}");
        }
        assert!(time_zone("europe/paris").is_err());
        assert!(time_zone("Europe/Paris").is_ok());
    }
}
