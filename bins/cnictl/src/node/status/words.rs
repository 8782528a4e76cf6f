//! Ages and numbers for people.

use std::time::SystemTime;

/// `None` also for a time in the future, from a clock that was set back.
pub(super) fn age(modified: Option<SystemTime>) -> Option<u64> {
    SystemTime::now().duration_since(modified?).ok().map(|age| age.as_secs())
}

pub(super) fn written(age: Option<u64>) -> String {
    age.map_or_else(String::new, |age| format!(", written {} ago", short(age)))
}

/// Seconds in the largest unit that fits.
pub(crate) fn short(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub(super) fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let texts = [0, 119, 120, 7199, 7200, 172_800].map(short);
        assert_eq!(texts, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
