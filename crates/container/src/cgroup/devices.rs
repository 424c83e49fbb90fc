//! Which devices a container may use: lines for v1, a BPF program for v2.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Allows some access to some devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    /// Block, else character.
    pub block: bool,
    /// Major number; `None` for all.
    pub major: Option<u32>,
    /// Minor number; `None` for all.
    pub minor: Option<u32>,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

impl DeviceRule {
    fn of(block: bool, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
        DeviceRule { block, major, minor, access: access.to_owned() }
    }

    /// What every container gets: making any node, using the harmless ones.
    pub(crate) fn defaults() -> Vec<DeviceRule> {
        let mut rules = vec![DeviceRule::of(false, None, None, "m"), DeviceRule::of(true, None, None, "m")];
        // null, zero, full, random, urandom, tty, console, ptmx, and all of pts.
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
            rules.push(DeviceRule::of(false, Some(major), Some(minor), "rwm"));
        }
        rules.push(DeviceRule::of(false, Some(136), None, "rwm"));
        rules
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

/// One eBPF instruction.
type Instruction = [u8; 8];

fn instruction(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Instruction {
    let (o, i) = (offset.to_ne_bytes(), imm.to_ne_bytes());
    [code, dst | src << 4, o[0], o[1], i[0], i[1], i[2], i[3]]
}

/// Loads a 32-bit word of the context.
const LDX_W: u8 = 0x61;
const MOV64_REG: u8 = 0xbf;
const MOV64_IMM: u8 = 0xb7;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JNE_IMM: u8 = 0x55;
const JNE_REG: u8 = 0x5d;
const EXIT: u8 = 0x95;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// The program: returns 1 where a rule allows the access, else 0.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // r2 type, r3 access, r4 major, r5 minor.
    let mut code = vec![
        instruction(LDX_W, 2, 1, 0, 0),
        instruction(MOV64_REG, 3, 2, 0, 0),
        instruction(AND32_IMM, 2, 0, 0, 0xffff),
        instruction(RSH32_IMM, 3, 0, 0, 16),
        instruction(LDX_W, 4, 1, 4, 0),
        instruction(LDX_W, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.block { BLOCK } else { CHARACTER };
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let mask: i32 = bits.iter().filter(|(c, _)| rule.access.contains(*c)).map(|(_, bit)| bit).sum();
        // Tests that fail jump over the rest of the rule; offsets are filled in from its length.
        let mut body = vec![
            instruction(JNE_IMM, 2, 0, 0, kind),
            instruction(MOV64_REG, 1, 3, 0, 0),
            instruction(AND32_IMM, 1, 0, 0, mask),
            instruction(JNE_REG, 1, 3, 0, 0),
        ];
        body.extend(rule.major.map(|n| instruction(JNE_IMM, 4, 0, 0, n as i32)));
        body.extend(rule.minor.map(|n| instruction(JNE_IMM, 5, 0, 0, n as i32)));
        body.extend([instruction(MOV64_IMM, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
        let len = body.len();
        for (at, i) in body.iter_mut().enumerate() {
            if matches!(i[0], JNE_IMM | JNE_REG) {
                let offset = ((len - at - 1) as i16).to_ne_bytes();
                (i[2], i[3]) = (offset[0], offset[1]);
            }
        }
        code.extend(body);
    }
    code.extend([instruction(MOV64_IMM, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` for loading.
#[repr(C)]
struct LoadAttr {
    kind: u32,
    len: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for attaching.
#[repr(C)]
struct AttachAttr {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is the beginning of `union bpf_attr` and its length is passed; what it points at outlives
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Loads the program for `rules` and attaches it to the cgroup v2 directory `dir`.
pub(super) fn attach(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let code = program(rules);
    let load = LoadAttr {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        len: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let cgroup = File::open(dir)?;
    let attach = AttachAttr {
        target: cgroup.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program over one access.
    fn allows(rules: &[DeviceRule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let code = program(rules);
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut r = [0u64; 10];
        let mut at = 0;
        loop {
            let i = code[at];
            let (dst, src) = (usize::from(i[1] & 15), usize::from(i[1] >> 4));
            let offset = i16::from_ne_bytes([i[2], i[3]]);
            let imm = i32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
            at += 1;
            let jump = (at as isize + isize::from(offset)) as usize;
            match i[0] {
                LDX_W => r[dst] = u64::from(context[offset as usize / 4]),
                MOV64_REG => r[dst] = r[src],
                MOV64_IMM => r[dst] = imm as u64,
                AND32_IMM => r[dst] &= imm as u64,
                RSH32_IMM => r[dst] >>= imm,
                JNE_IMM if r[dst] != imm as u64 => at = jump,
                JNE_REG if r[dst] != r[src] => at = jump,
                JNE_IMM | JNE_REG => {}
                EXIT => return r[0] == 1,
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn default_rules() {
        let rules = DeviceRule::defaults();
        assert!(allows(&rules, CHARACTER, 2 | 4, 1, 3), "read and write null");
        assert!(allows(&rules, CHARACTER, 2, 136, 77), "any pts");
        assert!(allows(&rules, BLOCK, 1, 8, 0), "mknod of a disk");
        assert!(!allows(&rules, BLOCK, 2, 8, 0), "reading it");
        assert!(!allows(&rules, CHARACTER, 2, 1, 1), "/dev/mem");
        assert!(!allows(&[], CHARACTER, 2, 1, 3));
        assert_eq!(rules[2].to_string(), "c 1:3 rwm");
        assert_eq!(rules[0].to_string(), "c *:* m");
    }
}
