//! Connections one after the other, and what became of them.
//!
//! NAT rules decide about a connection by its first packet. One that is open when they come has none any more, and one that they redirected
//! needs the kernel's translation to its end. So those that span the moment when rules come or go are where an agent can do harm: such a
//! failure is counted apart, as a cut. Neither a cut nor any other failure may be.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use testkit::TestNetns;
use testkit::probe::Arrival;
use testkit::relay::Relayed;

use super::held::is_held;

/// How long a step of a connection may take. A packet that is lost is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two connections.
const PAUSE: Duration = Duration::from_millis(4);
/// How long a loop goes on, whatever happens.
const LONGEST: Duration = Duration::from_secs(20);
/// How long a phase goes on, whatever happens.
const LONGEST_PHASE: Duration = Duration::from_secs(4);
/// Fewer connections in a phase say nothing.
const ENOUGH: usize = 10;

/// Whose connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Route {
    /// From the world to the pod.
    Inbound,
    /// From the pod to the world.
    Outbound,
    /// From the node to the pod.
    Probe,
}

/// When it was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Before,
    Inside,
    After,
}

/// What happened when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    /// The pod got its label.
    pub(crate) labelled: Instant,
    /// Its annotation says that it is in the mesh.
    pub(crate) inside: Instant,
    /// It lost its label.
    pub(crate) unlabelled: Instant,
    /// Its annotation is gone.
    pub(crate) outside: Instant,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) route: Route,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// The client's own address; none if it did not come so far.
    pub(crate) client: Option<SocketAddr>,
    /// What the server saw.
    pub(crate) result: Result<Arrival, String>,
}

/// All loops: where they start, and what they connect to.
pub(crate) struct Loops<'a> {
    list: [(Route, &'a TestNetns, SocketAddr); 3],
    /// How many connections each has made.
    made: [AtomicUsize; 3],
    stop: AtomicBool,
}

/// What became of the connections of a loop.
#[derive(Debug, Serialize)]
pub(crate) struct LoopReport {
    pub(crate) route: Route,
    pub(crate) before: usize,
    /// Between the label and the annotation.
    pub(crate) entering: usize,
    pub(crate) inside: usize,
    /// Between the loss of the label and that of the annotation.
    pub(crate) leaving: usize,
    pub(crate) after: usize,
    /// Of all of them.
    pub(crate) relayed: usize,
    /// Those that were open when the rules came or went, and ended by that.
    pub(crate) cut: Vec<Cut>,
    /// All others: when, and how.
    pub(crate) failed: Vec<String>,
}

/// What happens to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    Enters,
    Leaves,
}

impl Change {
    fn text(self) -> &'static str {
        match self {
            Self::Enters => "entered the mesh",
            Self::Leaves => "left it",
        }
    }
}

/// A connection that a change ended.
#[derive(Debug, Serialize)]
pub(crate) struct Cut {
    pub(crate) change: Change,
    /// When, and how.
    pub(crate) how: String,
}

// === impl Route ===

impl Route {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Inbound => "world → pod",
            Self::Outbound => "pod → world",
            Self::Probe => "node → pod, the probe",
        }
    }
}

// === impl Phase ===

impl Phase {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Before => "before the pod entered the mesh",
            Self::Inside => "while the pod was in the mesh",
            Self::After => "after the pod had left the mesh",
        }
    }
}

// === impl Moments ===

impl Moments {
    /// Nothing while it changes.
    pub(crate) fn phase(&self, at: Instant) -> Option<Phase> {
        if at < self.labelled {
            return Some(Phase::Before);
        }
        if at >= self.outside {
            return Some(Phase::After);
        }
        (at >= self.inside && at < self.unlabelled).then_some(Phase::Inside)
    }

    /// The change that a connection spans. Nothing that ztunnel has taken can be in the way of the rules when they come.
    fn change_during(&self, attempt: &Attempt, relayed: bool) -> Option<Change> {
        let spans = |from: Instant, to: Instant| attempt.began < to && attempt.ended > from;
        if spans(self.labelled, self.inside) && !relayed {
            return Some(Change::Enters);
        }
        spans(self.unlabelled, self.outside).then_some(Change::Leaves)
    }

    /// When it was, by the time of the label.
    fn span(&self, attempt: &Attempt) -> String {
        let ms = |at: Instant| {
            let after = at.saturating_duration_since(self.labelled).as_secs_f64();
            (after - self.labelled.saturating_duration_since(at).as_secs_f64()) * 1000.0
        };
        format!("{:.1} to {:.1} ms after the label", ms(attempt.began), ms(attempt.ended))
    }

    pub(crate) fn entered(&self) -> Duration {
        self.inside - self.labelled
    }

    pub(crate) fn left(&self) -> Duration {
        self.outside - self.unlabelled
    }
}

// === impl Loops ===

impl<'a> Loops<'a> {
    pub(crate) fn new(list: [(Route, &'a TestNetns, SocketAddr); 3]) -> Self {
        Self { list, made: Default::default(), stop: AtomicBool::new(false) }
    }

    /// Runs them while `act` acts.
    ///
    /// # Errors
    /// A namespace cannot be entered, or `act` fails.
    pub(crate) fn run_during<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<(Vec<Attempt>, T)> {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..self.list.len()).map(|number| self.start(scope, number)).collect();
            let acted = act();
            self.stop.store(true, Ordering::SeqCst);
            let mut attempts = Vec::new();
            for thread in running {
                attempts.extend(thread.join().map_err(|_| anyhow::anyhow!("a loop panicked"))??);
            }
            Ok((attempts, acted?))
        })
    }

    /// Waits for so long, and until each loop has made enough connections; one that was cut takes its time.
    pub(crate) fn let_run(&self, time: Duration) {
        let count = || self.made.each_ref().map(|made| made.load(Ordering::SeqCst));
        let (start, before) = (Instant::now(), count());
        let enough = || count().iter().zip(before).all(|(now, before)| *now >= before + 3 * ENOUGH);
        while start.elapsed() < time || (start.elapsed() < LONGEST_PHASE && !enough()) {
            std::thread::sleep(PAUSE);
        }
    }

    /// Starts one of them on a thread of its own.
    fn start<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        number: usize,
    ) -> ScopedJoinHandle<'s, Result<Vec<Attempt>>> {
        let (route, from, to) = self.list[number];
        scope.spawn(move || from.enter(|_| self.repeat(number, route, to)))
    }

    fn repeat(&self, number: usize, route: Route, to: SocketAddr) -> Vec<Attempt> {
        let start = Instant::now();
        let mut attempts = Vec::new();
        while !self.stop.load(Ordering::SeqCst) && start.elapsed() < LONGEST {
            let began = Instant::now();
            let mut client = None;
            let result = connect(to, &mut client).map_err(|error| format!("{error:#}"));
            self.made[number].fetch_add(1, Ordering::SeqCst);
            attempts.push(Attempt { route, began, ended: Instant::now(), client, result });
            std::thread::sleep(PAUSE);
        }
        attempts
    }
}

/// Connects and reads what the server saw, to the end.
fn connect(to: SocketAddr, client: &mut Option<SocketAddr>) -> Result<Arrival> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    *client = Some(stream.local_addr()?);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).context("read the answer")?;
    Arrival::from_text(&text).with_context(|| format!("the answer was {:?}", String::from_utf8_lossy(&text)))
}

// === impl Attempt ===

impl Attempt {
    /// Whether the relay took it. Its port says nothing: where two connections to different places have the same one, the kernel gives one of
    /// them another when it redirects both. A loop has one connection at a time.
    fn is_in(&self, relayed: &[Relayed]) -> bool {
        let Some(client) = self.client else { return false };
        relayed
            .iter()
            .filter(|one| !is_held(one))
            .any(|one| one.client.ip() == client.ip() && one.at >= self.began && one.at <= self.ended)
    }
}

// === impl LoopReport ===

impl LoopReport {
    pub(crate) fn all(
        attempts: &[Attempt],
        moments: &Moments,
        relayed: &[Relayed],
        problems: &mut Vec<String>,
    ) -> Vec<Self> {
        let routes = [Route::Inbound, Route::Outbound, Route::Probe];
        let one = |route| {
            let mut report = Self::new(route);
            for attempt in attempts.iter().filter(|attempt| attempt.route == route) {
                report.take(attempt, moments, attempt.is_in(relayed), problems);
            }
            if [report.before, report.inside, report.after].iter().any(|count| *count < ENOUGH) {
                problems.push(format!("{}: too few connections to say anything", route.text()));
            }
            problems.extend(
                report.failed.iter().map(|how| format!("{}: a connection failed: {how}", route.text())),
            );
            let cut = |cut: &Cut| {
                format!(
                    "{}: a connection was cut when the pod {}: {}",
                    route.text(),
                    cut.change.text(),
                    cut.how
                )
            };
            problems.extend(report.cut.iter().map(cut));
            report
        };
        routes.map(one).into()
    }

    fn new(route: Route) -> Self {
        Self {
            route,
            before: 0,
            entering: 0,
            inside: 0,
            leaving: 0,
            after: 0,
            relayed: 0,
            cut: Vec::new(),
            failed: Vec::new(),
        }
    }

    fn take(&mut self, attempt: &Attempt, moments: &Moments, relayed: bool, problems: &mut Vec<String>) {
        let phase = moments.phase(attempt.began);
        let counter = match phase {
            Some(Phase::Before) => &mut self.before,
            Some(Phase::Inside) => &mut self.inside,
            Some(Phase::After) => &mut self.after,
            None if attempt.began < moments.inside => &mut self.entering,
            None => &mut self.leaving,
        };
        *counter += 1;
        self.relayed += usize::from(relayed);
        if let Err(error) = &attempt.result {
            let how = format!("{}: {error}", moments.span(attempt));
            match moments.change_during(attempt, relayed) {
                Some(change) => self.cut.push(Cut { change, how }),
                None => self.failed.push(how),
            }
            return;
        }
        // What was open when the label changed may have been taken on either side.
        let Some(phase) = phase.filter(|phase| moments.phase(attempt.ended) == Some(*phase)) else { return };
        let wanted = phase == Phase::Inside && attempt.route != Route::Probe;
        if relayed != wanted {
            let not = if wanted { " not" } else { "" };
            problems.push(format!(
                "{}: ztunnel did{not} take a connection {}",
                attempt.route.text(),
                phase.text()
            ));
        }
    }
}
