//! A pod whose rules are replaced from case to case, and attempts with real packets.

use std::cell::Cell;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use capture::settings::DNS_PORT;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use ruleset::{Backend, Family, Plan, Protocol, Step, Transaction};
use testkit::probe::{Flow, Listener, Listeners, Outcome};
use testkit::rules::Variant;
use testkit::{Families, Pod, rules};

use crate::way::{Attempt, End};
use crate::world::{CAPTURE_PORTS, LISTENER_ID, PROXY_PORTS, TCP_PORTS, UDP_PORTS};

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

/// A pod with `eth0` and `net1`, listeners on every port of [`crate::world`] in it and at its peer.
#[derive(Debug)]
pub struct Lab {
    pod: Pod,
    _listeners: [Listeners; 2],
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

    fn variant(self) -> Option<Variant> {
        match self {
            Self::Nft => None,
            Self::IptablesNft => Some(Variant::Nft),
            Self::IptablesLegacy => Some(Variant::Legacy),
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
        for namespace in [pod.own(), pod.peer()] {
            // Answers to addresses that no route leads back to are part of the tests.
            for interface in ["all", "default", "lo", "eth0", "net1"] {
                namespace.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
            }
        }
        let proxy = [PROXY_PORTS, CAPTURE_PORTS].concat();
        let udp = || UDP_PORTS.map(Listener::udp);
        let own: Vec<_> = (TCP_PORTS.into_iter().filter(|port| !proxy.contains(port)).map(Listener::tcp))
            .chain(proxy.iter().map(|port| Listener::tcp(*port).transparent()))
            .chain(udp())
            .chain([Listener::tcp(DNS_PORT), Listener::udp(DNS_PORT)])
            .collect();
        let own = as_proxy(|| Listeners::start(&pod, own))?;
        let peer = Listeners::start(pod.peer(), TCP_PORTS.map(Listener::tcp).into_iter().chain(udp()))?;
        Ok(Self { pod, _listeners: [own, peer], next_port: Cell::new(FIRST_PORT) })
    }

    /// The pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Loads a plan into the pod; [`Lab::unload`] takes it out again.
    ///
    /// # Errors
    /// When the kernel or a program refuses a step.
    pub fn load(&self, loader: Loader, plan: &Plan) -> Result<()> {
        ensure!(loader.backend() == plan.backend, "the plan is for {}", plan.backend);
        self.route("add", plan)?;
        let ruleset = plan.ruleset().context("the plan has no rules")?;
        let Some(variant) = loader.variant() else {
            return self.pod.nft(&ruleset::nft::render(&Transaction::Add(ruleset)));
        };
        for family in ruleset.families() {
            let text = ruleset::iptables::render(ruleset, *family)?;
            let family = if *family == Family::V4 { rules::Family::V4 } else { rules::Family::V6 };
            self.pod.iptables_restore(variant, family, &text)?;
        }
        Ok(())
    }

    /// Removes all rules, and the routing of the plan.
    ///
    /// # Errors
    /// When a step cannot be undone.
    pub fn unload(&self, loader: Loader, plan: &Plan) -> Result<()> {
        self.pod.nft("flush ruleset\n")?;
        if loader == Loader::IptablesLegacy {
            for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
                let empty = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n";
                self.pod.pipe(&mut Command::new(program), empty)?;
            }
        }
        self.route("delete", plan)
    }

    fn route(&self, verb: &str, plan: &Plan) -> Result<()> {
        for words in plan.steps.iter().filter_map(|step| routing(verb, step)) {
            self.pod.run(Command::new("ip").args(words.split(' ')))?;
        }
        Ok(())
    }

    /// Makes the attempt.
    ///
    /// # Errors
    /// When it cannot even be tried.
    pub fn attempt(&self, attempt: &Attempt) -> Result<Outcome> {
        let port = self.next_port.get();
        self.next_port.set(port.checked_add(1).unwrap_or(FIRST_PORT));
        let source = SocketAddr::new(attempt.source_address(), port);
        let from = if attempt.from_peer { self.pod.peer() } else { self.pod.own() };
        let flow = Flow::from(from).user(attempt.owner.0, attempt.owner.1).source(source).patience(PATIENCE);
        match attempt.protocol {
            Protocol::Tcp => flow.tcp(attempt.to),
            Protocol::Udp => flow.udp(attempt.to),
        }
    }
}

/// Whether an outcome is the predicted end; otherwise what is different.
///
/// # Errors
/// The difference, for people.
pub fn compare(attempt: &Attempt, end: &End, outcome: &Outcome) -> Result<(), String> {
    let (End::Listener { port, local, source }, Outcome::Reached(arrival)) = (end, outcome) else {
        return match (end, outcome) {
            (End::NoAnswer, Outcome::TimedOut) => Ok(()),
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

/// The words of `ip` for a step.
fn routing(verb: &str, step: &Step) -> Option<String> {
    let flag = |family: &Family| if *family == Family::V4 { "-4" } else { "-6" };
    match step {
        Step::EnsureLoopbackAddress(address) => Some(format!("address {verb} {address}/128 dev lo")),
        Step::EnsureRule { family, mark, table, priority } => {
            Some(format!("{} rule {verb} fwmark {mark} lookup {table} priority {priority}", flag(family)))
        }
        Step::EnsureLocalRoute { family, table } => {
            Some(format!("{} route {verb} local default dev lo table {table}", flag(family)))
        }
        Step::Replace(_) => None,
    }
}

/// Runs on a thread whose files and sockets belong to the proxy's user; it keeps what it needs to enter a namespace.
fn as_proxy<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setfsgid(Gid::from_raw(LISTENER_ID));
            setfsuid(Uid::from_raw(LISTENER_ID));
            f()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
