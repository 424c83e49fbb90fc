//! Links, addresses and routes: the few shapes the pod network is made of.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};

use crate::netlink::{CREATE, EXCLUSIVE, Error, Message, REPLACE, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_LINK: u8 = 253;

/// `struct ifinfomsg`.
fn link_head(family: u8, index: u32, flags: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[0] = family;
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..16].copy_from_slice(&flags.to_ne_bytes());
    head
}

/// Index of a link in the thread's namespace.
pub fn index(name: &str) -> Result<u32, Error> {
    if_nametoindex(name).map_err(|e| Error::new(format!("looking up link {name}"), e))
}

/// Makes a bridge with an address, or takes the one that is there, and brings it up.
pub fn ensure_bridge(socket: &Socket, name: &str, address: Ipv4Addr, prefix: u8) -> Result<u32, Error> {
    let make = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link_head(0, 0, 0))
        .text(IFLA_IFNAME, name)
        .nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, "bridge"));
    match socket.request(&format!("making bridge {name}"), make) {
        Err(e) if !e.is(Errno::EEXIST) => return Err(e),
        _ => {}
    }
    let at = index(name)?;
    add_address(socket, at, address, prefix)?;
    set_up(socket, at)?;
    Ok(at)
}

/// Gives a link an address.
pub fn add_address(socket: &Socket, link: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
    let mut head = [AF_INET, prefix, 0, 0, 0, 0, 0, 0];
    head[4..8].copy_from_slice(&link.to_ne_bytes());
    let message = Message::new(RTM_NEWADDR, CREATE | REPLACE, &head)
        .attr(IFA_LOCAL, &address.octets())
        .attr(IFA_ADDRESS, &address.octets());
    socket.request(&format!("adding address {address}/{prefix}"), message)
}

/// Brings a link up.
pub fn set_up(socket: &Socket, link: u32) -> Result<(), Error> {
    socket.request("bringing a link up", Message::new(RTM_NEWLINK, 0, &link_head(0, link, IFF_UP)))
}

/// Makes a pair of links: `inside` in the thread's namespace, `outside` in the namespace `host`.
pub fn make_pair(socket: &Socket, inside: &str, outside: &str, host: &File, mtu: u32) -> Result<(), Error> {
    let host = u32::try_from(host.as_raw_fd()).unwrap_or(0);
    let message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link_head(0, 0, 0))
        .text(IFLA_IFNAME, inside)
        .u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&link_head(0, 0, 0))
                        .text(IFLA_IFNAME, outside)
                        .u32(IFLA_MTU, mtu)
                        .u32(IFLA_NET_NS_FD, host)
                })
            })
        });
    socket.request(&format!("making the links {inside} and {outside}"), message)
}

/// Makes a link a port of a bridge that may send packets back where they came from, and brings it up.
pub fn join_bridge(socket: &Socket, link: u32, bridge: u32) -> Result<(), Error> {
    let join = Message::new(RTM_NEWLINK, 0, &link_head(0, link, IFF_UP)).u32(IFLA_MASTER, bridge);
    socket.request("adding a port to the bridge", join)?;
    let hairpin = Message::new(RTM_NEWLINK, 0, &link_head(AF_BRIDGE, link, 0))
        .nest(IFLA_PROTINFO, |m| m.attr(IFLA_BRPORT_MODE, &[1]));
    socket.request("setting hairpin mode", hairpin)
}

/// Routes everything through a gateway on a link, which need not be in the link's own network.
pub fn default_route(socket: &Socket, link: u32, gateway: Ipv4Addr) -> Result<(), Error> {
    let mut head = [AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    head[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    let message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &head)
        .attr(RTA_GATEWAY, &gateway.octets())
        .u32(RTA_OIF, link);
    socket.request(&format!("adding a route through {gateway}"), message)
}

/// Routes a network to a link directly.
pub fn link_route(socket: &Socket, link: u32, network: Ipv4Addr, prefix: u8) -> Result<(), Error> {
    let head = [AF_INET, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST, 0, 0, 0, 0];
    let message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &head)
        .attr(RTA_DST, &network.octets())
        .u32(RTA_OIF, link);
    socket.request(&format!("adding a route to {network}/{prefix}"), message)
}

/// Removes a link by name. A link that is not there is fine.
pub fn remove(socket: &Socket, name: &str) -> Result<(), Error> {
    let message = Message::new(RTM_DELLINK, 0, &link_head(0, 0, 0)).text(IFLA_IFNAME, name);
    match socket.request(&format!("removing link {name}"), message) {
        Err(e) if e.is(Errno::ENODEV) => Ok(()),
        other => other,
    }
}

/// Runs `work` on a thread of its own inside a network namespace.
pub fn within<T: Send>(netns: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let open = |e: std::io::Error| Error::new(format!("opening namespace {}", netns.display()), e);
    let target = File::open(netns).map_err(open)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&target, CloneFlags::CLONE_NEWNET).map_err(|e| Error::new("entering a namespace", e))?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Error::new("working in a namespace", Errno::EFAULT)))
    })
}
