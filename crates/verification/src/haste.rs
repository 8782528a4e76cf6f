//! How often something is done about a change at once, before it is quiet.

use std::time::Duration;

/// So many times one after the other, and then once in [`EACH`]: a program makes few changes, and a storm is waited for.
const AT_ONCE: u32 = 4;
const EACH: Duration = Duration::from_millis(100);

/// Of one pod.
#[derive(Debug, Clone, Copy, Default)]
pub struct Haste {
    /// When as many as may be are there again.
    full: Duration,
}

impl Haste {
    /// Whether it may be done now; that counts.
    pub fn take(&mut self, now: Duration) -> bool {
        let full = self.full.max(now) + EACH;
        let may = full <= now + AT_ONCE * EACH;
        if may {
            self.full = full;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_done_at_once_and_of_a_storm_few() {
        let mut haste = Haste::default();
        let storm = |haste: &mut Haste, from: u64| {
            (0..1000).filter(|n| haste.take(Duration::from_millis(from + n))).count()
        };
        assert_eq!(storm(&mut haste, 0), 4 + 9);
        assert_eq!(storm(&mut haste, 5000), 4 + 9);
    }
}
