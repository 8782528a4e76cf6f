//! Which list an object was in: what a list does not have is gone at its end, and not before.

/// In the place of a list's number: what an earlier process kept. No list has it.
const REMEMBERED: u32 = u32::MAX;

/// The lists of one kind of object so far.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// The number of the running list, or of the last one. What it contains is marked with it.
    number: u32,
    /// Whether one was complete.
    complete: bool,
    /// The number of the last one that was.
    committed: u32,
}

/// What is known of an object's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoundMark {
    /// The list that contained it, or during which it was applied.
    round: u32,
    /// The same of when it was applied first.
    added: u32,
}

// === impl Rounds ===

impl Rounds {
    /// A list begins.
    pub(crate) fn begin(&mut self) {
        self.number += 1;
    }

    /// The list is complete.
    pub(crate) fn commit(&mut self) {
        (self.complete, self.committed) = (true, self.number);
    }

    /// Whether a list was complete once.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Of an object that is applied first.
    pub(crate) fn mark(&self) -> RoundMark {
        RoundMark { round: self.number, added: self.number }
    }

    /// Of an object that an earlier process kept.
    pub(crate) fn remembered() -> RoundMark {
        RoundMark { round: REMEMBERED, added: 0 }
    }

    /// The list that runs has it, or it is applied while that runs.
    pub(crate) fn see(&self, mark: &mut RoundMark) {
        mark.round = self.number;
    }

    /// The list that runs has not said that it is there: it is gone at the list's end, unless that does.
    pub(crate) fn doubt(&self, mark: &mut RoundMark) {
        mark.round = self.number.wrapping_sub(1);
    }

    /// It is there, whatever becomes of the list that runs.
    pub(crate) fn vouch(mark: &mut RoundMark) {
        mark.added = 0;
    }

    /// Whether the list that runs has it.
    pub(crate) fn has(&self, mark: RoundMark) -> bool {
        mark.round == self.number
    }

    /// Whether the lists since the last complete one have brought it.
    pub(crate) fn is_new(&self, mark: RoundMark) -> bool {
        mark.added > self.committed
    }
}

impl RoundMark {
    /// Whether it is only what an earlier process kept.
    pub(crate) fn is_remembered(self) -> bool {
        self.round == REMEMBERED
    }
}
