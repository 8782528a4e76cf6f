//! A pod and the rest of the world.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{TestNetns, eventually};

/// How long an interface may take until it carries packets; it is milliseconds on an idle machine.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The IP families that a pod has addresses and a default route in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only; the kernel still has IPv6, as on most such nodes.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

/// An interface of a pod and the address on the other side of it.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Its name, in the pod and in the peer.
    pub name: String,
    /// The pod's addresses: 10.77.i.2 and fd77:i::2, each if the family is there.
    pub pod: Vec<IpAddr>,
    /// The peer's addresses: 10.77.i.1 and fd77:i::1.
    pub peer: Vec<IpAddr>,
}

/// A namespace as a network plugin leaves it for a pod: `eth0` with addresses and default routes.
///
/// At the other end is [`Pod::peer`], which plays everything else: it takes connections to *every* address (so a probe
/// to 1.1.1.1 arrives there, and the peer's listener on `0.0.0.0` says that it was for 1.1.1.1) and can connect to the
/// pod from every address (with [`crate::probe::Flow::source`]). A pod derefs to its own namespace.
#[derive(Debug)]
pub struct Pod {
    own: TestNetns,
    peer: TestNetns,
    families: Families,
    interfaces: Vec<Interface>,
}

impl Families {
    /// Whether IPv4 is among them.
    #[must_use]
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    /// Whether IPv6 is among them.
    #[must_use]
    pub fn v6(self) -> bool {
        self != Self::V4
    }
}

impl Pod {
    /// Makes a pod with `eth0`.
    ///
    /// # Errors
    /// When not root, or `ip` is missing.
    pub fn new(families: Families) -> Result<Self> {
        let mut pod =
            Self { own: TestNetns::new()?, peer: TestNetns::new()?, families, interfaces: Vec::new() };
        if families.v6() {
            // No router answers, and questions for one would be packets that no test asked for.
            pod.own.set_sysctl("net.ipv6.conf.default.accept_ra", "0")?;
            pod.peer.set_sysctl("net.ipv6.conf.default.accept_ra", "0")?;
        }
        pod.add_interface("eth0")?;
        let eth0 = &pod.interfaces[0];
        pod.own.ip(&eth0.peer.iter().map(|ip| format!("route add default via {ip}")).collect::<Vec<_>>())?;
        // A local route makes the kernel take packets to any address as its own. Without a word it would go to the table
        // that is asked first, and answers to the pod would stay in the peer too.
        let everything = [(families.v4(), "0.0.0.0/0"), (families.v6(), "::/0")];
        let routes = everything.iter().filter(|(has, _)| *has);
        pod.peer.ip(&routes
            .map(|(_, all)| format!("route add local {all} dev lo table main"))
            .collect::<Vec<_>>())?;
        Ok(pod)
    }

    /// Adds one more interface to the peer, with addresses of its own and no default route.
    ///
    /// # Errors
    /// When the name is taken or not allowed for an interface.
    pub fn add_interface(&mut self, name: &str) -> Result<&Interface> {
        let number = u8::try_from(self.interfaces.len())?;
        ensure!(number < 100, "a test pod has at most 100 interfaces");
        let addresses = |last: u8| -> Vec<IpAddr> {
            let v4 = IpAddr::V4(Ipv4Addr::new(10, 77, number, last));
            let v6 = IpAddr::V6(Ipv6Addr::new(0xfd77, number.into(), 0, 0, 0, 0, 0, last.into()));
            let both = [(self.families.v4(), v4), (self.families.v6(), v6)];
            both.into_iter().filter_map(|(has, ip)| has.then_some(ip)).collect()
        };
        let interface = Interface { name: name.to_owned(), pod: addresses(2), peer: addresses(1) };
        self.own.ip(&[format!(
            "link add {name} type veth peer name {name} netns {}",
            self.peer.path().display()
        )])?;
        for (namespace, ips) in [(&self.own, &interface.pod), (&self.peer, &interface.peer)] {
            // Link-local addresses of our own choice, because those of the kernel take a second of duplicate address
            // detection; without any, no neighbour is asked for when a packet has a foreign source address.
            let mut commands = vec![format!("link set {name} addrgenmode none")];
            if self.families.v6() {
                let last = if std::ptr::eq(namespace, &self.own) { 2 } else { 1 };
                commands.push(format!("address add fe80::{last}/64 dev {name} nodad"));
            }
            commands.extend(ips.iter().map(|ip| match ip {
                IpAddr::V4(ip) => format!("address add {ip}/24 dev {name}"),
                IpAddr::V6(ip) => format!("address add {ip}/64 dev {name} nodad"),
            }));
            commands.push(format!("link set {name} up"));
            namespace.ip(&commands)?;
        }
        for namespace in [&self.own, &self.peer] {
            wait_until_up(namespace, name, self.families.v6())?;
        }
        self.interfaces.push(interface);
        Ok(&self.interfaces[usize::from(number)])
    }

    /// Lets both sides know each other's addresses for good. Rules that drop questions for neighbours then drop no more than that: otherwise a
    /// packet may wait for the answer until after the rules are gone.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn know_neighbours(&self) -> Result<()> {
        for Interface { name, pod, peer } in &self.interfaces {
            for (from, to, addresses) in [(&self.own, &self.peer, peer), (&self.peer, &self.own, pod)] {
                let shown = to.run(&mut ip(&["-o", "link", "show", name]))?;
                let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
                let hardware = words.nth(1).with_context(|| format!("no hardware address in {shown:?}"))?;
                let known = |address: &IpAddr| {
                    format!("neigh replace {address} lladdr {hardware} dev {name} nud permanent")
                };
                from.ip(&addresses.iter().map(known).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// The pod's own namespace.
    #[must_use]
    pub fn own(&self) -> &TestNetns {
        &self.own
    }

    /// The namespace at the other end, which has every address that the pod has not.
    #[must_use]
    pub fn peer(&self) -> &TestNetns {
        &self.peer
    }

    /// The interfaces in the order they were added; the first is `eth0`.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The families it was made with.
    #[must_use]
    pub fn families(&self) -> Families {
        self.families
    }

    /// The pod's addresses on `eth0`.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        &self.interfaces[0].pod
    }

    /// The pod's IPv4 address on `eth0`: 10.77.0.2.
    pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
    /// The pod's IPv6 address on `eth0`: fd77::2.
    pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
}

/// The kernel notices in the background that both sides are up. Until then it drops what is sent, and a question for
/// a neighbour that is dropped is asked again only after a second.
///
/// # Errors
/// It is not up in time.
pub fn wait_until_up(namespace: &TestNetns, name: &str, v6: bool) -> Result<()> {
    let link = || {
        Ok::<_, anyhow::Error>(namespace.run(&mut ip(&["-o", "link", "show", name]))?.contains("state UP"))
    };
    let multicast = || {
        let routes = namespace.run(&mut ip(&["-6", "route", "show", "table", "local", "dev", name]))?;
        Ok::<_, anyhow::Error>(routes.contains("ff00::/8"))
    };
    eventually(&format!("interface {name} is up"), LONGEST_WAIT, || {
        ensure!(link()?, "the link is down");
        ensure!(!v6 || multicast()?, "it has no route for multicast");
        Ok(())
    })
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}

impl Deref for Pod {
    type Target = TestNetns;

    fn deref(&self) -> &TestNetns {
        &self.own
    }
}
