//! One run of one program, such as a plugin, with its time and memory.

use std::io::{self, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitIdOptions, kill_process_group, waitid};

/// How much is kept of what a plugin prints, in bytes. What is more is read and thrown away.
const KEPT: usize = 8 << 20;

/// A finished run.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// From before the process was made until it had ended.
    pub(crate) duration: Duration,
    /// Largest resident set of the plugin, or of a program that it ran, in KiB (`ru_maxrss` of getrusage(2)).
    pub(crate) peak_rss_kib: u64,
    /// It was killed because it took too long.
    pub(crate) timed_out: bool,
}

/// Runs a program with `input` on its standard input, for at most `timeout`.
///
/// # Errors
/// It cannot be started.
pub(crate) fn execute(mut command: Command, input: &[u8], timeout: Duration) -> io::Result<Execution> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that what it started can be ended with it.
    command.process_group(0);
    measure_alone(&mut command);
    let started = Instant::now();
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let (ended, wait) = channel::<()>();
        let guard = scope.spawn(move || kill_late(pid, timeout, &wait));
        scope.spawn(move || {
            // A plugin that needs no input closes it, which is no failure of the run.
            stdin.map(|mut stdin| stdin.write_all(input))
        });
        let stdout = scope.spawn(move || drain(stdout));
        let stderr = scope.spawn(move || drain(stderr));
        // Without collecting it, so that its process id is not reused while the guard may still send a signal.
        while let Err(rustix::io::Errno::INTR) =
            waitid(rustix::process::WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
        let duration = started.elapsed();
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        drop(ended);
        let timed_out = guard.join().unwrap_or(false);
        let (status, peak_rss_kib) = collect(pid)?;
        Ok(Execution { status, stdout, stderr, duration, peak_rss_kib, timed_out })
    })
}

/// Ends the plugin's process group if it does not end in time.
fn kill_late(pid: Pid, timeout: Duration, ended: &Receiver<()>) -> bool {
    if ended.recv_timeout(timeout) != Err(RecvTimeoutError::Timeout) {
        return false;
    }
    // It may have ended at this very moment; then there is nothing to end.
    let _ = kill_process_group(pid, Signal::KILL);
    true
}

fn drain(pipe: Option<impl Read>) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        // A broken pipe ends the text; the exit status says what happened.
        let _ = pipe.by_ref().take(KEPT as u64).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
    }
    kept
}

/// Makes the standard library fork instead of sharing our memory with the child until it executes the program: the kernel counts
/// the memory that a process had before `execve` as its own, and that would be all of ours. A forked child has only what we have
/// written to, a few hundred KiB: less than a plugin needs itself.
#[allow(unsafe_code)]
fn measure_alone(command: &mut Command) {
    // SAFETY: the closure does nothing, so it does nothing that is not allowed between fork and exec.
    unsafe { command.pre_exec(|| Ok(())) };
}

/// Collects an ended child: its status and peak memory in KiB.
#[allow(unsafe_code)]
fn collect(pid: Pid) -> io::Result<(ExitStatus, u64)> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers lead to values of the types that wait4(2) writes, and live longer than the call.
    let collected = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &mut status, 0, usage.as_mut_ptr()) };
    if collected < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero is a valid rusage, which consists of numbers only.
    let usage = unsafe { usage.assume_init() };
    Ok((ExitStatus::from_raw(status), u64::try_from(usage.ru_maxrss).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is being written cannot be executed, and a child that another test forks meanwhile has it open too.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn shell(script: &str, timeout: Duration) -> Execution {
        let _alone = ONE_AT_A_TIME.lock();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(&path);
        command.env("WORD", "word");
        execute(command, b"input", timeout).unwrap()
    }

    #[test]
    fn input_environment_output_and_status_arrive() {
        let run = shell("cat; echo $WORD; echo trouble >&2; exit 3", Duration::from_secs(20));
        assert_eq!(run.stdout, b"inputword\n");
        assert_eq!(run.stderr, b"trouble\n");
        assert_eq!((run.status.code(), run.timed_out), (Some(3), false));
    }

    #[test]
    fn memory_is_that_of_the_program_and_of_what_it_runs() {
        let small = shell("true", Duration::from_secs(20));
        let large =
            shell("x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ${#x}", Duration::from_secs(20));
        assert_eq!(large.stdout, b"30000000\n");
        assert!(large.peak_rss_kib > 25_000, "{} KiB", large.peak_rss_kib);
        assert!((100..25_000).contains(&small.peak_rss_kib), "{} KiB", small.peak_rss_kib);
    }

    #[test]
    fn one_that_takes_too_long_is_ended_with_what_it_started() {
        let started = Instant::now();
        let run = shell("sleep 60 & echo begun; sleep 60", Duration::from_millis(300));
        assert!(run.timed_out && run.status.signal() == Some(9), "{run:?}");
        assert_eq!(run.stdout, b"begun\n");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn input_that_nobody_reads_and_much_output_do_not_block() {
        let run = shell("head -c 20000000 /dev/zero", Duration::from_secs(20));
        assert_eq!((run.status.code(), run.stdout.len()), (Some(0), KEPT));
    }
}
