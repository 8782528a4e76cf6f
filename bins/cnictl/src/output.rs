//! What a verb hands back, and how it is printed.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;

/// Exit code of a failure.
const FAILED: u8 = 1;
/// Exit code of a wrong command line; clap uses the same.
const USAGE: u8 = 2;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For people, with more columns
    Wide,
    /// For programs
    Json,
    /// For programs
    Yaml,
}

/// The result of a verb.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// For standard output.
    pub(crate) text: String,
    /// For standard error.
    pub(crate) problem: Option<String>,
    /// Exit code.
    pub(crate) exit: u8,
}

/// A command line whose parts do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("{0}; see cnictl --help")]
pub(crate) struct Usage(pub(crate) String);

/// The colours of a verdict.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Colour {
    Green,
    Yellow,
    Red,
}

impl Answer {
    /// Success.
    pub(crate) fn text(text: String) -> Self {
        Self { text, problem: None, exit: 0 }
    }

    /// A result that is a failure.
    pub(crate) fn failed(text: String, problem: String) -> Self {
        Self { text, problem: Some(problem), exit: FAILED }
    }
}

/// Prints the result and gives the exit code.
pub(crate) fn finish(result: Result<Answer>) -> ExitCode {
    let answer = result.unwrap_or_else(|error| {
        let exit = if error.is::<Usage>() { USAGE } else { FAILED };
        Answer { text: String::new(), problem: Some(format!("{error:#}")), exit }
    });
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(answer.text.as_bytes()).and_then(|()| stdout.flush());
    if let Some(problem) = answer.problem {
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(
            io::stderr(),
            "{} {problem}",
            paint_if(io::stderr().is_terminal(), "error:", Colour::Red)
        );
    }
    match printed {
        // A reader that has seen enough, such as head, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "error: write to standard output: {error}");
            ExitCode::from(FAILED)
        }
        _ => ExitCode::from(answer.exit),
    }
}

/// A value as JSON or YAML.
///
/// # Errors
/// It has no such form, which would be a mistake in its type.
pub(crate) fn structured(format: Format, value: &impl Serialize) -> Result<String> {
    if format == Format::Yaml {
        return serde_saphyr::to_string(value).context("write the result as YAML");
    }
    Ok(serde_json::to_string_pretty(value).context("write the result as JSON")? + "\n")
}

/// Rows as columns that are as wide as their longest cell.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    rows.iter().fold(String::new(), |mut out, row| {
        let line = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}   ");
            line
        });
        out.push_str(line.trim_end());
        out.push('\n');
        out
    })
}

/// A text that names what others wrote, such as files: nothing of it may steer a terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text in colour where standard output is a terminal and nobody objects (https://no-color.org).
pub(crate) fn paint(text: &str, colour: Colour) -> String {
    paint_if(io::stdout().is_terminal(), text, colour)
}

fn paint_if(terminal: bool, text: &str, colour: Colour) -> String {
    let wanted = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = [vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(columns(&rows), "A      B\nlong\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn nothing_that_others_wrote_steers_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2J\nb"), "a [2J b");
    }

    #[test]
    fn nothing_is_painted_without_a_terminal() {
        assert_eq!(paint_if(false, "x", Colour::Red), "x");
    }
}
