//! DNS capture.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ruleset::{Action, Backend, Families, Match, Ports, Protocol, Rule};

use super::draft::DraftChain;
use super::{Owner, Planner, destination, families, jump, source, to_port};
use crate::settings::{DNS_PORT, DnsCapture};

/// Conntrack zones keep two conversations apart that have the same addresses and ports: application to proxy, and proxy to the
/// real server.
const ZONE_APPLICATION: u16 = 2;
const ZONE_PROXY: u16 = 1;

impl Planner<'_> {
    pub(super) fn dns_on(&self) -> bool {
        self.settings.dns != DnsCapture::Off
    }

    /// Questions for names, those of the proxy itself apart.
    pub(super) fn dns(&mut self) {
        let (to_servers, all): (Vec<Option<IpNet>>, bool) = match &self.settings.dns {
            DnsCapture::Off => return,
            DnsCapture::All => (vec![None], true),
            DnsCapture::Servers { v4, v6 } => (self.servers(v4, v6).into_iter().map(Some).collect(), false),
        };
        let v4 = all || to_servers.iter().flatten().any(|net| matches!(net, IpNet::V4(_)));
        let v6 = all || to_servers.iter().flatten().any(|net| matches!(net, IpNet::V6(_)));
        // The chain that is jumped to decides by address; upstream's nf_tables rules therefore do not ask for the family.
        let scope = match families(v4, v6) {
            Some(_) if self.facts.backend == Backend::Nftables => Some(Families::Both),
            scope => scope,
        };
        self.draft.add(
            DraftChain::RAW_OUTPUT,
            Rule::new(vec![], jump(DraftChain::RAW_DNS), "DNS capture: conntrack zones"),
        );
        if let Some(scope) = scope {
            let enter = Rule::new(vec![], jump(DraftChain::NAT_DNS), "DNS capture");
            self.draft.add(DraftChain::NAT_OUTPUT, Rule { families: scope, ..enter });
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for &server in &to_servers {
                let matches = server
                    .map(destination)
                    .into_iter()
                    .chain([Match::Protocol(protocol), to_port(53)])
                    .collect();
                let why = format!("DNS over {}, to the proxy's resolver", protocol.name().to_uppercase());
                self.draft
                    .add(DraftChain::NAT_DNS, Rule::new(matches, Action::Redirect { port: DNS_PORT }, why));
            }
        }
        self.proxy_zones();
        if let Some(scope) = scope {
            self.application_zones(&to_servers, scope);
        }
    }

    /// What the proxy sends, to servers and back to the application.
    fn proxy_zones(&mut self) {
        let uids = self.settings.proxy_uids.iter().map(|&uid| Owner::Uid(uid));
        let gids = self.settings.proxy_gids.iter().map(|&gid| Owner::Gid(gid));
        for owner in uids.chain(gids) {
            let query = Rule::new(
                vec![udp(), to_port(53), owner.is()],
                Action::SetZone(ZONE_PROXY),
                "the proxy's query to a server",
            );
            let answer = Rule::new(
                vec![udp(), from_port(DNS_PORT), owner.is()],
                Action::SetZone(ZONE_APPLICATION),
                "the proxy's answer to the application",
            );
            self.draft.add(DraftChain::RAW_DNS, query);
            self.draft.add(DraftChain::RAW_DNS, answer);
        }
    }

    /// The application's queries, and the servers' answers to the proxy.
    fn application_zones(&mut self, servers: &[Option<IpNet>], scope: Families) {
        let enter = Rule::new(vec![], jump(DraftChain::RAW_INBOUND), "DNS capture: answers of servers");
        self.draft.add(DraftChain::RAW_PREROUTING, Rule { families: scope, ..enter });
        for &server in servers {
            let query = [udp(), to_port(53)].into_iter().chain(server.map(destination)).collect();
            let answer = [udp(), from_port(53)].into_iter().chain(server.map(source)).collect();
            let query = Rule::new(query, Action::SetZone(ZONE_APPLICATION), "the application's query");
            let answer = Rule::new(answer, Action::SetZone(ZONE_PROXY), "a server's answer to the proxy");
            self.draft.add(DraftChain::RAW_DNS, query);
            self.draft.add(DraftChain::RAW_INBOUND, answer);
        }
    }

    fn servers(&self, v4: &[Ipv4Addr], v6: &[Ipv6Addr]) -> Vec<IpNet> {
        let v4: Vec<Ipv4Net> = v4.iter().copied().map(Ipv4Net::from).collect();
        let v6: Vec<Ipv6Net> = v6.iter().copied().map(Ipv6Net::from).collect();
        self.handled(&v4, &v6)
    }
}

fn udp() -> Match {
    Match::Protocol(Protocol::Udp)
}

fn from_port(port: u16) -> Match {
    Match::SourcePort { ports: Ports::One(port), not: false }
}
