//! What the rules cost traffic: a connection to the pod, and a packet of one that is open, with our rules and without.
//!
//! Both pods are measured in turn. With rules the connection goes to the proxy's port, without to the application's; the same echo answers at
//! both, so what differs is the way through the pod's hooks.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use capture::{PlanTarget, Settings};
use kernel::RuleStore;
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use ruleset::Backend;
use testkit::{Families, Pod};

use crate::measures::Measure;
use crate::report::Report;
use crate::sample::Samples;

pub(crate) const ALL: &[Measure] = &[
    Measure {
        name: "traffic through the rules, nf_tables",
        run: |runs, report| traffic(Backend::Nftables, runs, report),
    },
    Measure {
        name: "traffic through the rules, iptables",
        run: |runs, report| traffic(Backend::Iptables, runs, report),
    },
];

/// What the application listens on.
const APPLICATION: u16 = 8080;
/// Where the rules send what comes in: the proxy's port for inbound traffic.
const PROXY: u16 = 15006;
/// Longest wait for a connection or an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Samples for each run: a single one takes microseconds.
const SAMPLES: usize = 10;
/// The most that the rules may cost a connection, and a packet of an open one with its answer.
const MOST_A_CONNECTION: Duration = Duration::from_micros(50);
const MOST_A_ROUND_TRIP: Duration = Duration::from_micros(10);

/// A pod with an echo behind it.
struct Echo {
    pod: Pod,
    at: SocketAddr,
}

impl Echo {
    fn new(port: u16) -> Result<Self> {
        let pod = Pod::new(Families::V4)?;
        let address = *pod.ips().first().context("a pod without an address")?;
        let listener = pod.own().enter(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        // It ends with the process; each connection is closed by its client.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || echo(stream));
            }
        });
        Ok(Self { pod, at: (address, APPLICATION).into() })
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = self.pod.peer().enter(|_| TcpStream::connect_timeout(&self.at, LIMIT))??;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

fn round_trip(stream: &mut TcpStream) -> Result<Duration> {
    let (start, mut answer) = (Instant::now(), [0]);
    stream.write_all(b"x")?;
    stream.read_exact(&mut answer)?;
    Ok(start.elapsed())
}

/// Until the handshake is over. The thread is inside already: entering a namespace is no part of it.
fn connections(echo: &Echo, count: usize) -> Result<Samples> {
    echo.pod.peer().enter(|_| {
        let mut samples = Samples::default();
        for _ in 0..count {
            let start = Instant::now();
            let stream = TcpStream::connect_timeout(&echo.at, LIMIT)?;
            samples.push(start.elapsed());
            drop(stream);
        }
        Ok(samples)
    })?
}

fn traffic(backend: Backend, runs: usize, report: &mut Report) -> Result<()> {
    let (with, without) = (Echo::new(PROXY)?, Echo::new(APPLICATION)?);
    ensure!(with.connect().is_err(), "the application's port answers before there are rules");
    let plan = capture::plan(&Settings::default(), PlanTarget { backend, ipv6: false });
    with.pod.own().enter(|inside| match backend {
        Backend::Nftables => Nftables.setup(inside, &plan.layers).map(drop),
        Backend::Iptables => Iptables::new().setup(inside, &plan.layers).map(drop),
    })??;
    let (mut ours, mut base) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        base.extend(&connections(&without, SAMPLES)?);
        ours.extend(&connections(&with, SAMPLES)?);
    }
    report.cost(&format!("a connection to the pod, {backend}: rules cost"), &ours, &base, MOST_A_CONNECTION);
    let (mut open_with, mut open_without) = (with.connect()?, without.connect()?);
    let (mut ours, mut base) = (Samples::default(), Samples::default());
    for _ in 0..runs * SAMPLES {
        base.push(round_trip(&mut open_without)?);
        ours.push(round_trip(&mut open_with)?);
    }
    let measure = format!("a packet and its answer, {backend}: rules cost");
    report.cost(&measure, &ours, &base, MOST_A_ROUND_TRIP);
    Ok(())
}
