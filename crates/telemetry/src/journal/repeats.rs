//! What a log has said already: a loop that fails in the same way at each turn must not fill it.
//!
//! Two lines are the same if level, message and labels are; labels that are numbers (seconds, counts) do not tell them apart. A line is told
//! the first time and then after pauses that double, with the number of times. It is told anew when its subject was well in between, or when it was not said for a while.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::time::{Duration, Instant};

use crate::Level;
use crate::line::Label;

/// Pause before a line is told a second time; each one after it is twice as long.
const PAUSE: Duration = Duration::from_secs(30);
/// The longest of them.
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// A line that was not said for so long is news.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Lines that are remembered, each some 50 bytes. With one more all are forgotten.
const MAX_LINES: usize = 4096;
/// Labels that say what a line is about, in this order. A line without any is about its scope.
const SUBJECTS: [&str; 5] = ["pod", "watch", "path", "ip", "container"];

/// Lines that were logged, by subject.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    subjects: HashMap<u64, Vec<LineState>>,
    /// In all of them.
    lines: usize,
    hasher: RandomState,
}

#[derive(Debug)]
struct LineState {
    line: u64,
    times: u64,
    last: Instant,
    /// When it is told again, and the pause after that.
    next: Instant,
    pause: Duration,
}

// === impl Repeats ===

impl Repeats {
    /// How often the line was said, this time included, or `None` if it need not be told.
    pub(super) fn say(
        &mut self,
        scope: &str,
        level: Level,
        msg: &str,
        labels: &[Label<'_>],
        now: Instant,
    ) -> Option<u64> {
        let (subject, line) = (self.subject(scope, labels), self.line(level, msg, labels));
        if self.lines >= MAX_LINES {
            (self.subjects, self.lines) = (HashMap::new(), 0);
        }
        let said = self.subjects.entry(subject).or_default();
        let Some(known) = said.iter_mut().find(|said| said.line == line) else {
            said.push(LineState { line, times: 1, last: now, next: now + PAUSE, pause: PAUSE });
            self.lines += 1;
            return Some(1);
        };
        let forgotten = now.saturating_duration_since(known.last) >= FORGOTTEN;
        if forgotten {
            *known = LineState { line, times: 0, last: now, next: now, pause: PAUSE / 2 };
        }
        (known.times, known.last) = (known.times.saturating_add(1), now);
        let is_due = now >= known.next;
        if is_due {
            known.pause = (known.pause * 2).min(MAX_PAUSE);
            known.next = now + known.pause;
        }
        is_due.then_some(known.times)
    }

    /// The subject of these labels has recovered: its next line is logged at once.
    pub(super) fn settle(&mut self, scope: &str, labels: &[Label<'_>]) {
        if let Some(said) = self.subjects.remove(&self.subject(scope, labels)) {
            self.lines -= said.len();
        }
    }

    fn subject(&self, scope: &str, labels: &[Label<'_>]) -> u64 {
        let named = SUBJECTS.iter().find_map(|name| labels.iter().find(|(key, _)| key == name));
        let mut hasher = self.hasher.build_hasher();
        scope.hash(&mut hasher);
        if let Some((key, value)) = named {
            (key, value.to_string()).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn line(&self, level: Level, msg: &str, labels: &[Label<'_>]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        (level.as_str(), msg).hash(&mut hasher);
        for (key, value) in labels {
            let value = value.to_string();
            if value.parse::<f64>().is_err() {
                (key, value).hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(repeats: &mut Repeats, msg: &str, labels: &[Label<'_>], now: Instant) -> Option<u64> {
        repeats.say("cni-agent", Level::Warn, msg, labels, now)
    }

    #[test]
    fn a_line_is_told_once_and_then_after_pauses_that_double() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let told: Vec<(u64, u64)> = (0..3600)
            .filter_map(|second| {
                let now = start + Duration::from_secs(second);
                Some((second, say(&mut repeats, "no", &[("pod", &"a/b")], now)?))
            })
            .collect();
        let seconds = [0, 30, 90, 210, 450, 930, 1530, 2130, 2730, 3330];
        assert_eq!(told, seconds.map(|second| (second, second + 1)));
    }

    #[test]
    fn another_message_level_scope_or_text_of_a_label_is_another_line_and_a_number_is_not() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let labels: [Label<'_>; 2] = [("pod", &"a/b"), ("seconds", &1.5)];
        assert_eq!(say(&mut repeats, "no", &labels, now), Some(1));
        assert_eq!(say(&mut repeats, "no", &[("pod", &"a/b"), ("seconds", &27)], now), None);
        assert_eq!(say(&mut repeats, "nor", &labels, now), Some(1));
        assert_eq!(say(&mut repeats, "no", &[("pod", &"a/c"), ("seconds", &1)], now), Some(1));
        assert_eq!(say(&mut repeats, "no", &[("pod", &"a/b"), ("error", &"x")], now), Some(1));
        assert_eq!(repeats.say("cni-agent", Level::Error, "no", &labels, now), Some(1));
        assert_eq!(repeats.say("ambient", Level::Warn, "no", &labels, now), Some(1));
    }

    #[test]
    fn a_line_is_news_after_its_subject_was_well_and_after_a_while() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let (one, other): ([Label<'_>; 1], [Label<'_>; 1]) = ([("pod", &"a/b")], [("pod", &"a/c")]);
        for labels in [&one, &other, &one] {
            say(&mut repeats, "no", labels, now);
        }
        repeats.settle("cni-agent", &[("uid", &"1"), ("pod", &"a/b")]);
        assert_eq!(say(&mut repeats, "no", &one, now), Some(1), "it was well");
        assert_eq!(say(&mut repeats, "no", &other, now), None, "nothing was said of this one");
        assert_eq!(say(&mut repeats, "no", &other, now + FORGOTTEN), Some(1), "a while ago");
        assert_eq!(say(&mut repeats, "no", &other, now + FORGOTTEN + PAUSE), Some(2), "as for a new line");
        assert_eq!(say(&mut repeats, "no", &[], now), Some(1));
        repeats.settle("cni-agent", &one);
        assert_eq!(say(&mut repeats, "no", &[], now), None, "a pod that is well says nothing of the rest");
        repeats.settle("cni-agent", &[]);
        assert_eq!(say(&mut repeats, "no", &[], now), Some(1));
    }

    #[test]
    fn memory_has_a_limit() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        for number in 0..3 * MAX_LINES {
            assert_eq!(say(&mut repeats, "no", &[("pod", &format!("a/{number}"))], now), Some(1));
            let kept: usize = repeats.subjects.values().map(Vec::len).sum();
            assert!(kept == repeats.lines && kept <= MAX_LINES, "{kept}");
        }
        for number in 0..3 * MAX_LINES {
            assert_eq!(say(&mut repeats, &format!("no {number}"), &[], now), Some(1));
        }
        assert!(repeats.lines <= MAX_LINES);
    }
}
