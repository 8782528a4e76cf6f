//! Random settings in a kernel: real packets do what the evaluator says, whichever way the plan was loaded.

use std::cell::Cell;
use std::fmt::Write as _;
use std::time::Instant;

use agreement::lab::{Lab, Loader, compare};
use agreement::run::{SEED, runner};
use agreement::strategy::{attempt, settings};
use agreement::way::{Attempt, End, predict};
use capture::settings::{Mode, PortChoice};
use capture::{PlanTarget, Settings, plan};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruleset::{Backend, Family, Plan, Protocol, Transaction};

const CASES: u32 = 80;
const ATTEMPTS: usize = 12;
/// Each step of shrinking loads rules and sends packets again.
const SHRINK: u32 = 150;

/// Loads a plan, makes the attempts, and says what was not as `expected` says. The lab is empty afterwards.
fn disagreement(
    lab: &Lab,
    loader: Loader,
    loaded: &Plan,
    expected: &Plan,
    attempts: &[Attempt],
    count: &Cell<u32>,
) -> anyhow::Result<Option<String>> {
    lab.load(loader, loaded)?;
    let mut found = None;
    for attempt in attempts {
        let way = predict(expected, attempt);
        let outcome = lab.attempt(attempt)?;
        count.set(count.get() + 1);
        if let Err(difference) = compare(attempt, &way.end, &outcome) {
            found = Some(format!("{loader:?}: {difference}\n{attempt:?}\nwhat the evaluator says:\n{way}"));
            break;
        }
    }
    lab.unload(loader, loaded)?;
    Ok(found)
}

fn texts(settings: &Settings, ipv6: bool) -> String {
    let mut out = format!("{settings:#?}\nIPv6: {ipv6}\n");
    let nft = plan(settings, PlanTarget { backend: Backend::Nftables, ipv6 });
    let iptables = plan(settings, PlanTarget { backend: Backend::Iptables, ipv6 });
    for step in &nft.routing {
        let _ = writeln!(out, "{step:?}");
    }
    let _ = writeln!(out, "--- nft\n{}", ruleset::nft::render(&Transaction::Add(&nft.layers)));
    for family in [Family::V4, Family::V6] {
        let text = ruleset::iptables::render(&iptables.layers, family);
        let _ = writeln!(out, "--- iptables {family:?}\n{}", text.unwrap_or_else(|error| error.to_string()));
    }
    out
}

/// The proxy's IPv6 source address is only there with a plan that handles IPv6.
fn possible(attempt: &Attempt, ipv6: bool) -> bool {
    ipv6 || attempt.source.is_none_or(|source| source.is_ipv4())
}

#[test]
fn real_packets_go_where_the_evaluator_says() {
    let lab = Lab::new().unwrap();
    let start = Instant::now();
    let (mut runner, seed) = runner("packets", CASES, SHRINK);
    let (count, ends) = (Cell::new(0), Ends::default());
    let strategy = (settings(), any::<bool>(), vec(attempt(), 1..=ATTEMPTS));
    let result = runner.run(&strategy, |(settings, ipv6, mut attempts)| {
        attempts.retain(|attempt| possible(attempt, ipv6));
        for loader in Loader::ALL {
            let plan = plan(&settings, PlanTarget { backend: loader.backend(), ipv6 });
            attempts.iter().for_each(|attempt| ends.count(attempt, &predict(&plan, attempt).end, &settings));
            let found = disagreement(&lab, loader, &plan, &plan, &attempts, &count)
                .unwrap_or_else(|error| panic!("{loader:?}: {error:#}\n{}", texts(&settings, ipv6)));
            if let Some(found) = found {
                return Err(TestCaseError::fail(format!("{found}\n{}", texts(&settings, ipv6))));
            }
        }
        Ok(())
    });
    println!("{} attempts in {:?}: {ends:?}", count.get(), start.elapsed());
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
    let kinds = [
        &ends.outbound,
        &ends.inbound_redirect,
        &ends.inbound_tproxy,
        &ends.resolver,
        &ends.direct,
        &ends.refused,
    ];
    // Fewer attempts, as someone may ask for, need not meet all.
    assert!(
        count.get() < 1000 || kinds.iter().all(|kind| kind.get() > 0),
        "not every kind of end was met: {ends:?}"
    );
}

/// How often each kind of end was predicted: a test that only ever sees one kind shows little.
#[derive(Debug, Default)]
struct Ends {
    outbound: Cell<u32>,
    inbound_redirect: Cell<u32>,
    inbound_tproxy: Cell<u32>,
    resolver: Cell<u32>,
    direct: Cell<u32>,
    refused: Cell<u32>,
    none: Cell<u32>,
}

impl Ends {
    fn count(&self, attempt: &Attempt, end: &End, settings: &Settings) {
        let cell = match end {
            End::NoAnswer => &self.none,
            End::Refused => &self.refused,
            End::Listener { port, .. } if *port == settings.proxy_port => &self.outbound,
            End::Listener { port: 15053, .. } => &self.resolver,
            End::Listener { port, .. } if *port != settings.capture_port || attempt.to.port() == *port => {
                &self.direct
            }
            End::Listener { .. } if settings.mode == Mode::Tproxy => &self.inbound_tproxy,
            End::Listener { .. } => &self.inbound_redirect,
        };
        cell.set(cell.get() + 1);
    }
}

/// The comparison itself can fail: for each rule in turn that the attempts below meet, a plan without it is loaded, and the
/// packets must give it away.
#[test]
fn a_missing_rule_is_noticed() {
    let lab = Lab::new().unwrap();
    let settings = Settings { dns: capture::settings::DnsCapture::All, ..Settings::default() };
    let count = Cell::new(0);
    let to = |text: &str, port| (text.parse::<std::net::IpAddr>().unwrap(), port).into();
    let from = |owner, to| Attempt {
        from_peer: false,
        protocol: Protocol::Tcp,
        owner,
        source: None,
        mark: 0,
        to,
        proxy_up: true,
    };
    let attempts = [
        from((1000, 1000), to("198.51.100.7", 80)),
        from((1337, 1000), to("198.51.100.7", 80)),
        from((1000, 1337), to("198.51.100.7", 80)),
        from((1000, 1000), to("198.51.100.7", 15020)),
        from((1337, 1000), to("10.77.0.2", 80)),
        from((1000, 1000), to("198.51.100.7", 53)),
        Attempt { protocol: Protocol::Udp, ..from((1000, 1000), to("198.51.100.7", 53)) },
        Attempt { from_peer: true, ..from((0, 0), to("10.77.0.2", 80)) },
        Attempt { from_peer: true, ..from((0, 0), to("10.77.0.2", 15008)) },
        Attempt { from_peer: true, ..from((0, 0), to("10.77.0.2", 15021)) },
    ];
    for loader in Loader::ALL {
        let whole = plan(&settings, PlanTarget { backend: loader.backend(), ipv6: false });
        assert_eq!(disagreement(&lab, loader, &whole, &whole, &attempts, &count).unwrap(), None);
        for attempt in &attempts {
            let way = predict(&whole, attempt);
            let decided = way.path.stops.iter().filter_map(|stop| stop.outcome.decided_by).next_back();
            let place = decided.expect("each of these attempts meets a rule that decides");
            let (table, chain, index) = (place.table, place.chain.name.clone(), place.index);
            let mut without = whole.clone();
            let tables = without.layers.iter_mut().flat_map(|layer| &mut layer.tables);
            let chains = tables.filter(|t| t.kind == table).flat_map(|t| &mut t.chains);
            chains.filter(|c| c.name == chain).for_each(|c| drop(c.rules.remove(index)));
            let found =
                disagreement(&lab, loader, &without, &whole, std::slice::from_ref(attempt), &count).unwrap();
            let found = found.unwrap_or_else(|| {
                panic!("{loader:?}: {table}/{chain}[{index}] is not missed by {attempt:?}")
            });
            assert!(found.contains("predicted"), "{found}");
        }
    }
}

/// Whatever is captured inbound, and in whichever way, it never comes to the application while the proxy does not listen; what is left alone
/// does. Before, while and after the proxy listens, in both families and over both interfaces of the way.
#[test]
fn a_proxy_that_does_not_listen_is_not_passed_by() {
    let lab = Lab::new().unwrap();
    let only = |ports: &[u16]| PortChoice::Only(ports.to_vec());
    let choices = [
        (PortChoice::All, only(&[15021])),
        (only(&[80, 9999]), PortChoice::none()),
        (only(&[80, 9999]), PortChoice::All),
    ];
    let count = Cell::new(0);
    for loader in Loader::ALL {
        for (mode, (inbound_ports, inbound_ports_excluded)) in [Mode::Redirect, Mode::Tproxy]
            .into_iter()
            .flat_map(|mode| choices.clone().map(|ports| (mode, ports)))
        {
            let settings = Settings { mode, inbound_ports, inbound_ports_excluded, ..Settings::default() };
            let plan = plan(&settings, PlanTarget { backend: loader.backend(), ipv6: true });
            for proxy_up in [false, true, false] {
                let attempts = inbound(proxy_up);
                for attempt in &attempts {
                    let port = match predict(&plan, attempt).end {
                        End::Listener { port, .. } => Some(port),
                        End::Refused | End::NoAnswer => None,
                    };
                    // What the proxy sends to its own pod is inbound, whatever the port.
                    let captured = attempt.to.port() == 80 || !attempt.from_peer;
                    let expected =
                        if captured { proxy_up.then_some(settings.capture_port) } else { Some(15021) };
                    assert_eq!(port, expected, "{attempt:?}");
                }
                let found = disagreement(&lab, loader, &plan, &plan, &attempts, &count).unwrap();
                assert_eq!(found, None);
            }
        }
    }
    assert_eq!(count.get(), 3 * 6 * 3 * 8);
}

/// From outside and, as the proxy, from the pod itself, to a port that is captured and to one that is not, in both families.
fn inbound(proxy_up: bool) -> Vec<Attempt> {
    let ways = [(true, (0, 0)), (false, (1337, 1337))];
    let all = ways.into_iter().flat_map(|way| ["10.77.0.2", "fd77::2"].map(|ip| (way, ip)));
    let all = all.flat_map(|(way, ip)| [80, 15021].map(|port| (way, ip, port)));
    all.map(|((from_peer, owner), ip, port)| Attempt {
        from_peer,
        protocol: Protocol::Tcp,
        owner,
        source: None,
        mark: 0,
        to: (ip.parse::<std::net::IpAddr>().expect("an address"), port).into(),
        proxy_up,
    })
    .collect()
}

/// Two rules give the proxy's query a zone, and the evaluator says that the first counts: the kernel's list of connections shows it.
#[test]
fn the_kernel_keeps_the_first_zone() {
    let lab = Lab::new().unwrap();
    let settings = Settings { dns: capture::settings::DnsCapture::All, ..Settings::default() };
    let to = |uid, last: u8| Attempt {
        from_peer: false,
        protocol: Protocol::Udp,
        owner: (uid, uid),
        source: None,
        mark: 0,
        to: ([198, 51, 100, last], 53).into(),
        proxy_up: true,
    };
    for (number, loader) in Loader::ALL.into_iter().enumerate() {
        let plan = plan(&settings, PlanTarget { backend: loader.backend(), ipv6: false });
        lab.load(loader, &plan).unwrap();
        let last = u8::try_from(10 * (number + 1)).unwrap();
        for attempt in [to(1337, last), to(1000, last + 1)] {
            let zone = predict(&plan, &attempt).path.stops[0].outcome.zone.expect("a query gets a zone");
            assert_eq!(zone, if attempt.owner.0 == 1337 { 1 } else { 2 });
            lab.attempt(&attempt).unwrap();
            let list =
                lab.pod().enter(|_| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")).unwrap();
            let list = list.expect("the kernel lists connections (CONFIG_NF_CONNTRACK_PROCFS)");
            let dst = format!("dst={} ", attempt.to.ip());
            let line = list.lines().find(|line| line.contains("dport=53 ") && line.contains(&dst));
            let line = line.unwrap_or_else(|| panic!("{loader:?}: no connection of {attempt:?} in:\n{list}"));
            assert!(line.contains(&format!("zone={zone} ")), "{loader:?}: {line}");
        }
        lab.unload(loader, &plan).unwrap();
    }
}
