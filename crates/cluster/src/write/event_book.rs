//! Which Events are written when: whoever triggers them ten thousand times makes few.
//!
//! An object has one Event for a reason, which becomes a series when the same happens again: its count and its last time change, and its text, if what
//! is said is another: what was said some seconds before stays in it. A node has a budget of writes; what finds it used up waits for its turn.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::event::MAX_MESSAGE;

/// How often Events are written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EventLimits {
    /// For so long an object has no second Event for a reason, and what happens again is only counted.
    pub quiet: Duration,
    /// So long a text that is another one waits after the last write about the same object and reason.
    pub pause: Duration,
    /// After so long without anything new, the next one is an Event of its own.
    pub end: Duration,
    /// Writes of this node in any minute.
    pub in_a_minute: usize,
}

/// An Event as it is to be made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EventDraft {
    /// Namespace, kind, name and uid of what it is about.
    pub(super) about: Value,
    pub(super) namespace: String,
    /// Of the object, for the Event's own.
    pub(super) name: String,
    pub(super) warning: bool,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) component: String,
    /// How often it has happened by now.
    pub(super) count: u64,
}

/// What is to be done about Events.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum EventWrite {
    Create(EventDraft),
    /// The Event of this name has happened so often, and says the draft's text.
    Update {
        event: String,
        draft: EventDraft,
    },
}

/// Objects and reasons that are remembered; beyond, those that have waited longest are forgotten.
const MOST: usize = 4096;
const MINUTE: Duration = Duration::from_secs(60);

type EventKey = (String, String);

#[derive(Debug)]
struct Told {
    draft: EventDraft,
    /// What its message consists of.
    said: Vec<String>,
    /// Name of the Event; absent until it is written.
    event: Option<String>,
    written: Instant,
    /// How often it happened since the Event was made.
    count: u64,
    /// Something is not told yet.
    pending: bool,
    /// What is not told yet has another text.
    is_news: bool,
}

/// What was told, and what is to be.
#[derive(Debug)]
pub(super) struct EventBook {
    limits: EventLimits,
    told: HashMap<EventKey, Told>,
    /// When it was written in the last minute.
    lately: VecDeque<Instant>,
    /// Somebody writes what waits.
    is_served: bool,
}

// === impl EventLimits ===

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(300),
            pause: Duration::from_secs(5),
            end: Duration::from_secs(1800),
            in_a_minute: 30,
        }
    }
}

// === impl EventDraft ===

impl EventDraft {
    fn key(&self) -> EventKey {
        (self.about.to_string(), self.reason.clone())
    }
}

// === impl Told ===

impl Told {
    /// What happens now is told; with what was told a moment ago, which nobody may have read, as far as there is room.
    fn say(&mut self, mut draft: EventDraft, is_recent: bool) {
        if self.said.contains(&draft.message) {
            return;
        }
        let all = format!("{}; {}", self.draft.message, draft.message);
        if !is_recent || all.len() > MAX_MESSAGE {
            self.said.clear();
        }
        self.said.push(draft.message);
        draft.message = self.said.join("; ");
        (self.is_news, self.draft) = (true, draft);
    }
}

// === impl EventBook ===

impl EventBook {
    pub(super) fn new(limits: EventLimits) -> Self {
        Self { limits, told: HashMap::new(), lately: VecDeque::new(), is_served: false }
    }

    /// Something happened. What is to be written at once, if anything; what waits comes by [`Self::due`].
    pub(super) fn take(&mut self, draft: EventDraft, now: Instant) -> Option<EventWrite> {
        let key = draft.key();
        let is_over = |told: &Told| !told.pending && now.duration_since(told.written) >= self.limits.end;
        if self.told.get(&key).is_some_and(is_over) {
            self.told.remove(&key);
        }
        match self.told.get_mut(&key) {
            Some(told) => {
                told.count += 1;
                told.pending = true;
                let is_recent = told.is_news || now.duration_since(told.written) < self.limits.pause;
                told.say(draft, is_recent);
            }
            None => {
                self.make_room();
                let told = Told {
                    said: vec![draft.message.clone()],
                    draft,
                    event: None,
                    written: now,
                    count: 1,
                    pending: true,
                    is_news: false,
                };
                self.told.insert(key.clone(), told);
            }
        }
        self.write(&key, now)
    }

    /// What has waited longest of what was not told yet and may be now.
    pub(super) fn due(&mut self, now: Instant) -> Option<EventWrite> {
        let mut keys: Vec<(Instant, EventKey)> = self
            .told
            .iter()
            .filter(|(_, told)| told.pending)
            .map(|(key, told)| (told.written, key.clone()))
            .collect();
        keys.sort();
        keys.iter().find_map(|(_, key)| self.write(key, now))
    }

    /// Whether something waits and nobody is about to write it: who asks is.
    pub(super) fn begins(&mut self) -> bool {
        self.waits() && !std::mem::replace(&mut self.is_served, true)
    }

    /// Whether something waits still; who writes it ends otherwise.
    pub(super) fn goes_on(&mut self) -> bool {
        self.is_served = self.waits();
        self.is_served
    }

    fn waits(&self) -> bool {
        self.told.values().any(|told| told.pending)
    }

    /// The Event was made.
    pub(super) fn made(&mut self, draft: &EventDraft, event: String) {
        if let Some(told) = self.told.get_mut(&draft.key()) {
            told.event = Some(event);
        }
    }

    /// It could not be made: whoever wants it told says it again. What was said meanwhile waits.
    pub(super) fn failed(&mut self, draft: &EventDraft) {
        let key = draft.key();
        if self.told.get(&key).is_some_and(|told| !told.pending) {
            self.told.remove(&key);
        }
    }

    /// It could not be written this time.
    pub(super) fn again(&mut self, write: &EventWrite) {
        let (EventWrite::Create(draft) | EventWrite::Update { draft, .. }) = write;
        if let Some(told) = self.told.get_mut(&draft.key()) {
            (told.pending, told.is_news) = (true, true);
        }
    }

    fn write(&mut self, key: &EventKey, now: Instant) -> Option<EventWrite> {
        while self.lately.front().is_some_and(|at| now.duration_since(*at) >= MINUTE) {
            self.lately.pop_front();
        }
        let EventLimits { quiet, pause, in_a_minute, .. } = self.limits;
        let told = self.told.get_mut(key)?;
        let waited = now.duration_since(told.written);
        let is_due = match told.event {
            // One that is being made: its name comes.
            None if told.count > 1 || waited > Duration::ZERO => waited >= pause,
            None => true,
            Some(_) => waited >= if told.is_news { pause } else { quiet },
        };
        if !is_due || self.lately.len() >= in_a_minute {
            return None;
        }
        self.lately.push_back(now);
        (told.written, told.pending, told.is_news) = (now, false, false);
        let draft = EventDraft { count: told.count, ..told.draft.clone() };
        Some(match told.event.clone() {
            None => EventWrite::Create(draft),
            Some(event) => EventWrite::Update { event, draft },
        })
    }

    fn make_room(&mut self) {
        if self.told.len() >= MOST
            && let Some(oldest) = self
                .told
                .iter()
                .min_by_key(|(_, told)| (told.pending, told.written))
                .map(|(key, _)| key.clone())
        {
            self.told.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(name: &str, reason: &str, message: &str) -> EventDraft {
        EventDraft {
            about: serde_json::json!({"kind": "Pod", "name": name}),
            namespace: "shop".into(),
            name: name.into(),
            warning: true,
            reason: reason.into(),
            message: message.into(),
            component: "c".into(),
            count: 1,
        }
    }

    /// Makes what is to be made, as the writer does; the writes by seconds.
    struct Played {
        book: EventBook,
        start: Instant,
        writes: Vec<(u64, EventWrite)>,
    }

    impl Played {
        fn new() -> Self {
            let start = Instant::now();
            Self { book: EventBook::new(EventLimits::default()), start, writes: Vec::new() }
        }

        fn take(&mut self, seconds: u64, draft: EventDraft) {
            let now = self.start + Duration::from_secs(seconds);
            let write = self.book.take(draft, now);
            self.done(seconds, write.into_iter().collect());
        }

        fn due(&mut self, seconds: u64) {
            while let Some(write) = self.book.due(self.start + Duration::from_secs(seconds)) {
                self.done(seconds, vec![write]);
            }
        }

        fn done(&mut self, seconds: u64, writes: Vec<EventWrite>) {
            for write in writes {
                if let EventWrite::Create(draft) = &write {
                    self.book.made(draft, format!("{}.{seconds}", draft.name));
                }
                self.writes.push((seconds, write));
            }
        }
    }

    #[test]
    fn ten_thousand_triggers_are_one_event_and_a_series() {
        let mut played = Played::new();
        for trigger in 0..10_000 {
            played.take(trigger / 10, draft("web", "CaptureDrift", "nft changed it"));
            played.due(trigger / 10);
        }
        // 1000 s: the Event, and its series after each five minutes.
        let times: Vec<u64> = played.writes.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 300, 600, 900]);
        assert!(matches!(&played.writes[0].1, EventWrite::Create(_)));
        let counts: Vec<u64> = played.writes[1..]
            .iter()
            .map(|(_, write)| match write {
                EventWrite::Update { event, draft } if event == "web.0" => draft.count,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(counts, [3001, 6001, 9001]);
        // What is left is told when its time has come, and then nothing waits.
        assert!(played.book.waits());
        played.due(1200);
        let EventWrite::Update { draft: last, .. } = &played.writes[4].1 else {
            panic!("{:?}", played.writes[4])
        };
        assert!(last.count == 10_000 && !played.book.waits());
        // Much later it is an Event of its own.
        played.take(3001, draft("web", "CaptureDrift", "nft changed it"));
        assert!(matches!(played.writes[5].1, EventWrite::Create(_)));
    }

    #[test]
    fn another_text_is_told_soon_and_in_the_same_event() {
        let mut played = Played::new();
        played.take(0, draft("web", "CaptureDrift", "by nft"));
        played.take(1, draft("web", "CaptureDrift", "by iptables"));
        assert_eq!(played.writes.len(), 1);
        played.due(4);
        assert_eq!(played.writes.len(), 1);
        played.due(5);
        match &played.writes[1] {
            (5, EventWrite::Update { draft, .. }) => {
                assert_eq!((&*draft.message, draft.count), ("by nft; by iptables", 2));
            }
            other => panic!("{other:?}"),
        }
        // What is a part of an older text is another one; what was said already, and is in the Event, is only counted.
        played.take(100, draft("web", "CaptureDrift", "by ip"));
        played.take(101, draft("web", "CaptureDrift", "by nft"));
        played.take(102, draft("web", "CaptureDrift", "by ip"));
        played.due(105);
        let texts: Vec<&str> = played.writes[2..]
            .iter()
            .map(|(_, write)| match write {
                EventWrite::Create(draft) | EventWrite::Update { draft, .. } => &*draft.message,
            })
            .collect();
        assert_eq!(texts, ["by ip", "by ip; by nft"]);
        // More than there is room for is the newest alone.
        let long = "x".repeat(MAX_MESSAGE);
        played.take(106, draft("web", "CaptureDrift", &long));
        played.due(110);
        assert!(matches!(&played.writes[4].1, EventWrite::Update { draft, .. } if draft.message == long));
        played.writes.truncate(2);
        // Another reason or object is its own.
        played.take(111, draft("web", "CaptureRestored", "x"));
        played.take(111, draft("db", "CaptureDrift", "x"));
        assert_eq!(played.writes.len(), 4);
    }

    #[test]
    fn a_node_has_a_budget_and_what_waits_comes_in_its_turn() {
        let mut played = Played::new();
        for pod in 0..100 {
            played.take(0, draft(&format!("pod-{pod}"), "CaptureDrift", "x"));
        }
        assert_eq!(played.writes.len(), 30);
        for second in 1..=200 {
            played.due(second);
            let lately = played.writes.iter().filter(|(at, _)| at + 60 > second).count();
            assert!(lately <= 30, "{lately} at {second}");
        }
        let creates =
            played.writes.iter().filter(|(_, write)| matches!(write, EventWrite::Create(_))).count();
        assert_eq!((creates, played.book.waits()), (100, false));
    }

    #[test]
    fn what_cannot_be_written_is_told_when_it_is_said_again() {
        let mut played = Played::new();
        let event = draft("web", "CaptureDrift", "x");
        assert!(matches!(played.book.take(event.clone(), played.start), Some(EventWrite::Create(_))));
        played.book.failed(&event);
        assert!(matches!(played.book.take(event.clone(), played.start), Some(EventWrite::Create(_))));
        for pod in 0..2 * MOST {
            played.take(0, draft(&format!("pod-{pod}"), "CaptureDrift", "x"));
        }
        assert_eq!(played.book.told.len(), MOST);
    }
}
