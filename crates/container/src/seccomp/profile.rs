//! OCI seccomp profiles: reading, choosing rules by capabilities, compiling.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::bpf::{Instruction, PROGRAM_LEN_MAX};
use super::table::TABLE;

/// Failures with filters.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// The profile is not JSON of the right shape.
    #[error("decoding seccomp profile failed: {0}")]
    Decode(#[from] serde_json::Error),
    /// An action that this runtime does not know.
    #[error("invalid seccomp action {0:?}")]
    Action(String),
    /// A comparison that this runtime does not know, or an argument above 5.
    #[error("invalid seccomp argument rule for {0:?}")]
    Argument(String),
    /// The compiled program is longer than the kernel takes.
    #[error("seccomp profile is too long: {0} instructions")]
    TooLong(usize),
    /// The stored program is damaged.
    #[error("seccomp program has a bad length: {0} bytes")]
    Program(usize),
    /// The kernel refused it.
    #[error("seccomp: {0}")]
    Load(#[source] std::io::Error),
}

/// A profile in OCI's or Docker's JSON.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Profile {
    pub(super) default_action: String,
    pub(super) default_errno_ret: Option<u32>,
    pub(super) syscalls: Vec<Rule>,
}

/// One rule: what to do with some calls.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rule {
    pub(super) names: Vec<String>,
    /// Docker's older form of `names`.
    pub(super) name: Option<String>,
    pub(super) action: String,
    pub(super) errno_ret: Option<u32>,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) args: Vec<Argument>,
    pub(super) includes: Condition,
    pub(super) excludes: Condition,
}

fn null_as_default<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Argument>, D::Error> {
    Ok(Option::<Vec<Argument>>::deserialize(d)?.unwrap_or_default())
}

/// A test of one argument.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Argument {
    pub(super) index: u32,
    pub(super) value: u64,
    pub(super) value_two: u64,
    pub(super) op: String,
}

/// When a rule counts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Condition {
    pub(super) caps: Vec<String>,
    pub(super) arches: Vec<String>,
}

impl Profile {
    /// Reads a profile file.
    pub(crate) fn parse(json: &[u8]) -> Result<Profile, SeccompError> {
        Ok(serde_json::from_slice(json)?)
    }
}

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
/// Docker's name of this machine.
const ARCH_NAME: &str = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };

/// Offset of the system call number in `struct seccomp_data`.
const OFFSET_NR: u32 = 0;
/// Offset of the architecture.
const OFFSET_ARCH: u32 = 4;
/// Offset of the first argument; each takes eight bytes, low word first on the machines we support.
const OFFSET_ARGS: u32 = 16;
/// Argument of actions that return an error, where the profile gives none.
const EPERM: u32 = 1;
/// What foreign system call tables get: as if the kernel were built without them.
const ENOSYS: u32 = 38;

fn action_value(action: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match action {
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | data,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0x0000_0000,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        other => return Err(SeccompError::Action(other.to_owned())),
    })
}

fn applies(rule: &Rule, has_cap: &dyn Fn(&str) -> bool) -> bool {
    let arch_ok = rule.includes.arches.is_empty() || rule.includes.arches.iter().any(|a| a == ARCH_NAME);
    arch_ok
        && !rule.excludes.arches.iter().any(|a| a == ARCH_NAME)
        && rule.includes.caps.iter().all(|c| has_cap(c))
        && !rule.excludes.caps.iter().any(|c| has_cap(c))
}

fn number_of(name: &str) -> Option<u32> {
    TABLE.binary_search_by(|(known, _)| known.cmp(&name)).ok().map(|at| TABLE[at].1)
}

/// Compiles a profile for a process with these capabilities (`CAP_...` names). Calls that this machine does
/// not have are left out, as libseccomp does.
pub(crate) fn compile(
    profile: &Profile,
    has_cap: &dyn Fn(&str) -> bool,
) -> Result<Vec<Instruction>, SeccompError> {
    let default = action_value(&profile.default_action, profile.default_errno_ret)?;
    let mut by_call: BTreeMap<u32, Vec<(&Rule, u32)>> = BTreeMap::new();
    for rule in profile.syscalls.iter().filter(|r| applies(r, has_cap)) {
        let action = action_value(&rule.action, rule.errno_ret)?;
        for number in rule.names.iter().chain(&rule.name).filter_map(|n| number_of(n)) {
            by_call.entry(number).or_default().push((rule, action));
        }
    }
    let mut program = vec![
        Instruction::load(OFFSET_ARCH),
        Instruction::if_equal(AUDIT_ARCH, 1, 0),
        Instruction::ret(0x0005_0000 | ENOSYS),
        Instruction::load(OFFSET_NR),
    ];
    for (number, rules) in &by_call {
        let body = call_body(rules, default)?;
        let len = body.len();
        match u8::try_from(len) {
            Ok(skip) => program.push(Instruction::if_equal(*number, 0, skip)),
            Err(_) => {
                program.push(Instruction::if_equal(*number, 1, 0));
                program.push(Instruction::jump(len as u32));
            }
        }
        program.extend(body);
    }
    program.push(Instruction::ret(default));
    if program.len() > PROGRAM_LEN_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

/// What happens once the call's number is known; always ends with an action.
fn call_body(rules: &[(&Rule, u32)], default: u32) -> Result<Vec<Instruction>, SeccompError> {
    if let Some((_, action)) = rules.iter().find(|(rule, _)| rule.args.is_empty()) {
        return Ok(vec![Instruction::ret(*action)]);
    }
    let mut body = Vec::new();
    for (rule, action) in rules {
        // Tests of one rule are joined by AND: the first that fails leads past the rule's end.
        let tests = rule.args.iter().map(|arg| test(arg, rule)).collect::<Result<Vec<_>, _>>()?;
        let total: usize = tests.iter().map(Vec::len).sum::<usize>() + 1;
        let mut done = 0;
        for test in tests {
            let len = test.len();
            for (at, step) in test.into_iter().enumerate() {
                let miss = (total - done - at - 1) as u8;
                body.push(match step {
                    Step::Plain(i) => i,
                    // A hit early in the test goes past the rest of it; a miss past the rule.
                    Step::Branch { make, k, hit, fail } => {
                        let to = |to: To| match to {
                            To::Next => 0,
                            To::Passed => (len - at - 1) as u8,
                            To::Missed => miss,
                        };
                        make(k, to(hit), to(fail))
                    }
                });
            }
            done += len;
        }
        body.push(Instruction::ret(*action));
    }
    body.push(Instruction::ret(default));
    Ok(body)
}

#[derive(Clone, Copy)]
enum To {
    Next,
    Passed,
    Missed,
}

enum Step {
    Plain(Instruction),
    Branch { make: fn(u32, u8, u8) -> Instruction, k: u32, hit: To, fail: To },
}

/// A 64-bit comparison, high word first.
fn test(arg: &Argument, rule: &Rule) -> Result<Vec<Step>, SeccompError> {
    let bad = || SeccompError::Argument(rule.names.join(","));
    if arg.index > 5 {
        return Err(bad());
    }
    let low = Step::Plain(Instruction::load(OFFSET_ARGS + arg.index * 8));
    let high = Step::Plain(Instruction::load(OFFSET_ARGS + arg.index * 8 + 4));
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let branch = |make: fn(u32, u8, u8) -> Instruction, k, hit, fail| Step::Branch { make, k, hit, fail };
    let (eq, gt, ge) =
        (Instruction::if_equal as fn(_, _, _) -> _, Instruction::if_greater, Instruction::if_at_least);
    let (vh, vl) = halves(arg.value);
    use To::{Missed, Next, Passed};
    Ok(match arg.op.as_str() {
        "SCMP_CMP_EQ" => vec![high, branch(eq, vh, Next, Missed), low, branch(eq, vl, Passed, Missed)],
        "SCMP_CMP_NE" => vec![high, branch(eq, vh, Next, Passed), low, branch(eq, vl, Missed, Passed)],
        "SCMP_CMP_MASKED_EQ" => {
            let (wh, wl) = halves(arg.value_two);
            vec![
                high,
                Step::Plain(Instruction::and(vh)),
                branch(eq, wh, Next, Missed),
                low,
                Step::Plain(Instruction::and(vl)),
                branch(eq, wl, Passed, Missed),
            ]
        }
        "SCMP_CMP_GT" | "SCMP_CMP_GE" => {
            let last: fn(u32, u8, u8) -> Instruction = if arg.op == "SCMP_CMP_GT" { gt } else { ge };
            vec![
                high,
                branch(gt, vh, Passed, Next),
                branch(eq, vh, Next, Missed),
                low,
                branch(last, vl, Passed, Missed),
            ]
        }
        "SCMP_CMP_LT" | "SCMP_CMP_LE" => {
            let last: fn(u32, u8, u8) -> Instruction = if arg.op == "SCMP_CMP_LT" { ge } else { gt };
            vec![
                high,
                branch(gt, vh, Missed, Next),
                branch(eq, vh, Next, Passed),
                low,
                branch(last, vl, Missed, Passed),
            ]
        }
        _ => return Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program over a system call, as the kernel would.
    fn run(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (n, arg) in args.iter().enumerate() {
            data[16 + n * 8..24 + n * 8].copy_from_slice(&arg.to_ne_bytes());
        }
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = program[at];
            at += 1;
            match i.code {
                0x20 => a = u32::from_ne_bytes(data[i.k as usize..i.k as usize + 4].try_into().unwrap()),
                0x54 => a &= i.k,
                0x15 => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                0x25 => at += usize::from(if a > i.k { i.jt } else { i.jf }),
                0x35 => at += usize::from(if a >= i.k { i.jt } else { i.jf }),
                0x05 => at += i.k as usize,
                0x06 => return i.k,
                other => panic!("{other}"),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const DENY: u32 = 0x0005_0001;

    fn profile(op: &str, value: u64, value_two: u64) -> Vec<Instruction> {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {{"names":["read","nonsense"],"action":"SCMP_ACT_ALLOW"}},
                {{"names":["write"],"action":"SCMP_ACT_ALLOW",
                  "args":[{{"index":1,"value":{value},"valueTwo":{value_two},"op":"{op}"}},
                          {{"index":2,"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#
        );
        compile(&Profile::parse(json.as_bytes()).unwrap(), &|_| false).unwrap()
    }

    #[test]
    fn comparisons() {
        let big = 0x1_0000_0005u64;
        let table: [(&str, u64, u64, &[(u64, bool)]); 7] = [
            ("SCMP_CMP_EQ", big, 0, &[(big, true), (5, false), (big + 1, false)]),
            ("SCMP_CMP_NE", big, 0, &[(big, false), (5, true), (big + 1, true)]),
            (
                "SCMP_CMP_GT",
                big,
                0,
                &[(big, false), (big + 1, true), (2 << 32, true), (u64::from(u32::MAX), false)],
            ),
            ("SCMP_CMP_GE", big, 0, &[(big, true), (big - 1, false), (2 << 32, true)]),
            ("SCMP_CMP_LT", big, 0, &[(big, false), (big - 1, true), (9, true), (2 << 32, false)]),
            ("SCMP_CMP_LE", big, 0, &[(big, true), (big + 1, false), (9, true)]),
            ("SCMP_CMP_MASKED_EQ", 0xf0, 0x10, &[(0x1f, true), (0x2f, false), (big | 0x10, true)]),
        ];
        let write = number_of("write").unwrap();
        for (op, value, two, cases) in table {
            let program = profile(op, value, two);
            for (arg, want) in cases {
                let got = run(&program, AUDIT_ARCH, write, [0, *arg, 7, 0, 0, 0]);
                assert_eq!(got == ALLOW, *want, "{op} {value:#x} {arg:#x}");
                assert_eq!(
                    run(&program, AUDIT_ARCH, write, [0, *arg, 8, 0, 0, 0]),
                    DENY,
                    "the second test counts"
                );
            }
        }
    }

    #[test]
    fn numbers_and_architectures() {
        let program = profile("SCMP_CMP_EQ", 1, 0);
        assert_eq!(run(&program, AUDIT_ARCH, number_of("read").unwrap(), [0; 6]), ALLOW);
        assert_eq!(run(&program, AUDIT_ARCH, number_of("close").unwrap(), [0; 6]), DENY);
        assert_eq!(run(&program, 0x4000_0003, 3, [0; 6]), 0x0005_0000 | ENOSYS);
        assert!(TABLE.is_sorted_by_key(|(name, _)| *name));
    }

    #[test]
    fn default_profile_blocks_what_it_should() {
        let none = compile(&super::super::default_profile(), &|_| false).unwrap();
        let admin = compile(&super::super::default_profile(), &|c| c == "CAP_SYS_ADMIN").unwrap();
        let call = |program: &[Instruction], name, arg| {
            run(program, AUDIT_ARCH, number_of(name).unwrap(), [arg, 0, 0, 0, 0, 0])
        };
        for name in
            ["mount", "unshare", "keyctl", "bpf", "reboot", "init_module", "userfaultfd", "io_uring_setup"]
        {
            assert_ne!(call(&none, name, 0), ALLOW, "{name}");
        }
        for name in ["read", "openat", "execve", "clock_gettime", "futex", "rseq", "pidfd_open"] {
            assert_eq!(call(&none, name, 0), ALLOW, "{name}");
        }
        assert_eq!(call(&none, "clone", 0x11), ALLOW);
        assert_eq!(call(&none, "clone", 0x1000_0000), DENY, "CLONE_NEWUSER");
        assert_eq!(call(&none, "clone3", 0), 0x0005_0000 | ENOSYS, "so that libc falls back to clone");
        assert_eq!(call(&admin, "mount", 0), ALLOW);
        assert_eq!(call(&admin, "clone3", 0), ALLOW);
        assert_eq!(call(&none, "socket", 2), ALLOW);
        assert_eq!(call(&none, "socket", 40), DENY, "AF_VSOCK");
        assert!(none.len() < PROGRAM_LEN_MAX);
    }
}
