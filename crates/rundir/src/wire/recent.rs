//! What has happened on the node lately, for people who look at it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How the pods were over the last hour, and the agent's last lines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecentReport {
    /// A sample for each minute, the oldest first; at most [`MAX_SAMPLES`].
    pub samples: Vec<PodsSample>,
    /// Lines of the log as they were written, the oldest first; at most 200.
    pub log: Vec<String>,
}

/// The pods that should be captured at one time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodsSample {
    /// In seconds since 1970.
    pub at: f64,
    /// How many are in each state; states without a pod are left out.
    pub states: BTreeMap<String, usize>,
}

/// The most samples: an hour's.
pub const MAX_SAMPLES: usize = 60;
/// The largest [`RecentReport`], in bytes: 200 lines of at most a kilobyte, escaped, and the samples.
pub const MAX_RECENT_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_other_versions_are_read() {
        let text = r#"{"samples":[{"at":1.5,"states":{"verified":3,"improved":1},"later":1}],"later":[]}"#;
        let report: RecentReport = serde_json::from_str(text).unwrap();
        assert_eq!((report.samples[0].states["improved"], report.log.len()), (1, 0));
    }
}
