//! The one place that sets the limits of YAML parsing.

use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error, Options};

use crate::MAX_BYTES;

/// Most values in one document. An honest manifest has eight bytes and more for each, so it meets [`MAX_BYTES`] first; text that is
/// made of the shortest values only is refused before it costs hundreds of megabytes.
const MAX_VALUES: usize = MAX_BYTES / 4;

const MAX_DEPTH: usize = 64;

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

/// What is wrong, in words that quote no value and name no function of the parser.
pub(crate) fn reason(error: &Error) -> String {
    match error.without_snippet() {
        Error::Budget { breach, .. } => limit(breach),
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. } => ALIASES.into(),
        Error::MultipleDocuments { .. } => {
            "another document follows without a line --- before it; separate documents with ---".into()
        }
        Error::DuplicateMappingKey { .. } => "a key is there twice in one mapping; remove one".into(),
        Error::UnknownAnchor { .. } => "an alias (*name) has no anchor (&name) before it".into(),
        Error::Eof { .. } => "it ends early".into(),
        Error::Unexpected { expected, .. } => format!("expected {expected}"),
        // the scanner's own words, which are fixed
        Error::ExternalMessage { msg, .. } => msg.chars().take(200).collect(),
        _ => "a value or tag that no manifest can have".into(),
    }
}

const ALIASES: &str = "its aliases (*name) repeat more than is allowed; write the values out";

fn limit(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => {
            format!("more than {MAX_VALUES} values in one document; split the file")
        }
        BudgetBreach::Depth { .. } => format!("nested deeper than {MAX_DEPTH} levels"),
        _ => ALIASES.into(),
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_VALUES,
            // lists and mappings have two events each, begin and end
            max_events: 2 * MAX_VALUES,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 20_000,
            max_recorded_anchor_bytes: 4 << 20,
            max_depth: MAX_DEPTH,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
        },
        strict_booleans: true,
        with_snippet: false,
    }
}
