//! Addresses of pods: one file per sandbox says what it has, so that nothing is lost with the process.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What one sandbox has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// Name of its link on the node.
    pub link: String,
    /// Ports of the node that lead to it: protocol, port of the node, port of the pod.
    #[serde(default)]
    pub ports: Vec<(u8, u16, u16)>,
    /// The same of one address of the node only.
    #[serde(default)]
    pub addressed: Vec<(Ipv4Addr, u8, u16, u16)>,
}

impl Lease {
    /// Whether any port of the node leads here.
    pub fn has_ports(&self) -> bool {
        !self.ports.is_empty() || !self.addressed.is_empty()
    }
}

/// Ports of the node that a sandbox gets, as in its [`Lease`].
#[derive(Debug, Clone, Default)]
pub struct Ports {
    /// At every address: protocol, port of the node, port of the pod.
    pub everywhere: Vec<(u8, u16, u16)>,
    /// At one address.
    pub addressed: Vec<(Ipv4Addr, u8, u16, u16)>,
}

/// An address could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every address is in use.
    #[error("no pod address is free in {0}")]
    Full(String),
    /// The file of a lease cannot be written or read.
    #[error("pod address file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// The addresses of one node.
#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    network: Ipv4Addr,
    prefix: u8,
    leases: BTreeMap<String, Lease>,
    /// Where the next search begins: an address rests as long as possible before it is used again.
    next: u32,
}

impl Ipam {
    /// Reads the leases of an earlier process.
    pub fn open(directory: PathBuf, network: Ipv4Addr, prefix: u8) -> Result<Ipam, Error> {
        let at = |path: PathBuf| move |source| Error::File { path, source };
        std::fs::create_dir_all(&directory).map_err(at(directory.clone()))?;
        let mut leases = BTreeMap::new();
        for entry in std::fs::read_dir(&directory).map_err(at(directory.clone()))? {
            let path = entry.map_err(at(directory.clone()))?.path();
            let Some(id) = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')) else {
                continue;
            };
            let text = std::fs::read(&path).map_err(at(path.clone()))?;
            // A file cut short by a crash belongs to a sandbox that never got its network.
            match serde_json::from_slice(&text) {
                Ok(lease) => drop(leases.insert(id.to_owned(), lease)),
                Err(_) => std::fs::remove_file(&path).map_err(at(path.clone()))?,
            }
        }
        let next =
            leases.values().map(|l: &Lease| u32::from(l.address) - u32::from(network)).max().unwrap_or(1) + 1;
        Ok(Ipam { directory, network, prefix, leases, next })
    }

    /// The gateway: the network's first address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// Every lease by sandbox.
    pub fn leases(&self) -> &BTreeMap<String, Lease> {
        &self.leases
    }

    /// Gives a sandbox an address; the same again if it has one.
    pub fn lease(&mut self, id: &str, link: &str, ports: Ports) -> Result<Lease, Error> {
        if let Some(lease) = self.leases.get(id) {
            return Ok(lease.clone());
        }
        let used: HashSet<Ipv4Addr> = self.leases.values().map(|l| l.address).collect();
        // Neither the network's own address, nor the gateway, nor the broadcast address.
        let size = (1u32 << (32 - self.prefix)).saturating_sub(1);
        let candidates = (self.next..size).chain(2..self.next.min(size));
        let free = candidates
            .map(|n| (n, Ipv4Addr::from(u32::from(self.network) + n)))
            .find(|(_, a)| !used.contains(a));
        let (n, address) = free.ok_or_else(|| Error::Full(format!("{}/{}", self.network, self.prefix)))?;
        self.next = if n + 1 >= size { 2 } else { n + 1 };
        let Ports { everywhere: ports, addressed } = ports;
        let lease = Lease { address, link: link.to_owned(), ports, addressed };
        let path = self.directory.join(id);
        let temporary = self.directory.join(format!(".{id}"));
        let text = serde_json::to_vec(&lease).unwrap_or_default();
        let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, &path));
        written.map_err(|source| Error::File { path, source })?;
        self.leases.insert(id.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Takes a sandbox's address back.
    pub fn release(&mut self, id: &str) -> Result<Option<Lease>, Error> {
        let path = self.directory.join(id);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::File { path, source });
            }
            _ => {}
        }
        Ok(self.leases.remove(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Ipam::open(dir.path().join("l"), Ipv4Addr::new(10, 1, 0, 0), 29).unwrap();
        let mut ipam = open();
        let ports =
            Ports { everywhere: vec![(6, 80, 8080)], addressed: vec![(Ipv4Addr::LOCALHOST, 17, 53, 5353)] };
        let a = ipam.lease("a", "va", ports).unwrap();
        assert_eq!(ipam.lease("a", "va", Ports::default()).unwrap(), a);
        assert_eq!(ipam.gateway(), Ipv4Addr::new(10, 1, 0, 1));
        let mut again = open();
        assert_eq!(again.leases()["a"], a);
        let rest: HashSet<Ipv4Addr> = ["b", "c", "d", "e"]
            .iter()
            .map(|i| again.lease(i, "v", Ports::default()).unwrap().address)
            .collect();
        assert_eq!(rest.len(), 4);
        assert!(!rest.contains(&a.address));
        assert!(matches!(again.lease("f", "v", Ports::default()), Err(Error::Full(_))));
        again.release("b").unwrap();
        assert!(again.lease("f", "v", Ports::default()).is_ok());
    }
}
