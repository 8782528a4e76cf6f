//! Checks that the agent makes of its node again and again: each at a time of its own, within a limit, never beside itself. What they come to is for
//! people, metrics and `cnictl`; none of them makes the agent unready.

mod config;
mod look;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use checks::{CheckFinding, CheckResult, CheckSpec, CheckState, catalogue};
use metrics::CheckEnd;
use tokio::sync::oneshot;

use crate::health::HealthPart;
use crate::run::Agent;
pub(crate) use config::CheckConfig;
use look::CheckLook;

/// Longest time of a check.
const LIMIT: Duration = Duration::from_secs(5);
/// The first look comes after this part of the interval, so that what the start brings is there, and an alarm is not late.
const FIRST_PART: u32 = 12;

/// A check that is made again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeCheck {
    /// The plugin on the node.
    Config,
    /// What the kernel can do and how full it is.
    Kernel,
    /// Whether pods have their rules.
    Rules,
    /// Whether a ztunnel is connected.
    Ztunnel,
    /// The API server.
    Api,
    /// The cluster's DNS.
    Dns,
}

/// What a check came to last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CheckOutcome {
    /// In one line.
    pub(crate) finding: CheckFinding,
    /// Each thing that was looked at.
    pub(crate) results: Vec<CheckResult>,
}

impl NodeCheck {
    /// As in metrics and lists.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Kernel => "kernel",
            Self::Rules => "rules",
            Self::Ztunnel => "ztunnel",
            Self::Api => "api",
            Self::Dns => "dns",
        }
    }

    /// What it looks at first: of a look that does not end, that is what is told.
    fn first(self) -> &'static CheckSpec {
        match self {
            Self::Config => &catalogue::CONFLIST,
            Self::Kernel => &catalogue::NFTABLES,
            Self::Rules => &catalogue::PODS,
            Self::Ztunnel => &catalogue::ZTUNNEL,
            Self::Api => &catalogue::API,
            Self::Dns => &catalogue::DNS,
        }
    }

    /// What the metric of connections calls it, for a check that is one.
    fn target(self) -> Option<&'static str> {
        match self {
            Self::Api => Some("kubernetes"),
            Self::Dns => Some("dns"),
            _ => None,
        }
    }
}

impl CheckOutcome {
    /// The worst leads; what is wrong is told with what to do.
    pub(crate) fn of(results: Vec<CheckResult>) -> Self {
        let worst = results.iter().max_by_key(|result| result.state);
        let finding = worst.map_or_else(
            || CheckFinding::skipped("there is nothing to look at"),
            |worst| CheckFinding {
                state: worst.state,
                text: worst.text.clone(),
                advice: worst.advice.clone(),
            },
        );
        Self { finding, results }
    }

    fn end(&self) -> CheckEnd {
        match self.finding.state {
            CheckState::Ok | CheckState::Warning => CheckEnd::Ok,
            CheckState::Failed => CheckEnd::Failed,
            CheckState::Skipped | CheckState::Unknown => CheckEnd::Unknown,
        }
    }
}

/// Makes all checks until the task is aborted.
pub(crate) async fn live(agent: Arc<Agent>) {
    let config = &agent.config.checks;
    let (node, connections) = (config.node_interval, config.connectivity_interval);
    tokio::join!(
        repeat(&agent, NodeCheck::Config, node),
        repeat(&agent, NodeCheck::Kernel, node),
        repeat(&agent, NodeCheck::Rules, node),
        repeat(&agent, NodeCheck::Ztunnel, node),
        repeat(&agent, NodeCheck::Api, connections),
        repeat(&agent, NodeCheck::Dns, connections),
    );
}

async fn repeat(agent: &Arc<Agent>, check: NodeCheck, interval: Duration) {
    if interval.is_zero() || !look::applies(agent, check) {
        return;
    }
    agent.metrics.has_check(check.name());
    tokio::time::sleep(spread(interval / FIRST_PART)).await;
    let (mut running, mut turn) = (None, 0_u32);
    loop {
        let begun = Instant::now();
        let mut receiver = running.take().unwrap_or_else(|| begin(agent.clone(), check, turn));
        match tokio::time::timeout(LIMIT, &mut receiver).await {
            Ok(Ok(looked)) => take(agent, check, looked, begun.elapsed()),
            // It has panicked, which the log tells.
            Ok(Err(_)) => {}
            Err(_) => {
                running = Some(receiver);
                timed_out(agent, check);
            }
        }
        turn = turn.wrapping_add(1);
        tokio::time::sleep(spread(interval)).await;
    }
}

/// Begins a look, with a thread of its own where it may wait for a disk or a process.
fn begin(agent: Arc<Agent>, check: NodeCheck, turn: u32) -> oneshot::Receiver<CheckLook> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let _ = sender.send(look::look(&agent, check, turn).await);
    });
    receiver
}

fn take(agent: &Agent, check: NodeCheck, looked: CheckLook, time: Duration) {
    let CheckLook { results, config_state } = looked;
    let outcome = CheckOutcome::of(results);
    let end = outcome.end();
    agent.metrics.check_ended(check.name(), end, time);
    if let Some(state) = config_state {
        agent.metrics.config_state(state.word());
    }
    note(agent, check, outcome, end);
}

fn timed_out(agent: &Agent, check: NodeCheck) {
    let text = format!("it did not end within {} s", LIMIT.as_secs());
    let finding = CheckFinding::failed(text, "a disk, a process or the network stands still on this node");
    agent.metrics.check_ended(check.name(), CheckEnd::Timeout, LIMIT);
    if check == NodeCheck::Config {
        agent.metrics.config_state(doctor::installation::ConfigState::Error.word());
    }
    let results = vec![finding.clone().of(check.first(), LIMIT.as_secs_f64())];
    note(agent, check, CheckOutcome { finding, results }, CheckEnd::Timeout);
}

/// Keeps what a check came to, and tells of it where it is news.
fn note(agent: &Agent, check: NodeCheck, outcome: CheckOutcome, end: CheckEnd) {
    if let Some(target) = check.target()
        && end != CheckEnd::Unknown
    {
        agent.metrics.connectivity(target, end == CheckEnd::Ok);
    }
    let (name, text) = (check.name(), outcome.finding.to_string());
    let failed = matches!(end, CheckEnd::Failed | CheckEnd::Timeout);
    // Readiness has told it, or an earlier look.
    let of_readiness = agent.health.reason(HealthPart::Backend).filter(|_| check == NodeCheck::Kernel);
    let is_told = of_readiness.is_some_and(|reason| text.starts_with(&reason));
    let before = agent.health.checked(check, outcome);
    match (failed, before) {
        (true, Some(before)) if before.to_string() == text => agent.log.debug(&text, &[("check", &name)]),
        (true, _) if is_told => agent.log.debug(&text, &[("check", &name)]),
        (true, _) => agent.log.warn(&text, &[("check", &name)]),
        (false, Some(_)) => agent.log.info("the check finds nothing wrong any more", &[("check", &name)]),
        (false, None) => {}
    }
}

/// A tenth more or less, so that the agents of a cluster do not ask in step.
fn spread(interval: Duration) -> Duration {
    const STEPS: u64 = 2001;
    let part = u32::try_from(RandomState::new().hash_one(0) % STEPS).unwrap_or_default();
    interval * (9000 + part) / 10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_a_tenth_more_or_less() {
        let pauses: Vec<Duration> = (0..200).map(|_| spread(Duration::from_secs(60))).collect();
        let within = Duration::from_secs(54)..=Duration::from_secs(66);
        assert!(pauses.iter().all(|pause| within.contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause < Duration::from_secs(58)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause > Duration::from_secs(62)), "{pauses:?}");
    }

    #[test]
    fn the_worst_leads_and_what_is_not_known_is_not_counted_as_good() {
        let of = |findings: Vec<CheckFinding>| {
            let results = findings.into_iter().map(|finding| finding.of(&catalogue::CONFLIST, 0.0));
            CheckOutcome::of(results.collect())
        };
        let (ok, bad) = (CheckFinding::ok("a"), CheckFinding::failed("b", "c"));
        assert_eq!(of(vec![ok.clone()]).end(), CheckEnd::Ok);
        assert_eq!(of(vec![ok.clone(), CheckFinding::warning("w", "")]).end(), CheckEnd::Ok);
        assert_eq!(of(vec![ok.clone(), CheckFinding::unknown("u")]).end(), CheckEnd::Unknown);
        assert_eq!(of(vec![CheckFinding::skipped("s")]).end(), CheckEnd::Unknown);
        assert_eq!(of(Vec::new()).end(), CheckEnd::Unknown);
        let failed = of(vec![bad, ok]);
        assert_eq!((failed.end(), failed.finding.to_string()), (CheckEnd::Failed, "b; c".to_owned()));
    }
}
