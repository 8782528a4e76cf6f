//! Connections that policies deny from now on: the kernel forgets them, so that what still comes of them is judged as new.
//!
//! Rules judge each packet of who began a connection; what answers passes as long as the kernel knows the connection. So a stream of answers would go on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use enforcement::Policies;
use facts::networkpolicy::PolicyProtocol;
use kernel::conntrack::{EntriesError, TrackedFlow, flows, forget_flows};
use policy::{FlowRoute, PolicyFlow, Traffic};
use telemetry::Scope;
use tokio::sync::Notify;

use crate::ambient::{AmbientConfig, open_host};

/// Changes are taken together that come within this time, and connections are listed for so small a part of the time: that looks through all
/// connections of the machine. A connection ends within a second of the change.
const TOGETHER: Duration = Duration::from_millis(100);
const PART: u32 = 50;
const LONGEST_PAUSE: Duration = Duration::from_millis(700);

/// Addresses between which connections may be denied that were allowed.
#[derive(Debug, Default)]
pub(crate) struct NarrowedAddresses {
    addresses: Mutex<BTreeSet<IpAddr>>,
    more: Notify,
}

/// What it needs of the agent.
pub(crate) struct FlowCutter {
    pub(crate) policies: Policies,
    pub(crate) narrowed: Arc<NarrowedAddresses>,
    /// Says where the node's network namespace is.
    pub(crate) config: AmbientConfig,
    pub(crate) log: Scope,
}

/// Why connections go on.
#[derive(Debug, thiserror::Error)]
enum NotCut {
    #[error("enter the node's network namespace: {0}")]
    Netns(#[from] netns::Error),
    #[error("{0}")]
    Addresses(#[from] kernel::route::Error),
    #[error(transparent)]
    Entries(#[from] EntriesError),
    #[error("{0}")]
    Task(#[from] tokio::task::JoinError),
}

// === impl NarrowedAddresses ===

impl NarrowedAddresses {
    pub(crate) fn add(&self, addresses: &[IpAddr]) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).extend(addresses);
        self.more.notify_one();
    }

    async fn next(&self) -> BTreeSet<IpAddr> {
        self.more.notified().await;
        tokio::time::sleep(TOGETHER).await;
        std::mem::take(&mut self.addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl FlowCutter ===

impl FlowCutter {
    /// Works until it is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        loop {
            let addresses = self.narrowed.next().await;
            let began = Instant::now();
            match self.cut(addresses).await {
                Ok(0) => {}
                Ok(count) => self
                    .log
                    .info("connections that policies deny from now on are ended", &[("connections", &count)]),
                Err(error) => {
                    let text =
                        "connections that policies deny from now on may go on where only answers are sent";
                    self.log.warn(text, &[("error", &fault::chain(&error))]);
                }
            }
            tokio::time::sleep((began.elapsed() * PART).min(LONGEST_PAUSE)).await;
        }
    }

    /// Gives how many were ended.
    async fn cut(&self, addresses: BTreeSet<IpAddr>) -> Result<usize, NotCut> {
        let config = self.config.clone();
        let list = move || -> Result<_, NotCut> {
            let is_meant = |flow: &TrackedFlow| {
                addresses.contains(&flow.source.ip()) || addresses.contains(&flow.destination.ip())
            };
            let listed = open_host(&config)?.enter(|inside| -> Result<_, NotCut> {
                let found = flows(inside.inside(), is_meant)?;
                Ok((found, kernel::route::link_addresses(inside.inside())?))
            });
            listed?
        };
        let (found, node) = tokio::task::spawn_blocking(list).await??;
        let asked: Vec<(TrackedFlow, PolicyFlow)> =
            found.into_iter().filter_map(|flow| Some((judged(&flow)?, flow))).map(|(a, b)| (b, a)).collect();
        if asked.is_empty() {
            return Ok(0);
        }
        let questions = asked.iter().map(|(_, flow)| *flow).collect();
        let denied = self.policies.judge(questions, node.into()).await;
        let ended: Vec<TrackedFlow> =
            asked.into_iter().zip(denied).filter(|(_, denied)| *denied).map(|((flow, _), _)| flow).collect();
        let config = self.config.clone();
        let forget = move || -> Result<usize, NotCut> {
            Ok(open_host(&config)?.enter(|inside| forget_flows(inside.inside(), &ended))??)
        };
        tokio::task::spawn_blocking(forget).await?
    }
}

/// As policies see it; nothing where they do not name its protocol.
fn judged(flow: &TrackedFlow) -> Option<PolicyFlow> {
    let protocol = match flow.protocol {
        6 => PolicyProtocol::Tcp,
        17 => PolicyProtocol::Udp,
        132 => PolicyProtocol::Sctp,
        _ => return None,
    };
    Some(PolicyFlow {
        source: flow.source.ip(),
        destination: flow.destination.ip(),
        traffic: Traffic::Port(protocol, flow.destination.port()),
        route: FlowRoute::Direct,
    })
}
