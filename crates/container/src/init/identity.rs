//! Dropping from the shim's power to the user's: capabilities, groups, user, filter.

use std::io;

use crate::lsm;
use crate::seccomp;
use crate::spec::ProcessSpec;
use crate::sys;
use crate::wire::Failure;

/// Highest capability number a kernel may know (they are 64 bits).
const CAPABILITY_MAX: u8 = 63;

/// Becomes the user of `process`. Afterwards nothing privileged works any more.
pub(super) fn assume(process: &ProcessSpec, filter: Option<&[u8]>) -> Result<(), Failure> {
    let load = || match filter {
        Some(bytes) => seccomp::load(bytes).map_err(|e| Failure::new(e.to_string())),
        None => Ok(()),
    };
    // Without no_new_privs a filter needs the power that goes away below.
    if !process.no_new_privs {
        load()?;
    }
    // A later no_new_privs lets nothing be taken on any more.
    lsm::on_exec(process)?;
    limit_bounding_set(&process.capabilities).map_err(Failure::during("drop bounding set"))?;
    let gids: Vec<nix::unistd::Gid> = process.groups.iter().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
    let (uid, gid) = (nix::unistd::Uid::from_raw(process.uid), nix::unistd::Gid::from_raw(process.gid));
    nix::unistd::setgroups(&gids).map_err(|e| Failure::during("setgroups")(e.into()))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| Failure::during("setgid")(e.into()))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| Failure::during("setuid")(e.into()))?;
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64)
        .map_err(Failure::during("clear ambient capabilities"))?;
    // The node itself may lack some of "all".
    let available = permitted().map_err(Failure::during("read capabilities"))?;
    let held = if process.uid == 0 { mask(&process.capabilities) & available } else { 0 };
    set_capabilities(held).map_err(Failure::during("set capabilities"))?;
    // A change of user clears it, so only now: should the shim be killed, its containers end too.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)
        .map_err(Failure::during("set parent death signal"))?;
    if process.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(Failure::during("set no_new_privs"))?;
        load()?;
    }
    Ok(())
}

fn mask(capabilities: &[u8]) -> u64 {
    capabilities.iter().filter(|c| **c <= CAPABILITY_MAX).fold(0, |mask, c| mask | 1 << c)
}

fn limit_bounding_set(keep: &[u8]) -> io::Result<()> {
    let keep = mask(keep);
    for capability in 0..=CAPABILITY_MAX {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, u64::from(capability)) {
            // The kernel knows no more of them.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 bits.
const VERSION_3: u32 = 0x2008_0522;

/// The permitted set of this process.
fn permitted() -> io::Result<u64> {
    let header = [VERSION_3, 0u32];
    let mut data = [0u32; 6];
    // SAFETY: header and data are laid out as the kernel's structures of version 3 and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
    }
}

/// Sets effective and permitted; inheritable stays empty, as in containerd since CVE-2022-24769.
fn set_capabilities(held: u64) -> io::Result<()> {
    let header = [VERSION_3, 0u32];
    let (low, high) = (held as u32, (held >> 32) as u32);
    let data = [low, low, 0u32, high, high, 0u32];
    // SAFETY: header and data are laid out as the kernel's structures of version 3 and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
