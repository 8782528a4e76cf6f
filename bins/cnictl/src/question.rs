//! A question to the person at the terminal before something is changed.

use std::io::{self, BufRead, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail};

use crate::output::{Usage, printable};

/// Shows what is about to be done and asks.
///
/// # Errors
/// The answer is not yes, or there is no terminal to ask on.
pub(crate) fn confirm(plan: &str, consequence: &str) -> Result<()> {
    if !io::stdin().is_terminal() {
        return Err(
            Usage("there is no terminal to ask on: give --yes, or look with --dry-run".to_owned()).into()
        );
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{}{consequence} Go on? [y/N] ", printable(plan))?;
    stderr.flush()?;
    if is_yes(&mut io::stdin().lock()).context("read the answer")? {
        return Ok(());
    }
    bail!("declined; nothing was changed")
}

fn is_yes(input: &mut impl BufRead) -> io::Result<bool> {
    /// Longest answer, in bytes.
    const LONGEST: u64 = 100;
    let mut line = String::new();
    io::Read::take(input, LONGEST).read_line(&mut line)?;
    Ok(["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (text, yes) in
            [("y\n", true), ("Yes\n", true), ("", false), ("\n", false), ("n\n", false), ("yesno\n", false)]
        {
            assert_eq!(is_yes(&mut text.as_bytes()).unwrap(), yes, "{text:?}");
        }
    }
}
