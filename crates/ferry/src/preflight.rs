//! Checks of the host before anything is changed: each failure says what is missing and how to mend it.

use std::net::SocketAddr;
use std::path::Path;

use crate::config::{Part, UpOptions};

/// One thing that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Option<Problem> {
    Some(Problem { what: what.into(), remedy: remedy.into() })
}

/// Everything that would keep the cluster from running.
pub fn check(options: &UpOptions) -> Vec<Problem> {
    let node = options.enabled(Part::Node);
    let mut found: Vec<Option<Problem>> = vec![
        if node { root() } else { None },
        if node { overlay() } else { None },
        if node { cgroups() } else { None },
        if (node || options.enabled(Part::Proxy)) && nix::unistd::geteuid().is_root() {
            nftables()
        } else {
            None
        },
        port(options),
        ranges(options),
        if node { routes(options) } else { None },
    ];
    found.push(data_dir(&options.data.data_dir));
    found.into_iter().flatten().collect()
}

fn root() -> Option<Problem> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    problem(
        "running containers needs root",
        "run `sudo ferry up`, or `ferry up --disable node,proxy,dns` for a control plane alone",
    )
}

fn overlay() -> Option<Problem> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|l| l.ends_with("overlay")) || Path::new("/sys/module/overlay").exists() {
        return None;
    }
    problem("the kernel has no overlayfs, which container images need", "load it with `modprobe overlay`")
}

fn cgroups() -> Option<Problem> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if mounts.lines().any(|l| matches!(l.split(' ').nth(2), Some("cgroup" | "cgroup2"))) {
        return None;
    }
    problem("no cgroup hierarchy is mounted", "mount one with `mount -t cgroup2 none /sys/fs/cgroup`")
}

fn nftables() -> Option<Problem> {
    let missing = match net::features::missing() {
        Ok(missing) => missing,
        Err(error) => {
            let why = std::error::Error::source(&error).map_or_else(String::new, |why| format!(": {why}"));
            return problem(
                format!("the kernel does not offer nftables ({error}{why}), which the network needs"),
                "load it with `modprobe nf_tables`",
            );
        }
    };
    lacking(&missing)
}

/// The kernel's option that makes a module.
fn option(module: &str) -> String {
    match module {
        "nft_chain_nat" => "CONFIG_NFT_NAT".into(),
        other => format!("CONFIG_{}", other.to_uppercase()),
    }
}

/// What to do about modules of the kernel that are not there.
fn lacking(modules: &[&str]) -> Option<Problem> {
    if modules.is_empty() {
        return None;
    }
    let mut options: Vec<String> = modules.iter().map(|module| option(module)).collect();
    options.dedup();
    problem(
        format!("the kernel lacks {}, which the network needs", modules.join(", ")),
        format!(
            "load what is missing with `modprobe -a {}`; a kernel that has no such modules has to be built with {}",
            modules.join(" "),
            options.join(", ")
        ),
    )
}

fn port(options: &UpOptions) -> Option<Problem> {
    let address = SocketAddr::new(options.bind_address, options.https_port);
    match std::net::TcpListener::bind(address) {
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => problem(
            format!("port {} is taken", options.https_port),
            format!(
                "find its owner with `ss -ltnp sport = :{}`, or choose another with --https-port",
                options.https_port
            ),
        ),
        Err(error) => problem(
            format!("cannot listen on {address}: {error}"),
            "choose another with --bind-address and --https-port",
        ),
    }
}

fn ranges(options: &UpOptions) -> Option<Problem> {
    let remedy = "give two IPv4 networks that do not overlap, e.g. --cluster-cidr 10.42.0.0/16 --service-cidr 10.43.0.0/16";
    let (Some(pods), Some(services)) = (network(&options.cluster_cidr), network(&options.service_cidr))
    else {
        return problem(
            format!("{} or {} is no IPv4 network", options.cluster_cidr, options.service_cidr),
            remedy,
        );
    };
    let mask = pods.1 & services.1;
    if pods.0 & mask == services.0 & mask {
        return problem(format!("{} and {} overlap", options.cluster_cidr, options.service_cidr), remedy);
    }
    let dns = match options.cluster_dns {
        std::net::IpAddr::V4(ip) => u32::from(ip),
        std::net::IpAddr::V6(_) => {
            return problem("--cluster-dns is not an IPv4 address", "give one inside --service-cidr");
        }
    };
    if dns & services.1 != services.0 {
        return problem(
            format!("{} is not inside {}", options.cluster_dns, options.service_cidr),
            "give --cluster-dns an address inside --service-cidr",
        );
    }
    None
}

/// Another network of this host in the range of pod addresses: another cluster's, most likely. Our own
/// bridge, left by an earlier run, does not count.
fn routes(options: &UpOptions) -> Option<Problem> {
    let (network, mask) = network(&options.cluster_cidr)?;
    let own = std::fs::read_to_string(options.data.data_dir.join("cluster-id")).unwrap_or_default();
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    for line in table.lines().skip(1) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let hex =
            |at: usize| columns.get(at).and_then(|h| u32::from_str_radix(h, 16).ok()).map(u32::swap_bytes);
        let (Some(link), Some(to), Some(width)) = (columns.first(), hex(1), hex(7)) else { continue };
        let overlaps = width != 0 && (to & mask & width) == (network & mask & width);
        if overlaps && (own.is_empty() || !link.ends_with(own.trim())) {
            return problem(
                format!("{} is in use on this host by the link {link}", options.cluster_cidr),
                "choose another range with --cluster-cidr, or remove the other cluster with `ferry down --data-dir ITS-DIRECTORY`",
            );
        }
    }
    None
}

/// First address and mask of an IPv4 network.
fn network(cidr: &str) -> Option<(u32, u32)> {
    let (ip, bits) = cidr.split_once('/')?;
    let bits: u32 = bits.parse().ok().filter(|b| (1..=30).contains(b))?;
    let mask = u32::MAX << (32 - bits);
    Some((u32::from(ip.parse::<std::net::Ipv4Addr>().ok()?) & mask, mask))
}

fn data_dir(path: &Path) -> Option<Problem> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let writable = nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK).is_ok();
    if writable {
        return None;
    }
    problem(
        format!("{} cannot be written to", existing.display()),
        "choose a directory of your own with --data-dir",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn options(extra: &[&str]) -> UpOptions {
        let all = ["ferry", "up", "--https-port", "0"].iter().chain(extra).copied();
        match crate::config::Cli::parse_from(all).command {
            crate::config::Command::Up(options) => *options,
            _ => panic!("not up"),
        }
    }

    #[test]
    fn ranges_must_not_overlap() {
        assert_eq!(ranges(&options(&[])), None);
        let found = ranges(&options(&["--service-cidr", "10.42.128.0/20"])).unwrap();
        assert!(found.what.contains("overlap"), "{found:?}");
        assert!(ranges(&options(&["--cluster-dns", "10.9.0.1"])).unwrap().what.contains("not inside"));
        assert!(ranges(&options(&["--cluster-cidr", "nonsense"])).is_some());
    }

    #[test]
    fn modules_that_are_missing_are_named() {
        assert_eq!(lacking(&[]), None);
        let found = lacking(&["nft_chain_nat", "nft_numgen"]).unwrap();
        assert_eq!(found.what, "the kernel lacks nft_chain_nat, nft_numgen, which the network needs");
        assert!(found.remedy.contains("`modprobe -a nft_chain_nat nft_numgen`"), "{found:?}");
        assert!(found.remedy.ends_with("with CONFIG_NFT_NAT, CONFIG_NFT_NUMGEN"), "{found:?}");
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port_text = taken.local_addr().unwrap().port().to_string();
        let found = port(&options(&["--https-port", &port_text])).unwrap();
        assert!(found.what.contains("is taken") && found.remedy.contains("--https-port"), "{found:?}");
    }
}
