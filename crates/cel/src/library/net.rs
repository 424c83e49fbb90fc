//! Addresses and networks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, Opaque, quoted};
use crate::value::Value;

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Its address.
    pub ip: IpAddr,
    /// Length of its prefix in bits.
    pub bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("ip", |a| match a {
        [Value::String(s)] => Ok(Value::Opaque(Opaque::Ip(parse(s)?))),
        [Value::Opaque(Opaque::Cidr(c))] => Ok(Value::Opaque(Opaque::Ip(c.ip))),
        _ => Err(EvalError::no_overload()),
    }),
    ("isIP", |a| of_text(a, |s| Ok(parse(s).is_ok()))),
    ("ip.isCanonical", |a| of_text(a, |s| parse(s).map(|ip| ip.to_string() == s))),
    ("family", |a| match a {
        [Value::Opaque(Opaque::Ip(ip))] => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        _ => Err(EvalError::no_overload()),
    }),
    ("isUnspecified", |a| of_ip(a, |ip| ip.is_unspecified())),
    ("isLoopback", |a| of_ip(a, |ip| ip.is_loopback())),
    ("isLinkLocalMulticast", |a| of_ip(a, link_local_multicast)),
    ("isLinkLocalUnicast", |a| of_ip(a, link_local)),
    ("isGlobalUnicast", |a| {
        of_ip(a, |ip| {
            let broadcast = *ip == IpAddr::V4(Ipv4Addr::BROADCAST);
            !(broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local(ip))
        })
    }),
    ("cidr", |a| match a {
        [Value::String(s)] => Ok(Value::Opaque(Opaque::Cidr(parse_cidr(s)?))),
        _ => Err(EvalError::no_overload()),
    }),
    ("isCIDR", |a| of_text(a, |s| Ok(parse_cidr(s).is_ok()))),
    ("prefixLength", |a| match a {
        [Value::Opaque(Opaque::Cidr(c))] => Ok(Value::Int(i64::from(c.bits))),
        _ => Err(EvalError::no_overload()),
    }),
    ("masked", |a| match a {
        [Value::Opaque(Opaque::Cidr(c))] => {
            Ok(Value::Opaque(Opaque::Cidr(Cidr { ip: masked(c.ip, c.bits), bits: c.bits })))
        }
        _ => Err(EvalError::no_overload()),
    }),
    ("containsIP", |a| match a {
        [Value::Opaque(Opaque::Cidr(c)), Value::Opaque(Opaque::Ip(ip))] => Ok(Value::Bool(holds(c, *ip))),
        [Value::Opaque(Opaque::Cidr(c)), Value::String(s)] => Ok(Value::Bool(holds(c, parse(s)?))),
        _ => Err(EvalError::no_overload()),
    }),
    ("containsCIDR", |a| {
        let (c, inner) = match a {
            [Value::Opaque(Opaque::Cidr(c)), Value::Opaque(Opaque::Cidr(inner))] => (c, *inner),
            [Value::Opaque(Opaque::Cidr(c)), Value::String(s)] => (c, parse_cidr(s)?),
            _ => return Err(EvalError::no_overload()),
        };
        Ok(Value::Bool(c.bits <= inner.bits && holds(c, inner.ip)))
    }),
];

/// Bytes of an address.
pub(super) fn size(ip: &IpAddr) -> u64 {
    if ip.is_ipv4() { 4 } else { 16 }
}

fn of_text<'a>(a: &[Value<'a>], f: impl Fn(&str) -> Result<bool, EvalError>) -> Outcome<'a> {
    match a {
        [Value::String(s)] => f(s).map(Value::Bool),
        _ => Err(EvalError::no_overload()),
    }
}

fn of_ip<'a>(a: &[Value<'a>], f: fn(&IpAddr) -> bool) -> Outcome<'a> {
    match a {
        [Value::Opaque(Opaque::Ip(ip))] => Ok(Value::Bool(f(ip))),
        _ => Err(EvalError::no_overload()),
    }
}

fn link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn parse(s: &str) -> Result<IpAddr, EvalError> {
    if s.contains('%') {
        let why = format!("IP address {} with zone value is not allowed", quoted(s));
        return Err(EvalError::failed(why));
    }
    match s.parse() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(EvalError::failed(format!("IPv4-mapped IPv6 address {} is not allowed", quoted(s))))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(EvalError::failed(format!(
            "IP Address {0} parse error during conversion from string: ParseAddr({0}): unable to parse IP",
            quoted(s)
        ))),
    }
}

fn parse_cidr(s: &str) -> Result<Cidr, EvalError> {
    let bad = || {
        EvalError::failed(format!(
            "network address parse error during conversion from string: network address parse error during conversion from string: netip.ParsePrefix({}): no '/'",
            quoted(s)
        ))
    };
    let (ip, bits) = s.split_once('/').ok_or_else(bad)?;
    let ip = parse(ip).map_err(|_| bad())?;
    let canonical = bits == "0" || !bits.starts_with(['0', '+']);
    let bits: u8 = bits.parse().map_err(|_| bad())?;
    if !canonical || u64::from(bits) > size(&ip) * 8 {
        return Err(bad());
    }
    Ok(Cidr { ip, bits })
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(ip) & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask))
        }
    }
}

fn holds(c: &Cidr, ip: IpAddr) -> bool {
    c.ip.is_ipv4() == ip.is_ipv4() && masked(c.ip, c.bits) == masked(ip, c.bits)
}
