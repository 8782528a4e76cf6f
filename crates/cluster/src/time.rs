//! Times as Kubernetes writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;

/// Seconds since 1970; `None` for what is no time, or before that.
pub fn seconds(text: &str) -> Option<u64> {
    text.parse::<Timestamp>().ok()?.as_second().try_into().ok()
}

/// How long ago a time was that is written as the digits of its date and time, year first, as `Peer::created` is; nothing for no time.
pub fn since_digits(digits: u64) -> Option<Duration> {
    let (date, time) = (digits / 1_000_000, digits % 1_000_000);
    let (year, month, day) = (date / 10_000, date / 100 % 100, date % 100);
    let (hour, minute, second) = (time / 10_000, time / 100 % 100, time % 100);
    let at = seconds(&format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))?;
    SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(at)).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_a_time() {
        let year = 365 * 24 * 3600;
        assert!(super::since_digits(20_200_229_235_959).is_some_and(|age| age.as_secs() > 5 * year));
        for none in [0, u64::MAX, 20_261_329_100_000, 99_990_101_000_000] {
            assert_eq!(super::since_digits(none), None, "{none}");
        }
    }

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
