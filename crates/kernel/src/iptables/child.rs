//! One run of one program: input complete before the start, time bounded, output kept.
//!
//! Input and output are anonymous memory files, not pipes. A pipe breaks when the process that holds its other end is killed, and
//! iptables would then stop between two tables; a memory file does not.

use std::fs::File;
use std::io::{self, PipeReader, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, prlimit};

use super::error::ProgramFailure;

/// How much of what a program printed is kept for a message.
const MESSAGE_LIMIT: usize = 2048;
/// How much a program may print, in bytes. The largest plan is a small part of it; what somebody else has planted beside it is not read to its end.
const MOST_OUTPUT: u64 = 32 << 20;
/// `SIGXFSZ`, by which the kernel ends a program that prints more.
const OUTPUT_SIGNAL: i32 = 25;
/// How long a killed program may take to go away; one that is stuck in the kernel is left behind.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// The pause between two looks at a child on kernels without `pidfd_open(2)` (before Linux 5.3).
const WAIT_PAUSE: Duration = Duration::from_millis(1);

/// The surroundings of the runs.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// The only environment variables of the child.
    pub(super) environment: Vec<(String, String)>,
    /// The user namespace that the child joins before it starts the program.
    pub(super) user_namespace: Option<OwnedFd>,
    /// Held open by the child: the namespace is locked while it is at work.
    pub(super) lock: Option<OwnedFd>,
    /// The longest that a run may take.
    pub(super) timeout: Duration,
}

/// A memory file with this content, to be read from its start.
pub(super) fn memory_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("iptables", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// The content of a memory file that somebody else has written.
pub(super) fn read_all(file: &File) -> io::Result<Vec<u8>> {
    // A memory file is as long as it says; nobody writes any more.
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// Runs a program with its input, or without and for its output.
///
/// # Errors
/// How it failed, and what it said.
pub(super) fn run(
    program: &Path,
    arguments: &[&str],
    input: Option<&str>,
    around: &Surroundings,
) -> Result<String, (ProgramFailure, String)> {
    let start = |source: io::Error| (ProgramFailure::Start(source.to_string()), String::new());
    let (stdout, stderr) = (memory_file(b"").map_err(start)?, memory_file(b"").map_err(start)?);
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(around.environment.iter().map(|(k, v)| (k, v)));
    // A signal to the caller's process group must not end the program half-way.
    command.process_group(0).stderr(stderr.try_clone().map_err(start)?);
    match (input, &around.lock) {
        // iptables-restore prints nothing; its output descriptor carries the lock.
        (Some(_), Some(lock)) => command.stdout(lock.try_clone().map_err(start)?),
        _ => command.stdout(stdout.try_clone().map_err(start)?),
    };
    match input {
        Some(text) => command.stdin(memory_file(text.as_bytes()).map_err(start)?),
        None => command.stdin(Stdio::null()),
    };
    if let Some(fd) = &around.user_namespace {
        join_before_exec(&mut command, fd.as_fd()).map_err(start)?;
    }
    let mut child = command.spawn().map_err(start)?;
    if input.is_none() {
        bound_output(&child);
    }
    let said = || shorten(&read_all(&stderr).unwrap_or_default());
    match wait(&mut child, around.timeout).map_err(start)? {
        None => Err((ProgramFailure::Timeout(around.timeout), said())),
        // It was quicker than the limit.
        Some(_) if stdout.metadata().map_err(start)?.len() > MOST_OUTPUT => {
            Err((ProgramFailure::TooMuch(MOST_OUTPUT), said()))
        }
        Some(status) if status.success() => {
            Ok(String::from_utf8_lossy(&read_all(&stdout).map_err(start)?).into_owned())
        }
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Err((ProgramFailure::Exit(code), said())),
            (None, Some(OUTPUT_SIGNAL)) => Err((ProgramFailure::TooMuch(MOST_OUTPUT), said())),
            (None, signal) => Err((ProgramFailure::Signal(signal.unwrap_or_default()), said())),
        },
    }
}

/// The child has its output in a memory file, for which the limit on files holds. One that has ended already is found out by its output.
fn bound_output(child: &Child) {
    let limit = Rlimit { current: Some(MOST_OUTPUT), maximum: Some(MOST_OUTPUT) };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| prlimit(Some(pid), Resource::Fsize, limit));
}

/// Waits for the end of a child; `None` when it did not end in time and was killed.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + timeout;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        pause(pidfd.as_ref().map(AsFd::as_fd), left)?;
    }
    child.kill()?;
    let killed = Instant::now();
    while child.try_wait()?.is_none() && killed.elapsed() < KILL_GRACE {
        pause(pidfd.as_ref().map(AsFd::as_fd), WAIT_PAUSE)?;
    }
    Ok(None)
}

/// Everything that comes through a pipe until its other end is closed; `None` when that takes too long.
pub(super) fn read_until(mut pipe: PipeReader, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + timeout;
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        match pipe.read(&mut part)? {
            0 => return Ok(Some(all)),
            length => all.extend_from_slice(&part[..length]),
        }
    }
}

fn pause(pidfd: Option<BorrowedFd<'_>>, longest: Duration) -> io::Result<()> {
    let Some(pidfd) = pidfd else {
        std::thread::sleep(WAIT_PAUSE.min(longest));
        return Ok(());
    };
    // A time that does not fit means no limit here; the caller's loop has its own.
    let timeout = Timespec::try_from(longest).ok();
    match poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[allow(unsafe_code)]
fn join_before_exec(command: &mut Command, namespace: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_gid, set_thread_uid};
    let namespace = namespace.try_clone_to_owned()?;
    let join = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
        // Our own user is nobody there, and exec takes all capabilities from somebody who is not root.
        set_thread_gid(Gid::ROOT)?;
        set_thread_uid(Uid::ROOT)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made: no allocation, no lock. The descriptor lives in the closure, and
    // the new process has no other thread whose ids would now differ.
    unsafe { command.pre_exec(join) };
    Ok(())
}

/// The end of a program's message, on one line: the last lines name the cause.
fn shorten(text: &[u8]) -> String {
    let text = &text[text.len().saturating_sub(MESSAGE_LIMIT)..];
    let text = String::from_utf8_lossy(text);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
