//! Parsers of the values that annotations, environment variables and flags share.
//!
//! Every function takes untrusted text and gives types; none of the text goes any further.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::settings::{OwnerGroups, PortChoice, Prefixes, Ranges};

/// The longest list that is read, in bytes. Kubernetes allows 256 KiB of annotations in all; a list of this length already makes
/// thousands of rules.
pub const MAX_LIST_BYTES: usize = 64 * 1024;

/// The most rules that two lists may make together: each rerouted interface has one for each captured range.
pub const MAX_RULES: usize = 10_000;

/// The most groups that may be included.
pub const MAX_OWNER_GROUPS: usize = 64;

/// Why a value is not what it should be. The text is shortened and escaped, so that it can stand in a log line or pod event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// More text than a list may have.
    #[error("{len} bytes are too long a list; at most {MAX_LIST_BYTES} are read")]
    TooLong {
        /// Bytes.
        len: usize,
    },
    /// An item of a port list.
    #[error("port list {list}: item {item} is not a number from 0 to 65535")]
    Port {
        /// List.
        list: Quoted,
        /// Item.
        item: Quoted,
    },
    /// A single port.
    #[error("{value} is not a port from 1 to 65535")]
    SinglePort {
        /// Value.
        value: Quoted,
    },
    /// An item of a CIDR list.
    #[error("{item} is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32: {cause}")]
    Cidr {
        /// Item.
        item: Quoted,
        /// Cause.
        cause: &'static str,
    },
    /// An interface list with nothing between two commas.
    #[error("empty interface name")]
    InterfaceEmpty,
    /// An interface name that the kernel could not have.
    #[error("interface name {name} too long (max 15 chars)")]
    InterfaceTooLong {
        /// Name.
        name: Quoted,
    },
    /// An interface name with other characters than letters, digits, `_`, `.`, `-`, or that does not begin with a letter.
    #[error("interface name {name} contains invalid characters")]
    InterfaceCharacters {
        /// Name.
        name: Quoted,
    },
    /// A user or group id.
    #[error("{value} is not an id from 0 to 4294967295")]
    Id {
        /// Value.
        value: Quoted,
    },
    /// A group that is neither a number nor a known name.
    #[error("group {name} is not a number and not in the group database")]
    Group {
        /// Name.
        name: Quoted,
    },
    /// Too many groups.
    #[error("{count} groups are included; at most {MAX_OWNER_GROUPS} are possible")]
    TooManyGroups {
        /// How many.
        count: usize,
    },
    /// A loopback range that is none.
    #[error("{value} is not an IPv4 loopback range with a prefix length from 8 to 32, such as 127.0.0.1/32")]
    Loopback {
        /// Value.
        value: Quoted,
    },
    /// A mode that does not exist.
    #[error("interceptionMode invalid: {value}; it is REDIRECT, TPROXY or NONE")]
    Mode {
        /// Value.
        value: Quoted,
    },
    /// Lists that together make too many rules.
    #[error(
        "{interfaces} interfaces and {ranges} ranges make {MAX_RULES} rules or more; give fewer of either"
    )]
    TooManyRules {
        /// Interfaces.
        interfaces: usize,
        /// Ranges.
        ranges: usize,
    },
    /// A wildcard where none is possible.
    #[error("\"*\" is not possible here; give CIDRs")]
    Wildcard,
}

/// One of the two lists of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupList {
    /// Whose traffic is captured.
    Include,
    /// Whose is not.
    Exclude,
}

/// Untrusted text for people: quoted, control characters escaped, shortened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    /// Quotes at most 64 characters of `text`.
    pub fn new(text: &str) -> Self {
        let mut short: String = text.chars().take(64).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        Self(format!("{short:?}"))
    }
}

impl std::fmt::Display for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Untrusted text for people, without quotes: names of pods and containers, which a manifest that no API server has seen may set
/// to anything.
pub(crate) fn printable(text: &str) -> String {
    text.escape_debug().collect()
}

/// Boolean text as Go's `strconv.ParseBool` reads it; `None` is not a boolean.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// `*` or a list of ports. Blanks around items are ignored, a port that stands twice counts once, and the empty text is no port.
///
/// # Errors
/// The text is too long or an item is not a port.
pub fn parse_ports(text: &str) -> Result<PortChoice, ValueError> {
    let list = bounded(text)?.trim();
    if list == "*" {
        return Ok(PortChoice::All);
    }
    if list.is_empty() {
        return Ok(PortChoice::none());
    }
    let mut seen = vec![false; usize::from(u16::MAX) + 1];
    let mut ports = Vec::new();
    for item in list.split(',') {
        let port = parse_digits::<u16>(item.trim())
            .ok_or_else(|| ValueError::Port { list: Quoted::new(list), item: Quoted::new(item) })?;
        if !std::mem::replace(&mut seen[usize::from(port)], true) {
            ports.push(port);
        }
    }
    Ok(PortChoice::Only(ports))
}

/// One port that something listens on.
///
/// # Errors
/// The text is not a number from 1 to 65535.
pub fn parse_port(text: &str) -> Result<u16, ValueError> {
    match parse_digits::<u16>(text.trim()) {
        Some(port) if port > 0 => Ok(port),
        _ => Err(ValueError::SinglePort { value: Quoted::new(text) }),
    }
}

/// `*` or a list of CIDRs.
///
/// # Errors
/// As [`parse_prefixes`].
pub fn parse_ranges(text: &str) -> Result<Ranges, ValueError> {
    if text == "*" { Ok(Ranges::All) } else { parse_prefixes(text).map(Ranges::Only) }
}

/// A list of CIDRs without blanks; the empty text is none. Host bits may be set.
///
/// # Errors
/// The text is too long or an item is not a CIDR.
pub fn parse_prefixes(text: &str) -> Result<Prefixes, ValueError> {
    let mut prefixes = Prefixes::default();
    if bounded(text)?.is_empty() {
        return Ok(prefixes);
    }
    if text == "*" {
        return Err(ValueError::Wildcard);
    }
    for item in text.split(',') {
        match parse_cidr(item).map_err(|cause| ValueError::Cidr { item: Quoted::new(item), cause })? {
            ipnet::IpNet::V4(net) if !prefixes.v4.contains(&net) => prefixes.v4.push(net),
            ipnet::IpNet::V6(net) if !prefixes.v6.contains(&net) => prefixes.v6.push(net),
            _ => {}
        }
    }
    Ok(prefixes)
}

/// A list of interface names; blanks around items are ignored and the empty text is none.
///
/// # Errors
/// An item could not be an interface's name.
pub fn parse_interfaces(text: &str) -> Result<Vec<String>, ValueError> {
    let mut names: Vec<String> = Vec::new();
    if bounded(text)?.is_empty() {
        return Ok(names);
    }
    for item in text.split(',') {
        let name = parse_interface(item.trim())?;
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// One interface name.
///
/// # Errors
/// It could not be an interface's name.
pub fn parse_interface(name: &str) -> Result<&str, ValueError> {
    let mut chars = name.chars();
    let Some(first) = chars.next() else { return Err(ValueError::InterfaceEmpty) };
    // IFNAMSIZ of linux/if.h is 16 with the terminating zero.
    if name.len() > 15 {
        return Err(ValueError::InterfaceTooLong { name: Quoted::new(name) });
    }
    if !first.is_ascii_alphabetic()
        || !chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
    {
        return Err(ValueError::InterfaceCharacters { name: Quoted::new(name) });
    }
    Ok(name)
}

/// A list of user or group ids, empty items dropped.
///
/// # Errors
/// An item is not an id.
pub fn parse_ids(text: &str) -> Result<Vec<u32>, ValueError> {
    bounded(text)?.split(',').filter(|item| !item.is_empty()).map(parse_id).collect()
}

/// A user or group id.
///
/// # Errors
/// The text is not a decimal number that fits.
pub fn parse_id(text: &str) -> Result<u32, ValueError> {
    parse_digits::<u32>(text.trim()).ok_or_else(|| ValueError::Id { value: Quoted::new(text) })
}

/// The groups of `include` (`*` for all) without those of `exclude`. Items are numbers or names, which `resolve` looks up.
///
/// # Errors
/// A name is not known, or there are too many groups. The first value says which list it is in.
pub fn parse_owner_groups(
    include: &str,
    exclude: &str,
    resolve: &dyn Fn(&str) -> Option<u32>,
) -> Result<OwnerGroups, (GroupList, ValueError)> {
    let group = |item: &str| {
        parse_digits::<u32>(item)
            .or_else(|| resolve(item))
            .ok_or_else(|| ValueError::Group { name: Quoted::new(item) })
    };
    let groups = |list: &str| -> Result<Vec<u32>, ValueError> {
        bounded(list)?.split(',').filter(|item| !item.is_empty()).map(group).collect()
    };
    if include == "*" {
        return groups(exclude).map(OwnerGroups::AllBut).map_err(|cause| (GroupList::Exclude, cause));
    }
    let included = groups(include).map_err(|cause| (GroupList::Include, cause))?;
    if included.len() > MAX_OWNER_GROUPS {
        return Err((GroupList::Include, ValueError::TooManyGroups { count: included.len() }));
    }
    Ok(OwnerGroups::Only(included))
}

/// An IPv4 loopback range.
///
/// # Errors
/// The text is another range or none.
pub fn parse_loopback(text: &str) -> Result<Ipv4Net, ValueError> {
    match parse_cidr(text) {
        Ok(ipnet::IpNet::V4(net)) if net.addr().is_loopback() && net.prefix_len() >= 8 => Ok(net),
        _ => Err(ValueError::Loopback { value: Quoted::new(text) }),
    }
}

/// `address/bits`, strictly: no zone, no leading zeros, bits in range.
fn parse_cidr(item: &str) -> Result<ipnet::IpNet, &'static str> {
    if item.contains(char::is_whitespace) {
        return Err("there is a blank in it");
    }
    let (address, bits) = item.split_once('/').ok_or("there is no \"/\"")?;
    if bits.len() > 1 && bits.starts_with('0') {
        return Err("the prefix length has a leading zero");
    }
    let bits = parse_digits::<u8>(bits).ok_or("the prefix length is not a number")?;
    if let Ok(v4) = address.parse::<Ipv4Addr>() {
        return Ipv4Net::new(v4, bits).map(Into::into).map_err(|_| "the prefix length is over 32");
    }
    match address.parse::<Ipv6Addr>() {
        Ok(v6) => Ipv6Net::new(v6, bits).map(Into::into).map_err(|_| "the prefix length is over 128"),
        Err(_) => Err("the part before \"/\" is not an IP address"),
    }
}

/// Decimal digits only: no sign, which `str::parse` would take.
fn parse_digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

fn bounded(text: &str) -> Result<&str, ValueError> {
    if text.len() > MAX_LIST_BYTES { Err(ValueError::TooLong { len: text.len() }) } else { Ok(text) }
}

#[cfg(test)]
mod tests;
