//! Whether the agent lives and whether it is ready, if not why, and what else the node's people should know.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};

use checks::{CheckFinding, CheckResult, CheckState};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};

use crate::periodic::{CheckOutcome, NodeCheck};
use serve::{Handler, ServedAnswer, text};

/// What has to be in order for the agent to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HealthPart {
    /// No other agent works on this node.
    NodeLock,
    /// The node's name is one that the API server knows.
    Node,
    /// The plugin, its kubeconfig and its configuration are in place.
    Install,
    /// The pods and namespaces of this node are known.
    Cluster,
    /// Plugins can ask.
    PluginSocket,
    /// Plugins can log.
    LogSocket,
    /// Plugins can announce pods.
    EventSocket,
    /// The pods of an earlier agent are taken over, and ztunnels are served.
    Ambient,
    /// The configuration directory can be used.
    Configuration,
    /// Rules can be loaded on this node.
    Backend,
    /// Nothing of others in the node's network namespace keeps ours from working.
    Conflicts,
    /// Policies are in force as they are now.
    Policies,
}

/// What people should know although the agent does its work. None of these makes it unready: a DaemonSet whose update waits for every
/// node would stop at the one that has something to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Notice {
    /// Sidecar pods whose sandbox is older than the installation.
    OlderPods,
    /// Pods that the failure policy let start without capture.
    Uncaptured,
    /// What another mode of the agent left on this node.
    Leftovers,
    /// Whether the DaemonSet still wants an agent here.
    DaemonSet,
    /// A port that somebody else has.
    Port,
    /// Pods that no ztunnel takes.
    Ztunnel,
    /// Pods in whose network namespaces something has not ended in time.
    Overdue,
    /// Pods into whose network namespaces the kernel does not let this agent look.
    Permission,
    /// The connection to the API server.
    ApiServer,
    /// Tenants of which something is not understood, or of whose namespaces others have some.
    Tenants,
    /// Policies are in force as an earlier agent knew them.
    PolicySnapshot,
}

/// The state of all parts, and the notices. A part that was never heard of is pending.
#[derive(Debug)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    parts: BTreeMap<HealthPart, Option<String>>,
    notices: BTreeMap<Notice, String>,
    checks: BTreeMap<NodeCheck, CheckOutcome>,
}

impl HealthPart {
    fn name(self) -> &'static str {
        match self {
            Self::NodeLock => "node lock",
            Self::Node => "node",
            Self::Install => "install",
            Self::Cluster => "cluster",
            Self::PluginSocket => "plugin socket",
            Self::LogSocket => "log socket",
            Self::EventSocket => "event socket",
            Self::Ambient => "ambient",
            Self::Configuration => "configuration",
            Self::Backend => "backend",
            Self::Conflicts => "conflicts",
            Self::Policies => "policies",
        }
    }
}

impl Notice {
    fn name(self) -> &'static str {
        match self {
            Self::OlderPods => "older pods",
            Self::Uncaptured => "uncaptured pods",
            Self::Leftovers => "leftovers",
            Self::DaemonSet => "daemonset",
            Self::Port => "port",
            Self::Ztunnel => "ztunnel",
            Self::Overdue => "overdue pods",
            Self::Permission => "verification",
            Self::ApiServer => "api server",
            Self::Tenants => "tenants",
            Self::PolicySnapshot => "policy snapshot",
        }
    }
}

impl Health {
    /// Ready when all of these are.
    pub(crate) fn of(parts: &[HealthPart]) -> Self {
        let pending = |part: &HealthPart| (*part, Some("has not begun".to_owned()));
        Self(Mutex::new(State { parts: parts.iter().map(pending).collect(), ..State::default() }))
    }

    /// The part is in order.
    pub(crate) fn ready(&self, part: HealthPart) {
        self.state().parts.insert(part, None);
    }

    /// The part is not in order, because of this.
    pub(crate) fn pending(&self, part: HealthPart, reason: &dyn Display) {
        self.state().parts.insert(part, Some(reason.to_string()));
    }

    /// Whether the part is in order.
    pub(crate) fn is_ready(&self, part: HealthPart) -> bool {
        matches!(self.state().parts.get(&part), Some(None))
    }

    /// Why the part is not in order.
    pub(crate) fn reason(&self, part: HealthPart) -> Option<String> {
        self.state().parts.get(&part).cloned().flatten()
    }

    /// Keeps what a check of the node came to; gives what it was before, if that was a failure.
    pub(crate) fn checked(&self, check: NodeCheck, outcome: CheckOutcome) -> Option<CheckFinding> {
        let before = self.state().checks.insert(check, outcome)?.finding;
        (before.state == CheckState::Failed).then_some(before)
    }

    /// What a check looked at last.
    pub(crate) fn check_results(&self, check: NodeCheck) -> Vec<CheckResult> {
        self.state().checks.get(&check).map(|outcome| outcome.results.clone()).unwrap_or_default()
    }

    /// What all checks looked at last.
    pub(crate) fn all_check_results(&self) -> Vec<CheckResult> {
        self.state().checks.values().flat_map(|outcome| outcome.results.clone()).collect()
    }

    /// Sets a notice, in place of the one before of this kind; whether its text is new.
    pub(crate) fn notice(&self, notice: Notice, text: &dyn Display) -> bool {
        let text = one_line(&text.to_string());
        self.state().notices.insert(notice, text.clone()).is_none_or(|before| before != text)
    }

    /// Takes a notice back; whether there was one.
    pub(crate) fn settled(&self, notice: Notice) -> bool {
        self.state().notices.remove(&notice).is_some()
    }

    /// What is not in order, a line for each; empty means ready.
    pub(crate) fn missing(&self) -> Vec<String> {
        let state = self.state();
        let missing =
            state.parts.iter().filter_map(|(part, reason)| reason.as_ref().map(|why| (part.name(), why)));
        missing.map(|(part, reason)| format!("{part}: {}", one_line(reason))).collect()
    }

    /// The notices, a line for each.
    pub(crate) fn notices(&self) -> Vec<String> {
        self.state().notices.iter().map(|(notice, text)| format!("{}: {text}", notice.name())).collect()
    }

    /// All parts, checks and notices, in the form of the API server's own `/readyz?verbose`.
    fn verbose(&self) -> String {
        let state = self.state();
        let part = |(part, reason): (&HealthPart, &Option<String>)| match reason {
            None => format!("[+]{} ok\n", part.name()),
            Some(reason) => format!("[-]{} failed: {}\n", part.name(), one_line(reason)),
        };
        let parts: String = state.parts.iter().map(part).collect();
        let notices = state.notices.iter().map(|(notice, text)| format!("[!]{}: {text}\n", notice.name()));
        let ready = state.parts.values().all(Option::is_none);
        let end = if ready { "readyz check passed\n" } else { "readyz check failed\n" };
        [parts, state.checks_text(), notices.collect(), end.to_owned()].concat()
    }

    /// The process lives, and what its checks of the node came to.
    fn verbose_life(&self) -> String {
        format!("[+]ping ok\n{}healthz check passed\n", self.state().checks_text())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A line for each check that has something to say.
    fn checks_text(&self) -> String {
        let line = |(check, outcome): (&NodeCheck, &CheckOutcome)| {
            let (name, text) = (check.name(), one_line(&outcome.finding.to_string()));
            match outcome.finding.state {
                CheckState::Ok => format!("[+]check/{name} ok\n"),
                CheckState::Failed => format!("[-]check/{name} failed: {text}\n"),
                CheckState::Warning => format!("[!]check/{name}: {text}\n"),
                CheckState::Unknown => format!("[!]check/{name} is not known: {text}\n"),
                CheckState::Skipped => String::new(),
            }
        };
        self.checks.iter().map(line).collect()
    }
}

/// How many there are, and the names of some.
pub(crate) fn count_and_names(names: &[String]) -> String {
    /// Names that are told.
    const NAMED: usize = 5;
    let (count, named) = (names.len(), &names[..names.len().min(NAMED)]);
    let more = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
    format!("{count} ({}{more})", named.join(", "))
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

impl Handler for Health {
    const NAME: &'static str = "health";
    const MAX_BODY: usize = 0;

    async fn answer(&self, request: &Request<()>, _: Bytes) -> ServedAnswer {
        match request.uri().path() {
            "/healthz" if is_verbose(request.uri().query().unwrap_or_default()) => {
                text(StatusCode::OK, self.verbose_life())
            }
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let missing = self.missing();
                let status =
                    if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                if is_verbose(request.uri().query().unwrap_or_default()) {
                    text(status, self.verbose())
                } else if missing.is_empty() {
                    text(status, "ok\n")
                } else {
                    text(status, format!("Service Unavailable\n{}\n", missing.join("\n")))
                }
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }
}

/// `?verbose`, with or without a value, as the API server takes it.
fn is_verbose(query: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some("verbose"))
}

#[cfg(test)]
mod tests {
    use checks::CheckFinding;

    use super::*;

    #[test]
    fn a_notice_is_told_and_does_not_make_the_agent_unready() {
        let health = Health::of(&[HealthPart::Install, HealthPart::Cluster]);
        health.ready(HealthPart::Install);
        health.pending(HealthPart::Cluster, &"no\nanswer");
        assert_eq!(health.verbose(), "[+]install ok\n[-]cluster failed: no answer\nreadyz check failed\n");
        health.ready(HealthPart::Cluster);
        assert!(health.notice(Notice::Port, &"port 15014 is taken"));
        assert!(!health.notice(Notice::Port, &"port 15014 is taken"), "the same text is no news");
        assert!(health.missing().is_empty());
        let verbose = "[+]install ok\n[+]cluster ok\n[!]port: port 15014 is taken\nreadyz check passed\n";
        assert_eq!(health.verbose(), verbose);
        assert!(health.settled(Notice::Port) && !health.settled(Notice::Port));
    }

    #[test]
    fn a_check_that_fails_is_listed_and_does_not_make_the_agent_unready() {
        let health = Health::of(&[]);
        let outcome = |finding| CheckOutcome { finding, results: Vec::new() };
        assert_eq!(health.checked(NodeCheck::Config, outcome(CheckFinding::ok("fine"))), None);
        assert_eq!(health.checked(NodeCheck::Dns, outcome(CheckFinding::failed("no\nanswer", "look"))), None);
        assert_eq!(health.checked(NodeCheck::Api, outcome(CheckFinding::unknown("denied"))), None);
        assert_eq!(health.checked(NodeCheck::Ztunnel, outcome(CheckFinding::skipped("off"))), None);
        let checks =
            "[+]check/config ok\n[!]check/api is not known: denied\n[-]check/dns failed: no answer; look\n";
        assert_eq!(health.verbose(), format!("{checks}readyz check passed\n"));
        assert_eq!(health.verbose_life(), format!("[+]ping ok\n{checks}healthz check passed\n"));
        assert!(health.missing().is_empty());
        let before = health.checked(NodeCheck::Dns, outcome(CheckFinding::ok("fine")));
        assert_eq!(before, Some(CheckFinding::failed("no\nanswer", "look")), "it failed before");
    }

    #[test]
    fn some_of_many_are_named() {
        let names = |count: usize| -> Vec<String> { (0..count).map(|n| format!("a/{n}")).collect() };
        assert_eq!(count_and_names(&names(1)), "1 (a/0)");
        assert_eq!(count_and_names(&names(5)), "5 (a/0, a/1, a/2, a/3, a/4)");
        assert_eq!(count_and_names(&names(7)), "7 (a/0, a/1, a/2, a/3, a/4 and 2 more)");
    }

    #[test]
    fn verbose_is_a_key_of_the_query() {
        for (query, wanted) in
            [("", false), ("verbose", true), ("verbose=1", true), ("a&verbose", true), ("verbosely", false)]
        {
            assert_eq!(is_verbose(query), wanted, "{query}");
        }
    }
}
