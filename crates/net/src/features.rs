//! What the network needs of the kernel beyond nftables itself. Each of it is a module of its own, and where one is
//! missing the kernel says no more than "no such file or directory".

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::netlink::Error;
use crate::nft::{Base, Family, Hook, Load, Step, Transaction};

/// A module of the kernel, and rules that need it.
struct Probe {
    module: &'static str,
    rules: fn(&mut Transaction),
}

const PROBES: [Probe; 7] = [
    Probe { module: "nf_tables", rules: |_| () },
    Probe { module: "nft_chain_nat", rules: chain },
    Probe { module: "nft_nat", rules: |t| nat(t, Step::DestinationNat { address: 0, port: 1 }) },
    Probe { module: "nft_masq", rules: masquerade },
    Probe { module: "nft_fib_ipv4", rules: |t| filter(t, Step::Load(Load::DestinationKind, 0)) },
    Probe { module: "nft_numgen", rules: |t| filter(t, Step::Random { register: 0, modulus: 2 }) },
    Probe { module: "nft_reject_ipv4", rules: |t| filter(t, Step::Reject) },
];

const NAT: Option<Base> = Some(Base { kind: "nat", hook: Hook::Output, priority: -100 });

fn chain(t: &mut Transaction) {
    t.add_chain("nat", NAT);
}

fn nat(t: &mut Transaction, step: Step) {
    let endpoint = Step::Set(0, vec![127, 0, 0, 1]);
    t.add_chain("nat", NAT).add_rule("nat", &[endpoint, Step::Set(1, vec![0, 1, 0, 0]), step]);
}

fn masquerade(t: &mut Transaction) {
    let base = Some(Base { kind: "nat", hook: Hook::Postrouting, priority: 100 });
    t.add_chain("leaving", base).add_rule("leaving", &[Step::Masquerade]);
}

fn filter(t: &mut Transaction, step: Step) {
    let base = Some(Base { kind: "filter", hook: Hook::Output, priority: 0 });
    t.add_chain("filter", base).add_rule("filter", &[step]);
}

/// Whether an answer of the kernel may mean that it lacks a module.
pub(crate) fn may_lack(error: &Error) -> bool {
    [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT]
        .into_iter()
        .any(|errno| error.is(errno))
}

/// Modules that the kernel lacks of those that the network needs. They are tried in a network namespace that goes
/// again: nothing of this host's changes.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn missing() -> Result<Vec<&'static str>, Error> {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::new("making a network namespace", e))?;
        judge(|probes| {
            let mut t = Transaction::new(Family::Ip, "ferry-probe");
            t.add_table();
            probes.iter().for_each(|probe| (probe.rules)(&mut t));
            // Tried and undone at once, so that the next one begins anew.
            t.delete_table();
            t.commit("trying the kernel's features")
        })
    });
    let panicked = |_| Error::new("trying the kernel's features", std::io::ErrorKind::Other);
    tried.join().map_err(panicked)?
}

/// Tries all at once, and each by itself where that fails.
fn judge(attempt: impl Fn(&[Probe]) -> Result<(), Error>) -> Result<Vec<&'static str>, Error> {
    match attempt(&PROBES) {
        Err(error) if may_lack(&error) => {}
        other => return other.map(|()| Vec::new()),
    }
    let mut missing = Vec::new();
    for probe in &PROBES {
        match attempt(std::slice::from_ref(probe)) {
            Ok(()) => {}
            Err(error) if may_lack(&error) => missing.push(probe.module),
            Err(error) => return Err(error),
        }
        // Without it there is nothing to try the others with.
        if missing == ["nf_tables"] {
            break;
        }
    }
    // Address translation is tried in a chain for it.
    if missing.contains(&"nft_chain_nat") {
        missing.retain(|module| !["nft_nat", "nft_masq"].contains(module));
    }
    Ok(missing)
}

/// The module that a step of a rule needs, if any.
pub(crate) fn module(step: &Step) -> Option<&'static str> {
    match step {
        Step::Load(Load::DestinationKind, _) => Some("nft_fib_ipv4"),
        Step::Random { .. } => Some("nft_numgen"),
        Step::DestinationNat { .. } => Some("nft_nat"),
        Step::Masquerade => Some("nft_masq"),
        Step::Reject | Step::RejectTcp => Some("nft_reject_ipv4"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel without some modules.
    fn without(lacking: &[&str]) -> Result<Vec<&'static str>, Error> {
        judge(|probes| {
            let lacks = |probe: &Probe| {
                let behind = ["nft_nat", "nft_masq"].contains(&probe.module);
                lacking.contains(&probe.module) || behind && lacking.contains(&"nft_chain_nat")
            };
            match probes.iter().any(lacks) || lacking.contains(&"nf_tables") {
                true => Err(Error::new("x", std::io::Error::from(Errno::ENOENT))),
                false => Ok(()),
            }
        })
    }

    #[test]
    fn what_is_missing_is_named() {
        let table: [(&[&str], &[&str]); 5] = [
            (&[], &[]),
            (&["nft_numgen"], &["nft_numgen"]),
            (&["nft_fib_ipv4", "nft_masq"], &["nft_masq", "nft_fib_ipv4"]),
            (&["nft_chain_nat"], &["nft_chain_nat"]),
            (&["nf_tables"], &["nf_tables"]),
        ];
        for (lacking, expected) in table {
            assert_eq!(without(lacking).unwrap(), expected, "{lacking:?}");
        }
        let refused = judge(|_| Err(Error::new("x", std::io::Error::from(Errno::EPERM))));
        assert!(refused.unwrap_err().is(Errno::EPERM));
    }

    #[test]
    fn this_kernel_has_all() {
        if nix::unistd::geteuid().is_root() {
            assert_eq!(missing().unwrap(), Vec::<&str>::new());
        }
    }
}
