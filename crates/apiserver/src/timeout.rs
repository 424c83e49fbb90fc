//! The time limit of a request: the server's, or a shorter one that the client asks for.

use std::time::Duration;

use meta::Status;

use crate::path::Query;

/// The time that a request may take. `timeout` is a duration as Go writes it.
pub fn of(query: &Query, most: Duration) -> Result<Duration, Status> {
    let text = query.get("timeout");
    if text.is_empty() {
        return Ok(most);
    }
    match parse(text) {
        Some(Duration::ZERO) => Ok(most),
        Some(asked) => Ok(asked.min(most)),
        None => Err(Status::bad_request(format!(
            "invalid timeout specified in the request URL - time: invalid duration {text:?}"
        ))),
    }
}

/// The answer to a request that took too long.
pub fn exceeded() -> Status {
    Status::timeout("Timeout: request did not complete within the allotted timeout")
}

/// `1h2m3.5s`; no sign.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, tail) = unit.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, wanted) in [
            ("30s", Some(30_000)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("250ms", Some(250)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("5x", None),
            ("-1s", None),
        ] {
            assert_eq!(parse(text), wanted.map(Duration::from_millis), "{text}");
        }
        let most = Duration::from_secs(60);
        let of = |text: &str| of(&Query::parse(text), most);
        assert_eq!(of("timeout=2m").unwrap(), most);
        assert_eq!(of("timeout=2s").unwrap(), Duration::from_secs(2));
        assert_eq!(of("timeout=0s").unwrap(), most);
        assert!(of("timeout=soon").unwrap_err().message.contains("time: invalid duration \"soon\""));
    }
}
