//! `scripts/stage`: a line for each stage, and the end of the log where one fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

/// Runs a script that has sourced `scripts/stage`, in a folder of its own.
fn script(dir: &Path, text: &str) -> Output {
    let stage = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/stage");
    let text = format!("set -euo pipefail\n. '{}'\n{text}", stage.display());
    Command::new("bash").args(["-c", &text]).current_dir(dir).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_stage_is_one_line_and_its_noise_is_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let output = script(
        dir.path(),
        "noisy() { seq 1 100; echo warning >&2; }\nstage fetch '1 min' 'gets crates' noisy",
    );
    assert!(output.status.success());
    let shown = stdout(&output);
    assert!(
        shown.starts_with("fetch: gets crates (about 1 min; output in .cache/log/fetch.log) … ")
            && shown.ends_with(" s\n"),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let log = std::fs::read_to_string(dir.path().join(".cache/log/fetch.log")).unwrap();
    assert_eq!(log.lines().count(), 101, "{log}");
}

#[test]
fn a_stage_that_fails_shows_the_end_of_its_log_names_it_and_ends_the_script_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let broken = "broken() { seq 1 100; (exit 7); echo 'this is not reached'; }";
    let output =
        script(dir.path(), &format!("{broken}\nstage build '1 s' compiles broken\necho 'the next stage'"));
    assert_eq!(output.status.code(), Some(7));
    assert!(stdout(&output).contains("failed after"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("next stage"), "{}", stdout(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 31, "{said}");
    assert_eq!((lines[0], lines[29]), ("    71", "    100"), "{said}");
    let log = dir.path().canonicalize().unwrap().join(".cache/log/build.log");
    assert!(lines[30].contains("exit code 7") && lines[30].ends_with(&*log.to_string_lossy()), "{said}");
    assert!(log.is_file());
}
