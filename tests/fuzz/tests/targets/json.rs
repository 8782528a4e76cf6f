//! JSON that looks like a CNI configuration, and its tokens.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

/// Keys of CNI configurations and results.
pub(crate) const KEYS: &[&str] = &[
    "cniVersion",
    "cniversion",
    "name",
    "type",
    "plugins",
    "capabilities",
    "ipam",
    "dns",
    "prevResult",
    "interfaces",
    "ips",
    "routes",
    "ip4",
    "ip6",
    "ip",
    "address",
    "gateway",
    "interface",
    "dst",
    "gw",
    "mtu",
    "mac",
    "sandbox",
    "nameservers",
    "search",
    "options",
    "domain",
    "disableCheck",
    "loadOnlyInlinedPlugins",
    "delegates",
    "version",
    "advmss",
    "priority",
    "table",
    "scope",
    "socketPath",
    "pciID",
    "args",
    "runtimeConfig",
    "x\\u0041",
];

/// Values that mean something there.
const WORDS: &[&str] = &[
    "istio-cni",
    "bridge",
    "calico",
    "0.1.0",
    "0.2.0",
    "0.3.0",
    "0.3.1",
    "0.4.0",
    "1.0.0",
    "1.1.0",
    "2.0.0",
    "4",
    "10.0.0.1/24",
    "10.0.0.1",
    "fd00::1/64",
    "::/0",
    "0.0.0.0/0",
    "eth0",
    "/var/run/netns/x",
    "",
    "true",
    "\u{e9}",
];

/// What a mutation puts in.
pub(crate) const DICTIONARY: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "null",
    "true",
    "-0",
    "1e400",
    "1E-2",
    "0.10",
    "9223372036854775808",
    "\\u0000",
    "\\ud800",
    "\\/",
    " ",
    "\n",
    "\"type\":\"istio-cni\"",
    "{\"type\":\"istio-cni\"}",
    "\"plugins\":[",
    "\"cniVersion\"",
    "\"name\":\"n\"",
    "\u{feff}",
    "\"10.0.0.1/24\"",
    "\"ips\"",
    "\"interface\":0",
];

/// JSON with known keys and values of any type.
pub(crate) fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => (0..3i64).prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        4 => select(WORDS).prop_map(Value::from),
        1 => "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let key = prop_oneof![8 => select(KEYS).prop_map(str::to_owned), 1 => "[a-z\"\\\\\u{e9}]{0,3}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The tokens of a JSON text: punctuation, numbers and words as they stand, strings by what they say.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '"' => string_len(rest),
            '{' | '}' | '[' | ']' | ':' | ',' => 1,
            _ => rest.find(|c: char| "{}[]:,\"".contains(c) || c.is_ascii_whitespace()).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(len);
        let said = serde_json::from_str::<String>(&with_whole_characters(token));
        found.push(said.map_or_else(|_| token.to_owned(), |said| format!("\"{said}")));
        rest = after.trim_start();
    }
    found
}

/// A string in which each half of a character that stands alone is the sign for that, as Go reads it.
fn with_whole_characters(token: &str) -> String {
    let half = |text: &str| {
        let number = text.strip_prefix("\\u").and_then(|rest| rest.get(..4))?;
        u16::from_str_radix(number, 16).ok().filter(|number| (0xd800..0xe000).contains(number))
    };
    let (mut whole, mut rest) = (String::new(), token);
    while let Some(first) = rest.chars().next() {
        let len = match (half(rest), rest.get(6..).and_then(half)) {
            (Some(0xd800..0xdc00), Some(0xdc00..)) => 12,
            (Some(_), _) => {
                whole.push('\u{fffd}');
                rest = &rest[6..];
                continue;
            }
            // An escaped character, which may be a backslash.
            _ if first == '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => first.len_utf8(),
        };
        whole.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    whole
}

/// Bytes of the string that the text begins with.
fn string_len(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !is_escaped => return at + 1,
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    text.len()
}
