//! The last lines of the journal, for people who look at the node and not at its log.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lines that are kept.
const LINES: usize = 200;
/// Longest line that is kept whole, in bytes.
const MAX_LINE: usize = 1 << 10;

/// Keeps them, whether or not the log takes lines.
#[derive(Default)]
pub(super) struct RecentLines(Mutex<VecDeque<Box<str>>>);

// === impl RecentLines ===

impl RecentLines {
    /// Takes lines, each with its end.
    pub(super) fn take(&self, text: &[u8]) {
        let text = String::from_utf8_lossy(text);
        let mut kept = self.kept();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if kept.len() == LINES {
                kept.pop_front();
            }
            kept.push_back(match line.len() > MAX_LINE {
                true => format!("{}…", &line[..line.floor_char_boundary(MAX_LINE)]).into(),
                false => line.into(),
            });
        }
    }

    /// The lines, the oldest first.
    pub(super) fn all(&self) -> Vec<String> {
        self.kept().iter().map(|line| line.to_string()).collect()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Box<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_long_ones_cut() {
        let recent = RecentLines::default();
        (0..LINES + 5).for_each(|number| recent.take(format!("line {number}\n").as_bytes()));
        let all = recent.all();
        assert_eq!((all.len(), &*all[0], &*all[LINES - 1]), (LINES, "line 5", "line 204"));
        recent.take(format!("{}\ntwo\n\u{fffd}", "ä".repeat(MAX_LINE)).as_bytes());
        let all = recent.all();
        assert_eq!(&all[LINES - 2..], ["two", "\u{fffd}"]);
        assert!(all[LINES - 3].len() < MAX_LINE + 8 && all[LINES - 3].ends_with('…'));
    }
}
