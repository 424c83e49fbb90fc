//! The last step: limits, identity, directory, finding the program, exec.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::identity;
use crate::hooks::{self, Hooks, Status};
use crate::spec::ProcessSpec;
use crate::sys;
use crate::userns::UserNamespace;
use crate::wire::Failure;

/// Exit code for a program that is there but cannot be run.
const NOT_EXECUTABLE: i32 = 126;
/// Exit code for a program that is not there.
const NOT_FOUND: i32 = 127;

/// Becomes the program. `first`, the hooks of a container and its process id on the node, is there for a container's
/// first program: it runs the last of them, and words failures for a start instead of an exec.
pub(super) fn run(
    process: &ProcessSpec,
    filter: Option<&[u8]>,
    user: Option<UserNamespace<'_>>,
    first: Option<(&Hooks, i32)>,
) -> Result<Infallible, Failure> {
    set_limits(process)?;
    // Ours are off, for our own sake; theirs are theirs.
    sys::prctl(libc::PR_SET_THP_DISABLE, 0).map_err(Failure::during("allow huge pages"))?;
    let cwd = if process.cwd.as_os_str().is_empty() { Path::new("/") } else { &process.cwd };
    // As the old user and as the new one: either may be the only one who is let in.
    let entered = nix::unistd::chdir(cwd);
    if let Some(user) = user {
        sys::setns(user.fd, libc::CLONE_NEWUSER).map_err(Failure::during("enter user namespace"))?;
        if first.is_some() {
            // What was mounted for the container is the pod's from here on, and stays in its place.
            sys::unshare(libc::CLONE_NEWNS).map_err(Failure::during("unshare mount namespace"))?;
        }
    }
    identity::assume(process, filter)?;
    if entered.is_err() {
        nix::unistd::chdir(cwd).map_err(|e| {
            let what = format!("chdir to cwd ({cwd:?}) set in config.json failed");
            Failure::during(what)(e.into())
        })?;
    }
    if let Some((hooks, pid)) = first.filter(|(hooks, _)| !hooks.start_container.is_empty()) {
        hooks::run_all(&hooks.start_container, &hooks.state(Status::Created, pid), cwd, None)
            .map_err(|e| hooks::failure(true, "startContainer", &e))?;
    }
    let prefix = if first.is_some() {
        "OCI runtime create failed: runc create failed: unable to start container process: error during \
         container init"
    } else {
        "OCI runtime exec failed: exec failed: unable to start container process"
    };
    let name = process.argv.first().map_or("", String::as_str);
    exec(process, name).map_err(|failure| Failure {
        message: format!("{prefix}: exec: {name:?}: {}: unknown", failure.message),
        // A container that cannot start has 128 whatever the reason, as with containerd.
        code: if first.is_some() { 128 } else { failure.code },
    })
}

fn set_limits(process: &ProcessSpec) -> Result<(), Failure> {
    for (resource, soft, hard) in &process.rlimits {
        let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
        // SAFETY: `limit` outlives the call.
        if unsafe { libc::setrlimit(*resource as _, &limit) } != 0 {
            return Err(Failure::during(format!("set rlimit {resource}"))(io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn exec(process: &ProcessSpec, name: &str) -> Result<Infallible, Failure> {
    let path = find(name, &process.env)?;
    let strings = |list: &[String]| {
        let all: Result<Vec<CString>, _> = list.iter().map(|s| CString::new(s.as_bytes())).collect();
        all.map_err(|_| failure("invalid argument", NOT_EXECUTABLE))
    };
    let (argv, env) = (strings(&process.argv)?, strings(&process.env)?);
    let program =
        CString::new(path.as_os_str().as_bytes()).map_err(|_| failure("invalid argument", NOT_EXECUTABLE))?;
    let Err(error) = nix::unistd::execve(&program, &argv, &env);
    Err(match error {
        nix::errno::Errno::ENOENT => failure("no such file or directory", NOT_FOUND),
        nix::errno::Errno::ENOEXEC => failure("exec format error", NOT_EXECUTABLE),
        nix::errno::Errno::EACCES => failure("permission denied", NOT_EXECUTABLE),
        nix::errno::Errno::E2BIG => failure("argument list too long", NOT_EXECUTABLE),
        other => failure(other.desc().to_lowercase(), NOT_EXECUTABLE),
    })
}

fn failure(message: impl Into<String>, code: i32) -> Failure {
    Failure { message: message.into(), code }
}

/// Finds a program as `exec.LookPath` does, whose words users know.
fn find(name: &str, env: &[String]) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(failure(format!("stat {name}: no such file or directory"), NOT_FOUND))
            }
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                Err(failure("is a directory", NOT_EXECUTABLE))
            }
            Err(_) => Err(failure("permission denied", NOT_EXECUTABLE)),
        };
    }
    let path = env.iter().rev().find_map(|line| line.strip_prefix("PATH=")).unwrap_or("");
    for dir in path.split(':').filter(|_| !name.is_empty()) {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = Path::new(dir).join(OsStr::new(name));
        if check(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(failure("executable file not found in $PATH", NOT_FOUND))
}

fn check(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(nix::unistd::eaccess(path, nix::unistd::AccessFlags::X_OK)?)
}
