//! The one place that sets the limits of YAML parsing.

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, Options};

/// Parses one document with limits that no honest manifest meets: aliases that multiply ("billion laughs") end with an error long
/// before they cost memory.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_saphyr::from_str_with_options(text, options())
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
        with_snippet: false,
    }
}
