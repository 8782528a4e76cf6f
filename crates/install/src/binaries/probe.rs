//! Whether a plugin's program runs on this machine: it is asked for its versions, which changes nothing.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use cni::json::Value;

/// Longest time for the answer; a plugin needs milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// A process that is being started elsewhere in this one holds the new file open for writing for a moment.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

const NULL: &str = "/dev/null";

/// A program that does not answer as a CNI plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("it cannot be started: {0}{hint}", hint = start_hint(.0))]
    Start(io::Error),
    #[error("open {NULL}, which it is to have instead of its input and output: {0}")]
    Null(io::Error),
    #[error("it did not answer within {TIMEOUT:?}")]
    TimedOut,
    #[error("its answer could not be read: {0}")]
    Read(io::Error),
    #[error("its answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("it ended with {0}")]
    Failed(ExitStatus),
    #[error("its answer to VERSION is not a JSON object with supportedVersions")]
    NoVersions,
    #[error("it does not say which version it is")]
    NoAbout,
}

fn start_hint(cause: &io::Error) -> &'static str {
    match Errno::from_io_error(cause) {
        Some(Errno::NOEXEC) => "; is the image built for this architecture?",
        Some(Errno::ACCESS) => "; is the directory mounted noexec?",
        _ => "",
    }
}

/// The CNI versions that the program says it supports.
pub(crate) fn supported_versions(program: &Path) -> Result<Vec<String>, ProbeError> {
    let mut command = Command::new(program);
    command.env_clear().env("CNI_COMMAND", "VERSION").stdout(Stdio::piped()).stderr(null()?);
    let answer =
        Value::parse(&ask(command, |child| child.stdout.take())?).map_err(|_| ProbeError::NoVersions)?;
    let Some(Value::Array(versions)) = answer.get("supportedVersions") else {
        return Err(ProbeError::NoVersions);
    };
    let versions = versions.iter().filter_map(|version| match version {
        Value::String(version) => Some(version.clone()),
        _ => None,
    });
    Ok(versions.collect())
}

/// The version that the program says it is. Plugins made as the reference ones tell it on standard error when they are started by
/// hand; upstream's line has the same form as ours.
pub(crate) fn own_version(program: &Path) -> Result<String, ProbeError> {
    let mut command = Command::new(program);
    command.env_clear().stdout(null()?).stderr(Stdio::piped());
    let answer = ask(command, |child| child.stderr.take())?;
    parse_about(&String::from_utf8_lossy(&answer)).ok_or(ProbeError::NoAbout)
}

/// The last word of the first line, `CNI plugin <name> <version>`.
fn parse_about(text: &str) -> Option<String> {
    let (_, version) = text.lines().next()?.strip_prefix("CNI plugin ")?.rsplit_once(' ')?;
    let is_version = !version.is_empty() && version.chars().all(|c| c.is_ascii_graphic());
    is_version.then(|| version.to_owned())
}

/// What the program writes to one of its pipes.
fn ask<P: Read + AsFd>(
    command: Command,
    pipe: impl FnOnce(&mut Child) -> Option<P>,
) -> Result<Vec<u8>, ProbeError> {
    let mut child = start(command)?;
    let pipe = pipe(&mut child);
    let answer = converse(&mut child, pipe, Instant::now() + TIMEOUT);
    if answer.is_err() {
        end(&mut child);
    }
    answer
}

fn start(mut command: Command) -> Result<Child, ProbeError> {
    // No other working directory: for that the standard library takes the way of execvp, which hands to a shell what the kernel does
    // not know as a program.
    command.process_group(0).stdin(null()?);
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(cause) if Errno::from_io_error(&cause) == Some(Errno::TXTBSY) && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            started => return started.map_err(ProbeError::Start),
        }
    }
}

/// Opened here, for that a start that fails is the program's: the same error numbers mean something else of it.
fn null() -> Result<Stdio, ProbeError> {
    let opened = File::options().read(true).write(true).open(NULL);
    opened.map(Stdio::from).map_err(ProbeError::Null)
}

fn converse(
    child: &mut Child,
    pipe: Option<impl Read + AsFd>,
    deadline: Instant,
) -> Result<Vec<u8>, ProbeError> {
    let mut answer = Vec::new();
    if let Some(mut pipe) = pipe {
        let mut chunk = vec![0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| ProbeError::TimedOut)?;
            let ready = rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left));
            match ready {
                Ok(0) => return Err(ProbeError::TimedOut),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(cause) => return Err(ProbeError::Read(cause.into())),
            }
            match pipe.read(&mut chunk).map_err(ProbeError::Read)? {
                0 => break,
                length => answer.extend_from_slice(&chunk[..length]),
            }
            if answer.len() > MAX_ANSWER {
                return Err(ProbeError::TooLong);
            }
        }
    }
    loop {
        match child.try_wait().map_err(ProbeError::Read)? {
            Some(status) if status.success() => return Ok(answer),
            Some(status) => return Err(ProbeError::Failed(status)),
            None if Instant::now() >= deadline => return Err(ProbeError::TimedOut),
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Ends the program and what it started. It may have ended by itself.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        && matches!(child.try_wait(), Ok(None))
    {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_of_a_program_that_does_not_start_it_is_asked_whether_it_may() {
        let denied = || io::Error::from(Errno::ACCESS);
        assert!(ProbeError::Start(denied()).to_string().contains("noexec"));
        let of_null = ProbeError::Null(denied()).to_string();
        assert!(of_null.contains("/dev/null") && !of_null.contains("noexec"), "{of_null}");
    }

    #[test]
    fn the_version_is_the_last_word_of_a_plugins_own_line() {
        let version = |text: &str| parse_about(text);
        assert_eq!(
            version("CNI plugin istio-cni 0.1.0\nCNI protocol versions supported: 1.0.0\n"),
            Some("0.1.0".into())
        );
        assert_eq!(version("CNI plugin istio-cni 1.27.0-Clean\n"), Some("1.27.0-Clean".into()));
        for text in ["", "usage: x\n", "CNI plugin istio-cni\n", "CNI plugin istio-cni \u{1b}[2J\n"] {
            assert_eq!(version(text), None, "{text:?}");
        }
    }
}
