//! Documents show what the program prints: its reference, and commands with their output.
//!
//! `make reference` writes them anew (`UPDATE_DOCUMENTS=1`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Files;

/// A directory that does not exist.
const NO_NODE: &str = "/nonexistent/net.d";
const REFERENCE: &str = "docs/cnictl.md";
/// Documents with commands whose output a reader can compare.
const WITH_OUTPUT: [&str; 4] = ["README.md", "docs/concepts.md", "docs/policy.md", "docs/tenants.md"];
/// Commands of these verbs depend on files of the checkout only.
const SAME_EVERYWHERE: [&str; 4] =
    ["$ cnictl explain ", "$ cnictl render ", "$ cnictl policy ", "$ cnictl tenants "];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a document with what it should be, or writes it.
fn assert_document(name: &str, wanted: &str) {
    let path = checkout().join(name);
    let kept = std::fs::read_to_string(&path).unwrap();
    if kept != wanted && std::env::var_os("UPDATE_DOCUMENTS").is_some_and(|value| value == "1") {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    for (number, (kept, wanted)) in kept.lines().zip(wanted.lines()).enumerate() {
        assert_eq!(kept, wanted, "{name}, line {}: run make reference", number + 1);
    }
    assert_eq!(kept, wanted, "{name}: run make reference");
}

/// What a command of a document prints, typed in the checkout.
fn printed(command: &str) -> String {
    let mut words = command.split_whitespace();
    assert_eq!(words.next(), Some("cnictl"));
    let output = Command::new(env!("CARGO_BIN_EXE_cnictl"))
        .args(words)
        .current_dir(checkout())
        .env_clear()
        // The reader's machine is not a node of ours, whatever this one is.
        .env("MOUNTED_CNI_NET_DIR", NO_NODE)
        .output()
        .unwrap();
    // Whether it is allowed, or odd, is what some are asked.
    let asks = ["cnictl policy ", "cnictl tenants "].iter().any(|verb| command.starts_with(verb));
    let is_answer = asks && output.status.code() == Some(1);
    assert!(output.status.success() || is_answer, "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().replace(NO_NODE, "/etc/cni/net.d")
}

/// The document with what its commands print today, and how many these are.
fn with_output(text: &str) -> (String, usize) {
    let (mut lines, mut count) = (Vec::new(), 0);
    let mut kept = text.lines().peekable();
    while let Some(line) = kept.next() {
        lines.push(line.to_owned());
        if SAME_EVERYWHERE.iter().any(|verb| line.starts_with(verb)) {
            while kept.next_if(|line| !line.starts_with("$ ") && !line.starts_with("```")).is_some() {}
            lines.extend(printed(&line[2..]).lines().map(|line| line.trim_end().to_owned()));
            count += 1;
        }
    }
    (lines.join("\n") + "\n", count)
}

#[test]
fn the_reference_is_what_the_program_prints() {
    let files = Files::new();
    let wanted = files.run("man --markdown").ok();
    assert_document(REFERENCE, &wanted);
    for verb in [
        "render",
        "explain",
        "add",
        "check",
        "del",
        "pods",
        "verify",
        "diff",
        "conflicts",
        "restore",
        "policy",
        "policy explain",
        "policy list",
        "policy status",
        "policy lint",
        "policy diff",
        "policy dry-run",
        "policy eval",
        "status",
        "gc",
        "uninstall",
        "version",
        "man",
    ] {
        assert!(wanted.contains(&format!("\n## cnictl {verb}\n\n```text\n")), "{verb}");
    }
    let mut elsewhere = files.command("man --markdown");
    elsewhere.env("COLUMNS", "200").env("CNI_PATH", "/of/this/machine");
    assert_eq!(String::from_utf8(elsewhere.output().unwrap().stdout).unwrap(), wanted);
}

#[test]
fn commands_in_documents_print_what_stands_below_them() {
    for name in WITH_OUTPUT {
        let (wanted, count) = with_output(&std::fs::read_to_string(checkout().join(name)).unwrap());
        assert!(count > 0, "{name} shows no command with its output");
        assert_document(name, &wanted);
    }
}
