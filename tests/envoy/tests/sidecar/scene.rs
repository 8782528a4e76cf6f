//! A captured pod with its proxy and application, the world around it, and requests with expectations.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use envoy::bootstrap::Mode;
use envoy::{Answer, Backend, Envoy, Manifest, Plugin, Request, User};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::rules::{Family, Variant};
use testkit::{Families, Pod};

use super::Combination;

/// The application's port in the pod.
pub(crate) const APP: u16 = 8080;
/// A second port of the application.
pub(crate) const APP_OTHER: u16 = 8081;
/// The port of every server outside.
pub(crate) const SERVER: u16 = 80;
/// A second port of every server outside.
pub(crate) const SERVER_OTHER: u16 = 8443;
/// The pod's second interface.
pub(crate) const SECOND: &str = "net1";

/// Longer than anything takes on a busy machine; nothing here waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod with `eth0` and `net1`, captured.
pub(crate) struct Scene {
    pub(crate) what: Combination,
    pub(crate) pod: Pod,
    plugin: Plugin,
}

/// The application, the servers outside, and Envoy.
pub(crate) struct Web<'a> {
    scene: &'a Scene,
    envoy: Envoy,
    _app: Listeners,
    _servers: Listeners,
    wrong: String,
}

/// Who sends a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From {
    /// The pod, as this user.
    Pod(User),
    /// The world, from this address.
    World(IpAddr),
}

/// What a request must meet.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Envoy's listeners, the one nearest to the application first.
    pub(crate) through: &'static [&'static str],
    /// The source address that the application sees.
    pub(crate) source: IpAddr,
}

/// Addresses of one family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) pod: IpAddr,
    pub(crate) loopback: IpAddr,
    /// What Envoy binds to for the application in REDIRECT.
    pub(crate) passthrough: IpAddr,
    /// A server outside.
    pub(crate) server: IpAddr,
    /// One in the range that tests exclude.
    pub(crate) excluded_server: IpAddr,
    /// One that is in no range of any test.
    pub(crate) other_server: IpAddr,
    /// A client outside, not in the pod's subnet.
    pub(crate) client: IpAddr,
    /// The pod's and the world's address on the second interface.
    pub(crate) second: (IpAddr, IpAddr),
}

/// Ranges of [`Addresses::excluded_server`].
pub(crate) const EXCLUDED_RANGES: [&str; 2] = ["203.0.113.0/24", "2001:db8:2::/64"];
/// Ranges of [`Addresses::server`].
pub(crate) const INCLUDED_RANGES: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/64"];

impl Combination {
    /// The addresses of each family that the pod has.
    pub(crate) fn addresses(self) -> Vec<Addresses> {
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let v4 = Addresses {
            pod: Pod::V4,
            loopback: ip("127.0.0.1"),
            passthrough: ip("127.0.0.6"),
            server: ip("198.51.100.7"),
            excluded_server: ip("203.0.113.7"),
            other_server: ip("192.0.2.7"),
            client: ip("192.0.2.99"),
            second: (ip("10.77.1.2"), ip("10.77.1.1")),
        };
        let v6 = Addresses {
            pod: Pod::V6,
            loopback: ip("::1"),
            passthrough: ip("::6"),
            server: ip("2001:db8:1::7"),
            excluded_server: ip("2001:db8:2::7"),
            other_server: ip("2001:db8:3::7"),
            client: ip("2001:db8:9::99"),
            second: (ip("fd77:1::2"), ip("fd77:1::1")),
        };
        let both = [(self.families.v4(), v4), (self.families.v6(), v6)];
        both.into_iter().filter_map(|(has, addresses)| has.then_some(addresses)).collect()
    }

    /// Ranges of the families that the pod has, as an annotation lists them.
    pub(crate) fn ranges(self, [v4, v6]: [&str; 2]) -> String {
        let both = [(self.families.v4(), v4), (self.families.v6(), v6)];
        both.into_iter().filter_map(|(has, range)| has.then_some(range)).collect::<Vec<_>>().join(",")
    }

    /// The source address that the application sees of `client` behind the inbound listener.
    pub(crate) fn forwarded(self, client: IpAddr, passthrough: IpAddr) -> IpAddr {
        match self.mode {
            Mode::Redirect => passthrough,
            Mode::Tproxy => client,
        }
    }
}

impl Scene {
    /// Makes the pod and has the plugin capture it.
    pub(crate) fn new(what: Combination, mut manifest: Manifest) -> Self {
        let mut pod = Pod::new(what.families).expect("a pod");
        pod.add_interface(SECOND).expect("a second interface");
        let plugin = Plugin::find().expect("the plugin");
        if what.families == Families::Dual {
            manifest = manifest.proxy_env("ISTIO_DUAL_STACK", "true");
        }
        plugin.add(&pod, &manifest, what.backend).expect("ADD succeeds");
        let scene = Self { what, pod, plugin };
        scene.check_backend();
        scene
    }

    /// What holds the rules is what was asked for, and only that.
    fn check_backend(&self) {
        let nft = self.pod.nft_text().expect("nft lists").contains("istio-proxy-nat");
        let iptables = [Variant::Nft, Variant::Legacy].into_iter().any(|variant| {
            self.pod.iptables_save(variant, Family::V4).expect("iptables lists").contains("ISTIO_OUTPUT")
        });
        let wanted = self.what.backend;
        assert_eq!(
            (nft, iptables),
            (wanted == Backend::Nftables, wanted == Backend::Iptables),
            "{}",
            self.rules()
        );
    }

    /// Starts the application, the servers and Envoy.
    pub(crate) fn web(&self) -> Web<'_> {
        let app = Listeners::start(&self.pod, [APP, APP_OTHER].map(Listener::http)).expect("the application");
        let servers =
            Listeners::start(self.pod.peer(), [SERVER, SERVER_OTHER].map(Listener::http)).expect("servers");
        let own_service = SocketAddr::new(self.pod.ips()[0], APP);
        let envoy = Envoy::start(&self.pod, self.what.mode, own_service).expect("Envoy");
        Web { scene: self, envoy, _app: app, _servers: servers, wrong: String::new() }
    }

    /// What is loaded, for the message of a failed test.
    pub(crate) fn rules(&self) -> String {
        let nft = self.pod.nft_text().unwrap_or_else(|e| format!("{e:#}"));
        let legacy = [Family::V4, Family::V6].map(|family| {
            self.pod.iptables_save(Variant::Legacy, family).unwrap_or_else(|e| format!("{e:#}"))
        });
        format!("=== rules by {:?}\n{nft}\n{}", self.plugin, legacy.concat())
    }
}

impl Web<'_> {
    /// Sends a request and remembers when its answer is not the expected one.
    pub(crate) fn expect(&mut self, why: &str, from: From, to: (IpAddr, u16), expected: &Expected) {
        self.expect_at_host(why, "other.test", from, to, (to.0, to.1), expected);
    }

    /// The same, with a header `host` that makes Envoy go to another destination than the client wanted.
    pub(crate) fn expect_at_host(
        &mut self,
        why: &str,
        host: &str,
        from: From,
        to: (IpAddr, u16),
        arrives: (IpAddr, u16),
        expected: &Expected,
    ) {
        let answer = self.flow(from, to).and_then(|flow| Request::new(flow).host(host).send(to.into()));
        if let Err(problem) = verdict(answer, arrives.into(), expected) {
            let _ = writeln!(self.wrong, "- {why}: {from:?} to {}: {problem}", SocketAddr::from(to));
        }
    }

    /// Fails with everything that was not as expected.
    pub(crate) fn finish(self) {
        if self.wrong.is_empty() {
            return;
        }
        // The access log is written late.
        std::thread::sleep(Duration::from_millis(200));
        panic!(
            "{:?}:\n{}=== Envoy's requests\n{}=== Envoy's log\n{}{}",
            self.scene.what,
            self.wrong,
            self.envoy.access_log(),
            self.envoy.log(),
            self.scene.rules()
        );
    }

    fn flow(&self, from: From, to: (IpAddr, u16)) -> Result<Flow<'_>> {
        anyhow::ensure!(self.scene.what.addresses().iter().any(|a| a.pod.is_ipv4() == to.0.is_ipv4()));
        let pod = &self.scene.pod;
        Ok(match from {
            From::Pod(User { uid, gid }) => Flow::from(pod).user(uid, gid),
            From::World(ip) => Flow::from(pod.peer()).source(SocketAddr::new(ip, 0)),
        }
        .patience(PATIENCE))
    }
}

fn verdict(answer: Result<Answer>, arrives: SocketAddr, expected: &Expected) -> Result<(), String> {
    let answer = answer.map_err(|e| format!("{e:#}"))?;
    let seen = &answer.arrival;
    // A request that Envoy forwards has Envoy's name on its answer; one that it does not has none.
    let server = (!expected.through.is_empty()).then_some("envoy");
    if answer.through != expected.through || answer.server.as_deref() != server {
        return Err(format!(
            "{answer} (server: {:?}), expected through {:?}",
            answer.server, expected.through
        ));
    }
    if (seen.peer.ip(), seen.local) != (expected.source, arrives) {
        return Err(format!(
            "the application saw {} to {}, expected {} to {arrives}",
            seen.peer, seen.local, expected.source
        ));
    }
    Ok(())
}

/// The pod's application as client.
pub(crate) const BY_APP: From = From::Pod(User::APP);
