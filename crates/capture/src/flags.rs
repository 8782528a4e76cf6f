//! Settings as text, the way `istio-iptables` takes them by flags and environment.
//!
//! The same fields, under the same names, make up the reference cases that conformance is checked with.

use std::net::IpAddr;

use crate::settings::{DnsCapture, Mode, OwnerGroups, PortChoice, Prefixes, Ranges, Settings};
use crate::values::{
    GroupList, ValueError, parse_id, parse_ids, parse_interfaces, parse_loopback, parse_owner_groups,
    parse_port, parse_ports, parse_prefixes, parse_ranges,
};

/// The values of the flags that shape rules; lists are separated by commas, empty items are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each field is the flag of its name; istio-iptables documents them for people"
)]
pub struct IptablesFlags {
    pub proxy_port: String,
    pub inbound_capture_port: String,
    pub inbound_tunnel_port: String,
    pub proxy_uid: String,
    pub proxy_gid: String,
    pub inbound_interception_mode: String,
    pub inbound_tproxy_mark: String,
    pub inbound_tproxy_route_table: String,
    pub inbound_ports_include: String,
    pub inbound_ports_exclude: String,
    pub owner_groups_include: String,
    pub owner_groups_exclude: String,
    pub outbound_ports_include: String,
    pub outbound_ports_exclude: String,
    pub outbound_ip_ranges_include: String,
    pub outbound_ip_ranges_exclude: String,
    pub reroute_virtual_interfaces: String,
    pub exclude_interfaces: String,
    pub host_ipv4_loopback_cidr: String,
    pub redirect_dns: bool,
    pub capture_all_dns: bool,
    pub drop_invalid: bool,
    pub dual_stack: bool,
    pub dns_servers: Vec<IpAddr>,
}

/// A flag whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {cause}")]
pub struct FlagError {
    /// Long name.
    pub flag: &'static str,
    /// Cause.
    pub cause: ValueError,
}

/// Parses the flags; group names are looked up by `resolve`. The second value is a warning for people.
///
/// # Errors
/// The first flag whose value cannot be used.
pub fn parse_flags(
    flags: &IptablesFlags,
    resolve: &dyn Fn(&str) -> Option<u32>,
) -> Result<(Settings, Option<String>), FlagError> {
    let (dns, warning) = dns(flags);
    let settings = Settings {
        proxy_port: flag("envoy-port", &flags.proxy_port, parse_port)?,
        capture_port: flag("inbound-capture-port", &flags.inbound_capture_port, parse_port)?,
        tunnel_port: flag("inbound-tunnel-port", &flags.inbound_tunnel_port, parse_port)?,
        proxy_uids: flag("proxy-uid", &flags.proxy_uid, parse_ids)?,
        proxy_gids: flag("proxy-gid", &flags.proxy_gid, parse_ids)?,
        // Anything but TPROXY, also nothing, is REDIRECT.
        mode: if flags.inbound_interception_mode == "TPROXY" { Mode::Tproxy } else { Mode::Redirect },
        tproxy_mark: flag("istio-inbound-tproxy-mark", &flags.inbound_tproxy_mark, parse_id)?,
        tproxy_table: flag("istio-inbound-tproxy-route-table", &flags.inbound_tproxy_route_table, parse_id)?,
        inbound_ports: list("istio-inbound-ports", &flags.inbound_ports_include, parse_ports)?,
        inbound_ports_excluded: list("istio-local-exclude-ports", &flags.inbound_ports_exclude, parse_ports)?,
        outbound_ports: list("istio-outbound-ports", &flags.outbound_ports_include, parse_ports)?,
        outbound_ports_excluded: list(
            "istio-local-outbound-ports-exclude",
            &flags.outbound_ports_exclude,
            parse_ports,
        )?,
        outbound_ranges: list("istio-service-cidr", &flags.outbound_ip_ranges_include, parse_ranges)?,
        outbound_ranges_excluded: list(
            "istio-service-exclude-cidr",
            &flags.outbound_ip_ranges_exclude,
            parse_prefixes,
        )?,
        owner_groups: parse_owner_groups(&flags.owner_groups_include, &flags.owner_groups_exclude, resolve)
            .map_err(|(list, cause)| match list {
            GroupList::Include => FlagError { flag: "istio-outbound-owner-groups", cause },
            GroupList::Exclude => FlagError { flag: "istio-outbound-owner-groups-exclude", cause },
        })?,
        reroute_interfaces: list(
            "kube-virt-interfaces",
            &flags.reroute_virtual_interfaces,
            parse_interfaces,
        )?,
        excluded_interfaces: list("istio-exclude-interfaces", &flags.exclude_interfaces, parse_interfaces)?,
        dns,
        drop_invalid: flags.drop_invalid,
        dual_stack: flags.dual_stack,
        loopback_v4: flag(
            "istio-outbound-ipv4-loopback-cidr",
            &flags.host_ipv4_loopback_cidr,
            parse_loopback,
        )?,
    };
    Ok((settings, warning))
}

/// Capture of DNS needs either every server or known ones.
fn dns(flags: &IptablesFlags) -> (DnsCapture, Option<String>) {
    match (flags.redirect_dns, flags.capture_all_dns) {
        (false, _) => (DnsCapture::Off, None),
        (true, true) => (DnsCapture::All, None),
        (true, false) if flags.dns_servers.is_empty() => (
            DnsCapture::Off,
            Some("--redirect-dns without a DNS server in resolv.conf: DNS is not captured".to_owned()),
        ),
        (true, false) => {
            let v4 =
                flags.dns_servers.iter().filter_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
            let v6 =
                flags.dns_servers.iter().filter_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
            (DnsCapture::Servers { v4: v4.collect(), v6: v6.collect() }, None)
        }
    }
}

/// The addresses of the `nameserver` lines of a resolv.conf (resolv.conf(5)); others, and zones, are passed over.
pub fn parse_nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(|address| address.parse().ok())
        .collect()
}

fn flag<T>(
    flag: &'static str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Result<T, FlagError> {
    parse(text).map_err(|cause| FlagError { flag, cause })
}

fn list<T>(
    flag: &'static str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Result<T, FlagError> {
    if text.len() > crate::values::MAX_LIST_BYTES {
        return Err(FlagError { flag, cause: ValueError::TooLong { len: text.len() } });
    }
    let items: Vec<&str> = text.split(',').filter(|item| !item.is_empty()).collect();
    self::flag(flag, &items.join(","), parse)
}

// === impl IptablesFlags ===

impl From<&Settings> for IptablesFlags {
    /// The flags that [`parse_flags`] makes these settings of.
    fn from(settings: &Settings) -> Self {
        let (owner_groups_include, owner_groups_exclude) = match &settings.owner_groups {
            OwnerGroups::AllBut(groups) => ("*".to_owned(), joined(groups)),
            OwnerGroups::Only(groups) => (joined(groups), String::new()),
        };
        let dns_servers = match &settings.dns {
            DnsCapture::Off | DnsCapture::All => Vec::new(),
            DnsCapture::Servers { v4, v6 } => {
                v4.iter().copied().map(IpAddr::V4).chain(v6.iter().copied().map(IpAddr::V6)).collect()
            }
        };
        let mode = if settings.mode == Mode::Tproxy { "TPROXY" } else { "REDIRECT" };
        Self {
            proxy_port: settings.proxy_port.to_string(),
            inbound_capture_port: settings.capture_port.to_string(),
            inbound_tunnel_port: settings.tunnel_port.to_string(),
            proxy_uid: joined(&settings.proxy_uids),
            proxy_gid: joined(&settings.proxy_gids),
            inbound_interception_mode: mode.to_owned(),
            inbound_tproxy_mark: settings.tproxy_mark.to_string(),
            inbound_tproxy_route_table: settings.tproxy_table.to_string(),
            inbound_ports_include: ports(&settings.inbound_ports),
            inbound_ports_exclude: ports(&settings.inbound_ports_excluded),
            owner_groups_include,
            owner_groups_exclude,
            outbound_ports_include: ports(&settings.outbound_ports),
            outbound_ports_exclude: ports(&settings.outbound_ports_excluded),
            outbound_ip_ranges_include: match &settings.outbound_ranges {
                Ranges::All => "*".to_owned(),
                Ranges::Only(only) => prefixes(only),
            },
            outbound_ip_ranges_exclude: prefixes(&settings.outbound_ranges_excluded),
            reroute_virtual_interfaces: joined(&settings.reroute_interfaces),
            exclude_interfaces: joined(&settings.excluded_interfaces),
            host_ipv4_loopback_cidr: settings.loopback_v4.to_string(),
            redirect_dns: settings.dns != DnsCapture::Off,
            capture_all_dns: settings.dns == DnsCapture::All,
            drop_invalid: settings.drop_invalid,
            dual_stack: settings.dual_stack,
            dns_servers,
        }
    }
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn ports(choice: &PortChoice) -> String {
    match choice {
        PortChoice::All => "*".to_owned(),
        PortChoice::Only(ports) => joined(ports),
    }
}

fn prefixes(prefixes: &Prefixes) -> String {
    let both = [joined(&prefixes.v4), joined(&prefixes.v6)];
    both.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
