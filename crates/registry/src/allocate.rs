//! Addresses and node ports of Services: chosen at creation, never given twice.
//!
//! What is in use follows from the Services in the watch cache; what is being given out is held by a
//! [`Reservation`] until the cache has seen the Service (or the request has failed).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use stdx::Random;

use crate::cache::{Change, KindCache};

/// The address range of Services cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the service address range {0:?} is not an IPv4 network such as 10.43.0.0/16, of at most /29")]
pub struct RangeError(String);

/// Tries at a random place before the range is searched from its start.
const RANDOM_TRIES: usize = 64;

#[derive(Debug, Default)]
struct State {
    /// Users of an address or port, by key of the Service.
    addresses: HashMap<IpAddr, Box<str>>,
    ports: HashMap<u16, Box<str>>,
    reserved_addresses: HashSet<IpAddr>,
    reserved_ports: HashSet<u16>,
}

/// What Services use and can get.
#[derive(Debug)]
pub struct Allocators {
    first: u32,
    size: u32,
    ports: RangeInclusive<u16>,
    state: Mutex<State>,
}

/// Addresses and ports held for a Service that is being written.
#[derive(Debug)]
pub struct Reservation {
    allocators: Arc<Allocators>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.allocators.state.lock();
        state.reserved_addresses.retain(|a| !self.addresses.contains(a));
        state.reserved_ports.retain(|p| !self.ports.contains(p));
    }
}

impl Reservation {
    /// Holds nothing yet.
    pub fn new(allocators: &Arc<Allocators>) -> Self {
        Reservation { allocators: allocators.clone(), addresses: Vec::new(), ports: Vec::new() }
    }

    /// Takes the given address, or any free one. The error says why in upstream's words.
    pub fn address(&mut self, wanted: Option<&str>, random: &dyn Random) -> Result<IpAddr, String> {
        let address = self.allocators.clone().take_address(wanted, random)?;
        self.addresses.push(address);
        Ok(address)
    }

    /// Takes the given node port, or any free one.
    pub fn port(&mut self, wanted: Option<u16>, random: &dyn Random) -> Result<u16, String> {
        // TCP and UDP of one Service may share a number.
        if let Some(port) = wanted
            && self.ports.contains(&port)
        {
            return Ok(port);
        }
        let port = self.allocators.clone().take_port(wanted, random)?;
        self.ports.push(port);
        Ok(port)
    }
}

impl Allocators {
    /// Everything in the ranges is free.
    pub fn new(cidr: &str, ports: RangeInclusive<u16>) -> Result<Self, RangeError> {
        let fail = || RangeError(cidr.to_owned());
        let (address, bits) = cidr.split_once('/').ok_or_else(fail)?;
        let address: Ipv4Addr = address.parse().map_err(|_| fail())?;
        let bits: u32 = bits.parse().ok().filter(|b| (8..=29).contains(b)).ok_or_else(fail)?;
        let size = 1u32 << (32 - bits);
        let first = u32::from(address) & !(size - 1);
        Ok(Allocators { first, size, ports, state: Mutex::default() })
    }

    /// The range as text.
    pub fn cidr(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.first), 32 - self.size.trailing_zeros())
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address {
            // Neither the network's own address nor its broadcast address.
            IpAddr::V4(a) => (self.first + 1..self.first + self.size - 1).contains(&u32::from(a)),
            IpAddr::V6(_) => false,
        }
    }

    fn take_address(&self, wanted: Option<&str>, random: &dyn Random) -> Result<IpAddr, String> {
        let mut state = self.state.lock();
        let free = |state: &State, a: &IpAddr| {
            !state.addresses.contains_key(a) && !state.reserved_addresses.contains(a)
        };
        let chosen = match wanted {
            Some(text) => {
                let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an address"))?;
                if !self.contains(address) {
                    return Err(format!(
                        "failed to allocate IP {text}: the provided IP ({text}) is not in the valid range. The range of valid IPs is {}",
                        self.cidr()
                    ));
                }
                if !free(&state, &address) {
                    return Err(format!("failed to allocate IP {text}: provided IP is already allocated"));
                }
                address
            }
            None => {
                let at = |n: u32| IpAddr::V4(Ipv4Addr::from(self.first + 1 + n));
                let count = self.size - 2;
                // The lower part is left to addresses that people choose (KEP-3070).
                let band = (self.size / 16).clamp(16.min(count), 256.min(count));
                let upper = u64::from(count - band).max(1);
                let guess = (0..RANDOM_TRIES)
                    .map(|_| at(band + random.below(upper) as u32))
                    .find(|a| self.contains(*a) && free(&state, a));
                let found = guess.or_else(|| (band..count).chain(0..band).map(at).find(|a| free(&state, a)));
                found.ok_or_else(|| "failed to allocate a serviceIP: range is full".to_owned())?
            }
        };
        state.reserved_addresses.insert(chosen);
        Ok(chosen)
    }

    fn take_port(&self, wanted: Option<u16>, random: &dyn Random) -> Result<u16, String> {
        let mut state = self.state.lock();
        let free = |state: &State, p: &u16| !state.ports.contains_key(p) && !state.reserved_ports.contains(p);
        let chosen = match wanted {
            Some(port) if !self.ports.contains(&port) => {
                return Err(format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    self.ports.start(),
                    self.ports.end()
                ));
            }
            Some(port) if !free(&state, &port) => return Err("provided port is already allocated".into()),
            Some(port) => port,
            None => {
                let count = u64::from(self.ports.end() - self.ports.start()) + 1;
                let at = |n: u64| self.ports.start() + n as u16;
                let guess = (0..RANDOM_TRIES).map(|_| at(random.below(count))).find(|p| free(&state, p));
                let found = guess.or_else(|| self.ports.clone().find(|p| free(&state, p)));
                found.ok_or_else(|| "range is full".to_owned())?
            }
        };
        state.reserved_ports.insert(chosen);
        Ok(chosen)
    }

    fn record(&self, key: &str, service: &Value, present: bool) {
        let mut state = self.state.lock();
        state.addresses.retain(|_, user| **user != *key);
        state.ports.retain(|_, user| **user != *key);
        if !present {
            return;
        }
        let ips = service["spec"]["clusterIPs"].as_array();
        for ip in ips.into_iter().flatten().filter_map(|i| i.as_str()?.parse().ok()) {
            state.addresses.insert(ip, key.into());
        }
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let node_ports = ports
            .filter_map(|p| p["nodePort"].as_u64())
            .chain(service["spec"]["healthCheckNodePort"].as_u64());
        for port in node_ports.filter_map(|p| u16::try_from(p).ok()).filter(|p| *p != 0) {
            state.ports.insert(port, key.into());
        }
    }
}

/// Keeps the allocators in step with the Services in the cache.
pub fn follow(allocators: &Arc<Allocators>, services: &KindCache) {
    let allocators = allocators.clone();
    services.observe(move |event| {
        let key = format!("{}/{}", event.object.namespace, event.object.name);
        allocators.record(&key, &event.object.to_value(), event.change != Change::Deleted);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use stdx::SeededRandom;

    #[test]
    fn nothing_is_given_twice() {
        let random = SeededRandom::new(1);
        let allocators = Arc::new(Allocators::new("10.0.0.0/28", 30000..=30003).unwrap());
        let mut held = Reservation::new(&allocators);
        let all: HashSet<IpAddr> = (0..14).map(|_| held.address(None, &random).unwrap()).collect();
        assert_eq!(all.len(), 14);
        assert!(held.address(None, &random).unwrap_err().contains("range is full"));
        let ports: HashSet<u16> = (0..4).map(|_| held.port(None, &random).unwrap()).collect();
        assert_eq!(ports.len(), 4);
        assert_eq!(
            Reservation::new(&allocators).port(Some(30000), &random).unwrap_err(),
            "provided port is already allocated"
        );
        drop(held);
        assert!(Reservation::new(&allocators).address(Some("10.0.0.3"), &random).is_ok());
        assert!(Reservation::new(&allocators).address(Some("10.0.1.3"), &random).is_err());
    }

    #[test]
    fn services_in_the_cache_hold_theirs() {
        let random = SeededRandom::new(1);
        let allocators = Arc::new(Allocators::new("10.0.0.0/24", 30000..=30003).unwrap());
        let service = json!({"spec": {"clusterIPs": ["10.0.0.9"], "ports": [{"nodePort": 30001}]}});
        allocators.record("a/b", &service, true);
        assert!(Reservation::new(&allocators).address(Some("10.0.0.9"), &random).is_err());
        assert!(Reservation::new(&allocators).port(Some(30001), &random).is_err());
        allocators.record("a/b", &service, false);
        assert!(Reservation::new(&allocators).address(Some("10.0.0.9"), &random).is_ok());
    }
}
