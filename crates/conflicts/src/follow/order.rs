//! The order of the base chains at a hook.
//!
//! The lowest priority comes first. Of chains with one priority the kernel runs the one first that was registered last
//! (`nf_hook_entries_grow` in netfilter/core.c), and lists no order: it is known of chains of one table, and of a table that is younger than
//! the one of ours, whose chains came with it. Everything else is tried in each order.

use ruleset::listed::walk::{CONNTRACK_PRIORITY, Station, nat_priority, stations};
use ruleset::listed::{Condition, Field, ListedAct, ListedTable};
use ruleset::{ChainKind, Family, Hook};

use super::branch::Cause;
use crate::ObservedNetns;

/// The most orders of chains of one priority that are tried; four chains have as many.
const MAX_ORDERS: usize = 24;

/// What a packet meets at a hook.
#[derive(Debug, Clone)]
pub(super) enum Meeting<'a> {
    /// Connections are looked up.
    Tracking,
    /// The nat chains, in their order.
    Nat(Vec<Station<'a>>),
    /// A base chain of another kind.
    Chain(Station<'a>),
}

/// An order in which a packet may meet things at a hook.
#[derive(Debug, Clone, Default)]
pub(super) struct Order<'a> {
    pub(super) meetings: Vec<Meeting<'a>>,
    /// Why there are others.
    pub(super) doubt: Option<Cause<'a>>,
}

/// Every order in which a packet may meet the chains of a hook, the likeliest first.
pub(super) fn orders(observed: &ObservedNetns, hook: Hook, family: Family) -> Vec<Order<'_>> {
    let all = stations(&observed.tables, hook, family);
    let (nat, other): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|station| station.base.kind == ChainKind::Nat);
    let nats = arranged(
        by_priority(nat, |station| station.base.priority),
        |group| group.len() > 1,
        |a, b| a.precedes(b),
    );
    let mut orders = Vec::new();
    for nat in nats {
        let mut units: Vec<Meeting<'_>> = other.iter().map(|station| Meeting::Chain(*station)).collect();
        if matches!(hook, Hook::Prerouting | Hook::Output) {
            units.push(Meeting::Tracking);
        }
        let doubt = nat.doubt;
        if !nat.items.is_empty() {
            units.push(Meeting::Nat(nat.items));
        }
        let groups = by_priority(units, |unit| unit.priority(hook));
        for order in arranged(groups, |group| matters(group), Meeting::precedes) {
            let of_chains = order.doubt.as_ref().and_then(Meeting::station).map(Cause::Order);
            let doubt = doubt.map(Cause::Order).or(of_chains);
            orders.push(Order { meetings: order.items, doubt });
        }
    }
    orders.truncate(MAX_ORDERS);
    orders
}

/// Things in one of the orders in which they may be.
struct Arranged<T> {
    items: Vec<T>,
    /// One of those that may be elsewhere.
    doubt: Option<T>,
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

/// Every order of groups' members, group after group. Where the order within a group does not matter, or is known, there is one.
fn arranged<T: Clone>(
    groups: Vec<Vec<T>>,
    matters: impl Fn(&[T]) -> bool,
    precedes: impl Fn(&T, &T) -> Precedence,
) -> Vec<Arranged<T>> {
    let mut all = vec![Arranged { items: Vec::new(), doubt: None }];
    for group in groups {
        let mut ways = permutations(&group, &precedes);
        if !matters(&group) {
            ways.truncate(1);
        }
        let doubt = (ways.len() > 1).then(|| group[group.len() - 1].clone());
        let longer = all.iter().flat_map(|before| {
            ways.iter().map(|way| Arranged {
                items: before.items.iter().chain(way).cloned().collect(),
                doubt: before.doubt.clone().or(doubt.clone()),
            })
        });
        all = longer.take(MAX_ORDERS).collect();
    }
    all
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

    fn station(&self) -> Option<Station<'a>> {
        match self {
            Self::Tracking => None,
            Self::Nat(stations) => stations.first().copied(),
            Self::Chain(station) => Some(*station),
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
    let tables = || group.iter().filter_map(Meeting::station).map(|station| station.table);
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
