//! Hooks: programs of devices that are run at moments of a container's life, as the OCI has them.
//!
//! Those of the node's namespaces are run by the node, which the container waits for; those of the container's are run
//! by its first process before it becomes the user's program. Either way a hook gets the container's state as JSON on
//! its standard input and has a limited time.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::wire::Failure;

/// Longest that any hook may take: as long as a kubelet waits for its runtime.
const TIME_MAX: Duration = Duration::from_secs(120);
/// Most bytes of a hook's output that a message carries.
const OUTPUT_LEN_MAX: usize = 4 << 10;
/// The version of the OCI's specification whose state this is.
pub(crate) const OCI_VERSION: &str = "1.2.0";

/// A program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hook {
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<u32>,
}

/// The programs of a container, by moment, and what its state says besides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hooks {
    pub(crate) prestart: Vec<Hook>,
    pub(crate) create_runtime: Vec<Hook>,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
    pub(crate) id: String,
    /// The container's directory.
    pub(crate) bundle: PathBuf,
    pub(crate) annotations: Vec<(String, String)>,
}

/// Where in its life a container is.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

impl Hooks {
    /// Programs as devices have them.
    pub(crate) fn of(
        hooks: &[cdi::Hook],
        id: &str,
        bundle: &Path,
        annotations: Vec<(String, String)>,
    ) -> Hooks {
        let mut all = Hooks { id: id.to_owned(), bundle: bundle.to_owned(), annotations, ..Hooks::default() };
        for hook in hooks {
            let list = match hook.moment {
                cdi::Moment::Prestart => &mut all.prestart,
                cdi::Moment::CreateRuntime => &mut all.create_runtime,
                cdi::Moment::CreateContainer => &mut all.create_container,
                cdi::Moment::StartContainer => &mut all.start_container,
                cdi::Moment::Poststart => &mut all.poststart,
                cdi::Moment::Poststop => &mut all.poststop,
            };
            let cdi::Hook { path, args, env, timeout, .. } = hook.clone();
            list.push(Hook { path, args, env, timeout });
        }
        all
    }

    /// Whether a starting container must wait for the node: for its hooks, or to know its own number there.
    pub(crate) fn need_word(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.create_container, &self.start_container]
            .iter()
            .any(|hooks| !hooks.is_empty())
    }

    /// What hooks are told.
    pub(crate) fn state(&self, status: Status, pid: i32) -> Vec<u8> {
        let annotations: serde_json::Map<String, serde_json::Value> =
            self.annotations.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        let mut state = serde_json::json!({"ociVersion": OCI_VERSION, "id": self.id, "status": status,
            "bundle": self.bundle, "annotations": annotations});
        if let (Some(state), true) = (state.as_object_mut(), pid != 0) {
            state.insert("pid".into(), pid.into());
        }
        state.to_string().into_bytes()
    }
}

/// What makes a start fail. `inside` is for hooks that the container's own process runs.
pub(crate) fn failure(inside: bool, moment: &str, error: &Error) -> Failure {
    let place = if inside { "error during container init: " } else { "" };
    Failure::new(format!(
        "OCI runtime create failed: runc create failed: unable to start container process: {place}error running \
         {moment} hook #{}: {}: unknown",
        error.index, error.message
    ))
}

/// A hook that did not go well.
#[derive(Debug, thiserror::Error)]
#[error("hook #{index}: {message}")]
pub(crate) struct Error {
    /// Which one of its moment.
    index: usize,
    message: String,
}

/// Runs hooks one after the other until one fails. With `root` they see that directory as theirs. Blocks.
pub(crate) fn run_all(
    hooks: &[Hook],
    state: &[u8],
    directory: &Path,
    root: Option<BorrowedFd<'_>>,
) -> Result<(), Error> {
    for (index, hook) in hooks.iter().enumerate() {
        run(hook, state, directory, root).map_err(|message| Error { index, message })?;
    }
    Ok(())
}

fn run(hook: &Hook, state: &[u8], directory: &Path, root: Option<BorrowedFd<'_>>) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    let mut args = hook.args.iter();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear().process_group(0);
    command.envs(hook.env.iter().filter_map(|line| line.split_once('=')));
    command.stdin(input(state).map_err(|e| format!("state of the container: {e}"))?);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    enter(&mut command, directory.as_os_str().to_owned(), root);
    let spawned = command.spawn();
    let mut child = spawned.map_err(|e| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or_default());
        format!("fork/exec {}: {}", hook.path.display(), errno.desc().to_lowercase())
    })?;
    let asked = hook.timeout.map(|seconds| Duration::from_secs(seconds.into()));
    let limit = asked.unwrap_or(TIME_MAX).min(TIME_MAX);
    let mut heard = [Vec::new(), Vec::new()];
    let ended = wait(&mut child, limit, &mut heard);
    if !matches!(ended, Ok(Some(_))) {
        // Its group, which is itself and what it has started.
        let _ = crate::sys::kill(-child.id().cast_signed(), libc::SIGKILL);
        let _ = child.wait();
    }
    let problem = match ended {
        Ok(Some(status)) if status.success() => return Ok(()),
        Ok(Some(status)) => in_words(status),
        Ok(None) => format!("hook ran past specified timeout of {:.1}s", limit.as_secs_f64()),
        Err(error) => format!("wait for hook: {error}"),
    };
    let [stdout, stderr] = heard.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Err(format!("{problem}, stdout: {stdout}, stderr: {stderr}"))
}

/// The state as a file: nobody has to wait until a hook reads it, if it does.
fn input(state: &[u8]) -> io::Result<File> {
    let file = rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(state)?;
    file.rewind()?;
    Ok(file)
}

/// Has a program start in a directory, and below a root of its own.
fn enter(command: &mut Command, directory: OsString, root: Option<BorrowedFd<'_>>) {
    let root = root.map(|root| root.as_raw_fd());
    // Made here: between fork and exec no memory may be asked for.
    let directory = std::ffi::CString::new(directory.into_encoded_bytes()).unwrap_or_default();
    let prepare = move || {
        // SAFETY: plain system calls on a descriptor and a string that outlive the start.
        let done = unsafe {
            root.is_none_or(|fd| libc::fchdir(fd) == 0 && libc::chroot(c".".as_ptr()) == 0)
                && libc::chdir(directory.as_ptr()) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: `prepare` only makes system calls, which is sound between fork and exec.
    unsafe { command.pre_exec(prepare) };
}

/// Waits for the end of a program, at most for `limit`, and listens to it meanwhile.
fn wait(child: &mut Child, limit: Duration, heard: &mut [Vec<u8>; 2]) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed());
    let pid = pid.ok_or_else(|| io::Error::other("a process without a number"))?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let (stdout, stderr) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
    let mut pipes = [stdout, stderr].map(|pipe| pipe.map(File::from));
    for pipe in pipes.iter().flatten() {
        let flags = OFlag::from_bits_truncate(fcntl(pipe.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(pipe.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(pipes.iter().flatten().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        // A millisecond more, as the rest of one would be no wait at all.
        let left = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(error) if error != nix::errno::Errno::EINTR => return Err(error.into()),
            _ => {}
        }
        let over = fds.first().and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        drop(fds);
        for (pipe, heard) in pipes.iter_mut().zip(heard.iter_mut()) {
            if pipe.as_mut().is_some_and(|pipe| !listen(pipe, heard)) {
                *pipe = None;
            }
        }
        if over {
            return child.wait().map(Some);
        }
    }
}

/// Reads what there is; false at the end.
fn listen(mut pipe: &File, heard: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 1024];
    // Bounded, so that one that never stops talking is still told to end in time.
    for _ in 0..64 {
        match pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(len) => {
                let room = OUTPUT_LEN_MAX.saturating_sub(heard.len());
                heard.extend(buffer.iter().take(len.min(room)));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(nix::sys::signal::Signal::try_from)) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(Ok(nix::sys::signal::Signal::SIGKILL))) => "signal: killed".to_owned(),
        (None, Some(Ok(signal))) => format!("signal: {signal}"),
        (None, _) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: vec!["hook".into(), "-c".into(), script.into()],
            env: vec!["A=1".into()],
            timeout: Some(1),
        }
    }

    fn said(hook: &Hook) -> Option<String> {
        run(hook, b"{\"id\":\"x\"}", Path::new("/tmp"), None).err()
    }

    #[test]
    fn hooks_are_heard() {
        let is = r#"test "$(cat)" = '{"id":"x"}' && test "$(pwd)$A$0" = /tmp1hook && test -z "$HOME""#;
        let table = [
            (hook(is), None),
            // One that does not read is no reason to wait or to be killed.
            (hook("exit 0"), None),
            (hook("echo out; echo err >&2; exit 3"), Some("exit status 3, stdout: out\n, stderr: err\n")),
            (hook("kill -9 $$"), Some("signal: killed, stdout: , stderr: ")),
            // What it leaves behind with its streams open does not hold the container up.
            (hook("sleep 5 & exit 4"), Some("exit status 4, stdout: , stderr: ")),
            (hook("echo w; sleep 5"), Some("hook ran past specified timeout of 1.0s, stdout: w\n, stderr: ")),
            (hook("yes"), None),
            (
                Hook { path: "/no/such".into(), ..Hook::default() },
                Some("fork/exec /no/such: no such file or directory"),
            ),
        ];
        for (hook, want) in table {
            let said = said(&hook);
            match hook.args.last().map(String::as_str) {
                Some("yes") => {
                    let said = said.unwrap_or_default();
                    assert!(
                        said.contains("past specified timeout") && said.len() < OUTPUT_LEN_MAX + 200,
                        "{said}"
                    );
                }
                _ => assert_eq!(said.as_deref(), want, "{hook:?}"),
            }
        }
    }

    #[test]
    fn the_first_that_fails_is_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let hooks = [hook("exit 0"), hook("exit 1"), hook(&format!("touch {}", mark.display()))];
        let error = run_all(&hooks, b"{}", directory.path(), None).unwrap_err();
        let failure = failure(true, "createContainer", &error);
        assert_eq!(
            failure.message,
            "OCI runtime create failed: runc create failed: unable to start container process: error during \
             container init: error running createContainer hook #1: exit status 1, stdout: , stderr: : unknown"
        );
        assert!(!mark.exists());
    }

    #[test]
    fn states() {
        let hooks = Hooks::of(&[], "c", Path::new("/b"), vec![("k".into(), "v".into())]);
        let state =
            |status, pid| serde_json::from_slice::<serde_json::Value>(&hooks.state(status, pid)).unwrap();
        let want = serde_json::json!({"ociVersion": "1.2.0", "id": "c", "status": "creating", "pid": 7,
            "bundle": "/b", "annotations": {"k": "v"}});
        assert_eq!(state(Status::Creating, 7), want);
        assert_eq!(state(Status::Stopped, 0).get("pid"), None);
    }
}
