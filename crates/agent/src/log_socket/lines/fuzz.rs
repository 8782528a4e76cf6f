//! Posts of log lines with any content.

use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Lines, MAX_LABELS};

fn generate() -> BoxedStrategy<Vec<u8>> {
    let level = prop::sample::select(vec!["debug", "info", "warn", "error", "loud", ""]);
    let line = (level, "\\PC{0,30}", prop::collection::vec(("[a-z_]{0,6}", "\\PC{0,20}"), 0..70));
    let line = line.prop_map(|(level, msg, labels)| {
        let mut line = json!({"level": level, "time": "2026-01-01T00:00:00Z", "msg": msg});
        if let Value::Object(members) = &mut line {
            members.extend(labels.into_iter().map(|(key, value)| (key, value.into())));
        }
        Value::from(line.to_string())
    });
    let text = prop_oneof![4 => line, 1 => "\\PC{0,20}".prop_map(Value::from), 1 => Just(json!(1))];
    prop::collection::vec(text, 0..4).prop_map(|texts| Value::from(texts).to_string().into_bytes()).boxed()
}

fn run(body: &[u8]) -> Outcome {
    match Lines::parse(body) {
        Ok(lines) => {
            assert!(lines.good.len() + lines.broken as usize <= body.len() / 2, "more lines than texts fit");
            assert!(lines.good.iter().all(|line| line.labels.len() <= MAX_LABELS), "too many labels");
            let labels = lines.good.iter().map(|line| line.labels.len().min(3)).max();
            Outcome::of((lines.good.len().min(3), lines.broken.min(3), labels))
        }
        Err(error) => of_text(&error.to_string()),
    }
}

const TARGET: Target = Target {
    name: "plugin_log",
    package: env!("CARGO_PKG_NAME"),
    dictionary: &[
        "\"{\\\"level\\\":\\\"info\\\",\\\"time\\\":\\\"t\\\",\\\"msg\\\":\\\"m\\\"}\"",
        "\\\"",
        "\"\",",
        "[",
        "]",
        "{}",
        "\\\\u0000",
        "\\u000a",
        "\\ud800",
        "null",
        "\\\"level\\\":",
        "\\\"k\\\":[1,{}]",
    ],
    max_len: 16 << 10,
    memory: 64 << 10,
    generate,
    run,
};

#[test]
fn fuzz_plugin_log() {
    TARGET.fuzz();
}
