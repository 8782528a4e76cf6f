//! Results of the plugins before ours: read, printed in every version, and read again.

use cni::json::Value;
use cni::{CniResult, PluginConf, SpecVersion};
use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;
use serde_json::json;

use crate::json as text;

fn generate() -> BoxedStrategy<Vec<u8>> {
    let address =
        prop_oneof!["10\\.0\\.[0-9]{1,2}\\.[0-9]{1,2}/(8|16|24|32)", "fd00::[0-9a-f]{1,4}/(64|128)"];
    let ips = prop::collection::vec((address, proptest::option::of(-1..3i64)), 0..4).prop_map(|ips| {
        let ips =
            ips.into_iter().map(|(address, interface)| json!({"address": address, "interface": interface}));
        ips.collect::<Vec<_>>()
    });
    let result = (ips, text::tree(), text::tree(), text::tree()).prop_map(|(ips, interfaces, routes, dns)| {
        json!({"ips": ips, "interfaces": interfaces, "routes": routes, "dns": dns})
    });
    let tree = prop_oneof![result, text::tree()];
    (0..SpecVersion::SUPPORTED.len(), tree)
        .prop_map(|(version, tree)| format!("{version}{tree}").into_bytes())
        .boxed()
}

/// The first byte chooses the version that the configuration has.
fn run(input: &[u8]) -> Outcome {
    let Some((first, rest)) = input.split_first() else { return Outcome::of("empty") };
    let version = SpecVersion::SUPPORTED[usize::from(*first) % SpecVersion::SUPPORTED.len()];
    let value = match Value::parse(rest) {
        Ok(value) => value,
        Err(error) => return of_text(&error.to_string()),
    };
    // The same text as a whole configuration.
    let _ = PluginConf::decode(&value);
    match CniResult::decode(&value, version) {
        Err(error) => of_text(&error.to_string()),
        Ok(result) => {
            let printed = SpecVersion::SUPPORTED.map(|version| print(&result, version));
            let lengths = (result.interfaces.len(), result.ips.len().min(3), result.routes.len().min(3));
            Outcome::of((version.to_string(), lengths, printed))
        }
    }
}

/// Whether the version can say it. What it can is read as it was printed.
fn print(result: &CniResult, version: SpecVersion) -> bool {
    let Ok(first) = result.render(version) else { return false };
    let value = Value::parse(&first).expect("what is printed is JSON");
    let read = CniResult::decode(&value, version).expect("what is printed is a result of that version");
    assert_eq!(read.render(version).expect("printed again"), first, "printed otherwise a second time");
    if version.to_string() == "1.1.0" {
        assert_eq!(&read, result, "the newest version loses something");
    }
    true
}

const TARGET: Target = Target {
    name: "prev_result",
    package: env!("CARGO_PKG_NAME"),
    dictionary: text::DICTIONARY,
    max_len: 8192,
    memory: 1 << 20,
    generate,
    run,
};

#[test]
fn fuzz_prev_result() {
    TARGET.fuzz();
}
