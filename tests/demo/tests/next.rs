//! What the demo tells to type next works as typed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use testkit::programs;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The lines below the last heading that are indented as commands are.
fn commands(shown: &str) -> Vec<&str> {
    let (_, next) = shown.rsplit_once("\nNext ").unwrap_or_else(|| panic!("no heading Next in:\n{shown}"));
    next.lines().filter_map(|line| line.strip_prefix("    ")).collect()
}

#[test]
fn the_commands_at_the_end_work_as_typed_in_the_checkout() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--only", "ambient", "--backend", "nftables", "--bin-dir"])
        .arg(programs())
        .current_dir(&checkout)
        .output()
        .unwrap();
    let shown = text(&demo);
    assert!(demo.status.success(), "{shown}");
    let commands = commands(&shown);
    let (path, questions) = commands.split_first().unwrap_or_else(|| panic!("no command in:\n{shown}"));
    assert!(path.starts_with("export PATH="), "{path}");
    assert!(questions.len() >= 2, "{shown}");
    for question in questions {
        let answer = Command::new("bash")
            .args(["-ec", &format!("{path}\n{question}\ncommand -v cnictl >&2")])
            .current_dir(&checkout)
            .output()
            .unwrap();
        let said = text(&answer);
        assert!(answer.status.success(), "{question}:\n{said}");
        let used = Path::new(said.lines().last().unwrap_or_default());
        assert_eq!(
            used.canonicalize().unwrap(),
            programs().join("cnictl").canonicalize().unwrap(),
            "{question}"
        );
        assert!(said.contains("shop/web") || said.contains("ISTIO_OUTPUT"), "{question} says:\n{said}");
    }
}
