//! What could follow on the command line, for kubectl: it starts the program `kubectl_complete-istio_cni` with the words so far, the last of which is
//! being written, and reads candidates with a tab before what they mean, and a last line with a number that says what else the shell may offer.

use clap::{Command, CommandFactory as _, ValueEnum};

use super::KubectlCli;
use crate::output::{Format, VerbAnswer};

/// The shell offers nothing besides: `ShellCompDirectiveNoFileComp` of the library that kubectl uses.
const NO_FILES: &str = ":4\n";

/// The candidates.
pub(crate) fn complete(words: &[String]) -> VerbAnswer {
    let program = KubectlCli::command();
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let verb = before.iter().find_map(|word| program.find_subcommand(word));
    let mut candidates = match verb {
        None => program.get_subcommands().map(|verb| line(verb.get_name(), &about(verb))).collect(),
        Some(_) if !last.starts_with('-') => values_after(before),
        Some(verb) => flags(verb),
    };
    candidates.retain(|candidate: &String| candidate.starts_with(last));
    VerbAnswer::text(candidates.concat() + NO_FILES)
}

fn line(name: &str, about: &str) -> String {
    format!("{name}\t{about}\n")
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn flags(verb: &Command) -> Vec<String> {
    let named = verb.get_arguments().filter_map(|argument| {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        Some(line(&format!("--{}", argument.get_long()?), &help))
    });
    named.collect()
}

/// Values of a flag that is written before.
fn values_after(before: &[String]) -> Vec<String> {
    match before.last().map(String::as_str) {
        Some("-o" | "--output") => {
            let formats = Format::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            formats.map(|format| line(format.get_name(), "")).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_begin_with_what_is_written_and_end_with_the_directive() {
        let asked = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let text = complete(&words).text;
            let names: Vec<String> =
                text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
            names
        };
        assert_eq!(asked(&[""]), ["status", "pods", "verify", "tenants", ":4"]);
        assert_eq!(asked(&["ver"]), ["verify", ":4"]);
        assert_eq!(asked(&[]), ["status", "pods", "verify", "tenants", ":4"]);
        assert_eq!(asked(&["pods", "--all"]), ["--all-namespaces", ":4"]);
        assert_eq!(asked(&["pods", "-o", "j"]), ["json", ":4"]);
        assert_eq!(asked(&["pods", ""]), [":4"]);
        assert_eq!(asked(&["status", "--selector"]), [":4"]);
    }
}
