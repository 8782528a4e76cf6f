//! What the pod sends.

use ipnet::IpNet;
use ruleset::{Action, Match, Protocol, Rule, TableKind};

use super::draft::DraftChain;
use super::{
    Owner, Planner, destination, in_interface, jump, out_interface, source, tcp, to_own_address, to_port,
};
use crate::settings::{OwnerGroups, PortChoice, Ranges};

impl Planner<'_> {
    /// What goes out: first what is never captured, last what is.
    pub(super) fn outbound(&mut self) {
        let enter = Rule::new(vec![], jump(DraftChain::NAT_OUTPUT), "what the pod sends");
        self.draft.add(DraftChain::output(TableKind::Nat), enter);
        self.excluded_outbound_ports();
        for own in self.per_family() {
            let rule = Rule::new(
                vec![out_interface("lo"), source(own.passthrough)],
                Action::Return,
                "the proxy's own connection to the application, with its passthrough source address",
            );
            self.draft.add(DraftChain::NAT_OUTPUT, rule);
        }
        for &uid in &self.settings.proxy_uids {
            self.proxy_owner(Owner::Uid(uid));
        }
        for &gid in &self.settings.proxy_gids {
            self.proxy_owner(Owner::Gid(gid));
        }
        self.owner_groups();
        self.dns();
        self.outbound_addresses();
    }

    /// Ports that are never captured.
    fn excluded_outbound_ports(&mut self) {
        let ports: Vec<Option<u16>> = match &self.settings.outbound_ports_excluded {
            PortChoice::All => vec![None],
            PortChoice::Only(ports) => ports.iter().copied().map(Some).collect(),
        };
        for port in ports {
            let what =
                port.map_or_else(|| "every outbound port".to_owned(), |port| format!("outbound port {port}"));
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let matches =
                    [Some(Match::Protocol(protocol)), port.map(to_port)].into_iter().flatten().collect();
                self.draft.add(
                    DraftChain::NAT_OUTPUT,
                    Rule::new(matches, Action::Return, format!("{what} is excluded")),
                );
            }
        }
    }

    /// What the proxy itself sends.
    fn proxy_owner(&mut self, owner: Owner) {
        let dns = self.dns_on();
        let tunnel = self.settings.tunnel_port;
        // The proxy asks its own resolver at port 53 as a user only; upstream has no such exception for its group.
        let not_inbound = match owner {
            Owner::Uid(_) if dns => ruleset::Ports::AnyOf(sorted([53, tunnel])),
            _ => ruleset::Ports::One(tunnel),
        };
        for own in self.per_family() {
            let mut matches = to_own_address(own).to_vec();
            matches.push(Match::DestinationPort { ports: not_inbound.clone(), not: true });
            matches.push(owner.is());
            let rule = Rule::new(
                matches,
                jump(DraftChain::NAT_IN_REDIRECT),
                "the proxy calls its own pod by the pod's address: that is inbound traffic",
            );
            self.draft.add(DraftChain::NAT_OUTPUT, rule);
        }
        if !self.settings.outbound_ranges.include_loopback() {
            let mut matches = vec![out_interface("lo")];
            if dns {
                let not_dns = Match::DestinationPort { ports: ruleset::Ports::One(53), not: true };
                matches.extend([tcp(), not_dns]);
            }
            matches.push(owner.is_not());
            let why = "the pod's containers among themselves";
            self.draft.add(DraftChain::NAT_OUTPUT, Rule::new(matches, Action::Return, why));
        }
        let own = Rule::new(vec![owner.is()], Action::Return, format!("sent by the proxy ({owner})"));
        self.draft.add(DraftChain::NAT_OUTPUT, own);
    }

    /// Groups whose traffic is captured, or is not.
    fn owner_groups(&mut self) {
        match &self.settings.owner_groups {
            OwnerGroups::AllBut(groups) => {
                for &gid in groups {
                    let rule = Rule::new(
                        vec![Owner::Gid(gid).is()],
                        Action::Return,
                        format!("group {gid} is excluded"),
                    );
                    self.draft.add(DraftChain::NAT_OUTPUT, rule);
                }
            }
            OwnerGroups::Only(groups) => {
                let matches = groups.iter().map(|&gid| Owner::Gid(gid).is_not()).collect();
                let rule = Rule::new(matches, Action::Return, "sent by no group that is included");
                self.draft.add(DraftChain::NAT_OUTPUT, rule);
            }
        }
    }

    /// Loopback, then excluded ranges, then those that are captured.
    fn outbound_addresses(&mut self) {
        for own in self.per_family() {
            let rule =
                Rule::new(vec![destination(own.loopback)], Action::Return, "to the pod's own loopback");
            self.draft.add(DraftChain::NAT_OUTPUT, rule);
        }
        let excluded = &self.settings.outbound_ranges_excluded;
        for net in self.handled(&excluded.v4, &excluded.v6) {
            let rule = Rule::new(vec![destination(net)], Action::Return, format!("range {net} is excluded"));
            self.draft.add(DraftChain::NAT_OUTPUT, rule);
        }
        let ports: Vec<Option<u16>> = match &self.settings.outbound_ports {
            PortChoice::All => vec![None],
            PortChoice::Only(ports) => ports.iter().copied().map(Some).collect(),
        };
        for port in ports {
            let matches = [Some(tcp()), port.map(to_port)].into_iter().flatten().collect();
            let what =
                port.map_or_else(|| "every outbound port".to_owned(), |port| format!("outbound port {port}"));
            let rule = Rule::new(matches, jump(DraftChain::NAT_REDIRECT), format!("{what} is included"));
            self.draft.add(DraftChain::NAT_OUTPUT, rule);
        }
        match &self.settings.outbound_ranges {
            Ranges::All => self.capture_range(None),
            Ranges::Only(ranges) => {
                for net in self.handled(&ranges.v4, &ranges.v6) {
                    self.capture_range(Some(net));
                }
            }
        }
    }

    fn capture_range(&mut self, net: Option<IpNet>) {
        let what = net.map_or_else(|| "every other destination".to_owned(), |net| format!("range {net}"));
        for name in &self.settings.reroute_interfaces {
            let matches = [Some(in_interface(name)), net.map(destination)].into_iter().flatten().collect();
            let why = format!("{what} is captured, also for what is behind {name}");
            self.draft.insert_first(
                DraftChain::NAT_PREROUTING,
                Rule::new(matches, jump(DraftChain::NAT_REDIRECT), why),
            );
        }
        let matches = net.map(destination).into_iter().collect();
        let rule = Rule::new(matches, jump(DraftChain::NAT_REDIRECT), format!("{what} is captured"));
        self.draft.add(DraftChain::NAT_OUTPUT, rule);
    }
}

fn sorted(mut ports: [u16; 2]) -> Vec<u16> {
    ports.sort_unstable();
    let mut ports = ports.to_vec();
    ports.dedup();
    ports
}
