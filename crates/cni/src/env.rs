//! The environment a runtime gives to a plugin.

use std::fmt;

use crate::error::{Error, code, shorten};

/// Looks up an environment variable. A value that is not UTF-8 should be given lossily: the replacement characters then
/// fail the validation where there is one.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The operations of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Add a container to the network.
    Add,
    /// Remove a container from the network.
    Del,
    /// Check that a container's networking is as expected.
    Check,
    /// Tell whether an ADD could be served.
    Status,
    /// Drop what belongs to no valid attachment.
    Gc,
    /// Tell the supported versions.
    Version,
}

impl Verb {
    /// All verbs.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// The value of `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// How messages call the work for this verb, e.g. `cmdAdd`.
    pub(crate) fn handler_name(self) -> &'static str {
        match self {
            Self::Add => "cmdAdd",
            Self::Del => "cmdDel",
            Self::Check => "cmdCheck",
            Self::Status => "cmdStatus",
            Self::Gc => "cmdGC",
            Self::Version => "cmdVersion",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `CNI_COMMAND` as given: an unknown one is reported only after stdin was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A verb of the protocol.
    Known(Verb),
    /// Anything else.
    Unknown(String),
}

/// The variables of one call. A text is empty when the variable is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// `CNI_COMMAND`
    pub command: Command,
    /// `CNI_CONTAINERID`, valid when the verb needs it.
    pub container_id: String,
    /// `CNI_NETNS`, a path.
    pub netns: String,
    /// `CNI_IFNAME`, valid when the verb needs it.
    pub ifname: String,
    /// `CNI_ARGS`, see [`crate::Args`].
    pub args: String,
    /// `CNI_PATH`
    pub path: String,
    /// `CNI_NETNS_OVERRIDE` asks to leave out the comparison of namespaces.
    pub netns_override: bool,
}

/// What stops a call before stdin is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvError {
    /// No `CNI_COMMAND`: somebody started the plugin by hand.
    NoCommand,
    /// Required variables are missing or malformed.
    Invalid(Error),
}

fn needs_container(verb: Verb) -> bool {
    matches!(verb, Verb::Add | Verb::Check | Verb::Del)
}

/// Reads the variables in the protocol's order. A malformed one fails at once, missing ones are reported together; an
/// empty value counts as missing.
pub fn read(lookup: Lookup<'_>) -> Result<Variables, EnvError> {
    let get = |name: &str| lookup(name).unwrap_or_default();
    let command = get("CNI_COMMAND");
    if command.is_empty() {
        return Err(EnvError::NoCommand);
    }
    let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == command);
    let needed = |test: fn(Verb) -> bool| verb.is_some_and(test);
    let mut missing = Vec::new();
    let mut required = |name: &'static str, test: fn(Verb) -> bool, check: Check| {
        let value = get(name);
        if needed(test) {
            if value.is_empty() {
                missing.push(name);
            } else {
                check(&value).map_err(EnvError::Invalid)?;
            }
        }
        Ok(value)
    };
    let container_id = required("CNI_CONTAINERID", needs_container, check_container_id)?;
    let netns = required("CNI_NETNS", |verb| matches!(verb, Verb::Add | Verb::Check), |_| Ok(()))?;
    let ifname = required("CNI_IFNAME", needs_container, check_ifname)?;
    let args = get("CNI_ARGS");
    let path = required("CNI_PATH", |verb| verb != Verb::Version, |_| Ok(()))?;
    let flag = get("CNI_NETNS_OVERRIDE");
    if !missing.is_empty() {
        let text = format!("required env variables [{}] missing", missing.join(","));
        return Err(EnvError::Invalid(Error::new(code::INVALID_ENVIRONMENT, text)));
    }
    Ok(Variables {
        command: verb.map_or(Command::Unknown(command), Command::Known),
        container_id,
        netns,
        ifname,
        args,
        path,
        netns_override: flag == "1" || flag.eq_ignore_ascii_case("true"),
    })
}

type Check = fn(&str) -> Result<(), Error>;

/// Whether `text` matches `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`, the form of container IDs and network names (CNI spec).
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn check_container_id(text: &str) -> Result<(), Error> {
    if is_identifier(text) {
        return Ok(());
    }
    Err(Error::new(code::INVALID_ENVIRONMENT, "invalid characters in containerID")
        .with_details(shorten(text)))
}

/// Longest interface name in bytes: IFNAMSIZ of linux/if.h less the closing zero.
const IFNAME_MAX: usize = 15;

fn check_ifname(text: &str) -> Result<(), Error> {
    let error = |msg: &str| Err(Error::new(code::INVALID_ENVIRONMENT, msg));
    if text.len() > IFNAME_MAX {
        return error("interface name is too long")
            .map_err(|error| error.with_details("interface name should be less than 16 characters"));
    }
    if text == "." || text == ".." {
        return error("interface name is . or ..");
    }
    if text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace()) {
        return error("interface name contains / or : or whitespace characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
