//! What a plugin posted, taken apart on a thread of its own: whatever a body costs, nothing that the agent serves waits for it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use hyper::body::Bytes;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use telemetry::{Level, Relayed, Scope};

use super::intake::Intake;
use metrics::Metrics;

/// Labels that are kept of a line; the plugin writes less than ten.
const MAX_LABELS: usize = 64;

/// A body, and whose it is.
pub(super) struct Post {
    pub(super) uid: u32,
    pub(super) body: Bytes,
    /// What the lines are charged to.
    pub(super) intake: Arc<Intake>,
}

/// Prints posts.
pub(super) struct Printer {
    pub(super) plugin: Scope,
    pub(super) agent: Scope,
    pub(super) metrics: Arc<Metrics>,
}

/// A plugin's line, taken apart.
struct Line {
    level: Level,
    time: String,
    msg: String,
    labels: Vec<(String, String)>,
}

/// The lines of a body, and how many texts are none.
#[derive(Default)]
struct Lines {
    good: Vec<Line>,
    broken: u64,
}

// === impl Printer ===

impl Printer {
    pub(super) fn print(&self, post: &Post) {
        let lines = match Lines::parse(&post.body) {
            Ok(lines) => lines,
            Err(error) => {
                self.metrics.plugin_lines_dropped("broken", 1);
                let labels: [telemetry::Label<'_>; 2] = [("error", &error), ("uid", &post.uid)];
                return self.agent.error("a plugin posted log lines that are no list of texts", &labels);
            }
        };
        if lines.broken > 0 {
            self.metrics.plugin_lines_dropped("broken", lines.broken);
            let labels: [telemetry::Label<'_>; 2] = [("lines", &lines.broken), ("uid", &post.uid)];
            self.agent.debug("log lines of a plugin are broken and were dropped", &labels);
        }
        let labels: Vec<Vec<telemetry::Label<'_>>> = lines.good.iter().map(Line::labels).collect();
        let relayed: Vec<Relayed<'_>> = lines
            .good
            .iter()
            .zip(&labels)
            .map(|(line, labels)| Relayed { level: line.level, time: &line.time, msg: &line.msg, labels })
            .collect();
        // A byte may become six where it is no character that can be printed.
        let printed = self.plugin.relay(&relayed);
        post.intake.charge(printed.saturating_sub(post.body.len()));
    }
}

// === impl Lines ===

impl Lines {
    /// Text by text: a body may be a hundred thousand empty ones.
    fn parse(body: &[u8]) -> serde_json::Result<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let lines = deserializer.deserialize_seq(Self::default())?;
        deserializer.end()?;
        Ok(lines)
    }
}

impl<'de> Visitor<'de> for Lines {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of texts")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut texts: A) -> Result<Self, A::Error> {
        while let Some(text) = texts.next_element::<Cow<'_, str>>()? {
            match Line::parse(&text) {
                Some(line) => self.good.push(line),
                None => self.broken += 1,
            }
        }
        Ok(self)
    }
}

// === impl Line ===

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let Value::Object(mut members) = serde_json::from_str(text).ok()? else { return None };
        let mut take = |key: &str| match members.remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let (level, time, msg) = (take("level")?, take("time")?, take("msg")?);
        let level = match level.as_str() {
            "debug" => Level::Debug,
            "info" => Level::Info,
            "warn" => Level::Warn,
            "error" | "fatal" => Level::Error,
            _ => return None,
        };
        let plain = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        // The scope is ours to say.
        members.remove("scope");
        let labels =
            members.into_iter().take(MAX_LABELS).map(|(key, value)| (one_word(&key), plain(value))).collect();
        is_rfc3339(&time).then_some(Self { level, time, msg, labels })
    }

    fn labels(&self) -> Vec<telemetry::Label<'_>> {
        self.labels.iter().map(|(key, value)| (key.as_str(), value as &dyn std::fmt::Display)).collect()
    }
}

/// A label's key that can make neither a line nor a column of its own.
fn one_word(key: &str) -> String {
    key.chars().take(64).map(|c| if c.is_ascii_graphic() && c != '=' && c != '"' { c } else { '_' }).collect()
}

/// Whether a text has the form of a moment in RFC 3339. What it says is the writer's affair.
fn is_rfc3339(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let at = |index: usize, byte: u8| text.as_bytes().get(index) == Some(&byte);
    let date = digits(0..4) && at(4, b'-') && digits(5..7) && at(7, b'-') && digits(8..10) && at(10, b'T');
    let time = digits(11..13) && at(13, b':') && digits(14..16) && at(16, b':') && digits(17..19);
    let rest = text.get(19..).unwrap_or_default();
    let rest = rest
        .strip_prefix('.')
        .map_or(rest, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
    let zone = match rest.as_bytes() {
        [b'Z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    text.len() <= 64 && date && time && zone
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_form_of_rfc_3339() {
        for good in ["2026-08-01T09:30:00Z", "2026-08-01T09:30:00.123456Z", "2026-08-01T09:30:00+02:00"] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2026-08-01",
            "2026-08-01 09:30:00Z",
            "2026-08-01T09:30:00",
            "2026-08-01T09:30:00.Zx",
            "é026-08-01T09:30:00Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
