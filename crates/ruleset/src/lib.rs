//! The rule language.
//!
//! A [`Ruleset`] is the complete content of the tables that one owner keeps in one network namespace, as a value: it is built,
//! printed, checked, compared and evaluated without touching a kernel. It is written once and says the same to both backends;
//! [`iptables`] and [`nft`] render it as text, [`eval`] tells what it does to a packet at a hook, [`path`] what
//! becomes of the packet at all hooks that it passes, and the kernel crate loads it.
//!
//! A [`Plan`] is rulesets of several owners, its layers, and the policy routing that they need.

mod change;
mod check;
pub mod eval;
pub mod iptables;
pub mod listed;
pub mod nft;
pub mod path;
mod plan;
mod rule;
pub mod set;

pub use change::TableDelta;
pub use check::{Invalid, check, check_for};
pub use plan::{Backend, Plan, Routing, Transaction};
pub use rule::{
    ALL_BITS, Action, Base, Chain, ChainKind, Counting, CtState, Families, Family, Hook, KnownChain, Limit,
    Match, Ports, Protocol, RejectWith, Rule, Ruleset, Table, TableKind,
};
pub use set::{
    ArrivalKey, Content, Contents, Coverage, Element, InterfaceName, KeptMembers, Key, KeyType, MapVerdict,
    Members, NoMembers, Set, SetDelta, SetKind, Side, TransportAddress,
};
