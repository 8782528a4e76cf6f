//! Names and texts of others that would steer a terminal, or that pass for lines of ours.

use std::fs;

use serde_json::{Value, json};

use crate::machine::{CALICO, Machine};
use crate::{Files, WEB};

/// Clears the screen, a C1 sequence, a new line, a right-to-left mark, a joiner.
const HOSTILE: &str = "x\u{1b}[2J\u{9b}31m\nflush ruleset\u{202e}fdp\u{200d}\u{7}";

/// Nothing of a text steers a terminal.
#[track_caller]
fn assert_tame(text: &str) {
    let tame = |c: char| c == '\n' || !(c.is_control() || "\u{202e}\u{200d}".contains(c));
    assert!(text.chars().all(tame), "{text:?}");
}

#[test]
fn a_manifest_neither_steers_the_terminal_nor_adds_a_line() {
    let files = Files::new();
    let name = serde_json::to_string(HOSTILE).unwrap();
    files.write("bad.yaml", &WEB.replace("name: web", &format!("name: {name}")));
    files.write("out.yaml", &format!("kind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{containers: [{{name: {name}}}]}}\n"));
    for words in [
        "render @bad.yaml",
        "render @bad.yaml --backend iptables",
        "render @out.yaml",
        "explain @bad.yaml --to 10.0.0.5:443",
        "explain @bad.yaml --to 10.0.0.5:443 -o wide",
        "explain @out.yaml --to 10.0.0.5:443",
    ] {
        let run = files.run(words);
        assert_tame(&(run.stdout.clone() + &run.stderr));
        assert!(!run.stdout.lines().any(|line| line.starts_with("flush ruleset")), "{words}: {run:?}");
    }
    for (words, is_json) in [
        ("explain @bad.yaml --to 10.0.0.5:443 -o json", true),
        ("explain @bad.yaml --to 10.0.0.5:443 -o yaml", false),
    ] {
        let run = files.run(words);
        assert_tame(&run.stdout);
        if is_json && run.exit == 0 {
            serde_json::from_str::<Value>(&run.stdout).unwrap();
        }
    }
}

#[test]
fn names_of_files_and_notes_are_escaped() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    let network = json!({"cniVersion": "1.0.0", "name": HOSTILE, "plugins": [{"type": HOSTILE}]});
    machine.files.write(&format!("net.d/20-{}.conflist", HOSTILE.replace('/', "")), &network.to_string());
    fs::create_dir_all(machine.path("run/uncaptured")).unwrap();
    machine.files.write("run/uncaptured/note\u{1b}[31m.json", "{}");
    let run = machine.run("status");
    assert_tame(&(run.stdout.clone() + &run.stderr));
    assert!(run.stdout.contains("\\u001b[2J") && run.stdout.contains("\\u000aflush"), "{run:?}");
    assert!(!run.stdout.lines().any(|line| line.starts_with("flush")), "{run:?}");
    let run = machine.run("status -o json");
    assert_tame(&run.stdout);
    let read: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(read.to_string().contains("flush ruleset"), "{read}");
}
