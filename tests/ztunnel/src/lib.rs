//! Pods of a node in ambient mode, joined by wires, and a ztunnel that carries their connections.
//!
//! With `ZTUNNEL_BIN` set to an executable of ztunnel (built with its feature `testing`, for a certificate authority of its own), that is the
//! peer of the agent. Without it one stands in that speaks the agent's protocol and carries connections the same way,
//! unencrypted: what is shown of the agent and of the rules is the same, what is shown of ztunnel is nothing. Each test prints which it was.
//!
//! - [`Town`]: the node, its pods and the wires between them.
//! - [`Peer`]: a ztunnel of either kind.
//! - [`traffic`]: an application that echoes, and its clients.
//! - [`Sniffer`]: what is on the wires.

mod peer;
mod real;
mod sniffer;
mod standin;
mod town;
pub mod traffic;

pub use peer::{Peer, Proxies};
pub use sniffer::Sniffer;
pub use town::{Listening, SERVICE_TARGET, Town, listening, service_ip, service_name};

/// Where ztunnel takes what its pod's applications send.
pub const OUTBOUND: u16 = 15001;
/// Where it takes what comes from outside the mesh.
pub const INBOUND: u16 = 15006;
/// Where it takes tunnels.
pub const HBONE: u16 = 15008;
/// Where it answers questions for names.
pub const DNS: u16 = 15053;
