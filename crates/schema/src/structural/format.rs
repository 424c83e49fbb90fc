//! Formats of strings that custom resources may ask for; others are ignored, as upstream ignores them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use meta::{FieldError, names};
use regex::Regex;
use serde_json::Value;

use super::Props;

/// The format that counts: one that is known and fits the type.
pub fn effective(schema: &Props) -> &str {
    let format = &*schema.format;
    let known = match &*schema.ty {
        "" | "string" if !schema.int_or_string => {
            rule(&format.replace('-', "")).is_some() || rule(format).is_some()
        }
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    if known { format } else { "" }
}

/// What is wrong with a text under the schema's format.
pub fn problem(schema: &Props, text: &str, path: &str) -> Option<FieldError> {
    let format = effective(schema);
    let rule = rule(format).or_else(|| rule(&format.replace('-', "")))?;
    if rule(text) {
        return None;
    }
    let why = format!("{path} in body must be of type {format}: {text:?}");
    Some(FieldError::type_invalid(path.trim_start_matches('.'), &Value::from(text), &why))
}

type Check = fn(&str) -> bool;

fn rule(format: &str) -> Option<Check> {
    Some(match format {
        "bsonobjectid" => |s| s.len() == 24 && s.bytes().all(|c| c.is_ascii_hexdigit()),
        "uri" => |s| {
            s.starts_with('/')
                || s.split_once(':').is_some_and(|(scheme, rest)| is_scheme(scheme) && !rest.is_empty())
        },
        "email" => is_email,
        "hostname" => is_hostname,
        "ipv4" => |s| s.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => |s| s.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr,
        "mac" => is_mac,
        "uuid" => |s| is_uuid(s, None),
        "uuid3" => |s| is_uuid(s, Some('3')),
        "uuid4" => |s| is_uuid(s, Some('4')),
        "uuid5" => |s| is_uuid(s, Some('5')),
        "isbn" => |s| is_isbn10(s) || is_isbn13(s),
        "isbn10" => is_isbn10,
        "isbn13" => is_isbn13,
        "creditcard" => is_credit_card,
        "ssn" => |s| pattern(&SSN, r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$").is_match(s),
        "hexcolor" => |s| pattern(&HEX, r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$").is_match(s),
        "rgbcolor" => |s| pattern(&RGB, RGB_PATTERN).is_match(s),
        "byte" => |s| {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(s).is_ok()
        },
        "password" => |_| true,
        "date" => |s| s.len() == 10 && s.parse::<jiff::civil::Date>().is_ok(),
        "duration" => is_duration,
        "datetime" => is_date_time,
        "k8s-short-name" => |s| names::label_problem(s).is_none(),
        "k8s-long-name" => |s| names::subdomain_problem(s).is_none(),
        _ => return None,
    })
}

static SSN: OnceLock<Regex> = OnceLock::new();
static HEX: OnceLock<Regex> = OnceLock::new();
static RGB: OnceLock<Regex> = OnceLock::new();
static HOSTNAME: OnceLock<Regex> = OnceLock::new();
static CARD: OnceLock<Regex> = OnceLock::new();
static DURATION: OnceLock<Regex> = OnceLock::new();

const RGB_PATTERN: &str = r"^rgb\(\s*(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\s*\)$";
const HOSTNAME_PATTERN: &str = r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$";
const CARD_PATTERN: &str = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$";

/// A pattern of our own, compiled once.
fn pattern(slot: &'static OnceLock<Regex>, text: &str) -> &'static Regex {
    slot.get_or_init(|| match Regex::new(text) {
        Ok(regex) => regex,
        // Our own data, covered by a test.
        Err(e) => unreachable!("{text}: {e}"),
    })
}

fn is_scheme(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic())
        && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
}

fn is_email(s: &str) -> bool {
    // `Name <address>` is an address too.
    let address = match (s.rfind('<'), s.ends_with('>')) {
        (Some(at), true) => &s[at + 1..s.len() - 1],
        _ => s,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c))
    };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (quoted || local.split('.').all(atom)) && domain.split('.').all(atom)
}

fn is_hostname(s: &str) -> bool {
    s.len() <= 255 && pattern(&HOSTNAME, HOSTNAME_PATTERN).is_match(s) && s.split('.').all(|p| p.len() <= 63)
}

fn is_cidr(s: &str) -> bool {
    let Some((address, bits)) = s.split_once('/') else { return false };
    let max = match (address.parse::<Ipv4Addr>(), address.parse::<Ipv6Addr>()) {
        (Ok(_), _) => 32,
        (_, Ok(_)) => 128,
        _ => return false,
    };
    bits.bytes().all(|c| c.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|b| b <= max)
}

fn is_mac(s: &str) -> bool {
    let hex = |p: &str, len: usize| p.len() == len && p.bytes().all(|c| c.is_ascii_hexdigit());
    let parts = |separator: char, len: usize| {
        let parts: Vec<&str> = s.split(separator).collect();
        (parts.iter().all(|p| hex(p, len))).then_some(parts.len() * len / 2)
    };
    [parts(':', 2), parts('-', 2), parts('.', 4)]
        .into_iter()
        .flatten()
        .any(|bytes| matches!(bytes, 6 | 8 | 20))
}

fn is_uuid(s: &str, version: Option<char>) -> bool {
    let plain: String = match s.len() {
        32 => s.to_owned(),
        36 if [8, 13, 18, 23].iter().all(|at| s.as_bytes()[*at] == b'-') => s.replace('-', ""),
        _ => return false,
    };
    let variant = plain.chars().nth(16).unwrap_or_default().to_ascii_lowercase();
    plain.len() == 32
        && plain.bytes().all(|c| c.is_ascii_hexdigit())
        && version.is_none_or(|v| plain.chars().nth(12) == Some(v))
        && (!matches!(version, Some('4' | '5')) || matches!(variant, '8' | '9' | 'a' | 'b'))
}

fn digits_of(s: &str) -> String {
    s.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

fn is_isbn10(s: &str) -> bool {
    let s = digits_of(s);
    if s.len() != 10 || !s.bytes().all(|c| c.is_ascii_digit() || c == b'X') {
        return false;
    }
    let value = |c: u8| if c == b'X' { 10 } else { u32::from(c - b'0') };
    s.bytes().take(9).all(|c| c != b'X')
        && s.bytes().enumerate().map(|(i, c)| (i as u32 + 1) * value(c)).sum::<u32>() % 11 == 0
}

fn is_isbn13(s: &str) -> bool {
    let s = digits_of(s);
    if s.len() != 13 || !s.bytes().all(|c| c.is_ascii_digit()) {
        return false;
    }
    s.bytes().enumerate().map(|(i, c)| u32::from(c - b'0') * if i % 2 == 0 { 1 } else { 3 }).sum::<u32>() % 10
        == 0
}

fn is_credit_card(s: &str) -> bool {
    let digits: String = s.chars().filter(char::is_ascii_digit).collect();
    if !pattern(&CARD, CARD_PATTERN).is_match(&digits) {
        return false;
    }
    let sum: u32 = (digits.bytes().rev().enumerate())
        .map(|(i, c)| match u32::from(c - b'0') {
            d if i % 2 == 0 => d,
            d if d > 4 => d * 2 - 9,
            d => d * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_duration(s: &str) -> bool {
    const UNITS: [&str; 20] = [
        "ns", "us", "µs", "ms", "s", "m", "h", "hr", "d", "w", "wk", "nano", "micro", "milli", "sec", "min",
        "hour", "day", "week", "μs",
    ];
    if s == "0" {
        return true;
    }
    let regex = pattern(&DURATION, r"([0-9]+(?:\.[0-9]*)?)\s*([A-Za-zµμ]+)");
    regex.captures_iter(s).any(|c| {
        let unit = c.get(2).map_or("", |m| m.as_str()).to_lowercase();
        UNITS.contains(&unit.as_str()) || UNITS[11..19].iter().any(|long| unit.starts_with(long))
    })
}

fn is_date_time(s: &str) -> bool {
    s.len() >= 19
        && (s.parse::<jiff::Timestamp>().is_ok()
            || (s.as_bytes()[10] == b'T' && s.parse::<jiff::civil::DateTime>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("uri", "https://a/b", "a b"),
            ("email", "a@b.c", "a@"),
            ("hostname", "example.com", "-a.com"),
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:00:5e:00:53:01", "00:00:5e"),
            ("uuid4", "7d444840-9dc0-41d1-b245-5ffdce74fad2", "7d444840-9dc0-11d1-b245-5ffdce74fad2"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "111-22-3333", "11-22-3333"),
            ("hexcolor", "#FFF", "#FF"),
            ("rgbcolor", "rgb(1,2,255)", "rgb(1,2,256)"),
            ("byte", "aGk=", "a"),
            ("date", "2026-01-02", "2026-13-02"),
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15"),
            ("duration", "22 ns", "x"),
            ("k8s-short-name", "a-b", "a.b"),
        ] {
            let schema = Props { ty: "string".into(), format: format.into(), ..Default::default() };
            assert!(problem(&schema, good, "x").is_none(), "{format} {good}");
            assert!(problem(&schema, bad, "x").is_some(), "{format} {bad}");
        }
        let odd = Props { ty: "string".into(), format: "strange".into(), ..Default::default() };
        assert_eq!(effective(&odd), "");
    }
}
