//! How the watches of an agent come back together after an outage of the API server.
//!
//! A watch that fails doubts the server. While it is in doubt one small request at a time asks whether the server is ready, for all watches
//! of the agent, and they wait for the answer. So a server that starts gets one request from each agent every few seconds, spread
//! in time, and all watches go on at once when it is there.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fault::Backoff;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::Instant;

use crate::connection::ApiConnection;
use crate::error::Error;

/// Pauses between questions. The longest decides how long after the server's return it is noticed.
const PAUSES: Backoff = Backoff::spread(Duration::from_millis(400), LONGEST);

/// The longest pause, also when the server asks for a longer one.
const LONGEST: Duration = Duration::from_millis(3500);

/// How long a server that refuses every watch is asked in short pauses, from the start of the agent and from each return of the server: it may be
/// about to load its roles. Later it is a role that is missing, and the agents of a large cluster must not wear the server out by that.
const ROLES_COME_WITHIN: Duration = Duration::from_secs(180);

/// How long a watch waits for an answer to the question before it tries by itself.
const UNANSWERED: Backoff = Backoff::spread(Duration::from_secs(150), Duration::from_secs(150));

/// How long an answer is waited for. The next question does not wait for that: a server that is slow is heard, and one that came back meanwhile is
/// not missed because of a question that was lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server counts as away when no question was answered for so long.
const OVERDUE: Duration = Duration::from_secs(2);

const OPERATION: &str = "ask whether the API server is ready";

/// Whether the server answers.
#[derive(Debug)]
pub(crate) struct Recovery {
    began: Instant,
    state: Sender<State>,
    standing: AtomicUsize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    reach: Reach,
    /// How often it has come back.
    returns: u64,
    /// When it came back last.
    returned: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Reach {
    /// It does, or was not asked yet.
    #[default]
    Answers,
    /// A watch or a question has failed, and the server is asked.
    Doubted,
    /// It was asked and does not.
    Away,
}

/// What is told of an outage.
#[derive(Debug)]
pub(crate) enum Outage {
    /// It has begun, or its reason is another one.
    Reason(Error),
    /// It is over.
    Over {
        /// Since it began.
        lasted: Duration,
    },
}

/// Says that a watch stands, as long as it lives.
#[derive(Debug)]
pub(crate) struct Stands<'a>(&'a AtomicUsize);

// === impl Recovery ===

impl Default for Recovery {
    fn default() -> Self {
        Self { began: Instant::now(), state: Sender::new(State::default()), standing: AtomicUsize::new(0) }
    }
}

impl Recovery {
    /// A watch stands.
    pub(crate) fn stands(&self) -> Stands<'_> {
        self.standing.fetch_add(1, Ordering::Relaxed);
        Stands(&self.standing)
    }

    /// The longest pause of a watch that fails though the server answers. While no watch stands it is short at first: the server may be about to
    /// load the roles that it lacks.
    pub(crate) fn longest_pause(&self, usual: Duration) -> Duration {
        let there_since = self.state.borrow().returned.unwrap_or(self.began);
        let starts = there_since.elapsed() < ROLES_COME_WITHIN;
        if starts && self.standing.load(Ordering::Relaxed) == 0 { LONGEST } else { usual }
    }

    /// Whether it was asked and does not answer.
    pub(crate) fn is_away(&self) -> bool {
        self.state.borrow().reach == Reach::Away
    }

    /// A watch or a question failed: the server is asked whether it is there.
    pub(crate) fn doubt(&self) {
        self.state.send_if_modified(|state| {
            let news = state.reach == Reach::Answers;
            if news {
                state.reach = Reach::Doubted;
            }
            news
        });
    }

    /// The server answered a request.
    pub(crate) fn answered(&self) {
        self.state.send_if_modified(|state| {
            let before = std::mem::take(&mut state.reach);
            if before == Reach::Away {
                state.returns += 1;
                state.returned = Some(Instant::now());
            }
            before != Reach::Answers
        });
    }

    /// Waits before a watch that has failed tries again: for `pause`, of which all but the beginning is left out when the server comes back
    /// after an outage, and until the server answers.
    pub(crate) async fn pause(&self, pause: Duration) {
        self.doubt();
        let mut state = self.state.subscribe();
        let returns = state.borrow().returns;
        tokio::time::sleep(pause.min(LONGEST)).await;
        let returned = state.wait_for(|state| state.returns != returns);
        let _ = tokio::time::timeout(pause.saturating_sub(LONGEST), returned).await;
        // Where the question itself is not answered though watches would be (a check of /readyz that fails), a watch now and then finds out.
        let _ = tokio::time::timeout(UNANSWERED.pause(1), reaches(&mut state, Reach::Answers)).await;
    }

    /// Asks the server whenever it is in doubt, until it answers.
    pub(crate) async fn run(&self, connection: &ApiConnection, tell: impl Fn(Outage)) -> Infallible {
        let mut state = self.state.subscribe();
        loop {
            reaches(&mut state, Reach::Doubted).await;
            let mut told: Option<(Instant, Error)> = None;
            let asking = self.ask(connection, |error| {
                if told.as_ref().is_some_and(|(_, before)| *before == error) {
                    return;
                }
                tell(Outage::Reason(error.clone()));
                told = Some((told.as_ref().map_or_else(Instant::now, |(since, _)| *since), error));
            });
            tokio::select! {
                () = reaches(&mut state, Reach::Answers) => {}
                never = asking => match never {},
            }
            if let Some((since, _)) = told {
                tell(Outage::Over { lasted: since.elapsed() });
            }
        }
    }

    /// Asks again and again. That there was an answer is for [`Self::answered`].
    async fn ask(&self, connection: &ApiConnection, mut failed: impl FnMut(Error)) -> Infallible {
        let mut failed = |error: Error| {
            self.set_away();
            if error.status().is_none() {
                // What made one connection useless may have done so to those that stand idle.
                connection.renew();
            }
            failed(error);
        };
        let mut asked = FuturesUnordered::new();
        let (began, mut number) = (Instant::now(), 1);
        let mut next = began + PAUSES.pause(number);
        loop {
            tokio::select! {
                Some(answer) = asked.next() => if let Some(error) = failure_of(answer) {
                    next = next.max(Instant::now() + error.retry_after().unwrap_or_default().min(LONGEST));
                    failed(error);
                },
                () = tokio::time::sleep_until(next) => {
                    if began.elapsed() >= OVERDUE && !asked.is_empty() {
                        failed(Error::TimedOut { operation: OPERATION.into(), after: OVERDUE });
                    }
                    asked.push(connection.ask_whether_ready(OPERATION, PATIENCE));
                    number += 1;
                    next = Instant::now() + PAUSES.pause(number);
                }
            }
        }
    }

    /// The server was asked and does not answer; unless it has just answered somebody else.
    fn set_away(&self) {
        self.state.send_if_modified(|state| {
            let doubted = state.reach == Reach::Doubted;
            if doubted {
                state.reach = Reach::Away;
            }
            doubted
        });
    }
}

impl Drop for Stands<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there was no answer. A question that took too long is told of while it waits.
fn failure_of(answer: Result<Bytes, Error>) -> Option<Error> {
    answer.err().filter(|error| !error.is_answer() && !matches!(error, Error::TimedOut { .. }))
}

/// Waits for a state.
async fn reaches(state: &mut Receiver<State>, reach: Reach) {
    // The sender lives as long as whoever waits: both belong to one connection.
    let _ = state.wait_for(|state| state.reach == reach).await;
}
