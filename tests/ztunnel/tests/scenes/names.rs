//! Questions for names, and services.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::TestNetns;
use testkit::probe::{Flow, Listener, Listeners};
use ztunnel_tests::traffic::{Echo, say};
use ztunnel_tests::{DNS, Peer, Town, service_ip, service_name};

use crate::{APP, wait_in};

/// Where the pod believes its name server to be. Nobody is there.
const NAME_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)), 53);

/// The address of a name, by a question of type A and class IN (RFC 1035, section 4).
fn resolve(from: &TestNetns, name: &str) -> Result<IpAddr> {
    let mut question = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = from.enter(|_| UdpSocket::bind("0.0.0.0:0"))??;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(&question, NAME_SERVER)?;
    let mut answer = [0; 512];
    let (length, sender) = socket.recv_from(&mut answer)?;
    let answer = &answer[..length];
    ensure!(sender == NAME_SERVER, "{sender} answers");
    // One answer without an error; its four bytes are the last ones.
    ensure!(
        answer.len() > 16 && answer[3] & 0x0f == 0 && answer[6..12] == [0, 1, 0, 0, 0, 0],
        "{answer:02x?}"
    );
    let mut address = [0; 4];
    address.copy_from_slice(&answer[length - 4..]);
    Ok(IpAddr::from(address))
}

/// A pod asks for a service's name and connects to what it hears.
#[test]
fn a_name_leads_to_a_service_and_the_service_to_its_pod() {
    let town = Town::new().unwrap();
    let _agent = town.mesh.agent().env("AMBIENT_DNS_CAPTURE", "true").ready().unwrap();
    let (web, shop) = (town.running("mesh", "web").unwrap(), town.running("mesh", "shop").unwrap());
    let peer = Peer::start(&town, &[&web, &shop]).unwrap();
    wait_in(&town, &peer, &[&web, &shop]);
    if Peer::is_real() {
        let _app = Echo::start(&shop.netns, APP).unwrap();
        let address = resolve(&web.netns, &service_name(&shop)).unwrap();
        assert_eq!(address, service_ip(&shop));
        assert_eq!(say(&web.netns, SocketAddr::new(address, 80), "to the service").unwrap(), web.ip);
    } else {
        println!("not shown by the stand-in, which knows no names: that questions are answered");
        let _dns = Listeners::start(&web.netns, [Listener::udp(DNS), Listener::tcp(DNS)]).unwrap();
        assert_eq!(Flow::from(&web.netns).udp(NAME_SERVER).unwrap().port(), Some(DNS));
        assert_eq!(Flow::from(&web.netns).tcp(NAME_SERVER).unwrap().port(), Some(DNS));
    }
    peer.check().unwrap();
}
