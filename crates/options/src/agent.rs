//! The options of the node agent: what the command line, the configuration directory and the environment say, as text.
//!
//! One table, [`SPECS`], has every option. The name in upper case with `_` for `-` is its variable and its file. A flag goes before
//! a file, a file before a variable: files follow a ConfigMap while this process runs, variables do not.

mod change;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::{ArgMatches, Command};

use crate::{Given, Spec, Values, arg, help_of_variables};

pub use change::Changed;
pub use table::{SPECS, Setting};

const NAME: &str = "install-cni";
const ABOUT: &str =
    "The Istio CNI node agent: installs the plugin on this node, keeps it installed, and serves it.";
const SUBCOMMANDS: &str = "\
install-cni version [-s] [-o json|yaml]: prints the version.
install-cni delete-daemonset: deletes DaemonSet istio-cni-node in POD_NAMESPACE and waits until its pods have ended.";
const EXIT_CODES: &str =
    "Exit codes: 0 ended by SIGTERM or SIGINT; 1 the configuration cannot be used; 2 wrong usage.";

/// How an option of the agent is given.
pub type AgentSpec = Spec<Setting>;

/// The value of every option.
pub type Options = Values<Setting>;

/// Values by variable name: the environment, or the configuration directory.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The flags of this process. They stay as they are while files and variables are read again.
#[derive(Debug, Clone)]
pub struct Flags(ArgMatches);

/// An option with a value that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("option {name}: {value:?} {problem}")]
pub struct BadOption {
    name: &'static str,
    value: String,
    problem: String,
}

// === impl Flags ===

impl Flags {
    /// Reads arguments, the program's name first.
    ///
    /// # Errors
    /// Wrong usage; also `--help` and `--version`, which are no failures.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(args)?;
        for spec in SPECS.iter().filter(|spec| spec.given != Given::Variable) {
            if let Some(value) = matches.get_one::<String>(spec.name) {
                let text = |BadOption { name, value, problem }| format!("--{name}: {value:?} {problem}");
                check(spec, value)
                    .map_err(|bad| command.error(clap::error::ErrorKind::InvalidValue, text(bad)))?;
            }
        }
        Ok(Self(matches))
    }

    /// Every option, with what these say.
    ///
    /// # Errors
    /// The first file or variable whose text is not of its option's kind. One that is empty counts as set: a switch is off, a number is 0,
    /// as in the original.
    pub fn options(&self, files: Lookup<'_>, env: Lookup<'_>) -> Result<Options, BadOption> {
        let value = |spec: &AgentSpec| {
            let text = self.value(spec, files, env);
            if text.is_empty() { Ok(text) } else { check(spec, &text).map(|()| text) }
        };
        Ok(Options::new(SPECS, SPECS.iter().map(value).collect::<Result<_, _>>()?))
    }

    /// The text of one option, whatever the others say.
    pub fn text(&self, setting: Setting, env: Lookup<'_>) -> String {
        let spec = SPECS.iter().find(|spec| spec.setting == setting);
        spec.map(|spec| self.value(spec, &|_| None, env)).unwrap_or_default()
    }

    fn value(&self, spec: &AgentSpec, files: Lookup<'_>, env: Lookup<'_>) -> String {
        let flag = (spec.given != Given::Variable).then(|| self.0.get_one::<String>(spec.name)).flatten();
        let variable = || {
            let name = (spec.given != Given::Flag).then(|| spec.variable())?;
            files(&name).or_else(|| env(&name)).map(without_newlines)
        };
        flag.cloned().or_else(variable).unwrap_or_else(|| spec.default.to_owned())
    }
}

// === impl BadOption ===

impl BadOption {
    /// The value of an option, which is cut.
    pub fn new(name: &'static str, value: &str, problem: impl Into<String>) -> Self {
        Self { name, value: value.chars().take(200).collect(), problem: problem.into() }
    }
}

fn check(spec: &AgentSpec, value: &str) -> Result<(), BadOption> {
    spec.kind.check(value).map_err(|expected| BadOption::new(spec.name, value, format!("is not {expected}")))
}

/// The value without the newlines that an editor or a YAML block leaves at its end. Everything else is part of it.
pub fn without_newlines(mut value: String) -> String {
    value.truncate(value.trim_end_matches(['\r', '\n']).len());
    value
}

/// The command line.
pub fn command() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(format!("{}\n{SUBCOMMANDS}\n\n{EXIT_CODES}", help_of_variables(SPECS)))
        .args_override_self(true)
        .args(SPECS.iter().filter_map(arg))
}
