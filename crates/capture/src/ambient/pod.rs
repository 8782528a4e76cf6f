//! The rules in a pod's namespace. Their order within a chain is the original's: guests and probes before DNS, DNS before what goes out.

use ruleset::{
    Action, Backend, Base, Chain, ChainKind, Hook, KnownChain, Match, Plan, Ports, Protocol, Routing, Rule,
    Ruleset, Table, TableKind,
};

use super::{
    DNS_PORT, DNS_ZONE, HBONE_PORT, INBOUND_PORT, MARK_MASK, NodeOptions, OUTBOUND_PORT, OWNER, Own,
    PodOptions, REPLY_MARK, ROUTE_TABLE, RULE_PRIORITY, ZTUNNEL_MARK, base, regular, tcp,
};

const PREROUTING: &str = "istio-prerouting";
const OUTPUT: &str = "istio-output";
/// What is left after the pod's own translations.
const REST: &str = "istio-prerouting-late";
const REST_BASE: &str = "prerouting-late";
/// nat chains may have no lower priority (`nf_tables_chain_type` in net/netfilter/nft_chain_nat.c: above connection tracking). What others
/// attach there later comes before, which is a difference.
const FIRST: i32 = -199;
const LAST: i32 = i32::MAX;

const TO_ZTUNNEL: Action = Action::Redirect { port: INBOUND_PORT };

/// What a pod's namespace may have in any setting.
const KNOWN_CHAINS: &[KnownChain] = &[
    KnownChain::named(TableKind::Nat, PREROUTING),
    KnownChain::named(TableKind::Nat, OUTPUT),
    KnownChain::named(TableKind::Nat, REST),
    KnownChain::named(TableKind::Mangle, PREROUTING),
    KnownChain::named(TableKind::Mangle, OUTPUT),
    KnownChain::named(TableKind::Raw, PREROUTING),
    KnownChain::named(TableKind::Raw, OUTPUT),
];

/// No rules: to look for those that a pod in the mesh has.
#[must_use]
pub fn no_rules() -> Ruleset {
    Ruleset { owner: OWNER.into(), known_chains: KNOWN_CHAINS.into(), ipv6: true, tables: Vec::new() }
}

/// The plan for the namespace of a pod that takes part in the mesh.
#[must_use]
pub fn plan_pod(node: &NodeOptions, pod: &PodOptions, backend: Backend) -> Plan {
    plan(node, pod, backend, nat(node, pod))
}

/// The same for a pod that translates destinations of what comes in itself (DNAT, REDIRECT), such as a gateway with a second address. It is captured
/// in two steps, whoever attached first: what is for an address of the interface that it comes by before the pod's own translations, and everything
/// else after them. So nothing that is for the pod's own address goes by them, and nothing goes past ztunnel that they do not translate.
#[must_use]
pub fn plan_translating_pod(node: &NodeOptions, pod: &PodOptions, backend: Backend) -> Plan {
    let mut nat = nat(node, pod);
    if !pod.ingress {
        capture_in_two_steps(&mut nat, node);
    }
    plan(node, pod, backend, nat)
}

fn capture_in_two_steps(nat: &mut Table, node: &NodeOptions) {
    for chain in &mut nat.chains {
        match (&mut chain.base, &*chain.name) {
            (Some(base), _) if base.hook == Hook::Prerouting => {
                base.priority = FIRST;
                chain.leading = chain.rules.len();
            }
            (None, PREROUTING) => {
                let inbound = chain.rules.iter_mut().filter(|rule| rule.action == TO_ZTUNNEL);
                inbound.for_each(|rule| rule.matches.push(Match::OwnDestination));
            }
            _ => {}
        }
    }
    let jump = Rule::new(vec![], Action::Jump(REST.into()), "what the pod has not translated").uncounted();
    let kind = ChainKind::Nat;
    let late = Some(Base { kind, hook: Hook::Prerouting, priority: LAST });
    nat.chains.push(Chain { name: REST_BASE.into(), base: late, ..regular(REST_BASE, vec![jump]) });
    nat.chains.push(regular(REST, captured_inbound(node)));
}

/// The plan for the namespace of a pod that has left the mesh while connections through ztunnel are open: nothing is redirected any more,
/// and what was redirected goes on.
///
/// The kernel translates the packets of a connection only while its namespace has a nat base chain and something that uses connection
/// tracking. So the base chains stay, of whichever hook, and the rules that mark connections: they need connection tracking, and by them
/// answers of the application find back to ztunnel.
#[must_use]
pub fn plan_drain(node: &NodeOptions, pod: &PodOptions, backend: Backend) -> Plan {
    plan(node, pod, backend, table(TableKind::Nat, Vec::new(), Vec::new()))
}

fn plan(node: &NodeOptions, pod: &PodOptions, backend: Backend, nat: Table) -> Plan {
    let mut routing = Vec::new();
    let mut tables = vec![nat, mangle()];
    if pod.captures_dns(node) {
        tables.push(raw());
    }
    let rules = Ruleset { owner: OWNER.into(), known_chains: KNOWN_CHAINS.into(), ipv6: node.ipv6, tables };
    for &family in rules.families() {
        // The route first: a rule that leads to an empty table does no harm, but neither does it help.
        routing.push(Routing::LocalRoute { family, table: ROUTE_TABLE });
        routing.push(Routing::Rule {
            family,
            mark: REPLY_MARK,
            mask: MARK_MASK,
            table: ROUTE_TABLE,
            priority: RULE_PRIORITY,
        });
    }
    Plan { backend, routing, layers: vec![rules] }
}

fn nat(node: &NodeOptions, pod: &PodOptions) -> Table {
    let dns = pod.captures_dns(node);
    let mut inward = virtual_interfaces(pod);
    if !pod.ingress {
        inward.extend(captured_inbound(node));
    }
    let mut outward: Vec<Rule> = node.families().map(answers_to_probes).collect();
    if dns {
        outward.push(dns_by_udp());
        outward.extend(node.families().map(dns_by_tcp));
    }
    outward.push(answers_to_ztunnel());
    outward.extend(node.families().map(to_itself));
    outward.extend(node.families().map(outbound));
    table(TableKind::Nat, inward, outward)
}

/// What comes in, to ztunnel, and probes past it.
fn captured_inbound(node: &NodeOptions) -> Vec<Rule> {
    node.families().map(probes).chain(node.families().map(inbound)).collect()
}

fn mangle() -> Table {
    let tag = Rule::new(
        vec![from_ztunnel(false)],
        Action::SetCtMark { mark: REPLY_MARK, mask: MARK_MASK },
        "ztunnel connects to the application: the connection is marked, so that answers find back",
    );
    let recall = Rule::new(
        vec![Match::CtMark { mark: REPLY_MARK, mask: MARK_MASK, not: false }],
        Action::RestoreMark,
        "the application answers ztunnel, which has the client's address: the mark leads the answer to lo",
    );
    table(TableKind::Mangle, vec![tag], vec![recall])
}

fn raw() -> Table {
    let port = |m: fn(Ports) -> Match| vec![udp(), m(Ports::One(53))];
    let mut query = port(|ports| Match::DestinationPort { ports, not: false });
    query.push(from_ztunnel(false));
    let mut answer = port(|ports| Match::SourcePort { ports, not: false });
    answer.push(from_ztunnel(true));
    let zone = Action::SetZone(DNS_ZONE);
    let query =
        Rule::new(query, zone.clone(), "ztunnel asks a name server: its ports may be the application's too");
    let answer = Rule::new(answer, zone, "a name server answers ztunnel");
    table(TableKind::Raw, vec![answer], vec![query])
}

/// Everything is in chains of ours, so that it can be told from what others have in the built-in ones.
fn table(kind: TableKind, inward: Vec<Rule>, outward: Vec<Rule>) -> Table {
    let jump = |to: &'static str, why| vec![Rule::new(vec![], Action::Jump(to.into()), why).uncounted()];
    Table {
        kind,
        sets: Vec::new(),
        chains: vec![
            base(kind, Hook::Prerouting, jump(PREROUTING, "what comes in")),
            base(kind, Hook::Output, jump(OUTPUT, "what is sent here")),
            regular(PREROUTING, inward),
            regular(OUTPUT, outward),
        ],
    }
}

/// What the guests of virtual machines send by their interfaces.
fn virtual_interfaces(pod: &PodOptions) -> Vec<Rule> {
    let both = pod.virtual_interfaces.iter().flat_map(|name| {
        let from = || vec![Match::InInterface { name: name.clone().into(), not: false }, tcp()];
        let out = Action::Redirect { port: OUTBOUND_PORT };
        [
            Rule::new(from(), out, format!("what a guest sends by {name} is outbound traffic")),
            Rule::new(from(), Action::Return, format!("what comes by {name} is not inbound traffic")),
        ]
    });
    both.collect()
}

/// What probes ask.
fn probes(own: Own) -> Rule {
    Rule::new(
        vec![tcp(), Match::WholeHeader, Match::Source { net: own.probe.into(), not: false }],
        Action::Accept,
        "probes, which the node sends from this address, go to the application directly",
    )
}

/// What probes hear.
fn answers_to_probes(own: Own) -> Rule {
    Rule::new(
        vec![tcp(), Match::WholeHeader, Match::Destination { net: own.probe.into(), not: false }],
        Action::Accept,
        "answers to probes go back directly",
    )
}

/// What comes in.
fn inbound(own: Own) -> Rule {
    Rule::new(
        vec![
            not_to_loopback(own),
            tcp(),
            Match::DestinationPort { ports: Ports::One(HBONE_PORT), not: true },
            from_ztunnel(true),
        ],
        TO_ZTUNNEL,
        "inbound, to ztunnel; tunnels go to their own port, and ztunnel's connections to the application",
    )
}

/// Questions for names by UDP.
fn dns_by_udp() -> Rule {
    Rule::new(
        vec![
            Match::OutInterface { name: "lo".into(), not: true },
            from_ztunnel(true),
            udp(),
            Match::DestinationPort { ports: Ports::One(53), not: false },
        ],
        Action::Redirect { port: DNS_PORT },
        "questions for names, to ztunnel; those to a resolver in the pod itself stay there",
    )
}

/// Questions for names by TCP.
fn dns_by_tcp(own: Own) -> Rule {
    Rule::new(
        vec![
            not_to_loopback(own),
            tcp(),
            Match::DestinationPort { ports: Ports::One(53), not: false },
            from_ztunnel(true),
        ],
        Action::Redirect { port: DNS_PORT },
        "questions for names by TCP, to ztunnel; they would be outbound connections otherwise",
    )
}

/// What the application answers to a connection of ztunnel's that has the client's address.
fn answers_to_ztunnel() -> Rule {
    Rule::new(
        vec![tcp(), Match::Mark { mark: REPLY_MARK, mask: MARK_MASK, not: false }],
        Action::Accept,
        "the application answers ztunnel",
    )
}

/// What the pod says to itself.
fn to_itself(own: Own) -> Rule {
    Rule::new(
        vec![Match::OutInterface { name: "lo".into(), not: false }, not_to_loopback(own)],
        Action::Accept,
        "the pod calls its own address: that stays in the pod",
    )
}

/// Everything else that goes out.
fn outbound(own: Own) -> Rule {
    Rule::new(
        vec![tcp(), not_to_loopback(own), from_ztunnel(true)],
        Action::Redirect { port: OUTBOUND_PORT },
        "outbound, to ztunnel, unless ztunnel itself sends it",
    )
}

fn not_to_loopback(own: Own) -> Match {
    Match::Destination { net: own.loopback, not: true }
}

fn from_ztunnel(not: bool) -> Match {
    Match::Mark { mark: ZTUNNEL_MARK, mask: MARK_MASK, not }
}

fn udp() -> Match {
    Match::Protocol(Protocol::Udp)
}
