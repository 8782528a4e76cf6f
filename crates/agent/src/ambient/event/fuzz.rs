//! Events with any content.

use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{MAX_IPS, MAX_NAME, MAX_PATH, StartingPod};

fn generate() -> BoxedStrategy<Vec<u8>> {
    let text = || {
        prop_oneof![
            6 => "[a-z0-9-]{0,12}".prop_map(Value::from),
            1 => "\\PC{250,256}".prop_map(Value::from),
            1 => Just(Value::Null),
            1 => Just(json!(1)),
        ]
    };
    let ip = prop_oneof![
        any::<std::net::IpAddr>().prop_map(|ip| json!(ip.to_string())),
        Just(json!("::ffff:10.0.0.1")),
        text(),
    ];
    let ips = prop::collection::vec(ip, 0..36).prop_map(|ips| {
        let ips =
            ips.into_iter().map(|ip| json!({"Interface": 2, "Address": {"IP": ip, "Mask": "////AA=="}}));
        Value::from(ips.collect::<Vec<_>>())
    });
    let key = |name: &'static str| prop_oneof![3 => Just(name.to_owned()), 1 => Just(name.to_lowercase())];
    let members = (
        (key("Netns"), text()),
        (key("PodName"), text()),
        (key("PodNamespace"), text()),
        (key("PodUID"), text()),
        (key("IPs"), ips),
    );
    members
        .prop_map(|(netns, name, namespace, uid, ips)| {
            let members: serde_json::Map<String, Value> =
                [netns, name, namespace, uid, ips].into_iter().collect();
            Value::Object(members).to_string().into_bytes()
        })
        .boxed()
}

/// What is accepted is within its bounds; what is refused is refused in words that can stand in a log.
fn run(body: &[u8]) -> Outcome {
    match StartingPod::parse(body) {
        Ok(event) => {
            let texts = [(&event.netns, MAX_PATH), (&event.name, MAX_NAME), (&event.namespace, MAX_NAME)];
            for (text, most) in texts.into_iter().chain(event.uid.as_ref().map(|uid| (uid, MAX_NAME))) {
                assert!(text.len() <= most && !text.contains('\0'), "{text:?}");
            }
            assert!(event.uid.as_ref().is_none_or(|uid| !uid.is_empty()));
            assert!(event.ips.len() <= MAX_IPS && event.ips.iter().all(|ip| ip.to_canonical() == *ip));
            let kinds = [event.netns.is_empty(), event.name.is_empty(), event.uid.is_some()];
            Outcome::of((kinds, event.ips.len().min(3), event.ips.iter().any(std::net::IpAddr::is_ipv6)))
        }
        Err(error) => {
            let said = error.to_string();
            assert!(!said.contains(char::is_control) && said.len() < 4096, "{said:?}");
            of_text(&said)
        }
    }
}

const TARGET: Target = Target {
    name: "plugin_event",
    package: env!("CARGO_PKG_NAME"),
    dictionary: &[
        "\"Netns\":",
        "\"PodName\":",
        "\"podnamespace\":",
        "\"PodUID\":",
        "\"IPs\":[",
        "{\"Address\":{\"IP\":\"10.0.0.1\"}}",
        "null",
        "\\u0000",
        "\\ud800",
        "1e999",
        "{}",
        "[]",
        "::ffff:1.2.3.4",
        "::1%lo",
        "{\"Address\":null},",
    ],
    max_len: 8192,
    memory: 64 << 10,
    generate,
    run,
};

#[test]
fn fuzz_plugin_event() {
    TARGET.fuzz();
}
