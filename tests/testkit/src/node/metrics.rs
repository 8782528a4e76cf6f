//! Metrics in Prometheus' text format.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// What `/metrics` said at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Kind by name, from the lines that tell the types.
    pub kinds: BTreeMap<String, String>,
    /// Value by series, written as in the text: `name{label="value"}`.
    pub series: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the text.
    ///
    /// # Errors
    /// A line that is neither a comment nor a series with a number.
    pub fn parse(text: &str) -> Result<Self> {
        let mut metrics = Self::default();
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').with_context(|| format!("no type: {line}"))?;
                metrics.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').with_context(|| format!("no series: {line}"))?;
                metrics.series.insert(series.to_owned(), value.parse()?);
            }
        }
        Ok(metrics)
    }

    /// The value of a series; 0 for one that is not there, as for a counter that never counted.
    pub fn value(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or_default()
    }

    /// Every name with its labels' names, without those of the process collector: `name{label,label}`.
    pub fn shapes(&self) -> Vec<String> {
        let shape = |series: &String| {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',');
            let names: Vec<&str> = labels.filter_map(|label| Some(label.split_once('=')?.0)).collect();
            format!("{name}{{{}}}", names.join(","))
        };
        let mut shapes: Vec<String> =
            self.series.keys().filter(|series| !series.starts_with("process_")).map(shape).collect();
        shapes.sort();
        shapes.dedup();
        shapes
    }
}
