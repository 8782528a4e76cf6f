//! Do the two backends, the evaluator and the kernel agree on what happens to a packet?
//!
//! - [`strategy`]: random [`capture::Settings`] and packets, drawn from the few values that rules and packets can share.
//! - [`oracle`]: what the specification promises in prose, written without looking at rules.
//! - [`world`] and [`way`]: a pod's addresses and routes, and the way of an attempt through every hook as the evaluator sees it.
//! - [`lab`]: the same attempt with real packets through the same plan, loaded into a namespace.
//! - [`rulesets`]: random rulesets with what policies need; [`raw`] sends their packets one by one, [`nflog`] hears what they log.
//! - [`cluster`]: nodes, pods and the world outside as namespaces, with the rules of policies; [`cluster::volley`] sends them many packets at once.
//! - [`run`]: seeds and numbers of cases, from the environment.

pub mod cluster;
pub mod lab;
pub mod nflog;
pub mod oracle;
pub mod raw;
pub mod rulesets;
pub mod run;
pub mod strategy;
pub mod way;
pub mod world;
