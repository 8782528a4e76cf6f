//! A pod whose rules are replaced from case to case, and attempts with real packets.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use capture::settings::DNS_PORT;
use kernel::iptables::{Iptables, Variant};
use kernel::nft::Nftables;
use kernel::{Change, Choice, Kernel, RuleStore as _};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use ruleset::{Backend, Plan, Protocol, Ruleset};
use testkit::probe::{Flow, Listener, Listeners, Outcome};
use testkit::{Families, Pod};

use crate::way::{Attempt, End};
use crate::world::{CAPTURE_PORTS, LISTENER_ID, PROXY_PORTS, TCP_PORTS, UDP_PORTS, is_proxys};

/// How long an attempt waits. Everything is on one machine, so an answer that comes at all comes in a millisecond or two, and a
/// lost packet costs the whole of it.
const PATIENCE: Duration = Duration::from_millis(400);

/// The first source port of ours. Each attempt takes the next one, so that no connection tracking entry of an earlier case, made
/// under other rules, can meet a later packet.
const FIRST_PORT: u16 = 20_000;

/// A way to load a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// nf_tables.
    Nft,
    /// iptables, the variant on top of nf_tables.
    IptablesNft,
    /// iptables, the older variant.
    IptablesLegacy,
}

/// A pod with `eth0` and `net1`, listeners on every port of [`crate::world`] in it and at its peer. Those of the proxy come and go.
#[derive(Debug)]
pub struct Lab {
    pod: Pod,
    _listeners: [Listeners; 2],
    proxy: RefCell<Option<Listeners>>,
    next_port: Cell<u16>,
}

impl Loader {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nft, Self::IptablesNft, Self::IptablesLegacy];

    /// The backend whose plan it loads.
    pub fn backend(self) -> Backend {
        match self {
            Self::Nft => Backend::Nftables,
            Self::IptablesNft | Self::IptablesLegacy => Backend::Iptables,
        }
    }

    /// Its programs.
    pub fn iptables(self) -> Iptables {
        match self {
            Self::Nft => Iptables::new(),
            Self::IptablesNft => Iptables::forced(Variant::Nft),
            Self::IptablesLegacy => Iptables::forced(Variant::Legacy),
        }
    }
}

impl Lab {
    /// Makes it.
    ///
    /// # Errors
    /// When not root, or a program is missing.
    pub fn new() -> Result<Self> {
        let mut pod = Pod::new(Families::Dual)?;
        pod.add_interface("net1")?;
        pod.know_neighbours()?;
        for namespace in [pod.own(), pod.peer()] {
            // Answers to addresses that no route leads back to are part of the tests.
            for interface in ["all", "default", "lo", "eth0", "net1"] {
                namespace.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
            }
        }
        let udp = || UDP_PORTS.map(Listener::udp);
        let own: Vec<_> =
            TCP_PORTS.into_iter().filter(|port| !is_proxys(*port)).map(Listener::tcp).chain(udp()).collect();
        let own = as_proxy(|| Listeners::start(&pod, own))?;
        let peer = Listeners::start(pod.peer(), TCP_PORTS.map(Listener::tcp).into_iter().chain(udp()))?;
        let proxy = RefCell::new(None);
        Ok(Self { pod, _listeners: [own, peer], proxy, next_port: Cell::new(FIRST_PORT) })
    }

    /// Starts the proxy's listeners, or stops them.
    fn set_proxy(&self, up: bool) -> Result<()> {
        let mut proxy = self.proxy.borrow_mut();
        if !up {
            *proxy = None;
        } else if proxy.is_none() {
            let transparent = PROXY_PORTS.into_iter().chain(CAPTURE_PORTS);
            let resolver = [Listener::tcp(DNS_PORT), Listener::udp(DNS_PORT)];
            let all = transparent.map(|port| Listener::tcp(port).transparent()).chain(resolver);
            let (pod, all) = (&self.pod, all.collect::<Vec<_>>());
            *proxy = Some(as_proxy(|| Listeners::start(pod, all))?);
        }
        Ok(())
    }

    /// The pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Loads a plan into the pod as the plugin would; [`Lab::unload`] takes it out again.
    ///
    /// # Errors
    /// When the kernel or a program refuses a step, or what is there afterwards is not what was planned.
    pub fn load(&self, loader: Loader, plan: &Plan) -> Result<()> {
        ensure!(loader.backend() == plan.backend, "the plan is for {}", plan.backend);
        let iptables = loader.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        self.pod.enter(|inside| {
            let choice = Choice::Only(plan.backend);
            let first = kernel.apply(inside, choice, |_| plan.clone())?;
            ensure!(first.rules == Change::Fresh, "the first time: {first:?}");
            let differences = kernel.observe(inside, plan)?;
            ensure!(differences.is_empty(), "after loading: {differences:?}");
            let record = kernel.record(plan).context("the plan has no record")?;
            let record =
                kernel::Record::from_bytes(&record.to_bytes()).context("the record cannot be read")?;
            let differences = kernel.observe_record(inside, &record, &owners(&plan.layers))?;
            ensure!(differences == Some(Vec::new()), "by the record: {differences:?}");
            let again = kernel.apply(inside, choice, |_| plan.clone())?;
            ensure!(again.rules == Change::None && again.routing == 0, "the second time: {again:?}");
            Ok(())
        })?
    }

    /// Removes all rules, and the routing of the plan.
    ///
    /// # Errors
    /// When a step cannot be undone, or something of ours is left.
    pub fn unload(&self, loader: Loader, plan: &Plan) -> Result<()> {
        let iptables = loader.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let layers = &plan.layers;
        self.pod.enter(|inside| {
            kernel.cleanup(inside, plan)?;
            let left = Nftables.exists(inside, layers)? || iptables.exists(inside, layers)?;
            ensure!(!left, "rules are left after a cleanup");
            Ok(())
        })?
    }

    /// Makes the attempt.
    ///
    /// # Errors
    /// When it cannot even be tried.
    pub fn attempt(&self, attempt: &Attempt) -> Result<Outcome> {
        self.attempt_within(attempt, PATIENCE)
    }

    /// Makes the attempt, and gives up after this time.
    ///
    /// # Errors
    /// When it cannot even be tried.
    pub fn attempt_within(&self, attempt: &Attempt, patience: Duration) -> Result<Outcome> {
        self.set_proxy(attempt.proxy_up)?;
        let port = self.next_port.get();
        self.next_port.set(port.checked_add(1).unwrap_or(FIRST_PORT));
        let source = SocketAddr::new(attempt.source_address(), port);
        let from = if attempt.from_peer { self.pod.peer() } else { self.pod.own() };
        let flow = Flow::from(from)
            .user(attempt.owner.0, attempt.owner.1)
            .source(source)
            .mark(attempt.mark)
            .patience(patience);
        match attempt.protocol {
            Protocol::Tcp => flow.tcp(attempt.to),
            Protocol::Udp => flow.udp(attempt.to),
            other => bail!("no attempt is made of {}", other.name()),
        }
    }
}

/// The layers without rules.
pub fn owners(layers: &[Ruleset]) -> Vec<Ruleset> {
    layers.iter().map(|layer| Ruleset { tables: Vec::new(), ..layer.clone() }).collect()
}

/// Whether an outcome is the predicted end; otherwise what is different.
///
/// # Errors
/// The difference, for people.
pub fn compare(attempt: &Attempt, end: &End, outcome: &Outcome) -> Result<(), String> {
    let (End::Listener { port, local, source }, Outcome::Reached(arrival)) = (end, outcome) else {
        return match (end, outcome) {
            (End::NoAnswer, Outcome::TimedOut) | (End::Refused, Outcome::Refused) => Ok(()),
            _ => Err(format!("predicted {end:?}, but it {outcome}")),
        };
    };
    if arrival.listener_port != *port {
        return Err(format!("predicted port {port}, but it {outcome}"));
    }
    if local.is_some_and(|local| local != arrival.local) {
        return Err(format!("predicted local address {local:?}, but it was {}", arrival.local));
    }
    if arrival.peer.ip() != *source {
        return Err(format!("predicted source {source}, but it was {}", arrival.peer));
    }
    // Nobody asks for the original destination of a datagram.
    if attempt.protocol == Protocol::Tcp && arrival.destination() != attempt.to {
        return Err(format!(
            "the original destination was {}, but the proxy is told {}",
            attempt.to,
            arrival.destination()
        ));
    }
    Ok(())
}

fn as_proxy<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    as_user(LISTENER_ID, f)
}

/// Runs on a thread whose files and sockets belong to a user and group; it keeps what it needs to enter a namespace.
pub(crate) fn as_user<R: Send>(id: u32, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setfsgid(Gid::from_raw(id));
            setfsuid(Uid::from_raw(id));
            f()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
