//! Rows with their targets.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::sample::Samples;

/// All rows of a run.
pub(crate) struct Report {
    runs: usize,
    rows: Vec<Row>,
}

struct Row {
    measure: String,
    ours: String,
    against: String,
    value: String,
    target: String,
    met: bool,
    json: Value,
}

impl Report {
    pub(crate) fn new(runs: usize) -> Self {
        Self { runs, rows: Vec::new() }
    }

    /// Two times of the same run; the ratio of the medians has a target.
    pub(crate) fn ratio(&mut self, measure: &str, ours: &Samples, base: &Samples, most: f64) {
        let ratio = ours.median().as_secs_f64() / base.median().as_secs_f64();
        let text = |s: &Samples| format!("{} / {}", ms(s.median()), ms(s.quantile(0.99)));
        let json = json!({
            "measure": measure, "runs": ours.len(), "unit": "ms",
            "ours": {"p50": millis(ours.median()), "p99": millis(ours.quantile(0.99))},
            "against": {"p50": millis(base.median()), "p99": millis(base.quantile(0.99))},
            "ratio": ratio, "target": most, "met": ratio <= most,
        });
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours: text(ours),
            against: text(base),
            value: format!("{ratio:.2}×"),
            target: format!("≤ {most}×"),
            met: ratio <= most,
            json,
        });
    }

    /// A gain that has to be reached.
    pub(crate) fn gain(&mut self, measure: &str, parallel: Duration, serial: Duration, least: f64) {
        let gain = serial.as_secs_f64() / parallel.as_secs_f64();
        let json = json!({
            "measure": measure, "unit": "ms", "ours": millis(parallel), "against": millis(serial),
            "ratio": gain, "target": least, "met": gain >= least,
        });
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours: ms(parallel),
            against: ms(serial),
            value: format!("{gain:.2}×"),
            target: format!("≥ {least}×"),
            met: gain >= least,
            json,
        });
    }

    /// What comes on top of the same without it; the difference of the medians has a target.
    pub(crate) fn cost(&mut self, measure: &str, ours: &Samples, base: &Samples, most: Duration) {
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        let text = |s: &Samples| format!("{:.1} µs / {:.1} µs", micros(s.median()), micros(s.quantile(0.99)));
        let cost = micros(ours.median()) - micros(base.median());
        let met = cost <= micros(most);
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours: text(ours),
            against: text(base),
            value: format!("{cost:+.1} µs"),
            target: format!("≤ {} µs", most.as_micros()),
            met,
            json: json!({
                "measure": measure, "runs": ours.len(), "unit": "µs", "ours": micros(ours.median()),
                "against": micros(base.median()), "cost": cost, "target": micros(most), "met": met,
            }),
        });
    }

    /// How many times as long a peer takes; the ratio of the medians has a target.
    pub(crate) fn times_as_much(&mut self, measure: &str, ours: &Samples, peer: &Samples, least: f64) {
        let text = |s: &Samples| format!("{} / {}", ms(s.median()), ms(s.quantile(0.99)));
        let ratio = peer.median().as_secs_f64() / ours.median().as_secs_f64();
        self.beside(measure, (text(ours), text(peer)), ratio, least);
    }

    /// The same for sizes in bytes.
    pub(crate) fn size_beside(&mut self, measure: &str, ours: u64, peer: u64, least: f64) {
        self.beside(measure, (mb(ours), mb(peer)), peer as f64 / ours as f64, least);
    }

    fn beside(&mut self, measure: &str, (ours, against): (String, String), ratio: f64, least: f64) {
        let json = json!({
            "measure": measure, "ours": ours, "against": against, "ratio": ratio, "target": least, "met": ratio >= least,
        });
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours,
            against,
            value: format!("{ratio:.1}×"),
            target: format!("≥ {least}×"),
            met: ratio >= least,
            json,
        });
    }

    /// A size in bytes that must not be exceeded.
    pub(crate) fn size(&mut self, measure: &str, bytes: u64, most: u64) {
        let json =
            json!({"measure": measure, "unit": "bytes", "ours": bytes, "target": most, "met": bytes <= most});
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours: mb(bytes),
            against: "-".to_owned(),
            value: mb(bytes),
            target: format!("≤ {}", mb(most)),
            met: bytes <= most,
            json,
        });
    }

    /// A time that must not be exceeded, if there is such a limit.
    pub(crate) fn time(&mut self, measure: &str, value: Duration, most: impl Into<Option<Duration>>) {
        let most = most.into();
        let met = most.is_none_or(|most| value <= most);
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours: ms(value),
            against: "-".to_owned(),
            value: ms(value),
            target: most.map_or_else(|| "-".to_owned(), |most| format!("≤ {} ms", millis(most))),
            met,
            json: json!({
                "measure": measure, "unit": "ms", "ours": millis(value), "target": most.map(millis), "met": met,
            }),
        });
    }

    /// A share that must not be exceeded.
    pub(crate) fn share(&mut self, measure: &str, value: f64, most: f64) {
        let percent = |share: f64| format!("{:.3}%", share * 100.0);
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours: percent(value),
            against: "-".to_owned(),
            value: percent(value),
            target: format!("≤ {}%", most * 100.0),
            met: value <= most,
            json: json!({"measure": measure, "unit": "share", "ours": value, "target": most, "met": value <= most}),
        });
    }

    /// A share that must be reached.
    pub(crate) fn at_least(&mut self, measure: &str, value: f64, least: f64) {
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        self.rows.push(Row {
            measure: measure.to_owned(),
            ours: percent(value),
            against: "-".to_owned(),
            value: percent(value),
            target: format!("≥ {}", percent(least)),
            met: value >= least,
            json: json!({"measure": measure, "unit": "share", "ours": value, "target": least, "met": value >= least}),
        });
    }

    pub(crate) fn table(&self) -> String {
        let header = ["MEASURE", "OURS (p50 / p99)", "AGAINST (p50 / p99)", "VALUE", "TARGET", "MET"];
        let rows: Vec<[&str; 6]> = self
            .rows
            .iter()
            .map(|r| {
                [
                    r.measure.as_str(),
                    &r.ours,
                    &r.against,
                    &r.value,
                    &r.target,
                    if r.met { "yes" } else { "MISSED" },
                ]
            })
            .collect();
        let width = |column: usize| {
            rows.iter().chain([&header]).map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let mut out = String::new();
        for row in [&header].into_iter().chain(&rows) {
            for (column, cell) in row.iter().enumerate() {
                let _ = write!(out, "{cell:<width$}  ", width = width(column));
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        out
    }

    pub(crate) fn json(&self) -> Value {
        json!({"runs": self.runs, "measures": self.rows.iter().map(|row| &row.json).collect::<Vec<_>>()})
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn mb(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

fn ms(duration: Duration) -> String {
    format!("{:.3} ms", millis(duration))
}
