//! Whether kept sockets find what somebody inside finds.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use capture::ambient::{NodeOptions, PodOptions, plan_pod};
use capture::settings::{Mode, PortChoice};
use capture::{PlanTarget, Settings};
use kernel::iptables::{Iptables, Variant};
use kernel::nft::Nftables;
use kernel::{Check, Choice, Difference, KeptSockets, Kernel};
use ruleset::{Plan, Routing};
use testkit::TestNetns;

use crate::events::{keep, sh};
use crate::way::Way;

/// Changes of everything that a plan has, and of what is none of it; with `T`, `C` and `R` for a table, a chain of it and a table of the routing.
const DAMAGES: [&str; 15] = [
    "nft delete table inet T",
    "nft flush table inet T",
    "nft flush chain inet T C",
    "nft add rule inet T C accept",
    "nft insert rule inet T C counter",
    "nft add chain inet T extra",
    "nft add set inet T extra \"{ type ipv4_addr; }\"",
    "nft add table inet T \"{ flags dormant; }\"",
    "ip rule del lookup R",
    "ip -6 rule del lookup R",
    "ip route flush table R",
    "ip -6 route flush table R",
    "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1",
    "nft add table inet foreign",
    "iptables-nft -t nat -A OUTPUT -j ACCEPT",
];

struct Pod {
    ns: TestNetns,
    plan: Arc<Plan>,
    iptables: Iptables,
}

impl Pod {
    fn new(way: Way) -> Self {
        let node = NodeOptions { ipv6: true, ..NodeOptions::default() };
        Self::of(plan_pod(&node, &PodOptions::default(), way.backend()), way)
    }

    /// With a sidecar that takes transparent connections, and ports in sets.
    fn sidecar(way: Way) -> Self {
        let settings = Settings {
            mode: Mode::Tproxy,
            inbound_ports_excluded: PortChoice::Only(vec![15020, 15021, 15090]),
            outbound_ports_excluded: PortChoice::Only(vec![3306, 5432]),
            ..Settings::default()
        };
        Self::of(capture::plan(&settings, PlanTarget { backend: way.backend(), ipv6: true }), way)
    }

    fn with_excluded_port(port: u16, way: Way) -> Plan {
        let outbound_ports_excluded = PortChoice::Only(vec![port]);
        let settings = Settings { outbound_ports_excluded, ..Settings::default() };
        capture::plan(&settings, PlanTarget { backend: way.backend(), ipv6: true })
    }

    fn of(plan: Plan, way: Way) -> Self {
        let pod = Self { ns: TestNetns::new().unwrap(), plan: Arc::new(plan), iptables: way.iptables() };
        pod.apply(way);
        pod
    }

    fn kernel(&self) -> Kernel<'_> {
        Kernel { nftables: &Nftables, iptables: &self.iptables }
    }

    fn apply(&self, way: Way) {
        let plan = Plan { backend: way.backend(), ..Plan::clone(&self.plan) };
        let iptables = way.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let choice = Choice::Only(plan.backend);
        self.ns.enter(|inside| kernel.apply(inside, choice, |_| plan.clone())).unwrap().unwrap();
    }

    fn observe(&self) -> Vec<Difference> {
        self.ns.enter(|inside| self.kernel().observe(inside, &self.plan)).unwrap().unwrap()
    }

    fn check(&self, kept: &mut KeptSockets) -> Check {
        self.kernel().check(kept, &self.plan).unwrap()
    }

    /// Differences as the check tells them, with the help of somebody inside where it needs that.
    fn checked(&self, kept: &mut KeptSockets) -> Vec<Difference> {
        match self.check(kept) {
            Check::Equal => Vec::new(),
            Check::Differs(differences) => differences,
            Check::Enter => {
                let differences = self.observe();
                if differences.is_empty() {
                    kept.equal();
                }
                differences
            }
        }
    }

    fn routing_table(&self) -> u32 {
        let table = |step: &Routing| match step {
            Routing::Rule { table, .. } | Routing::LocalRoute { table, .. } => Some(*table),
            Routing::LoopbackAddress(_) => None,
        };
        self.plan.routing.iter().find_map(table).unwrap()
    }

    /// A damage with real names in it.
    fn damage(&self, line: &str, number: usize) {
        let tables = sh(&self.ns, "nft list tables inet | grep -o 'istio[a-z-]*' || true");
        let tables: Vec<&str> = tables.lines().collect();
        let line = if line.contains(" T") {
            let Some(table) = tables.get(number % tables.len().max(1)) else { return };
            let chains = sh(
                &self.ns,
                &format!("nft list table inet {table} | sed -n 's/^\\tchain \\(.*\\) {{/\\1/p'"),
            );
            let chains: Vec<&str> = chains.lines().collect();
            let chain = chains.get(number % chains.len().max(1)).unwrap_or(&"none");
            line.replace(" T", &format!(" {table}")).replace(" C", &format!(" {chain}"))
        } else {
            line.replace(" R", &format!(" {}", self.routing_table()))
        };
        sh(&self.ns, &format!("{line} || true"));
    }
}

#[test]
fn a_check_of_nf_tables_rules_finds_what_somebody_inside_finds() {
    let mut damaged = 0;
    for round in 0..4 {
        let pod = if round % 2 == 0 { Pod::new(Way::Nft) } else { Pod::sidecar(Way::Nft) };
        let mut kept = keep(&pod.ns);
        assert_eq!(pod.check(&mut kept), Check::Equal);
        for (number, line) in DAMAGES.iter().enumerate() {
            pod.damage(line, number + round);
            let observed = pod.observe();
            let expected = match observed.is_empty() {
                true => Check::Equal,
                false => Check::Differs(observed.clone()),
            };
            assert_eq!(pod.check(&mut kept), expected, "{line}, round {round}");
            damaged += usize::from(!observed.is_empty());
            // Several damages together, too.
            if (number + round) % 3 == 0 {
                sh(&pod.ns, "sysctl -qw net.ipv6.conf.lo.disable_ipv6=0");
                pod.apply(Way::Nft);
                assert_eq!(pod.check(&mut kept), Check::Equal, "repaired after {line}");
            }
        }
    }
    assert!(damaged > 30, "{damaged}");
}

#[test]
fn rules_in_the_other_backend_are_found() {
    let pod = Pod::new(Way::Nft);
    let mut kept = keep(&pod.ns);
    for variant in [Variant::Nft, Variant::Legacy] {
        // As if the plan had been loaded by the other backend beside this one.
        let other =
            plan_pod(&NodeOptions::default(), &PodOptions::default(), Way::Iptables(variant).backend());
        let iptables = Iptables::forced(variant);
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let choice = Choice::Only(other.backend);
        pod.ns.enter(|inside| kernel.apply(inside, choice, |_| other.clone())).unwrap().unwrap();
        let nft = Plan { routing: Vec::new(), ..Plan::clone(&pod.plan) };
        let text = kernel::nft::encode(&nft.layers);
        pod.ns.enter(|inside| kernel::nft::send(inside, &text)).unwrap().unwrap();
        let found = pod.checked(&mut kept);
        assert_eq!(found, pod.observe());
        assert!(found.iter().any(|d| matches!(d, Difference::OtherBackend { .. })), "{variant}: {found:?}");
        pod.apply(Way::Nft);
        assert_eq!(pod.checked(&mut kept), []);
    }
}

#[test]
fn tables_of_iptables_legacy_without_rules_of_ours_cost_one_look_inside() {
    let pod = Pod::new(Way::Nft);
    let mut kept = keep(&pod.ns);
    assert_eq!(pod.check(&mut kept), Check::Equal);
    sh(&pod.ns, "iptables-legacy -t nat -A OUTPUT -p udp -j ACCEPT");
    assert!(kept.unchanged().unwrap(), "nothing tells of new legacy tables but a check");
    assert_eq!(pod.check(&mut kept), Check::Enter);
    assert_eq!(pod.observe(), []);
    kept.equal();
    assert_eq!(pod.check(&mut kept), Check::Equal);
    sh(&pod.ns, "iptables-legacy -t nat -F");
    assert_eq!(pod.check(&mut kept), Check::Enter);
}

/// Of both variants, the programs of iptables are started only after a change.
#[test]
fn a_check_of_iptables_rules_finds_what_somebody_inside_finds() {
    for way in Way::ALL {
        let Way::Iptables(variant) = way else { continue };
        let pod = Pod::new(way);
        let mut kept = keep(&pod.ns);
        assert_eq!(pod.check(&mut kept), Check::Enter, "nobody has looked yet");
        for damage in [
            "iptables-V -t nat -F",
            "ip6tables-V -t mangle -F",
            "iptables-V -t mangle -I PREROUTING -j ACCEPT",
            "iptables-V -t filter -A INPUT -p udp -j ACCEPT",
            "ip rule del lookup 100",
            "nft add table inet foreign",
            "nft add table inet istio-pod-nat",
        ] {
            pod.apply(way);
            assert_eq!(pod.checked(&mut kept), [], "before {damage}");
            assert_eq!(pod.check(&mut kept), Check::Equal, "{variant}: nothing has changed before {damage}");
            assert!(kept.unchanged().unwrap());
            sh(&pod.ns, &damage.replace("-V", &format!("-{variant}")));
            assert_eq!(pod.checked(&mut kept), pod.observe(), "{variant}: {damage}");
        }
    }
}

/// Although nothing has changed in the namespace since everything was as planned.
#[test]
fn a_check_with_another_plan_finds_what_somebody_inside_finds() {
    for way in Way::ALL {
        let mut pod = Pod::of(Pod::with_excluded_port(3306, way), way);
        let mut kept = keep(&pod.ns);
        assert_eq!(pod.checked(&mut kept), []);
        assert_eq!(pod.check(&mut kept), Check::Equal);
        pod.plan = Arc::new(Pod::with_excluded_port(3307, way));
        let found = pod.checked(&mut kept);
        assert!(!found.is_empty() && found == pod.observe(), "{way:?}: {found:?}");
        assert!(!kept.unchanged().unwrap(), "{way:?}: nothing was found as planned");
        pod.apply(way);
        assert_eq!(pod.checked(&mut kept), []);
        assert_eq!(pod.check(&mut kept), Check::Equal);
    }
}

/// Whoever asks whether something has changed keeps others waiting; whoever checks does not.
#[test]
fn large_tables_of_iptables_legacy_are_read_by_a_check_only() {
    let pod = Pod::new(Way::Nft);
    let mut kept = keep(&pod.ns);
    sh(&pod.ns, "iptables-legacy -t nat -A OUTPUT -p udp -j ACCEPT");
    assert_eq!(pod.check(&mut kept), Check::Enter);
    kept.equal();
    assert!(kept.unchanged().unwrap());
    let rules = "{ echo '*filter'; seq -f '-A INPUT -p udp --dport %.0f -j ACCEPT' 1 3000; echo COMMIT; }";
    sh(&pod.ns, &format!("{rules} | iptables-legacy-restore"));
    assert_eq!(pod.check(&mut kept), Check::Enter);
    kept.equal();
    let began = std::time::Instant::now();
    assert!(!kept.unchanged().unwrap());
    println!("asked within {:?}", began.elapsed());
    assert_eq!(pod.check(&mut kept), Check::Equal);
}

#[test]
fn packets_that_legacy_rules_count_are_no_change() {
    let pod = Pod::new(Way::Iptables(Variant::Legacy));
    let mut kept = keep(&pod.ns);
    assert_eq!(pod.checked(&mut kept), []);
    let counted =
        |of: &str| sh(&pod.ns, &format!("iptables-legacy-save -c -t {of} | grep -c '^\\[[1-9]' || true"));
    assert_eq!(counted("nat").trim(), "0");
    pod.ns
        .enter(|_| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        })
        .unwrap();
    let rules: usize = counted("nat").trim().parse().unwrap();
    assert!(rules > 0, "packets met rules");
    assert!(kept.unchanged().unwrap());
    assert_eq!(pod.check(&mut kept), Check::Equal);
    sh(&pod.ns, "iptables-legacy -t nat -F");
    assert!(!kept.unchanged().unwrap());
    assert_eq!(pod.check(&mut kept), Check::Enter);
}
