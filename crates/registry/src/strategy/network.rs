//! NetworkPolicies: what a peer and a port may be.

use std::net::IpAddr;

use meta::FieldError;
use serde_json::Value;

use super::{Object, Strategy};

/// Strategy of NetworkPolicies.
pub struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let (spec, mut errors) = (object.get("spec").unwrap_or(&Value::Null), Vec::new());
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in spec[direction].as_array().into_iter().flatten().enumerate() {
                let at = format!("spec.{direction}[{i}]");
                for (j, port) in rule["ports"].as_array().into_iter().flatten().enumerate() {
                    end_port(port, &format!("{at}.ports[{j}].endPort"), &mut errors);
                }
                for (j, peer) in rule[peers].as_array().into_iter().flatten().enumerate() {
                    block(peer, &format!("{at}.{peers}[{j}]"), &mut errors);
                }
            }
        }
        errors
    }
}

fn end_port(port: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let end = &port["endPort"];
    let number = port["port"].as_i64();
    if number.zip(end.as_i64()).is_some_and(|(first, last)| last < first) {
        // The value is that of the port, as upstream shows it.
        errors.push(FieldError::invalid(at, &port["port"], "must be greater than or equal to `port`"));
    }
    let why = match &port["port"] {
        _ if end.is_null() => return,
        Value::Null => "may not be specified when `port` is not specified",
        Value::String(_) => "may not be specified when `port` is non-numeric",
        _ if end.as_i64().is_some_and(|n| !(1..=65_535).contains(&n)) => {
            "must be between 1 and 65535, inclusive"
        }
        _ => return,
    };
    errors.push(FieldError::invalid(at, end, why));
}

fn block(peer: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let block = &peer["ipBlock"];
    if block.is_null() {
        return;
    }
    if ["podSelector", "namespaceSelector"].iter().any(|s| !peer[*s].is_null()) {
        errors.push(FieldError::forbidden(at, "may not specify both ipBlock and another peer"));
    }
    if block["cidr"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(format!("{at}.ipBlock.cidr"), ""));
    }
    let Some(whole) = network(&block["cidr"]) else { return };
    for (i, except) in block["except"].as_array().into_iter().flatten().enumerate() {
        if network(except).is_some_and(|part| !is_strictly_within(part, whole)) {
            let why = "must be a strict subset of `cidr`";
            errors.push(FieldError::invalid(format!("{at}.ipBlock.except[{i}]"), except, why));
        }
    }
}

/// Address and length of a network.
fn network(value: &Value) -> Option<(IpAddr, u32)> {
    let (address, bits) = value.as_str()?.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits = bits.parse().ok().filter(|b| *b <= if address.is_ipv4() { 32 } else { 128 })?;
    Some((address, bits))
}

fn is_strictly_within((part, longer): (IpAddr, u32), (whole, shorter): (IpAddr, u32)) -> bool {
    let differing = match (part, whole) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    longer > shorter && differing >= shorter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_networks() {
        for (part, whole, within) in [
            ("10.1.0.0/16", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("11.0.0.0/16", "10.0.0.0/8", false),
            ("10.0.0.0/4", "10.0.0.0/8", false),
            ("1.2.3.4/32", "0.0.0.0/0", true),
            ("fd00:1::/32", "fd00::/8", true),
            ("fd00::/16", "10.0.0.0/8", false),
        ] {
            let of = |text: &str| network(&text.into()).unwrap();
            assert_eq!(is_strictly_within(of(part), of(whole)), within, "{part} in {whole}");
        }
    }
}
