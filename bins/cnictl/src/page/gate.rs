//! Who may see the page, and how often the kernel is read for it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Reads of the kernel at one time.
const MAX_AT_ONCE: usize = 2;
/// Reads of the kernel in each second.
const MAX_IN_A_SECOND: usize = 5;

/// The one browser that may see the page: the first that comes with the token gets a cookie.
#[derive(Debug)]
pub(super) struct BrowserSession {
    /// Cookies of loopback are the same for all ports.
    cookie: String,
    secret: String,
    /// Taken by who uses it.
    token: Mutex<Option<String>>,
}

/// Counts reads of the kernel.
#[derive(Debug, Default)]
pub(super) struct LiveGate(Mutex<LiveReads>);

#[derive(Debug, Default)]
struct LiveReads {
    now: usize,
    /// When those of the last second began.
    begun: VecDeque<Instant>,
}

/// Held while the kernel is read.
#[derive(Debug)]
pub(super) struct LiveRead<'a>(&'a LiveGate);

/// 256 bits that nobody guesses, as text.
///
/// # Errors
/// The system gives none.
pub(super) fn new_secret() -> Result<String> {
    let mut bytes = [0; 32];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("read random bytes from /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether they are equal, in a time that says nothing of where they differ.
fn is_equal(one: &str, other: &str) -> bool {
    let differing = one.bytes().zip(other.bytes()).fold(0, |all, (one, other)| all | (one ^ other));
    one.len() == other.len() && differing == 0
}

// === impl BrowserSession ===

impl BrowserSession {
    pub(super) fn new(port: u16, token: String, secret: String) -> Self {
        Self { cookie: format!("cnictl-{port}"), secret, token: Mutex::new(Some(token)) }
    }

    /// Uses the token up; whether it was the right one, and not used before.
    pub(super) fn take(&self, token: &str) -> bool {
        let mut kept = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.as_deref().is_some_and(|kept| is_equal(kept, token)) {
            return false;
        }
        *kept = None;
        true
    }

    /// What the browser is told to send from now on.
    pub(super) fn cookie(&self) -> String {
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie, self.secret)
    }

    /// Whether a `Cookie` header has it.
    pub(super) fn is_known(&self, cookies: &str) -> bool {
        let is_it = |pair: &str| {
            pair.trim()
                .split_once('=')
                .is_some_and(|(name, value)| name == self.cookie && is_equal(value, &self.secret))
        };
        cookies.split(';').any(is_it)
    }
}

// === impl LiveGate ===

impl LiveGate {
    /// Leave to read the kernel now; nothing where too many do.
    pub(super) fn enter(&self) -> Option<LiveRead<'_>> {
        self.enter_at(Instant::now())
    }

    fn enter_at(&self, now: Instant) -> Option<LiveRead<'_>> {
        let mut reads = self.reads();
        let is_over = |begun: &Instant| now.duration_since(*begun) >= Duration::from_secs(1);
        while reads.begun.front().is_some_and(is_over) {
            reads.begun.pop_front();
        }
        if reads.now >= MAX_AT_ONCE || reads.begun.len() >= MAX_IN_A_SECOND {
            return None;
        }
        reads.now += 1;
        reads.begun.push_back(now);
        Some(LiveRead(self))
    }

    fn reads(&self) -> MutexGuard<'_, LiveReads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LiveRead<'_> {
    fn drop(&mut self) {
        self.0.reads().now -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_one_browser() {
        let session = BrowserSession::new(8900, "t1".to_owned(), "s1".to_owned());
        assert!(!session.take("") && !session.take("t2") && !session.take("t11"));
        assert!(session.take("t1") && !session.take("t1"));
        assert!(session.is_known("a=b; cnictl-8900=s1") && session.is_known("cnictl-8900=s1"));
        for other in ["", "cnictl-8900=", "cnictl-8901=s1", "cnictl-8900=s2", "cnictl-8900"] {
            assert!(!session.is_known(other), "{other}");
        }
        assert_ne!(new_secret().unwrap(), new_secret().unwrap());
    }

    #[test]
    fn the_kernel_is_read_by_two_at_once_and_five_times_a_second() {
        let (gate, start) = (LiveGate::default(), Instant::now());
        let first = gate.enter_at(start).unwrap();
        let second = gate.enter_at(start).unwrap();
        assert!(gate.enter_at(start).is_none());
        drop((first, second));
        (0..3).for_each(|_| drop(gate.enter_at(start).unwrap()));
        assert!(gate.enter_at(start + Duration::from_millis(999)).is_none());
        assert!(gate.enter_at(start + Duration::from_secs(1)).is_some());
    }
}
