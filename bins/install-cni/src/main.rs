//! `install-cni`, the node agent.

mod options;

fn main() {}
