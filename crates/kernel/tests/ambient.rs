//! Ambient mode's rules in real namespaces, by all three ways to load them, with real packets. Needs root and the packages iptables,
//! ipset, nftables and iproute2.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "ambient/drain.rs"]
mod drain;
#[path = "ambient/host.rs"]
mod host;
#[path = "ambient/state.rs"]
mod state;
#[path = "ambient/support.rs"]
mod support;
#[path = "ambient/traffic.rs"]
mod traffic;
#[path = "ambient/translating.rs"]
mod translating;
#[path = "support/way.rs"]
mod way;
