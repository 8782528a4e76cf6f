//! What a sidecar's plan is made from, as text.
//!
//! It is kept with the record of what was applied: from it an agent that comes later has the plan in force, whatever the pod's annotations say
//! by then. The names are those of `istio-iptables`' flags, which are a sidecar's settings as text already.

use std::fmt::{self, Write};

use ruleset::{Backend, Plan};

use crate::flags::{IptablesFlags, parse_flags};
use crate::plan::{PlanTarget, plan, plan_drain};
use crate::settings::Settings;

/// Everything that a sidecar's plan is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInputs {
    /// How the pod is captured.
    pub settings: Settings,
    /// What the namespace showed.
    pub target: PlanTarget,
}

/// A setting that is another one than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The flag of `istio-iptables` for it, or the annotation of ambient mode.
    pub name: &'static str,
    /// Its value before; an empty list is the empty text.
    pub old: String,
    /// Its value now.
    pub new: String,
}

type Text = fn(&mut IptablesFlags) -> &mut String;
type Switch = fn(&mut IptablesFlags) -> &mut bool;

const TEXTS: [(&str, Text); 19] = [
    ("envoy-port", |f| &mut f.proxy_port),
    ("inbound-capture-port", |f| &mut f.inbound_capture_port),
    ("inbound-tunnel-port", |f| &mut f.inbound_tunnel_port),
    ("proxy-uid", |f| &mut f.proxy_uid),
    ("proxy-gid", |f| &mut f.proxy_gid),
    ("istio-inbound-interception-mode", |f| &mut f.inbound_interception_mode),
    ("istio-inbound-tproxy-mark", |f| &mut f.inbound_tproxy_mark),
    ("istio-inbound-tproxy-route-table", |f| &mut f.inbound_tproxy_route_table),
    ("istio-inbound-ports", |f| &mut f.inbound_ports_include),
    ("istio-local-exclude-ports", |f| &mut f.inbound_ports_exclude),
    ("istio-outbound-owner-groups", |f| &mut f.owner_groups_include),
    ("istio-outbound-owner-groups-exclude", |f| &mut f.owner_groups_exclude),
    ("istio-outbound-ports", |f| &mut f.outbound_ports_include),
    ("istio-local-outbound-ports-exclude", |f| &mut f.outbound_ports_exclude),
    ("istio-service-cidr", |f| &mut f.outbound_ip_ranges_include),
    ("istio-service-exclude-cidr", |f| &mut f.outbound_ip_ranges_exclude),
    ("kube-virt-interfaces", |f| &mut f.reroute_virtual_interfaces),
    ("istio-exclude-interfaces", |f| &mut f.exclude_interfaces),
    ("istio-outbound-ipv4-loopback-cidr", |f| &mut f.host_ipv4_loopback_cidr),
];

const SWITCHES: [(&str, Switch); 4] = [
    ("redirect-dns", |f| &mut f.redirect_dns),
    ("capture-all-dns", |f| &mut f.capture_all_dns),
    ("drop-invalid", |f| &mut f.drop_invalid),
    ("dual-stack", |f| &mut f.dual_stack),
];

/// Of no flag: `istio-iptables` reads them from resolv.conf.
const DNS_SERVERS: &str = "dns-servers";
const BACKEND: &str = "backend";
const IPV6: &str = "ipv6";

/// The settings that differ.
#[must_use]
pub fn setting_changes(old: &Settings, new: &Settings) -> Vec<SettingChange> {
    let pairs = values(old).into_iter().zip(values(new));
    let changed = pairs.filter(|((_, old), (_, new))| old != new);
    changed.map(|((name, old), (_, new))| SettingChange { name, old, new }).collect()
}

fn values(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut flags = IptablesFlags::from(settings);
    let servers: Vec<String> = flags.dns_servers.iter().map(ToString::to_string).collect();
    let mut all: Vec<_> =
        TEXTS.iter().map(|(name, text)| (*name, std::mem::take(text(&mut flags)))).collect();
    all.extend(SWITCHES.iter().map(|(name, switch)| (*name, switch(&mut flags).to_string())));
    all.push((DNS_SERVERS, servers.join(",")));
    all
}

// === impl PlanInputs ===

impl PlanInputs {
    /// The plan that is made from them.
    #[must_use]
    pub fn plan(&self) -> Plan {
        plan(&self.settings, self.target)
    }

    /// The plan for the time in which the pod is not captured any more and connections by way of its proxy are open, see [`plan_drain`].
    #[must_use]
    pub fn plan_drain(&self) -> Plan {
        plan_drain(&self.settings, self.target)
    }

    /// A line for each: its name, a blank, its value.
    #[must_use]
    pub fn to_text(&self) -> String {
        let PlanTarget { backend, ipv6 } = self.target;
        let mut text = format!("{BACKEND} {backend}\n{IPV6} {ipv6}\n");
        for (name, value) in values(&self.settings) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }

    /// Reads such a text. Absent: not such a text, or one with something that this version does not know.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        // What an earlier version did not write was as it is by default.
        let mut flags = IptablesFlags::from(&Settings::default());
        let (mut backend, mut ipv6) = (None, None);
        for line in text.lines() {
            let (name, value) = line.split_once(' ')?;
            match name {
                BACKEND => {
                    backend =
                        [Backend::Nftables, Backend::Iptables].into_iter().find(|b| b.to_string() == value);
                }
                IPV6 => ipv6 = Some(value.parse().ok()?),
                DNS_SERVERS => {
                    let servers = value.split(',').filter(|server| !server.is_empty());
                    flags.dns_servers = servers.map(|server| server.parse().ok()).collect::<Option<_>>()?;
                }
                _ => set(&mut flags, name, value)?,
            }
        }
        let (settings, _) = parse_flags(&flags, &|_| None).ok()?;
        Some(Self { settings, target: PlanTarget { backend: backend?, ipv6: ipv6? } })
    }
}

fn set(flags: &mut IptablesFlags, name: &str, value: &str) -> Option<()> {
    if let Some((_, text)) = TEXTS.iter().find(|(known, _)| *known == name) {
        value.clone_into(text(flags));
    } else {
        let (_, switch) = SWITCHES.iter().find(|(known, _)| *known == name)?;
        *switch(flags) = value.parse().ok()?;
    }
    Some(())
}

// === impl SettingChange ===

impl fmt::Display for SettingChange {
    /// As `istio-service-exclude-cidr: none → 10.0.0.0/8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &String| if value.is_empty() { "none".to_owned() } else { value.clone() };
        write!(f, "{}: {} → {}", self.name, shown(&self.old), shown(&self.new))
    }
}

#[cfg(test)]
mod tests;
