//! Hours of the calendar, UTC.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const SECONDS: u64 = 3600;

/// An hour, by its number since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hour(u64);

// === impl Hour ===

impl Hour {
    /// The hour of a time, in seconds since 1970.
    pub fn of(seconds: u64) -> Self {
        Self(seconds / SECONDS)
    }

    /// When it begins, in seconds since 1970.
    pub fn begins(self) -> u64 {
        self.0 * SECONDS
    }

    /// When it is over, in seconds since 1970.
    pub fn ends(self) -> u64 {
        self.begins() + SECONDS
    }

    /// The first hour of the day after this one's.
    pub fn next_day(self) -> Self {
        Self((self.0 / 24 + 1) * 24)
    }

    /// Its day as eight digits, as in names of files.
    pub fn day(self) -> String {
        let (year, month, day) = self.date();
        format!("{year:04}{month:02}{day:02}")
    }

    /// The first hour of a day that is given as `2026-11-28` or `20261128`.
    pub fn of_day(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let is_plain = digits.len() == 8 && digits.bytes().all(|c| c.is_ascii_digit());
        let is_date =
            text.len() == 8 || (text.len() == 10 && text.as_bytes()[4] == b'-' && text.as_bytes()[7] == b'-');
        if !is_plain || !is_date {
            return None;
        }
        let (year, month, day) =
            (digits[..4].parse().ok()?, digits[4..6].parse().ok()?, digits[6..].parse().ok()?);
        let hour = Self(days_since_1970(year, month, day)? * 24);
        // What is no day, as the 31st of February, is another day.
        (hour.date() == (year, month, day)).then_some(hour)
    }

    /// Year, month and day (Howard Hinnant's algorithm `civil_from_days`, for days since 1970).
    fn date(self) -> (u64, u64, u64) {
        let days = self.0 / 24 + 719_468;
        let era_day = days % 146_097;
        let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
        let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
        let shifted = (5 * year_day + 2) / 153;
        let (day, month) =
            (year_day - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
        (era_year + days / 146_097 * 400 + u64::from(month <= 2), month, day)
    }
}

/// The other way (`days_from_civil`).
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let (era, era_year) = (year / 400, year % 400);
    let year_day = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let era_day = era_year * 365 + era_year / 4 - era_year / 100 + year_day;
    Some(era * 146_097 + era_day - 719_468)
}

impl fmt::Display for Hour {
    /// As RFC 3339 has its beginning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:00:00Z", self.0 % 24)
    }
}

impl FromStr for Hour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no hour");
        let (day, time) = text.split_once('T').ok_or_else(bad)?;
        let hour = time.strip_suffix(":00:00Z").filter(|hour| hour.len() == 2).ok_or_else(bad)?;
        let hour: u64 = hour.parse().ok().filter(|hour| *hour < 24).ok_or_else(bad)?;
        let first = Self::of_day(day).filter(|_| day.len() == 10).ok_or_else(bad)?;
        Ok(Self(first.0 + hour))
    }
}

impl TryFrom<String> for Hour {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Hour> for String {
    fn from(hour: Hour) -> Self {
        hour.to_string()
    }
}
