//! What is there in a network namespace, as it was read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ruleset::Family;
use ruleset::listed::{Condition, Field, ListedAct, ListedChain, ListedRule, ListedTable, number_of};

/// Whose namespace it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetnsScope {
    /// A pod's.
    #[default]
    Pod,
    /// The node's own.
    Node,
}

/// A network namespace, with everything in it that can change what becomes of a packet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedNetns {
    /// Whose it is.
    pub scope: NetnsScope,
    /// Tables of everybody, except those that are switched off. Rules of ours have a reason.
    pub tables: Vec<ListedTable>,
    /// Policy routing of both families, by family and preference.
    pub rules: Vec<RoutingRule>,
    /// Routes, at least those of the tables that rules of ours lead to.
    pub routes: Vec<ObservedRoute>,
    /// Values by name below `/proc/sys`, such as `net/ipv4/ip_forward`.
    pub sysctls: BTreeMap<String, String>,
    /// Addresses of all interfaces.
    pub addresses: Vec<ObservedAddress>,
    /// Interfaces.
    pub links: Vec<ObservedLink>,
    /// Sockets that listen.
    pub listeners: Vec<ObservedListener>,
    /// Processes of the pod.
    pub processes: Vec<ObservedProcess>,
    /// Programs that the kernel runs on connect(2).
    pub programs: LookedAt<Vec<BpfProgram>>,
    /// Programs and other filters that the kernel runs on packets of interfaces.
    pub filters: LookedAt<Vec<BpfProgram>>,
    /// Members of the sets of the node's pods, by whose addresses probes are sent ([`Self::probing`]).
    pub probed: Vec<IpAddr>,
    /// What was not looked at, and why.
    pub not_looked_at: Vec<String>,
}

impl ObservedNetns {
    /// Whether others have anything in its tables that a packet could meet: a rule, or the policy of a chain that drops.
    #[must_use]
    pub fn has_rules_of_others(&self) -> bool {
        self.tables.iter().any(|table| {
            table.chains.iter().any(|chain| {
                let of_others = |rule: &ListedRule| !table.ours || rule.why.is_none();
                chain.drops && !table.is_only_ours() || chain.rules.iter().any(of_others)
            })
        })
    }

    /// The same where these addresses of pods are in the sets of the node. The kernel's rules only name the sets: those of ours that give a source
    /// ask for nothing else that is not read.
    #[must_use]
    pub fn probing(mut self, probed: Vec<IpAddr>) -> Self {
        let own_tables = self.tables.iter_mut().filter(|table| table.ours);
        let rules = own_tables.flat_map(|table| &mut table.chains).flat_map(|chain| &mut chain.rules);
        for rule in rules.filter(|rule| rule.why.is_some()) {
            let source = rule.acts.iter().find_map(|act| match act {
                ListedAct::Snat { to } => *to,
                _ => None,
            });
            let Some(family) = source.map(Family::of_address) else { continue };
            let members = probed.iter().filter(|ip| Family::of_address(**ip) == family);
            let ranges: Vec<(u128, u128)> = members.map(|ip| (number_of(*ip), number_of(*ip))).collect();
            for condition in rule.conditions.iter_mut().filter(|condition| **condition == Condition::Unread) {
                let (field, ranges) = (Field::Destination(family), ranges.clone());
                *condition = Condition::In { field, mask: u128::MAX, ranges, not: false };
            }
        }
        Self { probed, ..self }
    }

    /// The same without what others have in its tables.
    #[must_use]
    pub fn without_others(&self) -> Self {
        let own_rules =
            |chain: &ListedChain| chain.rules.iter().filter(|rule| rule.why.is_some()).cloned().collect();
        let own = |table: &ListedTable| {
            // A policy of iptables is everybody's.
            let chains = table.chains.iter().map(|chain| ListedChain {
                name: chain.name.clone(),
                base: chain.base,
                drops: chain.drops && !table.lister.is_iptables(),
                rules: own_rules(chain),
            });
            let (name, chains) = (table.name.clone(), chains.collect());
            ListedTable {
                lister: table.lister,
                age: table.age,
                ours: true,
                chains,
                ..ListedTable::nft(name, table.families)
            }
        };
        self.with_tables(self.tables.iter().filter(|table| table.ours).map(own).collect())
    }

    /// The same without what is ours in its tables.
    #[must_use]
    pub fn without_ours(&self) -> Self {
        let mut tables = self.tables.clone();
        tables.retain(|table| !table.is_only_ours());
        for table in &mut tables {
            table.ours = false;
            table.chains.iter_mut().for_each(|chain| chain.rules.retain(|rule| rule.why.is_none()));
        }
        self.with_tables(tables)
    }

    fn with_tables(&self, tables: Vec<ListedTable>) -> Self {
        Self {
            scope: self.scope,
            tables,
            rules: self.rules.clone(),
            routes: self.routes.clone(),
            sysctls: self.sysctls.clone(),
            addresses: self.addresses.clone(),
            probed: self.probed.clone(),
            ..Self::default()
        }
    }

    /// Whether a sysctl is a number other than 0; absent where it was not read.
    pub(crate) fn is_on(&self, name: &str) -> Option<bool> {
        self.sysctls.get(name).map(|value| value.trim() != "0")
    }

    /// The addresses of an interface.
    pub(crate) fn addresses_of<'a>(&'a self, interface: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        self.addresses.iter().filter(move |own| own.interface == interface).map(|own| own.address)
    }
}

/// A rule of policy routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingRule {
    /// Family.
    pub family: Family,
    /// The lowest is asked first.
    pub preference: u32,
    /// The packet's mark and the bits of it that are compared.
    pub mark: Option<(u32, u32)>,
    /// Source prefix: address and length.
    pub from: Option<(IpAddr, u8)>,
    /// Destination prefix.
    pub to: Option<(IpAddr, u8)>,
    /// Name of the interface by which the packet came in; `lo` for what is sent here.
    pub in_interface: Option<String>,
    /// Name of the interface that the packet's socket is bound to.
    pub out_interface: Option<String>,
    /// Holds where its conditions do not.
    pub not: bool,
    /// It asks for more than that.
    pub asks_more: bool,
    /// What it says.
    pub lookup: RuleLookup,
    /// As `ip rule` shows it.
    pub text: String,
}

/// What a rule of policy routing says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleLookup {
    /// Asks the table; if that has no route, the next rule. 255 is `local`, 254 `main`, 253 `default`.
    Table(u32),
    /// The packet is gone: `blackhole`, `unreachable`, `prohibit`.
    Gone,
    /// Something else.
    Other,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRoute {
    /// Family.
    pub family: Family,
    /// Routing table.
    pub table: u32,
    /// Destination prefix.
    pub to: (IpAddr, u8),
    /// Whether what it is for is delivered here.
    pub local: bool,
    /// Whether what it is for is gone: `blackhole`, `unreachable`, `prohibit`.
    pub gone: bool,
    /// Interface; empty where it has none.
    pub interface: String,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedAddress {
    /// Interface.
    pub interface: String,
    /// Address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedLink {
    /// Name.
    pub name: String,
    /// Kind: `veth`, `netkit`, `bridge`; empty where the kernel names none.
    pub kind: String,
    /// Number of the XDP program on it.
    pub xdp: Option<u32>,
}

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedListener {
    /// Port.
    pub port: u16,
    /// User that owns the socket.
    pub uid: u32,
    /// A process that has it.
    pub pid: Option<u32>,
    /// The container of that process.
    pub container: Option<String>,
}

/// A process of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedProcess {
    /// Process id, as the node counts.
    pub pid: u32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Its container, by name or id.
    pub container: Option<String>,
    /// The name of its program.
    pub command: String,
    /// Whether it is the proxy's.
    pub proxy: bool,
    /// Whether it may change the network: `CAP_NET_ADMIN`.
    pub net_admin: bool,
}

/// A program that the kernel runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfProgram {
    /// Where: `cgroup/connect4`, `tc ingress`, `netfilter`, `xdp`.
    pub attached: String,
    /// To what: an interface, a control group.
    pub object: String,
    /// Name, as its maker gave it.
    pub name: String,
    /// Number; 0 where it is a filter that is no program.
    pub id: u32,
}

/// What was looked at, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookedAt<T> {
    /// It was, and this was found.
    Found(T),
    /// It was not, for this reason.
    Not(String),
}

impl<T> Default for LookedAt<T> {
    fn default() -> Self {
        Self::Not("nobody has looked yet".to_owned())
    }
}
