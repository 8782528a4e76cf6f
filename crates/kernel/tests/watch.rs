//! Sockets that are kept in a namespace: what they hear, and whether they find what somebody inside would find. Needs root and the programs `nft`,
//! `ip` and both variants of iptables.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "watch/check.rs"]
mod check;
#[path = "watch/events.rs"]
mod events;
#[path = "support/way.rs"]
mod way;
