//! `install-cni version`, as the original has it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command};
use serde_json::json;

/// The first word on the command line.
pub(crate) const NAME: &str = "version";

/// What the original prints where its build does not say it.
const UNKNOWN: &str = "unknown";

/// Prints the version. `args` are the program's name and what follows the word.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match command().try_get_matches_from(args) {
        Ok(matches) => {
            let output = matches.get_one::<String>("output").map(String::as_str);
            print!("{}", text(matches.get_flag("short"), output));
            ExitCode::SUCCESS
        }
        Err(error) => error.exit(),
    }
}

fn command() -> Command {
    Command::new("install-cni version")
        .about("Prints out build version information")
        .arg(
            Arg::new("short")
                .short('s')
                .long("short")
                .action(ArgAction::SetTrue)
                .help("Displays a short form of the version information"),
        )
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_parser(PossibleValuesParser::new(["yaml", "json"]))
                .help("One of 'yaml' or 'json'."),
        )
}

/// Scripts read `clientVersion.version`.
fn text(short: bool, output: Option<&str>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match output {
        Some("json") => {
            let build = json!({"version": version, "revision": UNKNOWN, "status": UNKNOWN, "tag": version});
            format!("{:#}\n", json!({"clientVersion": build}))
        }
        Some(_) => format!(
            "clientVersion:\n  revision: {UNKNOWN}\n  status: {UNKNOWN}\n  tag: \"{version}\"\n  version: \"{version}\"\n"
        ),
        None if short => format!("{version}\n"),
        None => format!(
            "version.BuildInfo{{Version:{version:?}, GitRevision:{UNKNOWN:?}, BuildStatus:{UNKNOWN:?}, GitTag:{version:?}}}\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_the_version() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(text(true, None), format!("{version}\n"));
        assert!(text(false, None).starts_with(&format!("version.BuildInfo{{Version:\"{version}\", ")));
        let json: serde_json::Value = serde_json::from_str(&text(false, Some("json"))).unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_str(&text(true, Some("yaml"))).unwrap();
        assert_eq!((&json["clientVersion"]["version"], &json), (&json!(version), &yaml));
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        let parsed = |args: &[&str]| command().try_get_matches_from(args).is_ok();
        assert!(parsed(&["x", "-o", "json"]) && parsed(&["x", "--output=yaml", "-s"]) && parsed(&["x"]));
        assert!(!parsed(&["x", "-o", "xml"]) && !parsed(&["x", "more"]));
    }
}
