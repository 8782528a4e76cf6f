//! The one place that sets the limits of YAML parsing.

use serde_saphyr::{Error, Options};

/// Turns one document into JSON, as `kubectl` does before it looks at fields, with limits that no honest manifest meets: aliases that
/// multiply ("billion laughs") end with an error long before they cost memory.
///
/// Going through JSON means that a value without quotes has the type that Kubernetes gives it, and that the parser for our own types
/// is in the executable once, not once for each format.
pub(crate) fn to_json(text: &str) -> Result<Vec<u8>, Error> {
    let value: serde_json::Value = serde_saphyr::from_str_with_options(text, options())?;
    // A file of comments only describes an object without fields.
    Ok(if value.is_null() { b"{}".to_vec() } else { value.to_string().into_bytes() })
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 20_000,
            max_recorded_anchor_bytes: 4 << 20,
            max_depth: 64,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
        },
        strict_booleans: true,
        with_snippet: false,
    }
}
