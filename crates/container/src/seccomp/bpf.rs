//! Classic BPF as seccomp runs it: instructions, their bytes, and loading them.

use std::io;

use super::profile::SeccompError;

/// Bytes of one `struct sock_filter`.
const INSTRUCTION_LEN: usize = 8;
/// Longest program the kernel takes (`BPF_MAXINSNS`).
pub(super) const PROGRAM_LEN_MAX: usize = 4096;

/// One `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

impl Instruction {
    /// Loads the 32-bit word at `offset` of `struct seccomp_data`.
    pub(super) fn load(offset: u32) -> Instruction {
        Instruction { code: 0x20, jt: 0, jf: 0, k: offset }
    }
    /// Keeps only the bits of `mask`.
    pub(super) fn and(mask: u32) -> Instruction {
        Instruction { code: 0x54, jt: 0, jf: 0, k: mask }
    }
    /// Jumps `jt` or `jf` instructions ahead on equality.
    pub(super) fn if_equal(k: u32, jt: u8, jf: u8) -> Instruction {
        Instruction { code: 0x15, jt, jf, k }
    }
    /// Jumps on `A > k`, unsigned.
    pub(super) fn if_greater(k: u32, jt: u8, jf: u8) -> Instruction {
        Instruction { code: 0x25, jt, jf, k }
    }
    /// Jumps on `A >= k`, unsigned.
    pub(super) fn if_at_least(k: u32, jt: u8, jf: u8) -> Instruction {
        Instruction { code: 0x35, jt, jf, k }
    }
    /// Jumps ahead without condition.
    pub(super) fn jump(k: u32) -> Instruction {
        Instruction { code: 0x05, jt: 0, jf: 0, k }
    }
    /// Ends with an action.
    pub(super) fn ret(action: u32) -> Instruction {
        Instruction { code: 0x06, jt: 0, jf: 0, k: action }
    }
}

/// The program as bytes, for a file.
pub(crate) fn encode(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * INSTRUCTION_LEN);
    for i in program {
        bytes.extend_from_slice(&i.code.to_ne_bytes());
        bytes.extend_from_slice(&[i.jt, i.jf]);
        bytes.extend_from_slice(&i.k.to_ne_bytes());
    }
    bytes
}

/// Puts this thread, and all that it starts, under the program. Needs `CAP_SYS_ADMIN` or no_new_privs.
pub(crate) fn load(bytes: &[u8]) -> Result<(), SeccompError> {
    if bytes.is_empty()
        || !bytes.len().is_multiple_of(INSTRUCTION_LEN)
        || bytes.len() > PROGRAM_LEN_MAX * INSTRUCTION_LEN
    {
        return Err(SeccompError::Program(bytes.len()));
    }
    let word = |at: usize| -> [u8; 4] { [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]] };
    let mut filter: Vec<libc::sock_filter> = (0..bytes.len())
        .step_by(INSTRUCTION_LEN)
        .map(|at| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[at], bytes[at + 1]]),
            jt: bytes[at + 2],
            jf: bytes[at + 3],
            k: u32::from_ne_bytes(word(at + 4)),
        })
        .collect();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points at `filter`, which outlives the call; the kernel copies it.
    let failed = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) } != 0;
    if failed { Err(SeccompError::Load(io::Error::last_os_error())) } else { Ok(()) }
}
