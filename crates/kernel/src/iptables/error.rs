//! What can go wrong.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::program::Variant;

/// Why iptables did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable program of the name lies in the search path.
    #[error(
        "cannot find {program} in {searched}; install the iptables package on the host, or put the program's directory into PATH"
    )]
    Missing {
        /// Name of the program.
        program: String,
        /// Directories, separated by colons.
        searched: String,
    },
    /// A program works on another variant's rules than its name says or than was asked for.
    #[error(
        "{program} is not the {wanted} variant but the {found} one; choose that one, or install {program} of the {wanted} variant"
    )]
    WrongVariant {
        /// The program.
        program: PathBuf,
        /// What was asked for.
        wanted: Variant,
        /// What it is.
        found: Variant,
    },
    /// The programs that are there need a part of the kernel that is not.
    #[error(
        "{} works by nf_tables, which this kernel does not have; install the legacy variant of iptables on the host",
        program.display()
    )]
    NoNftables {
        /// The program.
        program: PathBuf,
    },
    /// The ruleset has a part that iptables lacks.
    #[error(transparent)]
    Unsupported(#[from] ruleset::iptables::Unsupported),
    /// A program failed.
    #[error(transparent)]
    Run(#[from] Failure),
    /// The kernel did not say which tables it has.
    #[error("cannot read which iptables tables the namespace has from {path}")]
    Names {
        /// File.
        path: &'static str,
        /// From the system.
        source: std::io::Error,
    },
    /// The kernel did not list its nf_tables chains.
    #[error("cannot list the namespace's nf_tables chains")]
    Chains(#[source] crate::netlink::Error),
    /// The process that applies the rules could not be started, or ended without an answer. What it did is unknown; the next
    /// setup repairs it.
    #[error(
        "cannot run the supervisor of iptables: {cause}; the rules may be incomplete until the next setup"
    )]
    Supervisor {
        /// Cause.
        cause: String,
    },
}

impl Error {
    /// Whether no program of iptables is there that could work on this kernel.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::NoNftables { .. })
    }
}

/// A program that failed, and what became of what had been done before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// The program.
    pub program: PathBuf,
    /// How it ended.
    pub cause: ProgramFailure,
    /// What it said, shortened.
    pub said: String,
    /// Why the earlier steps could not be taken back; empty when they were, or when there were none.
    pub left: Vec<String>,
}

/// How a program failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramFailure {
    /// It could not be started.
    Start(String),
    /// It ended with this code.
    Exit(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// It printed more than this many bytes and was killed.
    TooMuch(u64),
    /// It did not end in this time and was killed.
    Timeout(Duration),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program.display(), self.cause)?;
        if !self.said.is_empty() {
            write!(f, ": {}", self.said)?;
        }
        if !self.left.is_empty() {
            write!(f, "; what was done before could not be taken back: {}", self.left.join("; "))?;
        }
        Ok(())
    }
}

impl fmt::Display for ProgramFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(source) => write!(f, "could not be started: {source}"),
            Self::Exit(code) => match exit_kind(*code) {
                Some(kind) => write!(f, "failed with code {code} ({kind})"),
                None => write!(f, "failed with code {code}"),
            },
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::TooMuch(most) => {
                write!(f, "printed more than {most} bytes and was killed (who has put so many rules there?)")
            }
            Self::Timeout(limit) => {
                write!(f, "did not end within {} s and was killed", limit.as_secs_f32())
            }
        }
    }
}

/// `enum xtables_exittype` in iptables' `xtables.h`.
fn exit_kind(code: i32) -> Option<&'static str> {
    match code {
        1 => Some("xtables other problem"),
        2 => Some("xtables parameter problem"),
        3 => Some("xtables version problem: the kernel and the program do not fit"),
        4 => Some(
            "xtables resource problem: the kernel lacks this variant, the lock is taken, or memory is short",
        ),
        _ => None,
    }
}
