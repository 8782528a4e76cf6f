//! Results on the wire. The order of the fields here is the order of the keys in the output.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{CniResult, Dns, ResultError};
use crate::version::{ResultShape, SpecVersion};

pub(super) fn render(result: &CniResult, version: SpecVersion) -> Result<Vec<u8>, ResultError> {
    let text = version.to_string();
    let encoded = match version.family() {
        ResultShape::Single => crate::json::to_pretty(&Single::from(result, &text)?),
        ResultShape::Lists => crate::json::to_pretty(&Lists::from(result, &text)),
        ResultShape::Current => crate::json::to_pretty(&Current::from(result, &text)),
    };
    encoded.map_err(|error| ResultError::Encode(error.to_string()))
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

// === 0.1.0, 0.2.0 ===

#[derive(Serialize)]
struct Single<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<SingleIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<SingleIp>,
    dns: DnsOrdered<'a>,
}

#[derive(Serialize)]
struct SingleIp {
    ip: IpText<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpText<IpAddr>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<SingleRoute>,
}

#[derive(Serialize)]
struct SingleRoute {
    dst: IpText<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpText<IpAddr>>,
}

impl<'a> Single<'a> {
    fn from(result: &'a CniResult, version: &'a str) -> Result<Self, ResultError> {
        let first = |v4: bool| {
            let entry = result.ips.iter().find(|entry| entry.address.addr().is_ipv4() == v4)?;
            let routes = result.routes.iter().filter(|route| route.dst.addr().is_ipv4() == v4);
            Some(SingleIp {
                ip: IpText(entry.address),
                gateway: entry.gateway.map(IpText),
                routes: routes
                    .map(|route| SingleRoute { dst: IpText(route.dst), gw: route.gw.map(IpText) })
                    .collect(),
            })
        };
        let (ip4, ip6) = (first(true), first(false));
        if ip4.is_none() && ip6.is_none() {
            return Err(ResultError::NoAddress);
        }
        Ok(Self { version, ip4, ip6, dns: DnsOrdered::from(&result.dns) })
    }
}

// === 0.3.0, 0.3.1, 0.4.0 ===

#[derive(Serialize)]
struct Lists<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<ListsInterface<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<ListsIp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<ListsRoute>,
    dns: DnsOrdered<'a>,
}

#[derive(Serialize)]
struct ListsInterface<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
}

#[derive(Serialize)]
struct ListsIp {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
    address: IpText<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpText<IpAddr>>,
}

#[derive(Serialize)]
struct ListsRoute {
    dst: IpText<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpText<IpAddr>>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(skip_serializing_if = "is_zero")]
    advmss: i64,
    #[serde(skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
}

#[derive(Serialize)]
struct DnsOrdered<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    nameservers: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    domain: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    search: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    options: &'a [String],
}

impl<'a> Lists<'a> {
    fn from(result: &'a CniResult, version: &'a str) -> Self {
        let interfaces = result.interfaces.iter();
        let ips = result.ips.iter();
        let routes = result.routes.iter();
        Self {
            version,
            interfaces: interfaces
                .map(|entry| ListsInterface { name: &entry.name, mac: &entry.mac, sandbox: &entry.sandbox })
                .collect(),
            ips: ips
                .map(|entry| ListsIp {
                    version: if entry.address.addr().is_ipv4() { "4" } else { "6" },
                    interface: entry.interface,
                    address: IpText(entry.address),
                    gateway: entry.gateway.map(IpText),
                })
                .collect(),
            routes: routes
                .map(|entry| ListsRoute {
                    dst: IpText(entry.dst),
                    gw: entry.gw.map(IpText),
                    mtu: entry.mtu,
                    advmss: entry.advmss,
                    priority: entry.priority,
                    table: entry.table,
                    scope: entry.scope,
                })
                .collect(),
            dns: DnsOrdered::from(&result.dns),
        }
    }
}

impl<'a> DnsOrdered<'a> {
    fn from(dns: &'a Dns) -> Self {
        Self {
            nameservers: &dns.nameservers,
            domain: &dns.domain,
            search: &dns.search,
            options: &dns.options,
        }
    }
}

// === 1.0.0, 1.1.0: alphabetical, because the reference library goes through a sorted map ===

#[derive(Serialize)]
struct Current<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<CurrentDns<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<CurrentInterface<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<CurrentIp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<CurrentRoute>,
}

#[derive(Serialize)]
struct CurrentDns<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    domain: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    nameservers: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    options: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    search: &'a [String],
}

#[derive(Serialize)]
struct CurrentInterface<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: i64,
    name: &'a str,
    #[serde(rename = "pciID", skip_serializing_if = "str::is_empty")]
    pci_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
    #[serde(rename = "socketPath", skip_serializing_if = "str::is_empty")]
    socket_path: &'a str,
}

#[derive(Serialize)]
struct CurrentIp {
    address: IpText<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpText<IpAddr>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
}

#[derive(Serialize)]
struct CurrentRoute {
    #[serde(skip_serializing_if = "is_zero")]
    advmss: i64,
    dst: IpText<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpText<IpAddr>>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
}

impl<'a> Current<'a> {
    fn from(result: &'a CniResult, version: &'a str) -> Self {
        let dns = &result.dns;
        let interfaces = result.interfaces.iter().map(|entry| CurrentInterface {
            mac: &entry.mac,
            mtu: entry.mtu,
            name: &entry.name,
            pci_id: &entry.pci_id,
            sandbox: &entry.sandbox,
            socket_path: &entry.socket_path,
        });
        let ips = result.ips.iter().map(|entry| CurrentIp {
            address: IpText(entry.address),
            gateway: entry.gateway.map(IpText),
            interface: entry.interface,
        });
        let routes = result.routes.iter().map(|entry| CurrentRoute {
            advmss: entry.advmss,
            dst: IpText(entry.dst),
            gw: entry.gw.map(IpText),
            mtu: entry.mtu,
            priority: entry.priority,
            scope: entry.scope,
            table: entry.table,
        });
        Self {
            version,
            dns: (!dns.is_empty()).then(|| CurrentDns {
                domain: &dns.domain,
                nameservers: &dns.nameservers,
                options: &dns.options,
                search: &dns.search,
            }),
            interfaces: interfaces.collect(),
            ips: ips.collect(),
            routes: routes.collect(),
        }
    }
}

/// An address or a network, printed in its canonical text.
struct IpText<T>(T);

impl<T: std::fmt::Display> Serialize for IpText<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
