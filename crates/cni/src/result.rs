//! Results: what a network looks like after an ADD.
//!
//! Inside there is one shape, that of CNI 1.1.0. Reading a result of an older version converts it up, printing converts
//! it to the version asked for; members that neither shape knows are dropped on the way.

mod wire;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::shorten;
use crate::json::{DecodeError, JsonNode, Value};
use crate::version::{ResultShape, SpecVersion};

/// A CNI result in the shape of version 1.1.0. Empty texts, lists and zero numbers mean absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// All interfaces that were made, host side included.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes of the container.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
}

/// An interface of a [`CniResult`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name, always printed.
    pub name: String,
    /// Hardware address as text.
    pub mac: String,
    /// Bytes; since 1.1.0.
    pub mtu: i64,
    /// Path of the namespace; empty for a host interface.
    pub sandbox: String,
    /// Path of a vhost-user or similar socket; since 1.1.0.
    pub socket_path: String,
    /// PCI address of the device; since 1.1.0.
    pub pci_id: String,
}

/// An address of a [`CniResult`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into [`CniResult::interfaces`], as given and not checked.
    pub interface: Option<i64>,
    /// Address with its prefix length, host bits kept.
    pub address: IpNet,
    /// Default gateway of this subnet.
    pub gateway: Option<IpAddr>,
}

/// A route of a [`CniResult`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    pub gw: Option<IpAddr>,
    /// Bytes.
    pub mtu: i64,
    /// Bytes.
    pub advmss: i64,
    /// Lower is preferred.
    pub priority: i64,
    /// Routing table; zero differs from absent.
    pub table: Option<i64>,
    /// Scope as in rtnetlink; zero (global) differs from absent.
    pub scope: Option<i64>,
}

/// Name resolution, in results and in the network configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers, as text and not checked.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// Why a result cannot be read or printed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// `prevResult.cniVersion` does not share the result's shape with the configuration's version.
    #[error(
        "could not parse prevResult: result type supports {supported} but unmarshalled CNIVersion is {found:?}"
    )]
    WrongFamily {
        /// The versions that would do.
        supported: String,
        /// What is there, shortened.
        found: String,
    },
    /// A member is missing, of the wrong type or has an impossible value.
    #[error("could not parse prevResult: {0}")]
    Decode(#[from] DecodeError),
    /// 0.1.0 and 0.2.0 cannot say "no address".
    #[error("cannot convert: no valid IP addresses")]
    NoAddress,
    /// The JSON text could not be written; does not happen for values of these types.
    #[error("cannot encode result: {0}")]
    Encode(String),
}

impl CniResult {
    /// Reads the `prevResult` of a configuration with version `config`. Its own `cniVersion` has to be of the same
    /// family; where it is missing, `config` is assumed.
    pub fn decode(value: &Value, config: SpecVersion) -> Result<Self, ResultError> {
        let node = JsonNode::root(value, "prevResult");
        let found = node.text_or_empty("cniVersion")?;
        let version = if found.is_empty() { Some(config) } else { SpecVersion::supported(&found) };
        if version.map(SpecVersion::family) != Some(config.family()) {
            let same = SpecVersion::SUPPORTED.into_iter().filter(|other| other.family() == config.family());
            let supported = format!("[{}]", same.map(|v| v.to_string()).collect::<Vec<_>>().join(" "));
            return Err(ResultError::WrongFamily { supported, found: shorten(&found) });
        }
        let result = match config.family() {
            ResultShape::Single => Self::decode_single(&node),
            ResultShape::Lists => Self::decode_lists(&node, Interface::decode_common),
            ResultShape::Current => Self::decode_lists(&node, Interface::decode),
        };
        Ok(result?)
    }

    fn decode_single(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        let mut result = Self { dns: Dns::decode_in(node)?, ..Self::default() };
        for key in ["ip4", "ip6"] {
            let Some(entry) = node.field(key)? else { continue };
            let address = read_net(&entry, "ip")?;
            result.ips.push(IpConfig { interface: None, address, gateway: read_ip(&entry, "gateway")? });
            result.routes.extend(entry.list("routes", Route::decode_single)?);
        }
        Ok(result)
    }

    fn decode_lists(
        node: &JsonNode<'_>,
        interface: fn(&JsonNode<'_>) -> Result<Interface, DecodeError>,
    ) -> Result<Self, DecodeError> {
        Ok(Self {
            interfaces: node.list("interfaces", interface)?,
            ips: node.list("ips", IpConfig::decode)?,
            routes: node.list("routes", Route::decode)?,
            dns: Dns::decode_in(node)?,
        })
    }

    /// The JSON text for stdout in the shape of `version`: 4-space indentation, keys in the order that the reference
    /// library prints them, no newline at the end.
    ///
    /// # Errors
    ///
    /// [`ResultError::NoAddress`] for 0.1.0 and 0.2.0 without any address.
    pub fn render(&self, version: SpecVersion) -> Result<Vec<u8>, ResultError> {
        wire::render(self, version)
    }
}

impl Interface {
    /// The members that all versions with interfaces share.
    fn decode_common(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: node.text_or_empty("name")?,
            mac: node.text_or_empty("mac")?,
            sandbox: node.text_or_empty("sandbox")?,
            ..Self::default()
        })
    }

    fn decode(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            mtu: node.maybe_integer("mtu")?.unwrap_or_default(),
            socket_path: node.text_or_empty("socketPath")?,
            pci_id: node.text_or_empty("pciID")?,
            ..Self::decode_common(node)?
        })
    }
}

impl IpConfig {
    fn decode(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            interface: node.maybe_integer("interface")?,
            address: read_net(node, "address")?,
            gateway: read_ip(node, "gateway")?,
        })
    }
}

impl Route {
    /// A route with a destination and a next hop.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }

    fn decode_single(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        Ok(Self::new(read_net(node, "dst")?, read_ip(node, "gw")?))
    }

    fn decode(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            mtu: node.maybe_integer("mtu")?.unwrap_or_default(),
            advmss: node.maybe_integer("advmss")?.unwrap_or_default(),
            priority: node.maybe_integer("priority")?.unwrap_or_default(),
            table: node.maybe_integer("table")?,
            scope: node.maybe_integer("scope")?,
            ..Self::decode_single(node)?
        })
    }
}

impl Dns {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The member `dns` of `parent`.
    pub(crate) fn decode_in(parent: &JsonNode<'_>) -> Result<Self, DecodeError> {
        let Some(node) = parent.field("dns")? else { return Ok(Self::default()) };
        Ok(Self {
            nameservers: node.texts("nameservers")?,
            domain: node.text_or_empty("domain")?,
            search: node.texts("search")?,
            options: node.texts("options")?,
        })
    }
}

fn read_net(parent: &JsonNode<'_>, key: &str) -> Result<IpNet, DecodeError> {
    let node = parent.required(key)?;
    let text = node.text()?;
    parse_net(text).ok_or_else(|| {
        let quoted = shorten(text);
        node.invalid(format!("{quoted:?} is not an address with a prefix length, such as 10.0.0.1/24"))
    })
}

fn read_ip(parent: &JsonNode<'_>, key: &str) -> Result<Option<IpAddr>, DecodeError> {
    let Some(node) = parent.field(key)? else { return Ok(None) };
    let text = node.text()?;
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(Some(ip.to_canonical())),
        Err(_) => Err(node.invalid(format!("{:?} is not an IP address", shorten(text)))),
    }
}

/// `address/length`; an IPv4-mapped address becomes IPv4, as the reference library prints it.
fn parse_net(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let net = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    let canonical = net.addr().to_canonical();
    if net.addr().is_ipv6() && canonical.is_ipv4() {
        // 96 bits of ::ffff:0:0/96 stand before the IPv4 address.
        return IpNet::new(canonical, net.prefix_len().saturating_sub(96)).ok();
    }
    Some(net)
}

#[cfg(test)]
mod tests;
