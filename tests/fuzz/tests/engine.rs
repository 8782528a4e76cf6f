//! What a target may rely on: faults are found, made short, kept in a file, and repeated from it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use fuzz::{Outcome, Target};
use proptest::prelude::*;

/// The file that a failure's message names.
fn failing_input(message: &str) -> &str {
    message
        .split("FUZZ_INPUT=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("a command to repeat it")
}

fn failure_of(target: Target) -> String {
    let failed = std::panic::catch_unwind(move || target.fuzz()).expect_err("the fault is found");
    failed.downcast_ref::<String>().expect("a text").clone()
}

/// With one seed, `GET /`, and a fault behind it.
fn target(run: fn(&[u8]) -> Outcome) -> Target {
    Target {
        name: "engine",
        package: env!("CARGO_PKG_NAME"),
        dictionary: &["HEAD ", "HTTP/1.1"],
        max_len: 256,
        memory: 1 << 20,
        generate: || "[A-Z]{3,4} /[a-z]{0,8}".prop_map(String::into_bytes).boxed(),
        run,
    }
}

/// Reads by steps, each an outcome: only an input that is kept for the step before gets to the last one.
fn fault_behind_steps(input: &[u8]) -> Outcome {
    let wanted = b"HEAD /\xff";
    let steps = wanted.iter().zip(input).take_while(|(wanted, byte)| wanted == byte).count();
    assert!(steps < wanted.len(), "all steps");
    Outcome::of(steps)
}

#[test]
fn a_fault_behind_several_steps_is_found_and_made_short() {
    let message = failure_of(target(fault_behind_steps));
    assert!(message.contains("all steps"), "{message}");
    assert_eq!(std::fs::read(failing_input(&message)).unwrap(), b"HEAD /\xff", "{message}");
}

#[test]
fn memory_beyond_the_bound_is_a_fault() {
    let message = failure_of(target(|input| {
        let many: Vec<u8> = vec![1; input.len() * 1_000_000];
        Outcome::of(many.len() > 7)
    }));
    assert!(message.contains("bytes of memory"), "{message}");
}

#[test]
fn a_kept_input_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content, fails) in
        [("bad", "x HEAD /", true), ("large", "large", true), ("good", "GET /", false)]
    {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let target = target(|input| {
            assert!(!input.starts_with(b"x"), "it is asked for");
            if input == b"large" {
                std::hint::black_box(vec![1_u8; 64 << 20]);
            }
            Outcome::of(0)
        });
        assert_eq!(std::panic::catch_unwind(move || target.repeat(&path)).is_err(), fails, "{name}");
    }
}
