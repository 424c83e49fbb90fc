//! Programs that tests start, none of which may hang: what does not end in its time is killed and named.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Longest that one program may take: images are built and CronJobs waited for in less.
const PROGRAM_MAX: Duration = Duration::from_secs(240);

/// Longest that one test binary may take: twice what the longest of them takes on two slow cores.
const BINARY_MAX: Duration = Duration::from_secs(25 * 60);

/// Runs a program to its end and answers what it said; like [`Command::output`], but with an end.
///
/// # Errors
/// When it can't be started, and `TimedOut` when it and its children were killed after [`PROGRAM_MAX`].
pub fn output(command: &mut Command) -> io::Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (ended, end) = channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = end.recv_timeout(PROGRAM_MAX) == Err(RecvTimeoutError::Timeout);
        if late {
            let _ = killpg(group, Signal::SIGKILL);
        }
        late
    });
    let output = child.wait_with_output();
    drop(ended);
    if watchdog.join().unwrap_or(false) {
        let said = output.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned());
        let said = said.unwrap_or_default();
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{command:?} did not end in {PROGRAM_MAX:?}; it said:\n{said}"),
        ));
    }
    output
}

/// Ends this whole test binary when it takes too long: a test that hangs must not take the others with it.
pub fn limit_binary() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            let (_never, end) = channel::<()>();
            let _ = end.recv_timeout(BINARY_MAX);
            eprintln!("the tests of this binary did not end in {BINARY_MAX:?}: given up");
            std::process::abort();
        });
    });
}
