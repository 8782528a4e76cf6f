//! A row of a table of options, its flag on the command line, and the values of all of them.

use capture::values::parse_bool;
use clap::{Arg, ArgAction};

/// How an option may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// By both.
    FlagOrVariable,
    /// Not on the command line.
    Variable,
    /// On the command line only.
    Flag,
}

/// What its text may be.
#[derive(Debug, Clone, Copy)]
pub enum TextKind {
    /// Anything; the program reads it.
    Text,
    /// A boolean; the flag alone is true.
    Switch,
    /// A whole number, also `0600` and `0x1f`.
    Integer,
    /// A form of the program's own.
    Form(&'static TextForm),
}

/// A form that a program's texts have.
#[derive(Debug)]
pub struct TextForm {
    /// What stands for the value in the help, such as `PORT`.
    pub placeholder: &'static str,
    /// Such as `a port from 1 to 65535`.
    pub expected: &'static str,
    /// Whether a text has it.
    pub is: fn(&str) -> bool,
}

/// How an option is given.
#[derive(Debug, Clone, Copy)]
pub struct Spec<S> {
    /// Which.
    pub setting: S,
    /// The flag's name, or that of an option without a flag.
    pub name: &'static str,
    /// The short flag.
    pub short: Option<char>,
    /// How it may be given.
    pub given: Given,
    /// Its variables, the last one that is set counts; none here means one by the name.
    pub env: &'static [&'static str],
    /// What its text may be.
    pub kind: TextKind,
    /// Used where it is not given.
    pub default: &'static str,
    /// For people. Square brackets tell a default that another place supplies.
    pub help: &'static str,
}

/// The text of every option, in the order of their table.
#[derive(Debug, Clone)]
pub struct Values<S: 'static> {
    specs: &'static [Spec<S>],
    pub(crate) texts: Vec<String>,
}

// === impl TextKind ===

impl TextKind {
    /// Whether a text is of this kind; if not, what would be.
    ///
    /// # Errors
    /// What is expected, as `true or false`.
    pub fn check(self, text: &str) -> Result<(), &'static str> {
        let (good, expected) = match self {
            Self::Text => (true, "text"),
            Self::Switch => (parse_bool(text).is_some(), "true or false"),
            Self::Integer => (parse_integer(text).is_some(), "a whole number"),
            Self::Form(form) => ((form.is)(text), form.expected),
        };
        if good { Ok(()) } else { Err(expected) }
    }

    /// Whether it is a switch.
    pub fn is_switch(self) -> bool {
        matches!(self, Self::Switch)
    }
}

// === impl Spec ===

impl<S> Spec<S> {
    /// The flag's name, if it has a flag.
    pub fn flag(&self) -> Option<&'static str> {
        (self.given != Given::Variable).then_some(self.name)
    }

    /// The variable by the option's name, and its file in a configuration directory.
    pub fn variable(&self) -> String {
        self.name.replace('-', "_").to_ascii_uppercase()
    }

    /// All of its variables; the last one that is set counts.
    pub fn variables(&self) -> Vec<String> {
        match (self.given, self.env) {
            (Given::Flag, _) => Vec::new(),
            (_, []) => vec![self.variable()],
            (_, names) => names.iter().map(|&name| name.to_owned()).collect(),
        }
    }
}

// === impl Values ===

impl<S: Copy + PartialEq> Values<S> {
    /// The texts are in the order of the table.
    pub fn new(specs: &'static [Spec<S>], texts: Vec<String>) -> Self {
        Self { specs, texts }
    }

    /// The text of an option.
    pub fn text(&self, setting: S) -> &str {
        let found = self.specs.iter().zip(&self.texts).find(|(spec, _)| spec.setting == setting);
        found.map_or("", |(_, text)| text)
    }

    /// Whether a switch is on.
    pub fn on(&self, setting: S) -> bool {
        parse_bool(self.text(setting)) == Some(true)
    }

    /// A number; 0 where the text is empty.
    pub fn number(&self, setting: S) -> i64 {
        parse_integer(self.text(setting)).unwrap_or(0)
    }

    /// Items between commas, trimmed, without empty ones.
    pub fn list(&self, setting: S) -> Vec<String> {
        let items = self.text(setting).split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// Each option with its text, for the log.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.specs.iter().map(|spec| spec.name).zip(self.texts.iter().map(String::as_str))
    }
}

impl<S> PartialEq for Values<S> {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

impl<S> Eq for Values<S> {}

/// The flag of an option, if it has one. As in the original, whatever follows a flag that is no switch is its value, also an empty text or one
/// that looks like a flag.
pub fn arg<S>(spec: &Spec<S>) -> Option<Arg> {
    let flag = spec.flag()?;
    let variables = spec.variables();
    let default =
        if spec.default.is_empty() { String::new() } else { format!(" [default: {}]", spec.default) };
    let env = if variables.is_empty() { String::new() } else { format!(" [env: {}]", variables.join(", ")) };
    let help = format!("{}{default}{env}", spec.help);
    let arg = Arg::new(flag).long(flag).short(spec.short).help(help).action(ArgAction::Set);
    Some(match spec.kind {
        TextKind::Switch => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        TextKind::Text => arg.value_name("TEXT").allow_hyphen_values(true),
        TextKind::Integer => arg.value_name("NUMBER").allow_hyphen_values(true),
        TextKind::Form(form) => arg.value_name(form.placeholder).allow_hyphen_values(true),
    })
}

/// Help for the options without a flag, which have no other place in it.
pub fn help_of_variables<S>(specs: &[Spec<S>]) -> String {
    let lines = specs.iter().filter(|spec| spec.given == Given::Variable).map(|spec| {
        format!("  {}\n          {} [default: {:?}]\n", spec.variables().join(", "), spec.help, spec.default)
    });
    format!("Environment only:\n{}", lines.collect::<String>())
}

/// A number as Go's flag package reads it: decimal, octal with `0` or `0o`, hexadecimal with `0x`, binary with `0b`.
pub fn parse_integer(text: &str) -> Option<i64> {
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
