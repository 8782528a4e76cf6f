//! One connection from the node to a pod, as kubelet's probes are.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use checks::{CheckFinding, CheckResult, catalogue};

use super::asked::AskedAgent;

const PATIENCE: Duration = Duration::from_secs(1);

/// A port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeTarget {
    namespace: String,
    name: String,
    port: u16,
}

pub(super) fn parse(text: &str) -> Result<ProbeTarget, String> {
    let parts = text.split_once('/').and_then(|(namespace, rest)| {
        let (name, port) = rest.rsplit_once(':')?;
        Some((namespace, name, port.parse::<u16>().ok().filter(|port| *port > 0)?))
    });
    match parts {
        Some((namespace, name, port)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ProbeTarget { namespace: namespace.to_owned(), name: name.to_owned(), port })
        }
        _ => Err("write NAMESPACE/NAME:PORT, such as shop/web:8080".to_owned()),
    }
}

pub(super) fn look(target: &ProbeTarget, asked: &AskedAgent) -> CheckResult {
    doctor::timed(&catalogue::PROBE, || probe(target, asked))
}

fn probe(target: &ProbeTarget, asked: &AskedAgent) -> CheckFinding {
    let ProbeTarget { namespace, name, port } = target;
    let pods = asked.pods.iter().flat_map(|report| &report.pods);
    let pod = pods.into_iter().find(|pod| pod.namespace == *namespace && pod.name == *name);
    let Some(address) = pod.and_then(|pod| pod.addresses.first().copied()) else {
        return CheckFinding::unknown(format!("no agent knows an address of pod {namespace}/{name}"));
    };
    connect(address, *port)
}

fn connect(address: IpAddr, port: u16) -> CheckFinding {
    let to = SocketAddr::new(address, port);
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => CheckFinding::ok(format!("a connection from the node reaches {to}")),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => CheckFinding::warning(
            format!("{to} refuses a connection from the node: nobody listens there"),
            "",
        ),
        Err(error) => CheckFinding::failed(
            format!("a connection from the node does not reach {to}: {error}"),
            "a firewall on the node, or another one on the way, drops it: cnictl conflicts --node",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use checks::CheckState;

    use super::*;

    #[test]
    fn a_port_of_a_pod_is_named_outright() {
        assert_eq!(parse("shop/web-0:8080").map(|target| target.port), Ok(8080));
        for text in ["", "web:80", "shop/web", "shop/web:0", "shop/:80", "/web:80", "shop/web:http"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_connection_arrives_or_it_is_said_why_not() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind((loopback, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(connect(loopback, port).state, CheckState::Ok);
        drop(listener);
        assert_eq!(connect(loopback, port).state, CheckState::Warning);
    }
}
