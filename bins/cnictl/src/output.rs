//! What a verb hands back, and how it is printed.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
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
pub(crate) struct VerbAnswer {
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

impl VerbAnswer {
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
pub(crate) fn finish(result: Result<VerbAnswer>) -> ExitCode {
    let answer = result.unwrap_or_else(|error| {
        let exit = if error.is::<Usage>() { USAGE } else { FAILED };
        VerbAnswer { text: String::new(), problem: Some(format!("{error:#}")), exit }
    });
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(printable(&answer.text).as_bytes()).and_then(|()| stdout.flush());
    if let Some(problem) = answer.problem {
        // Nobody is left to tell when standard error is closed.
        let text = format!("{} {problem}", paint_if(io::stderr().is_terminal(), "error:", Colour::Red));
        let text = fitted_to(&io::stderr(), text);
        let _ = writeln!(io::stderr(), "{}", printable(&text));
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

/// Writes a part of a longer answer to standard output at once; `false` when nobody reads it any more.
///
/// # Errors
/// It cannot be written.
pub(crate) fn print_now(text: &str) -> Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(printable(text).as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true).context("write to standard output"),
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

/// Rows as columns that are as wide as their longest cell. No cell makes a line of its own.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| width_of(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    rows.iter().fold(String::new(), |mut out, row| {
        let line = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - width_of(cell) + 3));
            line
        });
        out.push_str(line.trim_end());
        out.push('\n');
        out
    })
}

/// The text as it fits the terminal, where standard output is one: longer lines are broken at blanks. What a program reads stays as it is.
pub(crate) fn fitted(text: String) -> String {
    fitted_to(&io::stdout(), text)
}

fn fitted_to(stream: &(impl AsFd + io::IsTerminal), text: String) -> String {
    let size = stream.is_terminal().then(|| rustix::termios::tcgetwinsize(stream).ok()).flatten();
    match size.map(|size| usize::from(size.ws_col)) {
        Some(width @ LEAST_WIDTH..) => {
            let lines: Vec<String> = text.lines().map(|line| broken(line, width)).collect();
            lines.join("\n") + if text.ends_with('\n') { "\n" } else { "" }
        }
        _ => text,
    }
}

/// A narrower terminal breaks lines by itself; one that does not know its width says 0.
const LEAST_WIDTH: usize = 40;
/// Most blanks before what goes on in another line.
const MAX_INDENT: usize = 24;

/// What goes on stands below the text that it belongs to: behind the first gap between columns, else a little to the right. A longer word, such as a
/// path, stays whole.
fn broken(line: &str, width: usize) -> String {
    if width_of(line) <= width {
        return line.to_owned();
    }
    let blanks = line.len() - line.trim_start_matches(' ').len();
    let gap = line[blanks..].find("  ").map(|at| blanks + at);
    let after_gap = gap.map(|at| {
        let (head, rest) = line.split_at(at);
        width_of(head) + rest.len() - rest.trim_start_matches(' ').len()
    });
    let indent = after_gap.filter(|indent| *indent <= MAX_INDENT).unwrap_or(blanks + 4);
    let (mut out, mut column) = (String::new(), 0);
    for word in line.split_inclusive(' ') {
        let length = width_of(word.trim_end_matches(' '));
        if length > 0 && column > indent && column + length > width {
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        }
        out.push_str(word);
        column += width_of(word);
    }
    out
}

/// Characters that are seen: colours are not.
fn width_of(cell: &str) -> usize {
    cell.chars().filter(|c| !(RED..=PLAIN).contains(c)).count()
}

/// A text in which others have a say, such as names of files and pods, on one line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().fold(String::new(), |out, c| match c {
        '\n' | '\t' => escape(out, c),
        _ => out + c.encode_utf8(&mut [0; 4]),
    })
}

/// What may be written to a terminal: everything that would steer it, or show a text in another order than it has, is written as its number, in the
/// form that JSON and YAML have for it too. Every text goes through here last; colours of ours come in here and nowhere else.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| match c {
        '\n' | '\t' => out + c.encode_utf8(&mut [0; 4]),
        RED..=PLAIN => {
            out.push_str(COLOURS[(u32::from(c) - u32::from(RED)) as usize]);
            out
        }
        c if c.is_control() || is_invisible(c) => escape(out, c),
        c => out + c.encode_utf8(&mut [0; 4]),
    })
}

fn escape(mut out: String, c: char) -> String {
    let mut units = [0; 2];
    for unit in c.encode_utf16(&mut units) {
        // Writing to a String cannot fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
    out
}

/// Marks of direction, separators of lines, joiners and other characters of no width, tags: what is not seen and changes what is.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Characters for private use that stand for a colour in a text until it is printed.
const RED: char = '\u{10fff0}';
const GREEN: char = '\u{10fff1}';
const YELLOW: char = '\u{10fff2}';
const PLAIN: char = '\u{10fff3}';
/// What a terminal takes for them, in the same order.
const COLOURS: [&str; 4] = ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"];

/// The text in colour where standard output is a terminal and NO_COLOR is not set (https://no-color.org).
pub(crate) fn paint(text: &str, colour: Colour) -> String {
    paint_if(io::stdout().is_terminal(), text, colour)
}

fn paint_if(terminal: bool, text: &str, colour: Colour) -> String {
    let wanted = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mark = match colour {
        Colour::Green => GREEN,
        Colour::Yellow => YELLOW,
        Colour::Red => RED,
    };
    if wanted { format!("{mark}{text}{PLAIN}") } else { text.to_owned() }
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
    fn colours_take_no_room_in_a_column() {
        let painted = paint_if(true, "ab", Colour::Red);
        let rows = [vec![painted.clone(), "x".to_owned()], vec!["abc".to_owned(), "y".to_owned()]];
        assert_eq!(columns(&rows), format!("{painted}    x\nabc   y\n"));
    }

    #[test]
    fn lines_are_broken_at_blanks_below_the_text_that_they_belong_to() {
        for (line, expected) in [
            ("short", "short"),
            (
                "  x conf-dir: it is not there and so on",
                "  x conf-dir: it is\n      not there and\n      so on",
            ),
            ("Agent   version 1, pid 7, ready", "Agent   version 1,\n        pid 7, ready"),
            ("a /one/very/long/path/of/a/file b", "a /one/very/long/path/of/a/file\n    b"),
            ("shop   web   none   no-proxy   -", "shop   web   none\n       no-proxy   -"),
        ] {
            assert_eq!(broken(line, 20), expected);
        }
    }

    #[test]
    fn nothing_that_others_wrote_steers_the_terminal() {
        for (text, printed) in [
            ("a\u{1b}[2J\u{7}b", "a\\u001b[2J\\u0007b"),
            // C1 is one byte on some terminals, and an escape on all
            ("a\u{9b}31mb\u{7f}", "a\\u009b31mb\\u007f"),
            ("web\u{202e}lmth.\u{2066}", "web\\u202elmth.\\u2066"),
            ("a\u{200b}b\u{feff}\r", "a\\u200bb\\ufeff\\u000d"),
            ("\u{e0041}", "\\udb40\\udc41"),
            ("Ünïcödé 漢字 \u{5e9}", "Ünïcödé 漢字 \u{5e9}"),
            ("two\n\tlines", "two\n\tlines"),
        ] {
            assert_eq!(printable(text), printed);
        }
        assert_eq!(printable(&one_line("a\nb\tc\u{1b}")), "a\\u000ab\\u0009c\\u001b");
        let row = vec!["a\nhealthy: yes".to_owned(), "b".to_owned()];
        assert_eq!(columns(&[row]), "a\\u000ahealthy: yes   b\n");
    }

    /// What a program reads is valid and says the same.
    #[test]
    fn json_and_yaml_stay_what_they_are() {
        let value = serde_json::json!({"name": "a\u{1b}[2J\u{9b}\u{202e}\u{e0041}\nb"});
        let json = printable(&structured(Format::Json, &value).unwrap());
        assert!(!json.contains(|c: char| c != '\n' && (c.is_control() || is_invisible(c))), "{json:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
        let yaml = printable(&structured(Format::Yaml, &value).unwrap());
        assert!(!yaml.contains(|c: char| c != '\n' && (c.is_control() || is_invisible(c))), "{yaml:?}");
        let read: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert!(read["name"].as_str().unwrap().contains("[2J"), "{yaml}");
    }

    #[test]
    fn nothing_is_painted_without_a_terminal() {
        assert_eq!(paint_if(false, "x", Colour::Red), "x");
        assert_eq!(printable(&paint_if(true, "x", Colour::Red)), "\x1b[31mx\x1b[0m");
    }
}
