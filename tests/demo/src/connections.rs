//! Real connections, each compared with what is promised and with what `cnictl explain` says.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use testkit::TestNetns;
use testkit::probe::{Arrival, Flow, Listeners, Outcome};

use crate::backend::RulePlace;
use crate::expectations::{APP_IDS, Connection, Expected, From, Ids, To, WORLD, WORLD_V6, is_proxy};
use crate::node::Node;
use crate::pods::{Pod, explain};

/// The name of the rest of the world among those who listen.
const THE_WORLD: &str = "world";

/// What became of a connection.
#[derive(Debug, Serialize)]
pub(crate) struct ConnectionReport {
    /// Whose rules it meets.
    pub(crate) pod: String,
    pub(crate) from: String,
    pub(crate) to: SocketAddr,
    /// Who took it: `proxy :15006`, `app :8080`, `world :443`; or how it failed.
    pub(crate) reached: String,
    pub(crate) captured: bool,
    /// The destination as whoever took it could ask the kernel for it.
    pub(crate) original_destination: Option<SocketAddr>,
    /// The address of the socket that took it; with TPROXY it is the destination.
    pub(crate) socket: Option<SocketAddr>,
    /// The client's address as whoever took it sees it.
    pub(crate) client: Option<SocketAddr>,
    /// By `cnictl explain`.
    pub(crate) why: String,
    pub(crate) problems: Vec<String>,
    /// The rule that sent it to the proxy, or the last jump on the way there.
    #[serde(skip)]
    pub(crate) rule: Option<(RulePlace, String)>,
}

/// Everybody who listens.
pub(crate) struct Places<'a> {
    pub(crate) world: &'a Listeners,
    pub(crate) pods: &'a [Pod],
}

/// What `cnictl explain` says.
struct Explained {
    /// The proxy's port, if it goes there.
    port: Option<u16>,
    why: String,
    rule: Option<(RulePlace, String)>,
}

/// Makes the connection and compares.
///
/// # Errors
/// It could not be tried, or `cnictl` fails.
pub(crate) fn observe(
    node: &Node,
    places: &Places<'_>,
    pod: &Pod,
    case: &Connection,
) -> Result<ConnectionReport> {
    let to = destination(pod, case.to)?;
    let (namespace, ids) = source(node, places, pod, case.from)?;
    places.forget();
    let outcome = Flow::from(namespace).user(ids.0, ids.1).tcp(to)?;
    let arrival = outcome.arrival().copied();
    let taker = arrival.and_then(|arrival| places.taker(&arrival));
    let explained = ask(node, pod, case, to, ids, arrival.as_ref())?;
    let mut report = ConnectionReport {
        pod: pod.case.full_name(),
        from: from_text(case.from, ids),
        to,
        reached: reached_text(&outcome, taker.as_deref(), pod),
        captured: arrival.is_some_and(|arrival| is_proxy(arrival.listener_port)),
        original_destination: arrival.map(|arrival| arrival.destination()),
        socket: arrival.map(|arrival| arrival.local),
        client: arrival.map(|arrival| arrival.peer),
        why: explained.why.clone(),
        problems: Vec::new(),
        rule: explained.rule.clone(),
    };
    report.problems = problems(pod, case, to, arrival, taker.as_deref(), &explained);
    Ok(report)
}

/// What differs from what has to come out.
fn problems(
    pod: &Pod,
    case: &Connection,
    to: SocketAddr,
    arrival: Option<Arrival>,
    taker: Option<&str>,
    explained: &Explained,
) -> Vec<String> {
    let mut problems = Vec::new();
    let captured = case.expected != Expected::Direct;
    let name = pod.case.full_name();
    let outside = matches!(case.to, To::Address(ip, _) if !ip.is_loopback());
    let wanted = if outside && !captured { THE_WORLD } else { &name };
    let port = case.expected.port(to.port());
    match (arrival, taker) {
        (Some(arrival), Some(taker)) => {
            if arrival.listener_port != port || taker != wanted {
                problems.push(format!("has to reach port {port} of {wanted}"));
            }
            if arrival.destination() != to {
                problems.push(format!("whoever took it has to learn the destination {to}"));
            }
            if case.from == From::World && ![WORLD, WORLD_V6].contains(&arrival.peer.ip()) {
                problems.push(format!("the client's address has to be kept, it became {}", arrival.peer));
            }
            if pod.case.tproxy && case.expected == Expected::Inbound && arrival.local != to {
                problems.push(format!("TPROXY has to keep the destination, it became {}", arrival.local));
            }
        }
        _ => problems.push(format!("has to reach port {port} of {wanted}")),
    }
    if explained.port != captured.then_some(port) {
        let said = explained.port.map_or_else(|| "directly".to_owned(), |port| format!("to port {port}"));
        problems.push(format!("cnictl explain says that it goes {said}"));
    }
    problems
}

fn destination(pod: &Pod, to: To) -> Result<SocketAddr> {
    let own = |v6: bool, port| {
        let ip = pod.ips.iter().copied().find(|ip| ip.is_ipv6() == v6);
        ip.map(|ip| SocketAddr::new(ip, port)).context("the pod has no address of this family")
    };
    match to {
        To::Pod(port) => own(false, port),
        To::PodV6(port) => own(true, port),
        To::Address(ip, port) => Ok(SocketAddr::new(ip, port)),
    }
}

fn source<'a>(node: &'a Node, places: &Places<'a>, pod: &'a Pod, from: From) -> Result<(&'a TestNetns, Ids)> {
    Ok(match from {
        From::World => (&node.world, (0, 0)),
        From::Node => (&node.host, (0, 0)),
        From::App => (&pod.netns, APP_IDS),
        From::Proxy => (&pod.netns, pod.case.proxy),
        From::Neighbour(name) => {
            let neighbour = places.pods.iter().find(|pod| pod.case.name == name);
            (&neighbour.with_context(|| format!("there is no pod {name}"))?.netns, APP_IDS)
        }
    })
}

fn from_text(from: From, (uid, gid): Ids) -> String {
    match from {
        From::World => THE_WORLD.to_owned(),
        From::Node => "node".to_owned(),
        From::Neighbour(name) => format!("pod {name}"),
        From::App => format!("app, uid {uid}"),
        From::Proxy if uid == gid => format!("proxy, uid {uid}"),
        From::Proxy => format!("proxy, uid {uid} gid {gid}"),
    }
}

fn reached_text(outcome: &Outcome, taker: Option<&str>, pod: &Pod) -> String {
    match (outcome.port(), taker) {
        (Some(port), Some(taker)) => {
            let what = if taker == THE_WORLD {
                THE_WORLD.to_owned()
            } else {
                let part = if is_proxy(port) { "proxy" } else { "app" };
                // of the pod that the table is about, unless something is very wrong
                if taker == pod.case.full_name() { part.to_owned() } else { format!("{part} of {taker}") }
            };
            format!("{what} :{port}")
        }
        _ => outcome.to_string(),
    }
}

/// Asks `cnictl explain` about the same connection.
fn ask(
    node: &Node,
    pod: &Pod,
    case: &Connection,
    to: SocketAddr,
    (uid, gid): Ids,
    arrival: Option<&Arrival>,
) -> Result<Explained> {
    let mut flow = vec!["--to".to_owned(), to.to_string()];
    if matches!(case.from, From::App | From::Proxy) {
        flow.extend([
            "--out".to_owned(),
            "--uid".to_owned(),
            uid.to_string(),
            "--gid".to_owned(),
            gid.to_string(),
        ]);
    } else {
        flow.push("--in".to_owned());
        flow.extend(arrival.iter().flat_map(|arrival| ["--from".to_owned(), arrival.peer.to_string()]));
    }
    let report = explain(node, pod, &flow)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let port = report["verdict"]["port"].as_u64().and_then(|port| u16::try_from(port).ok());
    // The rule that sends it to the proxy says only that; the jump to it says why.
    let rule = match (port, report["path"].as_array().and_then(|path| path.last())) {
        (Some(_), Some(jump)) => jump,
        _ => &report["rule"],
    };
    let why = if report["captured"] == false {
        format!("pod left alone: {}", text(&report["reason"]))
    } else if rule.is_null() {
        "no rule is about it".to_owned()
    } else {
        text(&rule["why"])
    };
    let rule = rule["position"].as_u64().and_then(|position| {
        let place = RulePlace {
            table: text(&rule["table"]),
            chain: text(&rule["chain"]),
            position: usize::try_from(position).ok()?,
        };
        Some((place, text(&rule["text"])))
    });
    Ok(Explained { port, why, rule })
}

impl Places<'_> {
    fn all(&self) -> impl Iterator<Item = (String, &Listeners)> {
        let pods = self.pods.iter().map(|pod| (pod.case.full_name(), &pod.listeners));
        std::iter::once((THE_WORLD.to_owned(), self.world)).chain(pods)
    }

    fn forget(&self) {
        for (_, listeners) in self.all() {
            drop(listeners.take_records());
        }
    }

    /// Whose listener took a connection.
    fn taker(&self, arrival: &Arrival) -> Option<String> {
        let mut takers = self.all().filter(|(_, listeners)| {
            listeners.take_records().iter().any(|record| record.arrival == *arrival)
        });
        takers.next().map(|(name, _)| name)
    }
}
