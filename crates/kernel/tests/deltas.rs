//! Members of sets come and go by deltas while the rules stay, in a pod's namespace and in the node's, in nf_tables and with ipset. Needs root
//! and the programs `nft`, `ipset` and both variants of iptables.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "deltas/answers.rs"]
mod answers;
#[path = "deltas/content.rs"]
mod content;
#[path = "deltas/entry.rs"]
mod entry;
#[path = "deltas/growth.rs"]
mod growth;
#[path = "deltas/guard.rs"]
mod guard;
#[path = "deltas/node.rs"]
mod node;
#[path = "deltas/own.rs"]
mod own;
#[path = "deltas/rules.rs"]
mod rules;
#[path = "deltas/support.rs"]
mod support;
#[path = "deltas/traffic.rs"]
mod traffic;
#[path = "support/way.rs"]
mod way;
