//! What the command line and the environment say, as text.
//!
//! One table, [`table::SPECS`], has every setting with its flag, variables, default and help.

mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::time::Duration;

use capture::values::{Quoted, parse_bool, parse_port};
use clap::{Arg, ArgAction, ArgMatches, Command};
use cni::config::parse_duration;

pub(crate) use table::{Kind, SPECS, Setting, Spec};

/// The name that the injector gives as the first argument, for an image whose entry point has several commands.
const OWN_NAME: &str = "istio-iptables";
const ABOUT: &str =
    "Programs the redirection of a pod's traffic to its Istio proxy, or validates that it works.";
const EXIT_CODES: &str = "Exit codes: 0 done; 1 wrong usage or rules not applied; 126 validation failed.\n\
    A flag goes before a variable; where a setting has two variables, the last one goes before the other.";

/// The value of every setting, each checked for its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// In the order of [`SPECS`].
    values: Vec<String>,
    /// For the log.
    pub(crate) warnings: Vec<String>,
}

/// A command line that cannot be used, or one that asks for help only.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// From the parser; also `--help` and `--version`, which are no failures.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    /// An argument that belongs to no flag.
    #[error(
        "unexpected argument {argument} (the value of a switch is given with \"=\", such as --dual-stack=false)"
    )]
    Stray {
        /// Argument.
        argument: Quoted,
    },
    /// The value of a flag is not of its kind.
    #[error("{name}: {value} is not {expected}")]
    Value {
        /// Flag.
        name: String,
        /// Value.
        value: Quoted,
        /// What would be right.
        expected: &'static str,
    },
}

/// Reads arguments (the program's name first) and environment variables.
///
/// # Errors
/// The command line cannot be used. A variable that cannot be used is a warning, as an image may set it for something else.
pub(crate) fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Options, Error> {
    let matches = command().try_get_matches_from(args)?;
    let strays = matches.get_many::<String>("arguments").into_iter().flatten();
    if let Some(stray) = strays.into_iter().find(|argument| *argument != OWN_NAME) {
        return Err(Error::Stray { argument: Quoted::new(stray) });
    }
    let mut warnings = Vec::new();
    let values = SPECS.iter().map(|spec| value(spec, &matches, env, &mut warnings));
    Ok(Options { values: values.collect::<Result<_, _>>()?, warnings })
}

fn value(
    spec: &Spec,
    matches: &ArgMatches,
    env: &dyn Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    if let Some(flag) = spec.long.and_then(|long| matches.get_one::<String>(long)) {
        spec.kind.check(&spec.name(), flag)?;
        return Ok(flag.clone());
    }
    for name in spec.env.iter().rev() {
        let Some(value) = env(name) else { continue };
        match spec.kind.check(name, &value) {
            Ok(()) => return Ok(value),
            Err(error) => warnings.push(format!("environment variable {error}; it is ignored")),
        }
    }
    Ok(spec.default.to_owned())
}

fn command() -> Command {
    let stray = Arg::new("arguments").num_args(0..).hide(true);
    Command::new(OWN_NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(after_help())
        .args_override_self(true)
        .args(SPECS.iter().filter_map(arg))
        .arg(stray)
}

/// The settings without a flag have no other place in the help.
fn after_help() -> String {
    let lines = SPECS.iter().filter(|spec| spec.long.is_none()).map(|spec| {
        format!("  {}\n          {} [default: {:?}]\n", spec.env.join(", "), spec.help, spec.default)
    });
    format!("Environment only:\n{}\n{EXIT_CODES}", lines.collect::<String>())
}

fn arg(spec: &Spec) -> Option<Arg> {
    let long = spec.long?;
    let default =
        if spec.default.is_empty() { String::new() } else { format!(" [default: {}]", spec.default) };
    let env = if spec.env.is_empty() { String::new() } else { format!(" [env: {}]", spec.env.join(", ")) };
    let arg = Arg::new(long)
        .long(long)
        .short(spec.short)
        .help(format!("{}{default}{env}", spec.help))
        .action(ArgAction::Set);
    Some(match spec.kind {
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL")
            .hide_possible_values(true),
        // As the original: whatever follows is the value, also an empty one or one that looks like a flag.
        Kind::Text => arg.value_name("TEXT").allow_hyphen_values(true),
        Kind::Levels => arg.value_name("LEVELS").allow_hyphen_values(true),
        Kind::Port => arg.value_name("PORT").allow_hyphen_values(true),
        Kind::Time => arg.value_name("TIME").allow_hyphen_values(true),
    })
}

// === impl Options ===

impl Options {
    /// The text of a setting.
    pub(crate) fn text(&self, setting: Setting) -> &str {
        SPECS
            .iter()
            .zip(&self.values)
            .find(|(spec, _)| spec.setting == setting)
            .map_or("", |(_, value)| value)
    }

    /// Whether a switch is on.
    pub(crate) fn on(&self, setting: Setting) -> bool {
        parse_bool(self.text(setting)) == Some(true)
    }

    /// A port.
    ///
    /// # Errors
    /// The setting is of another kind and its text is no port.
    pub(crate) fn port(&self, setting: Setting) -> Result<u16, Error> {
        let text = self.text(setting);
        parse_port(text).map_err(|_| Kind::Port.wrong(&setting.name(), text))
    }

    /// A time.
    ///
    /// # Errors
    /// The setting is of another kind and its text is no time.
    pub(crate) fn time(&self, setting: Setting) -> Result<Duration, Error> {
        let text = self.text(setting);
        parse_duration(text).map_err(|_| Kind::Time.wrong(&setting.name(), text))
    }
}

// === impl Kind ===

impl Kind {
    fn check(self, name: &str, text: &str) -> Result<(), Error> {
        let good = match self {
            Self::Text => true,
            Self::Switch => parse_bool(text).is_some(),
            Self::Port => parse_port(text).is_ok(),
            Self::Time => parse_duration(text).is_ok_and(|time| !time.is_zero()),
            Self::Levels => telemetry::Levels::parse(text).is_ok(),
        };
        if good { Ok(()) } else { Err(self.wrong(name, text)) }
    }

    fn wrong(self, name: &str, text: &str) -> Error {
        let expected = match self {
            Self::Text => "text",
            Self::Switch => "true or false",
            Self::Port => "a port from 1 to 65535",
            Self::Time => "a time above zero, such as 5s or 1m30s",
            Self::Levels => "<scope>:<level> with debug, info, warn, error, fatal or none",
        };
        Error::Value { name: name.to_owned(), value: Quoted::new(text), expected }
    }
}

// === impl Spec ===

impl Spec {
    /// The name that people know the setting by.
    pub(crate) fn name(&self) -> String {
        self.long.map_or_else(|| self.env.concat(), |long| format!("--{long}"))
    }
}

// === impl Setting ===

impl Setting {
    fn name(self) -> String {
        SPECS.iter().find(|spec| spec.setting == self).map(Spec::name).unwrap_or_default()
    }
}
