//! The order of the base chains at a hook.
//!
//! The lowest priority comes first. Of chains with one priority the kernel runs the one first that was registered last
//! (`nf_hook_entries_grow` in netfilter/core.c), and lists no order: it is known of chains of one table, and of a table that is younger than
//! the one of ours, whose chains came with it. Everything else is tried in each order.

use ruleset::listed::walk::{CONNTRACK_PRIORITY, Station, nat_priority, stations};
use ruleset::listed::{Condition, Field, ListedAct, ListedTable};
use ruleset::{ChainKind, Family, Hook};

use super::branch::VerdictCause;
use crate::ObservedNetns;

/// The most orders of chains of one priority that are tried; four chains have as many.
const MAX_ORDERS: usize = 24;

/// What a packet meets at a hook.
#[derive(Debug, Clone)]
pub(crate) enum Meeting<'a> {
    /// Connections are looked up.
    Tracking,
    /// The nat chains, in their order.
    Nat(Vec<Station<'a>>),
    /// A base chain of another kind.
    Chain(Station<'a>),
}

/// What has one priority at a hook.
#[derive(Debug, Clone)]
pub(crate) struct Group<'a> {
    /// Every order in which a packet may meet it, the likeliest first.
    pub(crate) orders: Vec<Vec<Meeting<'a>>>,
    /// Why there are several.
    pub(crate) doubt: Option<VerdictCause<'a>>,
    /// There are more than are tried.
    pub(crate) too_many: bool,
}

/// What a packet meets at a hook, by priority. Chains without a rule are left out, unless they drop.
pub(crate) fn groups(observed: &ObservedNetns, hook: Hook, family: Family) -> Vec<Group<'_>> {
    let mut all = stations(&observed.tables, hook, family);
    all.retain(|station| !station.chain.rules.is_empty() || station.chain.drops);
    let (nat, other): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|station| station.base.kind == ChainKind::Nat);
    let mut units: Vec<Meeting<'_>> = other.into_iter().map(Meeting::Chain).collect();
    if matches!(hook, Hook::Prerouting | Hook::Output) {
        units.push(Meeting::Tracking);
    }
    if !nat.is_empty() {
        units.push(Meeting::Nat(nat));
    }
    by_priority(units, |unit| unit.priority(hook)).iter().map(|units| Group::of(units)).collect()
}

impl<'a> Group<'a> {
    fn of(units: &[Meeting<'a>]) -> Self {
        let all = || units.iter().flat_map(Meeting::stations);
        let foreign = all().find(|station| !station.table.is_only_ours());
        let doubt = foreign.or_else(|| all().next()).copied().map(VerdictCause::Order);
        let mut orders = Vec::new();
        for variant in with_nat_in_order(units) {
            let mut ways = permutations(&variant, &Meeting::precedes);
            if !matters(&variant) {
                ways.truncate(1);
            }
            orders.extend(ways);
        }
        let too_many = orders.len() >= MAX_ORDERS;
        orders.truncate(MAX_ORDERS);
        Self { doubt: doubt.filter(|_| orders.len() > 1), orders, too_many }
    }
}

/// The same with the nat chains in each of their orders.
fn with_nat_in_order<'a>(units: &[Meeting<'a>]) -> Vec<Vec<Meeting<'a>>> {
    let Some(at) = units.iter().position(|unit| matches!(unit, Meeting::Nat(_))) else {
        return vec![units.to_vec()];
    };
    let Meeting::Nat(stations) = &units[at] else { return vec![units.to_vec()] };
    let mut orders: Vec<Vec<Station<'a>>> = vec![Vec::new()];
    for group in by_priority(stations.clone(), |station| station.base.priority) {
        let ways = permutations(&group, &Station::precedes);
        let longer = orders.iter().flat_map(|before| ways.iter().map(|way| [&before[..], way].concat()));
        orders = longer.take(MAX_ORDERS).collect();
    }
    let with = |order: Vec<Station<'a>>| {
        let mut units = units.to_vec();
        units[at] = Meeting::Nat(order);
        units
    };
    orders.into_iter().map(with).collect()
}

fn by_priority<T>(mut items: Vec<T>, priority: impl Fn(&T) -> i32) -> Vec<Vec<T>> {
    items.sort_by_key(|item| priority(item));
    let mut groups: Vec<Vec<T>> = Vec::new();
    for item in items {
        match groups.last_mut().filter(|group| priority(&group[0]) == priority(&item)) {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    groups
}

/// What is known of the order of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precedence {
    /// The first comes first.
    Certain,
    /// Probably it does.
    Likely,
    /// Nothing.
    Open,
}

/// The orders that agree with what is certain, the likeliest first.
fn permutations<T: Clone>(group: &[T], precedes: &impl Fn(&T, &T) -> Precedence) -> Vec<Vec<T>> {
    if group.len() < 2 {
        return vec![group.to_vec()];
    }
    let mut found: Vec<Vec<T>> = Vec::new();
    for (at, first) in group.iter().enumerate() {
        let mut rest = group.to_vec();
        rest.remove(at);
        if rest.iter().any(|other| precedes(other, first) == Precedence::Certain) {
            continue;
        }
        // Of more chains than anybody has at one priority not every order is tried.
        let likely = rest.iter().all(|other| precedes(other, first) == Precedence::Open);
        let longer = permutations(&rest, precedes).into_iter().take(MAX_ORDERS).map(|rest| {
            let mut way = vec![first.clone()];
            way.extend(rest);
            way
        });
        if likely {
            found.splice(0..0, longer);
        } else {
            found.extend(longer);
        }
        if found.len() >= MAX_ORDERS {
            break;
        }
    }
    found
}

/// What is known of two chains of one priority.
trait Precedes {
    fn precedes(&self, other: &Self) -> Precedence;
}

impl Precedes for Station<'_> {
    fn precedes(&self, other: &Self) -> Precedence {
        if std::ptr::eq(self.table, other.table) {
            // A table lists its chains as they came.
            let at = |station: &Self| {
                station.table.chains.iter().position(|chain| std::ptr::eq(chain, station.chain))
            };
            return if at(self) > at(other) { Precedence::Certain } else { Precedence::Open };
        }
        match (self.table.age, other.table.age) {
            // Chains of ours come with their table, so those of a younger table came later.
            (Some(age), Some(than)) if age > than && other.table.ours => Precedence::Certain,
            (Some(age), Some(than)) if age > than => Precedence::Likely,
            _ => Precedence::Open,
        }
    }
}

impl<'a> Meeting<'a> {
    fn priority(&self, hook: Hook) -> i32 {
        match self {
            Self::Tracking => CONNTRACK_PRIORITY,
            Self::Nat(_) => nat_priority(hook),
            Self::Chain(station) => station.base.priority,
        }
    }

    fn stations(&self) -> &[Station<'a>] {
        match self {
            Self::Tracking => &[],
            Self::Nat(stations) => stations,
            Self::Chain(station) => std::slice::from_ref(station),
        }
    }

    /// Of the kernel's own hooks nothing is known.
    fn precedes(&self, other: &Self) -> Precedence {
        match (self, other) {
            (Self::Chain(one), Self::Chain(other)) => one.precedes(other),
            _ => Precedence::Open,
        }
    }
}

/// Whether the order of what has one priority can change anything: not where each only lets packets through or drops them.
fn matters(group: &[Meeting<'_>]) -> bool {
    let tables = || group.iter().flat_map(Meeting::stations).map(|station| station.table);
    let has_nat = group.iter().any(|unit| matches!(unit, Meeting::Nat(_)));
    let has_tracking = group.iter().any(|unit| matches!(unit, Meeting::Tracking));
    group.len() > 1 && (has_nat || tables().any(changes) || has_tracking && tables().any(asks_connection))
}

/// Whether rules of a table change what others see.
fn changes(table: &ListedTable) -> bool {
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.flat_map(|rule| &rule.acts).any(|act| {
        !matches!(
            act,
            ListedAct::Accept | ListedAct::Drop | ListedAct::Return | ListedAct::Jump(_) | ListedAct::Goto(_)
        )
    })
}

fn asks_connection(table: &ListedTable) -> bool {
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.flat_map(|rule| &rule.conditions).any(|condition| {
        matches!(
            condition,
            Condition::In {
                field: Field::CtMark
                    | Field::CtState
                    | Field::OriginalDestination(_)
                    | Field::OriginalPort
                    | Field::Reply,
                ..
            }
        )
    })
}
