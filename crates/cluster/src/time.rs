//! Times as Kubernetes writes them.

use k8s_openapi::jiff::Timestamp;

/// Seconds since 1970; `None` for what is no time, or before that.
pub fn seconds(text: &str) -> Option<u64> {
    text.parse::<Timestamp>().ok()?.as_second().try_into().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_those_of_rfc_3339() {
        for (text, wanted) in [
            ("1970-01-02T00:00:01Z", Some(86_401)),
            ("2026-11-29T10:00:00Z", Some(1_795_946_400)),
            ("2026-11-29T11:00:00.5+01:00", Some(1_795_946_400)),
            ("1969-12-31T23:59:59Z", None),
            ("2026-11-29", None),
            ("", None),
        ] {
            assert_eq!(super::seconds(text), wanted, "{text}");
        }
    }
}
