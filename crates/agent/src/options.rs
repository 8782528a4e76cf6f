//! What the command line, the configuration directory and the environment say, as text.
//!
//! One table, [`table::SPECS`], has every option. The name in upper case with `_` for `-` is its variable and its file. A flag goes before
//! a file, a file before a variable: files follow a ConfigMap while this process runs, variables do not.

mod change;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command};

pub(crate) use change::Changed;
pub(crate) use table::{SPECS, Setting};

const NAME: &str = "install-cni";
const ABOUT: &str =
    "The Istio CNI node agent: installs the plugin on this node, keeps it installed, and serves it.";
const SUBCOMMANDS: &str = "\
install-cni version [-s] [-o json|yaml]: prints the version.
install-cni delete-daemonset: deletes DaemonSet istio-cni-node in POD_NAMESPACE and waits until its pods have ended.";
const EXIT_CODES: &str =
    "Exit codes: 0 ended by SIGTERM or SIGINT; 1 the configuration cannot be used; 2 wrong usage.";

/// How an option may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    /// By both.
    FlagOrVariable,
    /// Not on the command line.
    Variable,
    /// On the command line only.
    Flag,
}

/// What its text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything; [`crate::config`] reads it.
    Text,
    /// A boolean; the flag alone is true.
    Switch,
    /// A whole number, also `0600` and `0x1f`.
    Integer,
}

/// How an option is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) setting: Setting,
    /// The flag's name.
    pub(crate) name: &'static str,
    pub(crate) given: Given,
    pub(crate) kind: Kind,
    /// Used where it is not given.
    pub(crate) default: &'static str,
    /// For people.
    pub(crate) help: &'static str,
}

/// The value of every option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// In the order of [`SPECS`].
    values: Vec<String>,
}

/// Values by variable name: the environment, or the configuration directory.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The flags of this process. They stay as they are while files and variables are read again.
#[derive(Debug, Clone)]
pub(crate) struct Flags(ArgMatches);

/// An option with a value that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("option {name}: {value:?} {problem}")]
pub(crate) struct BadOption {
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
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(args)?;
        for spec in SPECS.iter().filter(|spec| spec.given != Given::Variable) {
            if let Some(value) = matches.get_one::<String>(spec.name) {
                let text = |BadOption { name, value, problem }| format!("--{name}: {value:?} {problem}");
                spec.check(value)
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
    pub(crate) fn options(&self, files: Lookup<'_>, env: Lookup<'_>) -> Result<Options, BadOption> {
        let value = |spec: &Spec| {
            let text = self.value(spec, files, env);
            if text.is_empty() { Ok(text) } else { spec.check(&text).map(|()| text) }
        };
        Ok(Options { values: SPECS.iter().map(value).collect::<Result<_, _>>()? })
    }

    /// The text of one option, whatever the others say.
    pub(crate) fn text(&self, setting: Setting, env: Lookup<'_>) -> String {
        let spec = SPECS.iter().find(|spec| spec.setting == setting);
        spec.map(|spec| self.value(spec, &|_| None, env)).unwrap_or_default()
    }

    fn value(&self, spec: &Spec, files: Lookup<'_>, env: Lookup<'_>) -> String {
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
    pub(crate) fn new(name: &'static str, value: &str, problem: impl Into<String>) -> Self {
        Self { name, value: value.chars().take(200).collect(), problem: problem.into() }
    }
}

// === impl Options ===

impl Options {
    /// The text of an option.
    pub(crate) fn text(&self, setting: Setting) -> &str {
        let found = SPECS.iter().zip(&self.values).find(|(spec, _)| spec.setting == setting);
        found.map_or("", |(_, value)| value)
    }

    /// Whether a switch is on.
    pub(crate) fn on(&self, setting: Setting) -> bool {
        capture::values::parse_bool(self.text(setting)) == Some(true)
    }

    /// A number; 0 where the text is empty.
    pub(crate) fn number(&self, setting: Setting) -> i64 {
        parse_integer(self.text(setting)).unwrap_or(0)
    }

    /// Items between commas, trimmed, without empty ones.
    pub(crate) fn list(&self, setting: Setting) -> Vec<String> {
        self.text(setting)
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Each option with its value, for the log.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        SPECS.iter().map(|spec| spec.name).zip(self.values.iter().map(String::as_str))
    }
}

// === impl Spec ===

impl Spec {
    /// The variable, and the file in the configuration directory.
    pub(crate) fn variable(&self) -> String {
        self.name.replace('-', "_").to_ascii_uppercase()
    }

    fn check(&self, value: &str) -> Result<(), BadOption> {
        let (good, expected) = match self.kind {
            Kind::Text => (true, "text"),
            Kind::Switch => (capture::values::parse_bool(value).is_some(), "true or false"),
            Kind::Integer => (parse_integer(value).is_some(), "a whole number"),
        };
        if good { Ok(()) } else { Err(BadOption::new(self.name, value, format!("is not {expected}"))) }
    }
}

/// The value without the newlines that an editor or a YAML block leaves at its end. Everything else is part of it.
pub(crate) fn without_newlines(mut value: String) -> String {
    value.truncate(value.trim_end_matches(['\r', '\n']).len());
    value
}

/// A number as Go's flag package reads it: decimal, octal with `0` or `0o`, hexadecimal with `0x`, binary with `0b`.
fn parse_integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (lower.as_str(), 10),
    };
    let number =
        digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| i64::from_str_radix(digits, radix))?;
    number.ok().map(|number| if negative { -number } else { number })
}

/// The command line.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(after_help())
        .args_override_self(true)
        .args(SPECS.iter().filter(|spec| spec.given != Given::Variable).map(arg))
}

/// The options without a flag have no other place in the help.
fn after_help() -> String {
    let lines = SPECS.iter().filter(|spec| spec.given == Given::Variable).map(|spec| {
        format!("  {}\n          {} [default: {:?}]\n", spec.variable(), spec.help, spec.default)
    });
    format!("Environment only:\n{}\n{SUBCOMMANDS}\n\n{EXIT_CODES}", lines.collect::<String>())
}

fn arg(spec: &Spec) -> Arg {
    let mut help = spec.help.to_owned();
    if !spec.default.is_empty() {
        help += &format!(" [default: {}]", spec.default);
    }
    if spec.given == Given::FlagOrVariable {
        help += &format!(" [env: {}]", spec.variable());
    }
    let arg = Arg::new(spec.name).long(spec.name).help(help).action(ArgAction::Set);
    match spec.kind {
        Kind::Switch => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        Kind::Text => arg.value_name("TEXT").allow_hyphen_values(true),
        Kind::Integer => arg.value_name("NUMBER").allow_hyphen_values(true),
    }
}
