//! Ambient mode: the pod is handed to the node agent, which takes it into the mesh (AA-10 to AA-18).

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use capture::PodId;
use cni::{CniResult, PluginConf};
use http1::Deadline;
use ipnet::IpNet;
use serde::Serialize;

/// Name of the agent's socket in the run directory.
const SOCKET_NAME: &str = "pluginevent.sock";
/// For the whole exchange (AA-18). There is no second try: the runtime makes one.
const LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes (AA-18).
const MAX_ANSWER: usize = 1 << 20;
/// Characters of it that reach the runtime.
const SHOWN: usize = 2000;

/// The agent did not take the pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is nobody at the socket.
    #[error(
        "hand the pod to the node agent at {}: {cause}; the pod is to be in the mesh (ambient mode) and waits for the agent: check that the \
         istio-cni-node pod of this node runs and is ready", socket.display()
    )]
    NoAgent {
        /// Where.
        socket: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// Whoever is there is not the agent.
    #[error("hand the pod to the node agent at {}: user {uid} listens there, and only root may; nothing was sent", socket.display())]
    Foreign {
        /// Where.
        socket: PathBuf,
        /// Who.
        uid: u32,
    },
    /// The exchange failed.
    #[error("hand the pod to the node agent at {}: {cause}", socket.display())]
    Broken {
        /// Where.
        socket: PathBuf,
        /// What went wrong.
        cause: http1::Error,
    },
    /// The agent said no.
    #[error("the node agent did not take the pod ({status}): {text}")]
    Refused {
        /// HTTP status code.
        status: u16,
        /// Its words.
        text: String,
    },
    /// The event cannot be written.
    #[error("write the event for the node agent: {0}")]
    Event(#[from] serde_json::Error),
}

/// What the agent hears; the spelling is the original's (AA-12).
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Event<'a> {
    netns: &'a str,
    pod_name: &'a str,
    pod_namespace: &'a str,
    #[serde(rename = "IPs")]
    ips: Vec<Ip>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ip {
    interface: Option<i64>,
    address: Address,
    gateway: String,
}

#[derive(Debug, Serialize)]
struct Address {
    #[serde(rename = "IP")]
    ip: IpAddr,
    /// Base64 of the bytes of the mask.
    #[serde(rename = "Mask")]
    mask: String,
}

/// Announces a pod and waits until it is in the mesh.
pub(crate) fn hand_over(conf: &PluginConf, id: &PodId, netns: &str, result: &CniResult) -> Result<(), Error> {
    let event = Event { netns, pod_name: &id.name, pod_namespace: &id.namespace, ips: ips(result) };
    post(&conf.cni_agent_run_dir.join(SOCKET_NAME), &serde_json::to_vec(&event)?)
}

fn post(socket: &Path, body: &[u8]) -> Result<(), Error> {
    let deadline = Deadline::within(LIMIT);
    let no_agent = |cause| Error::NoAgent { socket: socket.to_owned(), cause };
    let mut connection = http1::unix::connect(socket, deadline).map_err(no_agent)?;
    let uid = http1::unix::peer_uid(&connection).map_err(no_agent)?;
    // Whoever says that a pod is in the mesh lets it start.
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(Error::Foreign { socket: socket.to_owned(), uid });
    }
    let request =
        http1::request("POST", "unix", "/cmdadd", &[("Content-Type", "application/json")], Some(body));
    let answer = http1::exchange(&mut connection, &request, None, MAX_ANSWER, deadline)
        .map_err(|cause| Error::Broken { socket: socket.to_owned(), cause })?;
    match answer.status {
        200 => Ok(()),
        status => Err(Error::Refused { status, text: http1::clean(&answer.body, SHOWN) }),
    }
}

fn ips(result: &CniResult) -> Vec<Ip> {
    let ip = |config: &cni::IpConfig| Ip {
        interface: config.interface,
        address: Address { ip: config.address.addr(), mask: mask(config.address) },
        gateway: config.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
    };
    result.ips.iter().map(ip).collect()
}

fn mask(net: IpNet) -> String {
    match net.netmask() {
        IpAddr::V4(mask) => STANDARD.encode(mask.octets()),
        IpAddr::V6(mask) => STANDARD.encode(mask.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AA-12: the example and the masks.
    #[test]
    fn the_example_of_the_specification() {
        let ip = |address: &str, interface, gateway: Option<&str>| Ip {
            interface,
            address: Address {
                ip: address.split('/').next().and_then(|ip| ip.parse().ok()).unwrap_or(IpAddr::from([0; 4])),
                mask: address.parse().map(mask).unwrap_or_default(),
            },
            gateway: gateway.unwrap_or_default().to_owned(),
        };
        let event = Event {
            netns: "/var/run/netns/cni-1",
            pod_name: "a",
            pod_namespace: "n",
            ips: vec![ip("10.244.1.5/24", Some(2), Some("10.244.1.1"))],
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap_or_default(),
            r#"{"Netns":"/var/run/netns/cni-1","PodName":"a","PodNamespace":"n","IPs":[{"Interface":2,"Address":{"IP":"10.244.1.5","Mask":"////AA=="},"Gateway":"10.244.1.1"}]}"#
        );
        for (address, wanted) in [
            ("10.0.0.1/32", "/////w=="),
            ("fd00::1/64", "//////////8AAAAAAAAAAA=="),
            ("fd00::1/128", "/////////////////////w=="),
        ] {
            let ip = ip(address, None, None);
            assert_eq!((ip.address.mask.as_str(), ip.gateway.as_str()), (wanted, ""));
        }
    }
}
