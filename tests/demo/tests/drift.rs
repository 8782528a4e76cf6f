//! The act in which somebody deletes rules shows how soon they are back, and who it was.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use serde_json::Value;
use testkit::programs;

#[test]
fn deleted_rules_of_both_modes_are_back_at_once_with_either_backend_and_the_culprit_is_named() {
    let demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--only", "drift", "-o", "json", "--bin-dir"])
        .arg(programs())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&demo.stderr);
    let shown: Value = serde_json::from_slice(&demo.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert!(demo.status.success() && shown["ok"] == true, "{said}{shown:#}");
    let acts = shown["drift"].as_array().unwrap();
    assert_eq!(acts.iter().map(|act| &act["backend"]).collect::<Vec<_>>(), ["nftables", "iptables"]);
    for act in acts {
        let restored = act["restored"].as_array().unwrap();
        assert_eq!(restored.iter().map(|one| &one["mode"]).collect::<Vec<_>>(), ["sidecar", "ambient"]);
        for one in restored {
            println!("{}: {} ms after {}: {}", act["backend"], one["ms"], one["command"], one["culprit"]);
            let program = one["command"].as_str().unwrap().split(' ').next().unwrap();
            assert!(one["culprit"].as_str().unwrap().starts_with(program), "{one:#}");
        }
        for text in ["before", "after"] {
            let text = act[text].as_str().unwrap();
            assert!(text.contains("EVIDENCE") && text.matches(" verified ").count() == 2, "{text}");
        }
    }
}
