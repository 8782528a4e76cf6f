//! Pods that leave the mesh while connections are open: what the evaluator says of a drain is what happens, in both families and directions.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use agreement::lab::Loader;
use agreement::run::{SEED, runner};
use agreement::strategy::ambient_options;
use agreement::world::{FAR, POD};
use anyhow::{Context, Result, ensure};
use capture::ambient::{CAPTURE_PORTS, NodeOptions, PodOptions, plan_drain, plan_of_everything, plan_pod};
use kernel::nft::Nftables;
use kernel::{Choice, Kernel, conntrack};
use proptest::test_runner::TestCaseError;
use ruleset::eval::{Owner, Packet, Verdict, evaluate, translations_last};
use ruleset::{Family, Hook, NoMembers, Plan, Protocol};
use testkit::relay::Relay;
use testkit::{Families, Pod};

const PORT: u16 = 9999;
const PATIENCE: Duration = Duration::from_secs(3);

/// A pod with a ztunnel, and servers on both sides that say everything again.
struct Lab {
    pod: Pod,
    relay: Relay,
}

/// A connection that somebody may open.
#[derive(Debug, Clone, Copy)]
struct Way {
    inbound: bool,
    to: IpAddr,
}

const WAYS: [Way; 4] = [
    Way { inbound: false, to: FAR[0] },
    Way { inbound: false, to: FAR[1] },
    Way { inbound: true, to: POD[0] },
    Way { inbound: true, to: POD[1] },
];

impl Way {
    fn family(self) -> Family {
        if self.to.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Whether a plan hands it to ztunnel.
    fn is_taken(self, plan: &Plan) -> bool {
        let (source, hook) = match self.inbound {
            true => (FAR[usize::from(self.to.is_ipv6())], Hook::Prerouting),
            false => (POD[usize::from(self.to.is_ipv6())], Hook::Output),
        };
        let interface = |there: bool| if there { "eth0".to_owned() } else { String::new() };
        let packet = Packet {
            in_interface: interface(self.inbound),
            out_interface: interface(!self.inbound),
            owner: (!self.inbound).then_some(Owner { uid: 0, gid: 0 }),
            ..Packet::new(Protocol::Tcp, (source, 40_000).into(), (self.to, PORT).into())
        };
        matches!(
            evaluate(&plan.layers, plan.backend, &packet, hook, true, &NoMembers).verdict,
            Verdict::Redirect { .. }
        )
    }
}

impl Lab {
    fn new() -> Result<Self> {
        let pod = Pod::new(Families::Dual)?;
        for namespace in [pod.own(), pod.peer()] {
            for interface in ["all", "eth0"] {
                namespace.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
            }
            let listener = namespace.enter(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
            std::thread::spawn(move || listener.incoming().flatten().for_each(say_again));
        }
        let relay = Relay::start(pod.own())?;
        Ok(Self { pod, relay })
    }

    fn apply(&self, loader: Loader, plan: &Plan) -> Result<()> {
        let iptables = loader.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        self.pod.enter(|inside| kernel.apply(inside, Choice::Only(plan.backend), |_| plan.clone()))??;
        Ok(())
    }

    fn remove(&self, loader: Loader) -> Result<()> {
        let iptables = loader.iptables();
        let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
        let plan = plan_of_everything(loader.backend());
        self.pod.enter(|inside| kernel.cleanup(inside, &plan))??;
        self.pod.enter(|inside| conntrack::forget(inside, &CAPTURE_PORTS, |_| false))??;
        Ok(())
    }

    /// Opens all four and compares with what the plan says of each.
    fn open(&self, plan: &Plan) -> Result<Vec<(Way, TcpStream)>> {
        let mut all = Vec::new();
        for way in WAYS {
            let before = self.relay.relayed().len();
            let from = if way.inbound { self.pod.peer() } else { self.pod.own() };
            let to = SocketAddr::new(way.to, PORT);
            let stream = from.enter(|_| TcpStream::connect_timeout(&to, PATIENCE))?;
            let mut stream = stream.with_context(|| format!("open {way:?}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            talk(way, &mut stream)?;
            let taken = self.relay.relayed().len() > before;
            ensure!(
                taken == way.is_taken(plan),
                "{way:?}: ztunnel {}",
                if taken { "took it" } else { "did not take it" }
            );
            all.push((way, stream));
        }
        Ok(all)
    }

    fn case(&self, loader: Loader, node: &NodeOptions, options: &PodOptions) -> Result<usize> {
        let (mesh, drain) =
            (plan_pod(node, options, loader.backend()), plan_drain(node, options, loader.backend()));
        self.apply(loader, &mesh)?;
        let mut before = self.open(&mesh)?;
        let taken = before.iter().filter(|(way, _)| way.is_taken(&mesh)).count();
        self.apply(loader, &drain)?;
        for (way, stream) in &mut before {
            ensure!(!way.is_taken(&drain), "{way:?}: a drain takes nothing new");
            ensure!(
                !way.is_taken(&mesh) || translations_last(&drain.layers, drain.backend, way.family()),
                "{way:?}: the evaluator"
            );
            talk(*way, stream).context("while the pod drains")?;
        }
        let meanwhile = self.open(&drain)?;
        // Back in, and out for good when nothing is open any more.
        self.apply(loader, &mesh)?;
        for (way, mut stream) in before.into_iter().chain(meanwhile) {
            talk(way, &mut stream).context("when the pod is back")?;
        }
        self.remove(loader)?;
        Ok(taken)
    }
}

fn talk(way: Way, stream: &mut TcpStream) -> Result<()> {
    let talk = |stream: &mut TcpStream| {
        stream.write_all(b"ping")?;
        stream.read_exact(&mut [0; 4])
    };
    talk(stream).with_context(|| format!("talk on {way:?}"))
}

fn say_again(mut stream: TcpStream) {
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            let _ = stream.write_all(&bytes[..length]);
        }
    });
}

#[test]
fn what_is_open_goes_on_with_any_options() {
    let lab = Lab::new().expect("a lab");
    let taken = std::cell::Cell::new(0);
    let (mut runner, seed) = runner("ambient-leaving", 12, 100);
    let result = runner.run(&ambient_options(), |(node, options)| {
        for loader in Loader::ALL {
            let found = lab.case(loader, &node, &options);
            let found = found.map_err(|error| {
                TestCaseError::fail(format!("{loader:?}: {error:#}\n{node:?} {options:?}"))
            })?;
            taken.set(taken.get() + found);
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}\nrepeat with {SEED}={seed}");
    }
    assert!(taken.get() > 0, "ztunnel took something");
}
