//! One log line as JSON, and UTC dates by arithmetic (a date library would be larger than all the rest of this crate).

use std::fmt::{self, Display};
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Level;

/// A key and what stands behind it in a line, such as `("pod", &"shop/cart-1")`.
pub type Label<'a> = (&'a str, &'a dyn Display);

/// Bytes kept of a message or of a label's value. A pod may carry an annotation of a megabyte, and a line about it must
/// not fill the file.
pub(crate) const VALUE_MAX_BYTES: usize = 16 * 1024;

const CUT_MARK: &str = "...(cut)";

/// UTC calendar fields of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Utc {
    year: i64,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    micros: u32,
}

/// Shows a [`Utc`] as log lines have it: `2026-08-01T09:30:00.000001Z`.
struct LineTime(Utc);

/// When a line was written.
#[derive(Clone, Copy)]
pub(crate) enum Stamp<'a> {
    /// Then.
    At(SystemTime),
    /// As its writer has put it down.
    Written(&'a str),
}

/// A moment as log lines have it, in RFC 3339's form: `2026-08-01T09:30:00.000001Z`.
pub fn time_text(moment: SystemTime) -> String {
    LineTime(Utc::from(moment)).to_string()
}

/// Appends a line of JSON: `level`, `time`, `scope`, `msg`, the labels already rendered, then `labels`, and a newline.
pub(crate) fn write_json(
    out: &mut Vec<u8>,
    level: Level,
    time: Stamp<'_>,
    scope: Option<&str>,
    msg: &str,
    rendered: &[u8],
    labels: &[Label<'_>],
) {
    out.extend_from_slice(b"{\"level\":\"");
    out.extend_from_slice(level.as_str().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    push_display(out, &time);
    out.push(b'"');
    if let Some(scope) = scope {
        write_labels(out, &[("scope", &scope)]);
    }
    out.extend_from_slice(b",\"msg\":");
    push_json_display(out, &msg);
    out.extend_from_slice(rendered);
    write_labels(out, labels);
    out.extend_from_slice(b"}\n");
}

/// Appends a line of text: time, level, scope, message and labels with tabs between, and a newline.
pub(crate) fn write_text(
    out: &mut Vec<u8>,
    level: Level,
    time: Stamp<'_>,
    scope: &str,
    msg: &str,
    labels: &[Label<'_>],
) {
    push_display(out, &time);
    for part in ["\t", level.as_str(), "\t", scope, "\t"] {
        out.extend_from_slice(part.as_bytes());
    }
    // A message must not make a second line, or a column.
    for c in bounded(&msg).chars() {
        if c.is_control() { push_display(out, &c.escape_default()) } else { push_display(out, &c) }
    }
    let mut separator = b'\t';
    for (key, value) in labels {
        out.push(separator);
        separator = b' ';
        let value = bounded(value);
        let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic() && c != '"');
        let _ = if plain { write!(out, "{key}={value}") } else { write!(out, "{key}={value:?}") };
    }
    out.push(b'\n');
}

/// Appends `,"key":"value"` for each label.
pub(crate) fn write_labels(out: &mut Vec<u8>, labels: &[Label<'_>]) {
    for (key, value) in labels {
        out.push(b',');
        push_json(out, key);
        out.push(b':');
        push_json_display(out, value);
    }
}

/// Appends `text` as a JSON string.
pub(crate) fn push_json(out: &mut Vec<u8>, text: &str) {
    // Writing a string to a Vec cannot fail: neither the writer nor the serializer of strings has an error to give.
    let _ = serde_json::to_writer(out, text);
}

fn push_json_display(out: &mut Vec<u8>, value: &dyn Display) {
    push_json(out, &bounded(value));
}

/// The text, or its beginning.
pub(super) fn bounded(value: &dyn Display) -> String {
    let mut text = Bounded(String::new());
    if fmt::Write::write_fmt(&mut text, format_args!("{value}")).is_err() {
        text.0.push_str(CUT_MARK);
    }
    text.0
}

fn push_display(out: &mut Vec<u8>, value: &dyn Display) {
    let _ = write!(out, "{value}");
}

/// A string that refuses to grow past [`VALUE_MAX_BYTES`], so that formatting stops there.
struct Bounded(String);

// === impl Bounded ===

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = VALUE_MAX_BYTES - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        Err(fmt::Error)
    }
}

// === impl Utc ===

impl From<SystemTime> for Utc {
    /// A clock before 1970 counts as 1970: a wrong date in a log must not stop a pod from starting.
    fn from(moment: SystemTime) -> Self {
        let since = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = since.as_secs();
        let (days, in_day) = (seconds / 86_400, (seconds % 86_400) as u32);

        // Count days from 0000-03-01, so that a leap day is the last day of its year; 146097 days are 400 years.
        let days = days as i64 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months of a year that starts in March: five months are always 153 days.
        let from_march = (5 * of_year + 2) / 153;
        let day = (of_year - (153 * from_march + 2) / 5 + 1) as u32;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 } as u32;
        let year = era * 400 + year_of_era + i64::from(month <= 2);

        Self {
            year,
            month,
            day,
            hour: in_day / 3_600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
            micros: since.subsec_micros(),
        }
    }
}

impl Utc {
    /// The form that file names have: `2026-08-01T09-30-00.000`, milliseconds, 23 characters.
    pub(crate) fn file_stamp(self) -> String {
        let Self { year, month, day, hour, minute, second, micros } = self;
        let millis = micros / 1_000;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{millis:03}")
    }
}

impl Display for Stamp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(moment) => LineTime(Utc::from(*moment)).fmt(f),
            Self::Written(text) => f.write_str(text),
        }
    }
}

impl Display for LineTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Utc { year, month, day, hour, minute, second, micros } = self.0;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

#[cfg(test)]
mod tests;
