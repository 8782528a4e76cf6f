//! `status` and `uninstall`: what is installed on this node, and the node without it. Neither needs the agent.

pub(crate) mod agent;
mod host_side;
mod places;
mod policed;
mod status;
mod uninstall;

pub(crate) use host_side::{in_host, iptables_of_the_node};
pub(crate) use places::{NodePlaces, PlaceArgs, directory, node_name};
pub(crate) use status::{NodeSummary, StatusArgs, short, summary};
pub(crate) use uninstall::UninstallArgs;
