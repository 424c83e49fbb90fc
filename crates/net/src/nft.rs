//! nftables: tables, chains, maps and rules as values, sent to the kernel as one transaction.
//!
//! Numbers and names are those of `linux/netfilter/nf_tables.h`. Registers are the 32-bit ones, counted
//! from 0.

use crate::features;
use crate::netlink::{APPEND, CREATE, Error, Message, Socket};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
/// Elements of one message: a message's attributes are limited to 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 512;
/// Size from which registers are counted.
const REGISTER_0: u32 = 8;
const REGISTER_VERDICT: u32 = 0;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const TYPE_VERDICT: u32 = 0xffff_ff00;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 only.
    Ip,
    /// IPv4 and IPv6.
    Inet,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Family::Ip => 2,
            Family::Inet => 1,
        }
    }
}

/// Where a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// As packets come in.
    Prerouting,
    /// For packets to this host.
    Input,
    /// For packets through this host.
    Forward,
    /// For packets from this host.
    Output,
    /// As packets leave.
    Postrouting,
}

/// What a base chain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// Where.
    pub hook: Hook,
    /// Order among chains of a hook.
    pub priority: i32,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
    /// Another chain decides.
    Goto(String),
    /// Another chain decides, or else the next rule.
    Jump(String),
    /// Back to the calling chain.
    Return,
}

impl Verdict {
    fn attributes(&self, m: Message) -> Message {
        let (code, chain) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5i32, None),
        };
        let m = m.be32(1, code as u32);
        match chain {
            Some(chain) => m.text(2, chain),
            None => m,
        }
    }
}

/// Parts of a packet's heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// IPv4 source address.
    SourceAddress,
    /// IPv4 destination address.
    DestinationAddress,
    /// Destination port of TCP, UDP or SCTP.
    DestinationPort,
    /// Transport protocol.
    Protocol,
    /// The packet's mark.
    Mark,
    /// Name of the link it leaves by (16 bytes).
    OutputLink,
    /// Name of the link it came by (16 bytes).
    InputLink,
    /// Kind of the destination address: local is 2.
    DestinationKind,
    /// Address family.
    NetworkFamily,
}

/// Comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
}

/// One step of a rule; the rule ends where a comparison or look-up fails.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "register numbers and names of maps, as the variants say")]
pub enum Step {
    /// Loads something into a register.
    Load(Load, u32),
    /// Compares a register with bytes.
    Compare(u32, Compare, Vec<u8>),
    /// Masks a register in place.
    Mask(u32, Vec<u8>),
    /// Looks up the key at a register in a map and puts the data into another.
    Lookup { map: String, key: u32, data: u32 },
    /// Looks up the key at a register in a verdict map, and obeys.
    Dispatch { map: String, key: u32 },
    /// Continues only if the key at a register is in a set.
    Contains { set: String, key: u32 },
    /// A random number below `modulus`.
    Random { register: u32, modulus: u32 },
    /// Adds (or renews) an element of a dynamic map.
    Update { map: String, key: u32, data: u32, timeout_ms: u64 },
    /// Sets a register.
    Set(u32, Vec<u8>),
    /// Sets the packet's mark from a register.
    SetMark(u32),
    /// Sends the packet to the address and port in registers.
    DestinationNat { address: u32, port: u32 },
    /// Gives the packet the address of the link it leaves by.
    Masquerade,
    /// Refuses with a TCP reset.
    RejectTcp,
    /// Refuses with ICMP port unreachable.
    Reject,
    /// Decides.
    Verdict(Verdict),
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Name.
    pub name: String,
    /// Parts of a key, padded to four bytes each.
    pub key: &'static [Part],
    /// What keys lead to.
    pub data: Data,
    /// Milliseconds after which elements added by rules go; 0 for a map that only we change.
    pub timeout_ms: u64,
}

/// A part of a key, by the number that `nft` shows it under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// IPv4 address.
    Address = 7,
    /// Transport protocol.
    Protocol = 12,
    /// Port.
    Port = 13,
    /// A number, in the type of packet marks: `nft` knows how long those are and aborts on plain integers.
    Number = 19,
}

/// What the keys of a map lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Nothing: a set.
    Nothing,
    /// An address and a port.
    Endpoint,
    /// A verdict.
    Verdict,
}

/// The data of an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Nothing,
    /// Bytes.
    Bytes(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// Changes that happen together or not at all.
#[derive(Debug)]
pub struct Transaction {
    family: Family,
    table: String,
    messages: Vec<Message>,
    /// Modules of the kernel that messages need, by their numbers.
    needs: Vec<(usize, &'static str)>,
    next_set: u32,
}

impl Transaction {
    /// An empty transaction on one table.
    pub fn new(family: Family, table: &str) -> Self {
        Transaction { family, table: table.to_owned(), messages: Vec::new(), needs: Vec::new(), next_set: 1 }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        Message::new(kind, flags, &[self.family.number(), 0, 0, 0])
    }

    /// Makes the table if it does not exist.
    pub fn add_table(&mut self) -> &mut Self {
        let message = self.message(NEW_TABLE, CREATE).text(1, &self.table).be32(2, 0);
        self.messages.push(message);
        self
    }

    /// Removes the table with everything in it. It must exist: call [`Self::add_table`] before.
    pub fn delete_table(&mut self) -> &mut Self {
        let message = self.message(DELETE_TABLE, 0).text(1, &self.table);
        self.messages.push(message);
        self
    }

    /// Makes a chain; a base chain where `base` says so.
    pub fn add_chain(&mut self, name: &str, base: Option<Base>) -> &mut Self {
        let mut message = self.message(NEW_CHAIN, CREATE).text(1, &self.table).text(3, name);
        if let Some(base) = base {
            if base.kind == "nat" {
                self.needs.push((self.messages.len(), "nft_chain_nat"));
            }
            let hook = match base.hook {
                Hook::Prerouting => 0,
                Hook::Input => 1,
                Hook::Forward => 2,
                Hook::Output => 3,
                Hook::Postrouting => 4,
            };
            message = message
                .nest(4, |m| m.be32(1, hook).be32(2, base.priority as u32))
                .be32(5, 1)
                .text(7, base.kind);
        }
        self.messages.push(message);
        self
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, chain: &str, steps: &[Step]) -> &mut Self {
        let number = self.messages.len();
        self.needs.extend(steps.iter().filter_map(features::module).map(|module| (number, module)));
        let message = self.message(NEW_RULE, CREATE | APPEND).text(1, &self.table).text(2, chain);
        let message = message.nest(4, |m| steps.iter().fold(m, |m, step| m.nest(1, |m| expression(m, step))));
        self.messages.push(message);
        self
    }

    /// Removes every rule of a chain.
    pub fn flush_chain(&mut self, chain: &str) -> &mut Self {
        let message = self.message(DELETE_RULE, 0).text(1, &self.table).text(2, chain);
        self.messages.push(message);
        self
    }

    /// Makes a set or map.
    pub fn add_map(&mut self, map: &Map) -> &mut Self {
        let mut flags = if map.data == Data::Nothing { 0 } else { SET_MAP };
        if map.timeout_ms > 0 {
            flags |= SET_TIMEOUT | SET_EVAL;
        }
        let id = self.next_set;
        self.next_set += 1;
        let mut message = self
            .message(NEW_SET, CREATE)
            .text(1, &self.table)
            .text(2, &map.name)
            .be32(3, flags)
            .be32(4, map.key.iter().fold(0, |ty, part| ty << 6 | *part as u32))
            .be32(5, map.key.len() as u32 * 4)
            .be32(10, id);
        message = match map.data {
            Data::Nothing => message,
            Data::Endpoint => message.be32(6, (Part::Address as u32) << 6 | Part::Port as u32).be32(7, 8),
            Data::Verdict => message.be32(6, TYPE_VERDICT).be32(7, 0),
        };
        if map.timeout_ms > 0 {
            message = message.attr(11, &map.timeout_ms.to_be_bytes());
        }
        self.messages.push(message);
        self
    }

    /// Adds elements to a set or map.
    pub fn add_elements(&mut self, map: &str, elements: &[(Vec<u8>, Value)]) -> &mut Self {
        self.elements(NEW_ELEMENTS, CREATE, map, elements)
    }

    /// Removes elements, which must be there.
    pub fn delete_elements(&mut self, map: &str, keys: &[Vec<u8>]) -> &mut Self {
        let elements: Vec<(Vec<u8>, Value)> = keys.iter().map(|k| (k.clone(), Value::Nothing)).collect();
        self.elements(DELETE_ELEMENTS, 0, map, &elements)
    }

    /// Removes every element of a set or map.
    pub fn flush_elements(&mut self, map: &str) -> &mut Self {
        let message = self.message(DELETE_ELEMENTS, 0).text(1, &self.table).text(2, map);
        self.messages.push(message);
        self
    }

    fn elements(&mut self, kind: u16, flags: u16, map: &str, elements: &[(Vec<u8>, Value)]) -> &mut Self {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let message = self.message(kind, flags).text(1, &self.table).text(2, map);
            let message = message.nest(3, |m| {
                chunk.iter().fold(m, |m, (key, value)| {
                    m.nest(1, |m| {
                        let m = m.nest(1, |m| m.attr(1, key));
                        match value {
                            Value::Nothing => m,
                            Value::Bytes(bytes) => m.nest(2, |m| m.attr(1, bytes)),
                            Value::Verdict(verdict) => m.nest(2, |m| m.nest(2, |m| verdict.attributes(m))),
                        }
                    })
                })
            });
            self.messages.push(message);
        }
        self
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Carries everything out, or nothing.
    pub fn commit(self, doing: &str) -> Result<(), Error> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let edge = |kind: u16| Message::new(kind, 0, &[0, 0, 0, 10]);
        let mut all = vec![edge(BATCH_BEGIN)];
        all.extend(self.messages);
        all.push(edge(BATCH_END));
        let refused = Socket::netfilter()?.batch(doing, all);
        // The first message is the batch's begin.
        refused.map_err(|(error, number)| explain(error, &self.needs, number.and_then(|n| n.checked_sub(1))))
    }
}

/// Where the kernel does not know something: what that may be.
fn explain(error: Error, needs: &[(usize, &'static str)], number: Option<usize>) -> Error {
    if !features::may_lack(&error) {
        return error;
    }
    let mut modules: Vec<&str> =
        needs.iter().filter(|(at, _)| Some(*at) == number).map(|(_, module)| *module).collect();
    modules.dedup();
    if modules.is_empty() {
        return error;
    }
    let doing = format!("{}: the kernel may lack {}", error.doing, modules.join(" or "));
    Error { doing, source: error.source }
}

fn register(n: u32) -> u32 {
    REGISTER_0 + n
}

/// An expression's name and data.
fn expression(m: Message, step: &Step) -> Message {
    let of = |m: Message, name: &str, fill: &dyn Fn(Message) -> Message| m.text(1, name).nest(2, fill);
    match step {
        Step::Load(what, r) => load(m, *what, register(*r)),
        Step::Compare(r, how, bytes) => of(m, "cmp", &|m| {
            m.be32(1, register(*r))
                .be32(2, u32::from(*how == Compare::NotEqual))
                .nest(3, |m| m.attr(1, bytes))
        }),
        Step::Mask(r, mask) => of(m, "bitwise", &|m| {
            m.be32(1, register(*r))
                .be32(2, register(*r))
                .be32(3, mask.len() as u32)
                .nest(4, |m| m.attr(1, mask))
                .nest(5, |m| m.attr(1, &vec![0; mask.len()]))
        }),
        Step::Lookup { map, key, data } => {
            of(m, "lookup", &|m| m.text(1, map).be32(2, register(*key)).be32(3, register(*data)))
        }
        Step::Dispatch { map, key } => {
            of(m, "lookup", &|m| m.text(1, map).be32(2, register(*key)).be32(3, REGISTER_VERDICT))
        }
        Step::Contains { set, key } => of(m, "lookup", &|m| m.text(1, set).be32(2, register(*key))),
        Step::Random { register: r, modulus } => {
            of(m, "numgen", &|m| m.be32(1, register(*r)).be32(2, *modulus).be32(3, 1).be32(4, 0))
        }
        Step::Update { map, key, data, timeout_ms } => of(m, "dynset", &|m| {
            m.text(1, map)
                .be32(3, 1)
                .be32(4, register(*key))
                .be32(5, register(*data))
                .attr(6, &timeout_ms.to_be_bytes())
        }),
        Step::Set(r, bytes) => of(m, "immediate", &|m| m.be32(1, register(*r)).nest(2, |m| m.attr(1, bytes))),
        Step::SetMark(r) => of(m, "meta", &|m| m.be32(2, 3).be32(3, register(*r))),
        Step::DestinationNat { address, port } => {
            of(m, "nat", &|m| m.be32(1, 1).be32(2, 2).be32(3, register(*address)).be32(5, register(*port)))
        }
        Step::Masquerade => of(m, "masq", &|m| m),
        Step::RejectTcp => of(m, "reject", &|m| m.be32(1, 1).attr(2, &[0])),
        Step::Reject => of(m, "reject", &|m| m.be32(1, 0).attr(2, &[3])),
        Step::Verdict(verdict) => of(m, "immediate", &|m| {
            m.be32(1, REGISTER_VERDICT).nest(2, |m| m.nest(2, |m| verdict.attributes(m)))
        }),
    }
}

fn load(m: Message, what: Load, r: u32) -> Message {
    let payload = |m: Message, base: u32, offset: u32, len: u32| {
        m.text(1, "payload").nest(2, |m| m.be32(1, r).be32(2, base).be32(3, offset).be32(4, len))
    };
    let meta = |m: Message, key: u32| m.text(1, "meta").nest(2, |m| m.be32(1, r).be32(2, key));
    match what {
        Load::SourceAddress => payload(m, 1, 12, 4),
        Load::DestinationAddress => payload(m, 1, 16, 4),
        Load::DestinationPort => payload(m, 2, 2, 2),
        Load::Protocol => meta(m, 16),
        Load::Mark => meta(m, 3),
        Load::InputLink => meta(m, 6),
        Load::OutputLink => meta(m, 7),
        Load::NetworkFamily => meta(m, 15),
        Load::DestinationKind => m.text(1, "fib").nest(2, |m| m.be32(1, r).be32(2, 3).be32(3, 2)),
    }
}

/// The name of a link as the kernel compares it.
pub fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// A key made of an address, a protocol and a port.
pub fn address_key(address: std::net::Ipv4Addr, protocol: u8, port: u16) -> Vec<u8> {
    let mut key = address.octets().to_vec();
    key.extend(port_key(protocol, port));
    key
}

/// A key made of a protocol and a port.
pub fn port_key(protocol: u8, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol, 0, 0, 0, high, low, 0, 0]
}

/// An address and a port as data.
pub fn endpoint(address: std::net::Ipv4Addr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let mut data = address.octets().to_vec();
    data.extend([high, low, 0, 0]);
    data
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn refusals_name_what_may_be_missing() {
        let base = |kind| Some(Base { kind, hook: Hook::Prerouting, priority: 0 });
        let mut t = Transaction::new(Family::Ip, "t");
        t.add_table().add_chain("n", base("nat")).add_chain("f", base("filter"));
        t.add_rule("f", &[Step::Load(Load::DestinationKind, 0), Step::Verdict(Verdict::Accept)]);
        t.add_rule("f", &[Step::Verdict(Verdict::Accept)]);
        let table = [
            (Errno::ENOENT, Some(1), "netlink: x: the kernel may lack nft_chain_nat"),
            (Errno::EOPNOTSUPP, Some(3), "netlink: x: the kernel may lack nft_fib_ipv4"),
            (Errno::ENOENT, Some(4), "netlink: x"),
            (Errno::ENOENT, None, "netlink: x"),
            (Errno::EINVAL, Some(3), "netlink: x"),
        ];
        for (errno, number, expected) in table {
            let error = Error::new("x", std::io::Error::from(errno));
            assert_eq!(explain(error, &t.needs, number).to_string(), expected, "{errno} {number:?}");
        }
    }

    /// A chain that is not there: the kernel tells which message it means.
    #[test]
    fn the_kernel_tells_which_message_it_refuses() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let refused = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut t = Transaction::new(Family::Ip, "t");
            t.add_table().add_chain("c", None).add_rule("gone", &[Step::Random { register: 0, modulus: 2 }]);
            t.commit("trying").unwrap_err()
        });
        let refused = refused.join().unwrap();
        assert!(refused.is(Errno::ENOENT));
        assert_eq!(refused.to_string(), "netlink: trying: the kernel may lack nft_numgen");
    }
}
