//! Ambient mode: the pod is handed to the node agent, which takes it into the mesh. Its network namespace goes along as an open descriptor:
//! the agent may not see the path that the runtime has for it.
//!
//! An agent that is not there, or has no ztunnel to give the pod to, is waited for: kubelet would try again only after many seconds.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cni::{CniResult, PluginConf};
use facts::PodRef;
use http1::Deadline;
use http1::unix::Passing;
use ipnet::IpNet;
use netns::Netns;
use rundir::EVENT_SOCKET_NAME;

/// For one exchange, as in the original.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether an agent has come.
const POLL: Duration = Duration::from_millis(100);
/// Longest pause that the agent may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes, as in the original.
const MAX_ANSWER: usize = 1 << 20;
/// Characters of it that reach the runtime.
const SHOWN: usize = 2000;

/// The agent did not take the pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No process listens on the socket.
    #[error(
        "hand the pod to the node agent at {}: {cause}; the pod belongs to the mesh (ambient mode) and waits for the agent: check that the \
         istio-cni-node pod of this node runs and is ready", socket.display()
    )]
    NoAgent {
        /// Where.
        socket: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// The process that listens is not the agent.
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
        /// After this pause it may take the pod.
        retry_after: Option<Duration>,
    },
}

/// A pod that the agent is to take into the mesh.
pub(crate) struct Announcement<'a> {
    pub(crate) conf: &'a PluginConf,
    pub(crate) id: &'a PodRef,
    pub(crate) netns: &'a Netns,
    /// What the plugins before this one made.
    pub(crate) result: &'a CniResult,
}

impl Announcement<'_> {
    /// Announces the pod until it is in the mesh, or until `end` while the agent may still take it. `told` hears once of the first reason to
    /// wait.
    pub(crate) fn hand_over(&self, end: Instant, told: impl FnOnce(&Error)) -> Result<(), Error> {
        let socket = self.conf.cni_agent_run_dir.join(EVENT_SOCKET_NAME);
        let netns = self.netns.path().to_string_lossy();
        let event = event(self.id, &netns, &self.result.ips);
        let mut told = Some(told);
        loop {
            let Err(error) = post(&socket, event.as_bytes(), self.netns.as_fd()) else { return Ok(()) };
            let Some(pause) = error.pause().filter(|pause| Instant::now() + *pause < end) else {
                return Err(error);
            };
            if let Some(told) = told.take() {
                told(&error);
            }
            std::thread::sleep(pause);
        }
    }
}

impl Error {
    /// How long to wait before another try; nothing where that would be in vain.
    fn pause(&self) -> Option<Duration> {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        match self {
            Self::NoAgent { cause, .. } => {
                matches!(cause.kind(), ConnectionRefused | NotFound).then_some(POLL)
            }
            // It ended meanwhile, and the next one hears of the pod from us only.
            Self::Broken { cause: http1::Error::Closed { .. }, .. } => Some(POLL),
            Self::Refused { retry_after, .. } => retry_after.map(|pause| pause.clamp(POLL, LONGEST_PAUSE)),
            Self::Foreign { .. } | Self::Broken { .. } => None,
        }
    }

    /// What is waited for.
    pub(crate) fn waits_for(&self) -> &'static str {
        match self {
            Self::Refused { .. } => {
                "the node agent to take the pod into the mesh; the lines before have its reason"
            }
            _ => "the node agent, which does not listen for pods (pluginevent.sock)",
        }
    }
}

/// What the agent hears, in the original's spelling and order; the last member is ours, and the original passes it over. Seven members do not pay
/// for a serializer in a program of this size.
fn event(id: &PodRef, netns: &str, ips: &[cni::IpConfig]) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let ips: Vec<String> = ips
        .iter()
        .map(|config| {
            let interface = config.interface.map_or_else(|| "null".to_owned(), |index| index.to_string());
            let (ip, mask) = (config.address.addr(), mask(config.address));
            let gateway = config.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
            format!(r#"{{"Interface":{interface},"Address":{{"IP":"{ip}","Mask":"{mask}"}},"Gateway":"{gateway}"}}"#)
        })
        .collect();
    let (netns, name, namespace, ips) = (text(netns), text(&id.name), text(&id.namespace), ips.join(","));
    let uid = id.known_uid().map(|uid| format!(r#","PodUID":{}"#, text(uid))).unwrap_or_default();
    format!(r#"{{"Netns":{netns},"PodName":{name},"PodNamespace":{namespace},"IPs":[{ips}]{uid}}}"#)
}

fn post(socket: &Path, body: &[u8], netns: BorrowedFd<'_>) -> Result<(), Error> {
    let deadline = Deadline::within(LIMIT);
    let no_agent = |cause| Error::NoAgent { socket: socket.to_owned(), cause };
    let connection = http1::unix::connect(socket, deadline).map_err(no_agent)?;
    let uid = http1::unix::peer_uid(&connection).map_err(no_agent)?;
    // Whoever says that a pod is in the mesh lets it start.
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(Error::Foreign { socket: socket.to_owned(), uid });
    }
    let request = http1::request(
        "POST",
        "unix",
        rundir::EVENT_PATH,
        &[("Content-Type", "application/json")],
        Some(body),
    );
    let mut connection = Passing::new(connection, netns);
    let answer = http1::exchange(&mut connection, &request, None, MAX_ANSWER, deadline)
        .map_err(|cause| Error::Broken { socket: socket.to_owned(), cause })?;
    match answer.status {
        200 => Ok(()),
        status => {
            let text = http1::clean(&answer.body, SHOWN);
            Err(Error::Refused { status, text, retry_after: answer.retry_after })
        }
    }
}

/// Base64 of the bytes of the mask.
fn mask(net: IpNet) -> String {
    match net.netmask() {
        IpAddr::V4(mask) => STANDARD.encode(mask.octets()),
        IpAddr::V6(mask) => STANDARD.encode(mask.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: &str, interface: Option<i64>, gateway: Option<&str>) -> cni::IpConfig {
        cni::IpConfig {
            interface,
            address: address.parse().unwrap_or_default(),
            gateway: gateway.and_then(|gateway| gateway.parse().ok()),
        }
    }

    /// The example and the masks; what could end a text early does not.
    #[test]
    fn the_example_of_the_specification() {
        let id = PodRef::named("n", "a");
        assert_eq!(
            event(&id, "/var/run/netns/cni-1", &[config("10.244.1.5/24", Some(2), Some("10.244.1.1"))]),
            r#"{"Netns":"/var/run/netns/cni-1","PodName":"a","PodNamespace":"n","IPs":[{"Interface":2,"Address":{"IP":"10.244.1.5","Mask":"////AA=="},"Gateway":"10.244.1.1"}]}"#
        );
        for (address, wanted) in [
            ("10.0.0.1/32", "/////w=="),
            ("fd00::1/64", "//////////8AAAAAAAAAAA=="),
            ("fd00::1/128", "/////////////////////w=="),
        ] {
            assert_eq!(mask(config(address, None, None).address), wanted);
        }
        let id = PodRef { uid: "u\"1".into(), ..id };
        let odd =
            event(&id, "/a\"b\n", &[config("fd00::1/64", None, None), config("10.0.0.1/32", None, None)]);
        let parsed: serde_json::Value = serde_json::from_str(&odd).unwrap_or_default();
        assert_eq!((&parsed["Netns"], &parsed["PodUID"]), (&"/a\"b\n".into(), &"u\"1".into()));
        assert_eq!(
            (&parsed["IPs"][0]["Interface"], &parsed["IPs"][1]["Gateway"]),
            (&serde_json::Value::Null, &"".into())
        );
    }
}
