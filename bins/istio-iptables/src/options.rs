//! What the command line and the environment say, as text.
//!
//! One table, [`table::SPECS`], has every setting with its flag, variables, default and help.

mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::time::Duration;

use capture::values::{Quoted, parse_port};
use clap::{Arg, ArgMatches, Command};
use cni::config::parse_duration;
use options::{Spec, TextKind, Values, arg, help_of_variables};

pub(crate) use table::{IptablesSetting, SPECS};

/// The name that the injector gives as the first argument, for an image whose entry point has several commands.
const OWN_NAME: &str = "istio-iptables";
const ABOUT: &str =
    "Programs the redirection of a pod's traffic to its Istio proxy, or validates that it works.";
const EXIT_CODES: &str = "Exit codes: 0 done; 1 wrong usage or rules not applied; 126 validation failed.\n\
    A flag goes before a variable; where a setting has two variables, the last one goes before the other.";

/// The value of every setting, each checked for its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IptablesOptions {
    values: Values<IptablesSetting>,
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
) -> Result<IptablesOptions, Error> {
    let matches = command().try_get_matches_from(args)?;
    let strays = matches.get_many::<String>("arguments").into_iter().flatten();
    if let Some(stray) = strays.into_iter().find(|argument| *argument != OWN_NAME) {
        return Err(Error::Stray { argument: Quoted::new(stray) });
    }
    let mut warnings = Vec::new();
    let values = SPECS.iter().map(|spec| value(spec, &matches, env, &mut warnings));
    let values = Values::new(SPECS, values.collect::<Result<_, _>>()?);
    Ok(IptablesOptions { values, warnings })
}

fn value(
    spec: &Spec<IptablesSetting>,
    matches: &ArgMatches,
    env: &dyn Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    if let Some(flag) = spec.flag().and_then(|long| matches.get_one::<String>(long)) {
        check(spec.kind, &title(spec), flag)?;
        return Ok(flag.clone());
    }
    for name in spec.env.iter().rev() {
        let Some(value) = env(name) else { continue };
        match check(spec.kind, name, &value) {
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
        .after_help(format!("{}\n{EXIT_CODES}", help_of_variables(SPECS)))
        .args_override_self(true)
        .args(SPECS.iter().filter_map(arg))
        .arg(stray)
}

// === impl IptablesOptions ===

impl IptablesOptions {
    /// The text of a setting.
    pub(crate) fn text(&self, setting: IptablesSetting) -> &str {
        self.values.text(setting)
    }

    /// Whether a switch is on.
    pub(crate) fn on(&self, setting: IptablesSetting) -> bool {
        self.values.on(setting)
    }

    /// A port.
    ///
    /// # Errors
    /// The setting is of another kind and its text is no port.
    pub(crate) fn port(&self, setting: IptablesSetting) -> Result<u16, Error> {
        let text = self.text(setting);
        parse_port(text).map_err(|_| self.invalid_value(setting, text))
    }

    /// A time.
    ///
    /// # Errors
    /// The setting is of another kind and its text is no time.
    pub(crate) fn time(&self, setting: IptablesSetting) -> Result<Duration, Error> {
        let text = self.text(setting);
        parse_duration(text).map_err(|_| self.invalid_value(setting, text))
    }

    /// For a setting of another kind than is asked for.
    fn invalid_value(&self, setting: IptablesSetting, text: &str) -> Error {
        let spec = SPECS.iter().find(|spec| spec.setting == setting);
        let name = spec.map(title).unwrap_or_default();
        Error::Value { name, value: Quoted::new(text), expected: "of the kind that is asked for" }
    }
}

fn check(kind: TextKind, name: &str, text: &str) -> Result<(), Error> {
    let wrong = |expected| Error::Value { name: name.to_owned(), value: Quoted::new(text), expected };
    kind.check(text).map_err(wrong)
}

/// The name that people know the setting by.
pub(crate) fn title(spec: &Spec<IptablesSetting>) -> String {
    spec.flag().map_or_else(|| spec.variables().concat(), |flag| format!("--{flag}"))
}
