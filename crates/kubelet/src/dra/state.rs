//! Which claims are prepared, for whom, and what drivers said about their devices. Pure, with the form in which it is
//! kept on disk.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A device that a driver has prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Device {
    /// Its pool.
    pub pool_name: String,
    /// Its name.
    pub device_name: String,
    /// The share of it that the claim has.
    #[serde(default, rename = "ShareID", skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
    /// Requests it is for; none for all of the claim.
    #[serde(default)]
    pub request_names: Vec<String>,
    /// Its names by the Container Device Interface.
    #[serde(default, rename = "CDIDeviceIDs")]
    pub cdi_device_ids: Vec<String>,
}

/// What one driver has of a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OfDriver {
    /// Prepared devices.
    #[serde(default)]
    pub devices: Vec<Device>,
}

/// A claim in use on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Claim {
    /// Uid.
    #[serde(rename = "ClaimUID")]
    pub uid: String,
    /// Name.
    #[serde(rename = "ClaimName")]
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Pods that use it.
    #[serde(rename = "PodUIDs", default)]
    pub pods: BTreeSet<String>,
    /// Drivers that have devices of it.
    #[serde(rename = "DriverState", default)]
    pub drivers: BTreeMap<String, OfDriver>,
    /// Whether all drivers have prepared theirs.
    #[serde(default)]
    pub prepared: bool,
}

impl Claim {
    /// The devices for a request of the claim; all of them if it is empty.
    pub fn devices<'a>(&'a self, request: &'a str) -> impl Iterator<Item = (&'a str, &'a Device)> {
        let base = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        let all = self.drivers.iter();
        let all =
            all.flat_map(|(driver, own)| own.devices.iter().map(move |device| (driver.as_str(), device)));
        all.filter(move |(_, device)| {
            let names = &device.request_names;
            request.is_empty() || names.is_empty() || names.iter().any(|n| n == request || base(n) == request)
        })
    }
}

/// The claims of a node, by namespace and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    claims: BTreeMap<(String, String), Claim>,
}

/// The record on disk.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Record {
    data: Vec<Claim>,
    checksum: u32,
}

impl State {
    /// A claim.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Claim> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Notes that a pod uses a claim. True if the claim has to be prepared.
    pub fn reference(&mut self, claim: &Claim, pod: &str) -> Result<bool, String> {
        let key = (claim.namespace.clone(), claim.name.clone());
        let known = self.claims.entry(key).or_insert_with(|| claim.clone());
        if known.uid != claim.uid {
            return Err(format!(
                "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                claim.name, known.uid
            ));
        }
        known.pods.insert(pod.to_owned());
        Ok(!known.prepared)
    }

    /// Notes what a driver has prepared.
    pub fn add(&mut self, namespace: &str, name: &str, driver: &str, devices: Vec<Device>) {
        if let Some(claim) = self.claims.get_mut(&(namespace.to_owned(), name.to_owned())) {
            claim.drivers.insert(driver.to_owned(), OfDriver { devices });
        }
    }

    /// All drivers have prepared theirs.
    pub fn set_prepared(&mut self, namespace: &str, name: &str) {
        if let Some(claim) = self.claims.get_mut(&(namespace.to_owned(), name.to_owned())) {
            claim.prepared = true;
        }
    }

    /// Claims that a pod uses.
    pub fn of_pod(&self, pod: &str) -> Vec<Claim> {
        self.claims.values().filter(|claim| claim.pods.contains(pod)).cloned().collect()
    }

    /// A pod uses its claims no longer. Those that nobody else uses have to be given back before they are forgotten.
    pub fn leave(&mut self, pod: &str) -> Vec<Claim> {
        let (mut last, own) = (Vec::new(), self.claims.values_mut().filter(|claim| claim.pods.contains(pod)));
        for claim in own {
            if claim.pods.len() > 1 {
                claim.pods.remove(pod);
            } else {
                last.push(claim.clone());
            }
        }
        last
    }

    /// Forgets a claim that was given back.
    pub fn forget(&mut self, claim: &Claim) {
        let key = (claim.namespace.clone(), claim.name.clone());
        if self.claims.get(&key).is_some_and(|known| known.uid == claim.uid) {
            self.claims.remove(&key);
        }
    }

    /// Every pod that uses a claim.
    pub fn pods(&self) -> BTreeSet<String> {
        self.claims.values().flat_map(|claim| claim.pods.iter().cloned()).collect()
    }

    /// The record of it.
    pub fn write(&self) -> String {
        let data: Vec<Claim> = self.claims.values().cloned().collect();
        let checksum = sum(&data);
        serde_json::to_string(&Record { data, checksum }).unwrap_or_default()
    }

    /// Reads a record; `None` for one that is damaged.
    pub fn read(text: &str) -> Option<State> {
        let record: Record = serde_json::from_str(text).ok()?;
        if sum(&record.data) != record.checksum {
            return None;
        }
        let claims =
            record.data.into_iter().map(|claim| ((claim.namespace.clone(), claim.name.clone()), claim));
        Some(State { claims: claims.collect() })
    }
}

/// FNV-1a: whether the record is whole, no more.
fn sum(data: &[Claim]) -> u32 {
    let text = serde_json::to_string(data).unwrap_or_default();
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: &str, uid: &str) -> Claim {
        Claim {
            uid: uid.into(),
            name: name.into(),
            namespace: "n".into(),
            drivers: [("d".to_owned(), OfDriver::default())].into(),
            ..Claim::default()
        }
    }

    #[test]
    fn claims_are_prepared_once_and_given_back_last() {
        let mut state = State::default();
        assert_eq!(state.reference(&claim("c", "1"), "a"), Ok(true));
        let device = Device { device_name: "x".into(), request_names: vec!["r".into()], ..Device::default() };
        state.add("n", "c", "d", vec![device.clone()]);
        state.set_prepared("n", "c");
        assert_eq!(state.reference(&claim("c", "1"), "b"), Ok(false));
        assert!(state.reference(&claim("c", "2"), "b").unwrap_err().contains("different UID 1"));
        let known = state.get("n", "c").unwrap();
        assert_eq!(known.devices("r").count() + known.devices("").count(), 2);
        assert_eq!(known.devices("other").count(), 0);
        assert_eq!(State::read(&state.write()).as_ref(), Some(&state));
        assert_eq!(State::read(&state.write().replace("\"x\"", "\"y\"")), None);
        assert!(state.leave("a").is_empty());
        let last = state.leave("b");
        assert_eq!(last.len(), 1);
        assert_eq!(state.pods().len(), 1, "until it is given back");
        state.forget(&last[0]);
        assert_eq!(state, State::default());
    }
}
