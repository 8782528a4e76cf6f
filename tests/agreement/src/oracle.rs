//! What the specification promises in prose. Each promise says when it holds and what then happens to a packet, from the settings
//! alone: nothing here looks at a rule.

use std::net::IpAddr;

use capture::Settings;
use capture::settings::{
    DNS_PORT, DnsCapture, Mode, OwnerGroups, PortChoice, Prefixes, Ranges, TPROXY_OUTBOUND_MARK,
};
use ruleset::eval::{Owner, Packet, State, Verdict};
use ruleset::{Family, Hook, Protocol};

/// One packet at one hook, and the settings that it meets.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// Settings.
    pub settings: &'a Settings,
    /// Whether the plan handles IPv6.
    pub ipv6: bool,
    /// Packet.
    pub packet: &'a Packet,
    /// Hook.
    pub hook: Hook,
    /// Whether the nat tables look at it.
    pub nat: bool,
}

/// A promise of the specification.
pub struct Promise {
    /// In words.
    pub text: &'static str,
    /// Whether it says something about the case.
    pub holds_for: fn(&Case<'_>) -> bool,
    /// Whether the verdict keeps it.
    pub keeps: fn(&Case<'_>, Verdict) -> bool,
}

/// All of them. Those about nat speak of a connection's first packet.
pub const PROMISES: &[Promise] = &[
    Promise {
        text: "the proxy's own traffic goes neither to its outbound port nor to its resolver",
        holds_for: |c| c.first(Hook::Output) && c.sent_by_proxy(),
        keeps: |c, v| !c.is_outbound_capture(v) && v != Verdict::Redirect { port: DNS_PORT },
    },
    Promise {
        text: "the proxy's own traffic that leaves the pod is left alone",
        holds_for: |c| c.first(Hook::Output) && c.sent_by_proxy() && c.packet.out_interface != "lo",
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "an excluded outbound port is left alone",
        holds_for: |c| {
            c.first(Hook::Output) && contains(&c.settings.outbound_ports_excluded, c.packet.destination_port)
        },
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "what leaves by an excluded interface is left alone",
        holds_for: |c| {
            c.first(Hook::Output) && c.settings.excluded_interfaces.contains(&c.packet.out_interface)
        },
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "an excluded range is not captured, whatever the included ports",
        holds_for: |c| {
            c.first(Hook::Output) && within(&c.settings.outbound_ranges_excluded, c.packet.destination)
        },
        keeps: |c, v| !c.is_outbound_capture(v),
    },
    Promise {
        text: "the pod's own loopback is not captured",
        holds_for: |c| c.first(Hook::Output) && c.aims_at_loopback(),
        keeps: |c, v| !c.is_outbound_capture(v),
    },
    Promise {
        text: "the pod's containers talk to one another undisturbed",
        holds_for: |c| {
            c.first(Hook::Output)
                && c.packet.out_interface == "lo"
                && !(c.settings.proxy_uids.is_empty() && c.settings.proxy_gids.is_empty())
                && !c.sent_by_proxy()
                && !c.settings.outbound_ranges.include_loopback()
                && c.packet.destination_port != 53
                && (c.packet.protocol == Protocol::Tcp || c.settings.dns == DnsCapture::Off)
        },
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "a group that is not included, or is excluded, is left alone",
        holds_for: |c| c.first(Hook::Output) && !c.sent_by_proxy() && !c.group_included(),
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "UDP is redirected to the resolver or not at all",
        holds_for: |c| {
            c.packet.protocol == Protocol::Udp
                && !(c.settings.drop_invalid && c.packet.state == State::Invalid)
        },
        keeps: |_, v| matches!(v, Verdict::Pass | Verdict::Redirect { port: DNS_PORT }),
    },
    Promise {
        text: "without DNS capture nothing goes to the resolver",
        holds_for: |c| c.settings.dns == DnsCapture::Off,
        keeps: |_, v| v != Verdict::Redirect { port: DNS_PORT },
    },
    Promise {
        text: "the application's DNS goes to the resolver",
        holds_for: |c| {
            c.sent_by_included_application()
                && c.packet.destination_port == 53
                && c.settings.dns == DnsCapture::All
        },
        keeps: |_, v| v == Verdict::Redirect { port: DNS_PORT },
    },
    Promise {
        text: "the application's TCP to an included destination goes to the proxy",
        holds_for: |c| {
            c.sent_by_included_application()
                && c.packet.protocol == Protocol::Tcp
                && (c.packet.destination_port != 53 || c.settings.dns == DnsCapture::Off)
                && c.handled()
                && !c.aims_at_loopback()
                && !within(&c.settings.outbound_ranges_excluded, c.packet.destination)
                && (contains(&c.settings.outbound_ports, c.packet.destination_port) || c.range_included())
        },
        keeps: |c, v| c.is_outbound_capture(v),
    },
    Promise {
        text: "what is neither an included port nor in an included range is not captured",
        holds_for: |c| {
            c.first(Hook::Output)
                && !contains(&c.settings.outbound_ports, c.packet.destination_port)
                && !c.range_included()
        },
        keeps: |c, v| !c.is_outbound_capture(v),
    },
    Promise {
        text: "the proxy's call of its own pod by the pod's address is inbound traffic",
        holds_for: |c| {
            c.first(Hook::Output)
                && c.packet.out_interface == "lo"
                && c.packet.owner.is_some_and(|owner| c.settings.proxy_uids.first() == Some(&owner.uid))
                && c.packet.protocol == Protocol::Tcp
                && c.handled()
                && !c.aims_at_loopback()
                && !c.has_passthrough_source()
                && !c.out_excluded()
                && c.packet.destination_port != c.settings.tunnel_port
                && (c.packet.destination_port != 53 || c.settings.dns == DnsCapture::Off)
        },
        keeps: |c, v| v == Verdict::Redirect { port: c.settings.capture_port },
    },
    Promise {
        text: "an inbound port that is excluded from all is left alone",
        holds_for: |c| {
            c.plain_inbound()
                && c.settings.inbound_ports == PortChoice::All
                && contains(&c.settings.inbound_ports_excluded, c.packet.destination_port)
        },
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "an inbound port that is not included is left alone",
        holds_for: |c| c.plain_inbound() && !contains(&c.settings.inbound_ports, c.packet.destination_port),
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        // TPROXY has no such exception here: the proxy takes its own port by the capture port there.
        text: "by REDIRECT, the tunnel's port is never captured inbound",
        holds_for: |c| {
            c.plain_inbound()
                && c.settings.mode == Mode::Redirect
                && c.packet.destination_port == c.settings.tunnel_port
        },
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "an included inbound port is captured, in the mode that was asked for",
        holds_for: |c| {
            c.plain_inbound()
                && c.nat
                && c.packet.in_interface != "lo"
                && c.packet.mark == 0
                && c.packet.protocol == Protocol::Tcp
                && c.packet.state == State::New
                && c.inbound_included()
                && c.handled()
                && !c.aims_at_loopback()
                && (c.settings.mode == Mode::Tproxy || c.packet.destination_port != c.settings.tunnel_port)
        },
        keeps: |c, v| {
            let port = c.settings.capture_port;
            v == match c.settings.mode {
                Mode::Redirect => Verdict::Redirect { port },
                Mode::Tproxy if c.packet.listening => Verdict::Tproxy { port },
                // It must not come to the application, past a proxy that is not there yet.
                Mode::Tproxy => Verdict::Drop,
            }
        },
    },
    Promise {
        text: "what comes in by an excluded interface is left alone",
        holds_for: |c| {
            c.hook == Hook::Prerouting
                && c.settings.excluded_interfaces.contains(&c.packet.in_interface)
                && !c.settings.reroute_interfaces.contains(&c.packet.in_interface)
                // Invalid packets are dropped after interfaces are excluded, but in REDIRECT the exclusion is in nat only.
                && !(c.settings.drop_invalid && c.packet.state == State::Invalid)
        },
        keeps: |_, v| v == Verdict::Pass,
    },
    Promise {
        text: "what comes over a rerouted interface to an included range goes to the outbound port",
        holds_for: |c| {
            c.first(Hook::Prerouting)
                && c.settings.reroute_interfaces.contains(&c.packet.in_interface)
                && c.packet.protocol == Protocol::Tcp
                && c.handled()
                && c.range_included()
        },
        keeps: |c, v| c.is_outbound_capture(v),
    },
    Promise {
        text: "what comes over a rerouted interface is not inbound traffic",
        holds_for: |c| {
            c.hook == Hook::Prerouting && c.settings.reroute_interfaces.contains(&c.packet.in_interface)
        },
        keeps: |c, v| {
            !matches!(v, Verdict::Tproxy { .. }) && v != Verdict::Redirect { port: c.settings.capture_port }
        },
    },
    Promise {
        text: "invalid TCP is dropped where that is asked for",
        holds_for: |c| {
            c.hook == Hook::Prerouting
                && c.settings.drop_invalid
                && c.packet.state == State::Invalid
                && c.packet.protocol == Protocol::Tcp
                && c.handled()
                && !(c.settings.mode == Mode::Tproxy
                    && c.settings.excluded_interfaces.contains(&c.packet.in_interface))
        },
        keeps: |_, v| v == Verdict::Drop,
    },
    Promise {
        text: "nothing else is ever dropped",
        holds_for: |c| {
            let invalid = c.settings.drop_invalid && c.packet.state == State::Invalid;
            let unheard = c.settings.mode == Mode::Tproxy && !c.packet.listening && c.inbound_included();
            !(c.hook == Hook::Prerouting && (invalid || unheard))
        },
        keeps: |_, v| v != Verdict::Drop,
    },
    Promise {
        text: "later packets of a connection are not translated again",
        holds_for: |c| !c.nat || c.packet.state == State::Established,
        keeps: |_, v| !matches!(v, Verdict::Redirect { .. }),
    },
    Promise {
        text: "by TPROXY, what was captured already is not captured again",
        holds_for: |c| {
            c.hook == Hook::Prerouting
                && c.settings.mode == Mode::Tproxy
                && (c.packet.mark == c.settings.tproxy_mark
                    || c.packet.in_interface == "lo" && c.packet.mark != TPROXY_OUTBOUND_MARK)
        },
        keeps: |_, v| !matches!(v, Verdict::Tproxy { .. }),
    },
];

impl Case<'_> {
    /// Whether the nat tables decide about it at this hook.
    fn first(&self, hook: Hook) -> bool {
        self.hook == hook && self.nat && matches!(self.packet.state, State::New | State::Related)
    }

    fn handled(&self) -> bool {
        self.ipv6 || self.packet.family() == Family::V4
    }

    fn sent_by_proxy(&self) -> bool {
        let Some(Owner { uid, gid }) = self.packet.owner else { return false };
        self.settings.proxy_uids.contains(&uid) || self.settings.proxy_gids.contains(&gid)
    }

    fn is_outbound_capture(&self, verdict: Verdict) -> bool {
        verdict == Verdict::Redirect { port: self.settings.proxy_port }
    }

    fn aims_at_loopback(&self) -> bool {
        match self.packet.destination {
            IpAddr::V4(address) => self.settings.loopback_v4.contains(&address),
            IpAddr::V6(address) => self.ipv6 && address.is_loopback(),
        }
    }

    fn has_passthrough_source(&self) -> bool {
        crate::world::PASSTHROUGH.contains(&self.packet.source)
    }

    fn out_excluded(&self) -> bool {
        self.settings.excluded_interfaces.contains(&self.packet.out_interface)
            || contains(&self.settings.outbound_ports_excluded, self.packet.destination_port)
    }

    fn group_included(&self) -> bool {
        let Some(Owner { gid, .. }) = self.packet.owner else { return false };
        match &self.settings.owner_groups {
            OwnerGroups::AllBut(groups) => !groups.contains(&gid),
            OwnerGroups::Only(groups) => groups.contains(&gid),
        }
    }

    /// An application whose traffic is captured sends the first packet of a connection to somewhere else.
    fn sent_by_included_application(&self) -> bool {
        self.first(Hook::Output)
            && !self.sent_by_proxy()
            && self.group_included()
            && self.packet.out_interface != "lo"
            && !self.out_excluded()
    }

    fn range_included(&self) -> bool {
        match &self.settings.outbound_ranges {
            Ranges::All => true,
            Ranges::Only(prefixes) => within(prefixes, self.packet.destination),
        }
    }

    fn inbound_included(&self) -> bool {
        let port = self.packet.destination_port;
        match &self.settings.inbound_ports {
            PortChoice::All => !contains(&self.settings.inbound_ports_excluded, port),
            // The excluded ones count only where all are included.
            ports => contains(ports, port),
        }
    }

    /// Arrives by an interface about which the settings say nothing.
    fn plain_inbound(&self) -> bool {
        let Settings { excluded_interfaces, reroute_interfaces, drop_invalid, .. } = self.settings;
        let invalid = *drop_invalid && self.packet.state == State::Invalid;
        let name = &self.packet.in_interface;
        let named = excluded_interfaces.contains(name) || reroute_interfaces.contains(name);
        self.hook == Hook::Prerouting && !invalid && !named
    }
}

fn contains(ports: &PortChoice, port: u16) -> bool {
    match ports {
        PortChoice::All => true,
        PortChoice::Only(ports) => ports.contains(&port),
    }
}

fn within(prefixes: &Prefixes, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => prefixes.v4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => prefixes.v6.iter().any(|net| net.contains(&address)),
    }
}
