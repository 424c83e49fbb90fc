//! Quantities: fixed-point numbers with SI, binary or exponent suffix (apimachinery resource.Quantity).
//!
//! A value is `number * 10^exponent` held exactly in 128 bits; its format is remembered because the
//! canonical text keeps to it.

use std::cmp::Ordering;
use std::fmt;

/// The text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseQuantityError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

/// A parsed quantity, in billionths (upstream's smallest unit is nano).
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// Parses a quantity such as `100m`, `1.5Gi` or `12e6`. Finer than nano rounds up.
    pub fn parse(text: &str) -> Result<Quantity, ParseQuantityError> {
        let text = text.trim();
        let split = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (negative, digits) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |s: &str| s.bytes().all(|c| c.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
            return Err(ParseQuantityError);
        }
        let mut mantissa: i128 = 0;
        for c in whole.bytes().chain(fraction.bytes()) {
            mantissa = mantissa
                .checked_mul(10)
                .and_then(|m| m.checked_add(i128::from(c - b'0')))
                .ok_or(ParseQuantityError)?;
        }
        if negative {
            mantissa = -mantissa;
        }
        let scale = -(fraction.len() as i32);
        let (nanos, format) = if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
            let scaled = mantissa.checked_mul(1i128 << shift).ok_or(ParseQuantityError)?;
            (scale_by_ten(scaled, scale + 9), Format::Binary)
        } else if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
            (scale_by_ten(mantissa, scale + exponent + 9), Format::Decimal)
        } else if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
            let exponent: i32 = exponent.parse().map_err(|_| ParseQuantityError)?;
            (scale_by_ten(mantissa, scale.saturating_add(exponent).saturating_add(9)), Format::Exponent)
        } else {
            return Err(ParseQuantityError);
        };
        Ok(Quantity { nanos, format })
    }

    /// A whole number.
    pub fn from_units(units: i64) -> Quantity {
        Quantity { nanos: i128::from(units) * NANO, format: Format::Decimal }
    }

    /// Value in units, rounded up.
    pub fn value(&self) -> i64 {
        clamp(div_ceil(self.nanos, NANO))
    }

    /// Value in thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        clamp(div_ceil(self.nanos, NANO / 1000))
    }

    /// Value in units, as near as a double comes.
    pub fn to_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// The sum, in this one's format; what is beyond the largest value is cut off.
    #[must_use]
    pub fn plus(&self, other: Quantity) -> Quantity {
        let limit = i128::from(i64::MAX) * NANO;
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-limit, limit), format }
    }

    /// The difference, in this one's format.
    #[must_use]
    pub fn minus(&self, other: Quantity) -> Quantity {
        self.plus(Quantity { nanos: -other.nanos, format: other.format })
    }

    /// The least `from + n * step` that is no less than this; whole numbers in binary format. This one itself where
    /// the step is nothing.
    #[must_use]
    pub fn stepped_up(&self, from: Quantity, step: Quantity) -> Quantity {
        if step.nanos <= 0 {
            return *self;
        }
        let steps = div_ceil(self.nanos - from.nanos, step.nanos).max(0);
        let nanos = steps.checked_mul(step.nanos).and_then(|n| n.checked_add(from.nanos));
        let Some(nanos) = nanos.filter(|nanos| *nanos != self.nanos) else { return *self };
        let format = if nanos % NANO == 0 { Format::Binary } else { self.format };
        Quantity { nanos, format }
    }

    /// Whether the value is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the value is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the value is a whole number.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

fn div_ceil(n: i128, d: i128) -> i128 {
    let q = n / d;
    if n % d > 0 { q + 1 } else { q }
}

/// `n * 10^by`, rounded up away from zero when digits are lost, capped at the largest 64-bit unit.
fn scale_by_ten(n: i128, by: i32) -> i128 {
    let limit = i128::from(i64::MAX) * NANO;
    if by >= 0 {
        let factor = 10i128.checked_pow(by.min(38) as u32).unwrap_or(i128::MAX);
        return n.checked_mul(factor).unwrap_or(if n < 0 { -limit } else { limit }).clamp(-limit, limit);
    }
    let Some(factor) = 10i128.checked_pow(by.unsigned_abs()) else { return n.signum() };
    let (q, r) = (n / factor, n % factor);
    let scaled = if r == 0 { q } else { q + n.signum() };
    scaled.clamp(-limit, limit)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical text: the largest suffix of the format that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::Binary && self.nanos.abs() >= 1024 * NANO && self.is_integer() {
            let units = self.nanos / NANO;
            let (suffix, shift) =
                BINARY.iter().rev().find(|(_, s)| units % (1i128 << s) == 0).copied().unwrap_or(("", 0));
            return write!(f, "{}{suffix}", units >> shift);
        }
        let (suffix, exponent) = (DECIMAL.iter().rev().copied())
            .find(|(_, e)| self.nanos % 10i128.pow((e + 9) as u32) == 0)
            .unwrap_or(("n", -9));
        let number = self.nanos / 10i128.pow((exponent + 9) as u32);
        match self.format {
            Format::Exponent if exponent != 0 => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text() {
        for (text, canonical) in [
            ("1000m", "1"),
            ("99999999999999919999.000000000000000", "9223372036854775807"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("100m", "100m"),
            ("1000k", "1M"),
            ("0", "0"),
            ("0Ki", "0"),
            ("-1", "-1"),
            ("1.0001n", "2n"),
            ("128974848", "128974848"),
            ("0.1Ki", "102400m"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("+2", "2"),
            (".5", "500m"),
            ("1000Ki", "1000Ki"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
        for bad in ["", "x", "1x", "1.2.3", "--1", "1ki", "1e", "Ki", "1 Gi"] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_round_up_and_compare() {
        assert_eq!(Quantity::parse("100m").unwrap().value(), 1);
        assert_eq!(Quantity::parse("1.5").unwrap().milli_value(), 1500);
        assert_eq!(Quantity::parse("64Mi").unwrap().value(), 64 << 20);
        assert!(Quantity::parse("1Gi").unwrap() > Quantity::parse("1G").unwrap());
        assert_eq!(Quantity::parse("1").unwrap(), Quantity::parse("1000m").unwrap());
        assert_eq!(Quantity::parse("9999999999999999E").unwrap().value(), i64::MAX);
    }
}
