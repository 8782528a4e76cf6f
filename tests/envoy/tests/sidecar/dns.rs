//! DNS capture, over UDP and TCP. Envoy has no part in it: Istio's agent answers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use envoy::dns::{PROXY_ADDRESS, Query, Question, REAL_ADDRESS, Reply, Server, Transport};
use envoy::{Manifest, User};

use super::Combination;
use super::scene::{Addresses, Scene};

/// A source port that two clients use one after the other.
const SAME_PORT: u16 = 40053;

pub(crate) fn check(what: Combination) {
    let scene = Scene::new(what, Manifest::new(what.mode).proxy_env("ISTIO_META_DNS_CAPTURE", "true"));
    for addresses in what.addresses() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let test = Resolution { scene: &scene, addresses, transport };
            test.check();
        }
    }
}

/// One family and transport.
struct Resolution<'a> {
    scene: &'a Scene,
    addresses: Addresses,
    transport: Transport,
}

impl Resolution<'_> {
    fn check(&self) {
        let pod = &self.scene.pod;
        let proxy_user = User::proxy(self.scene.what.mode);
        let upstream = SocketAddr::new(self.addresses.server, 53);
        let real = Server::real(pod.peer(), &[self.addresses.server, self.addresses.other_server])
            .expect("the real server");
        let proxy = Server::proxy(pod, proxy_user, pod.families(), upstream).expect("the proxy's resolver");

        // A name that only the proxy knows is resolved whichever server is asked.
        for (user, server) in [(User::APP, self.addresses.server), (User::ROOT, self.addresses.other_server)]
        {
            self.ask(user, server, "reviews.mesh", 0, PROXY_ADDRESS);
            self.expect_queries("the proxy", &proxy, "reviews.mesh", None);
        }
        assert_eq!(real.take_queries(), [], "{self}: a captured question reached the real server");

        // Any other name goes to the proxy too, and the proxy's own question to the real server.
        self.ask(User::APP, self.addresses.other_server, "example.test", 0, REAL_ADDRESS);
        self.expect_queries("the proxy", &proxy, "example.test", None);
        self.expect_queries("the real server", &real, "example.test", Some(self.addresses.pod));

        // The proxy's question, though its addresses and ports are those of an application's captured one: over UDP it
        // is only the conntrack zone that tells the two apart.
        let port = if self.transport == Transport::Udp { SAME_PORT } else { 0 };
        self.ask(User::APP, self.addresses.server, "reviews.mesh", port, PROXY_ADDRESS);
        self.expect_queries("the proxy", &proxy, "reviews.mesh", None);
        self.ask(proxy_user, self.addresses.server, "reviews.mesh", port, REAL_ADDRESS);
        self.expect_queries("the real server", &real, "reviews.mesh", Some(self.addresses.pod));
        assert_eq!(proxy.take_queries(), [], "{self}: the proxy's question came back to the proxy");
        self.ask(User::APP, self.addresses.server, "ratings.mesh", port, PROXY_ADDRESS);
        self.expect_queries("the proxy", &proxy, "ratings.mesh", None);
        assert_eq!(real.take_queries(), [], "{self}: a captured question reached the real server");
    }

    /// Asks; the reply must come from the server that was asked, wherever it was made.
    fn ask(&self, user: User, server: IpAddr, name: &str, source_port: u16, address: Ipv4Addr) {
        let server = SocketAddr::new(server, 53);
        let question =
            Question { from: &self.scene.pod, user, transport: self.transport, server, name, source_port };
        match question.ask() {
            Ok(reply) => assert_eq!(reply, Reply { address, from: server }, "{self}: {name} as {user}"),
            Err(e) => panic!("{self}: {e:#}\n{}", self.scene.rules()),
        }
    }

    /// The server got this one question.
    fn expect_queries(&self, whose: &str, server: &Server, name: &str, from: Option<IpAddr>) {
        let queries = server.take_queries();
        let [Query { transport, from: source, name: asked }] = &queries[..] else {
            panic!("{self}: {whose} got {queries:?}, expected one question for {name}");
        };
        assert_eq!((*transport, asked.as_str()), (self.transport, name), "{self}: {whose}");
        if let Some(from) = from {
            assert_eq!(source.ip(), from, "{self}: {whose} was asked by another");
        }
    }
}

impl std::fmt::Display for Resolution<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.addresses.pod.is_ipv4() { "IPv4" } else { "IPv6" };
        write!(f, "{:?} over {family}", self.transport)
    }
}
