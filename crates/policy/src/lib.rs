//! What network policies mean, without a kernel and without a cluster.
//!
//! - [`terms`]: policies of every kind as terms: whom they are about, what they allow, in which section they are judged.
//! - [`verdict`]: a connection is allowed or denied, by which policies and which rule. It is the meaning that rules in a kernel have to have.
//! - [`World`]: what is asked of a cluster for that; [`PlainWorld`] is one of plain objects.
//! - [`index`]: which policies select the pods of a node, whom their rules mean, and what an event changes of both.
//! - [`compile`]: the rules of a pod's policies in its own namespace, for both backends, and those of all pods in the node's, for nf_tables.
//! - [`guard`]: what isolates a pod while its rules are not there yet.
//! - [`service_verdicts`]: what policies come to for addresses of Services.
//! - [`compiled`]: what these rules do, without a kernel.
//! - [`snapshot`]: what is kept of policies on disk.
//! - [`tenancy`]: tenants and grants as policies.
//! - [`lint`]: what is probably not meant; [`preview`]: what a change would change.
//! - [`cases`]: files of connections with their right verdicts.

pub mod cases;
pub mod compile;
pub mod compiled;
mod flow;
pub mod guard;
pub mod index;
pub mod lint;
mod meaning;
mod plain;
pub mod preview;
mod services;
pub mod snapshot;
pub mod tenancy;
pub mod terms;
#[cfg(test)]
mod tests;
mod verdict;
mod world;

pub use flow::{FlowRoute, PolicyFlow, TUNNEL_PORT, Traffic, ZTUNNEL_MARK};
pub use plain::{PlainKind, PlainPod, PlainWorld};
pub use services::{MixedService, ServiceVerdicts, endpoints, service_verdicts};
pub use terms::{PolicyName, PolicyTerms, RuleTerms, Section, TrafficDirection};
pub use verdict::{
    FlowVerdict, Ground, Judgement, MissedPart, RuleMiss, RuleRef, denies, judgement, nearest_miss,
    rule_misses, verdict,
};
pub use world::{PolicyPod, PolicyWorld, ServiceAddress, ServiceWorld, World};
