//! `install-cni`, the node agent.

fn main() {}
