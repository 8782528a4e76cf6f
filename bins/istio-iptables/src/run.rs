//! The stages, one after the other, and what each failure means for the exit code.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use capture::plan::{NoAddress, detect_ipv6};
use kernel::iptables::Supervisor;
use netns::{Inside, Netns};
use telemetry::{Level, Logger};

use crate::config::{self, Config, Probe};
use crate::options::{self, IptablesOptions, IptablesSetting};
use crate::{apply, validate};

/// What the repair controller looks for in the state of the validation container.
const VALIDATION_FAILED: u8 = 126;
const FAILED: u8 = 1;

/// Why the program ends with another code than 0.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Netns(#[from] netns::Error),
    #[error("cannot list the addresses of the pod's interfaces")]
    Addresses(#[source] kernel::Error),
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    #[error(transparent)]
    Apply(#[from] apply::Error),
    #[error("cannot write to stdout")]
    Stdout(#[source] std::io::Error),
    #[error(transparent)]
    Validate(#[from] validate::Error),
}

/// The whole program.
pub(crate) fn run(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<String>,
    supervisor: Supervisor,
) -> ExitCode {
    let log = Logger::new();
    let options = match options::parse(args, env) {
        Ok(options) => options,
        Err(error) => return usage(&error, &log),
    };
    // Not a path: no file and no agent's socket, stderr only.
    log.attach(Path::new(""), level(options.text(IptablesSetting::LogOutputLevel)));
    match stages(&options, supervisor, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(&fault::chain(&error), &[]);
            ExitCode::from(if matches!(error, Error::Validate(_)) { VALIDATION_FAILED } else { FAILED })
        }
    }
}

fn stages(options: &IptablesOptions, supervisor: Supervisor, log: &Logger) -> Result<(), Error> {
    let config = config::build(options, &|path| std::fs::read_to_string(path))?;
    for warning in &config.warnings {
        log.warn(warning, &[]);
    }
    log.debug("settings", &[("config", &format_args!("{config:?}"))]);
    match &config.namespace {
        Some(path) => {
            let netns = Netns::open(path)?;
            netns.enter(|inside| work(&config, inside, supervisor, log))?
        }
        None => work(&config, &Inside::of_calling_thread()?, supervisor, log),
    }
}

fn work(config: &Config, inside: &Inside, supervisor: Supervisor, log: &Logger) -> Result<(), Error> {
    let addresses = kernel::route::addresses(inside).map_err(|e| Error::Addresses(e.into()))?;
    let text = apply::run(config, inside, &addresses, supervisor, log)?;
    std::io::stdout().write_all(text.as_bytes()).map_err(Error::Stdout)?;
    match config.probe {
        Some(probe) => check(config, probe, &addresses, log),
        None => Ok(()),
    }
}

fn check(config: &Config, probe: Probe, addresses: &[IpAddr], log: &Logger) -> Result<(), Error> {
    // Also with dual stack only the first address' family is tried.
    let ipv6 = detect_ipv6(addresses, false)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for doubt in validate::doubts(&config.settings, ipv6, uid, gid) {
        log.warn(&doubt, &[]);
    }
    let validated = validate::run(&config.settings, ipv6, probe)?;
    log.info(
        "validated: connections of the proxy to its own pod are redirected",
        &[("connected to", &validated.target), ("came out at", &validated.listener)],
    );
    Ok(())
}

/// `--help` and `--version` come here too.
fn usage(error: &options::Error, log: &Logger) -> ExitCode {
    match error {
        options::Error::Usage(clap) if !clap.use_stderr() => {
            // A closed pipe: the reader has enough.
            let _ = clap.print();
            ExitCode::SUCCESS
        }
        options::Error::Usage(clap) => {
            let _ = clap.print();
            ExitCode::from(FAILED)
        }
        error => {
            log.error(&format!("{error}; --help lists all flags"), &[]);
            ExitCode::from(FAILED)
        }
    }
}

/// The level of `scope:level,scope:level`, as far as it is for everything.
fn level(text: &str) -> Level {
    let mut for_all = text.split(',').filter_map(|item| match item.split_once(':') {
        None => Some(item),
        Some(("default" | "all", level)) => Some(level),
        Some(_) => None,
    });
    for_all.next_back().map_or(Level::Info, Level::parse)
}

#[cfg(test)]
mod tests;
