//! The watches, the writer and the store against an API server: a double that misbehaves on demand, and for what any server must do also
//! a real one, when `E2E_KUBECONFIG` names a kubeconfig that may create namespaces and pods.
// clippy takes helpers outside of #[test] for production code
#![allow(clippy::unwrap_used)]

mod after_outages;
mod agent;
mod any_server;
mod certificates;
mod daemonset;
mod double;
mod expiry;
mod faults;
mod fetch;
mod kinds;
mod lists;
mod manifests;
mod outage;
mod server;
mod store;
mod taints;
mod writer;
