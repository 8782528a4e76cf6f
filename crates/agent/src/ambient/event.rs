//! What the plugin says of a new pod, as text from a socket: nothing of it is believed before it is a type.

use std::net::IpAddr;

use serde_json::{Map, Value};

/// A pod that the runtime is about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartingPod {
    /// `Netns`: a path on the node; may be empty.
    pub(crate) netns: String,
    /// `PodName`.
    pub(crate) name: String,
    /// `PodNamespace`.
    pub(crate) namespace: String,
    /// `PodUID`, from plugins of ours where the runtime tells them: what kubelet calls the pod.
    pub(crate) uid: Option<String>,
    /// `IPs[].Address.IP`, IPv4 addresses in IPv6 form taken out of it.
    pub(crate) ips: Vec<IpAddr>,
}

/// It is not what a plugin says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Not JSON, or more than one value.
    #[error("the event is not JSON: {0}")]
    NotJson(String),
    /// A member of another type.
    #[error("the event's {member} is not {expected}")]
    Type {
        /// Its name.
        member: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// No address.
    #[error("the event's address {0:?} is not an IP address")]
    Address(String),
    /// A pod has two addresses, not this many.
    #[error("the event has {0} addresses, more than {MAX_IPS}")]
    TooMany(usize),
    /// Longer than any that the kernel or Kubernetes takes, or with a zero byte.
    #[error("the event's {member} is longer than {limit} bytes or has a zero byte")]
    Text {
        /// Its name.
        member: &'static str,
        /// In bytes.
        limit: usize,
    },
}

/// Addresses in one event.
const MAX_IPS: usize = 32;
/// Longest name of a pod or namespace (Kubernetes' DNS subdomain).
const MAX_NAME: usize = 253;
/// Longest path (linux/limits.h, `PATH_MAX`).
const MAX_PATH: usize = 4095;

// === impl StartingPod ===

impl StartingPod {
    /// # Errors
    /// See [`Malformed`].
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let value = serde_json::from_slice(body).map_err(|error| Malformed::NotJson(error.to_string()))?;
        let Value::Object(members) = value else {
            return Err(Malformed::Type { member: "body", expected: "an object" });
        };
        Ok(Self {
            netns: text(&members, "Netns", MAX_PATH)?,
            name: text(&members, "PodName", MAX_NAME)?,
            namespace: text(&members, "PodNamespace", MAX_NAME)?,
            uid: Some(text(&members, "PodUID", MAX_NAME)?).filter(|uid| !uid.is_empty()),
            ips: addresses(&members)?,
        })
    }
}

/// A member by its name. The original's decoder ignores case, so another plugin's spelling must not matter.
fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let found = members
        .get(name)
        .or_else(|| members.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v));
    found.filter(|value| !value.is_null())
}

fn text(members: &Map<String, Value>, name: &'static str, limit: usize) -> Result<String, Malformed> {
    match member(members, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) if text.len() <= limit && !text.contains('\0') => Ok(text.clone()),
        Some(Value::String(_)) => Err(Malformed::Text { member: name, limit }),
        Some(_) => Err(Malformed::Type { member: name, expected: "text" }),
    }
}

fn addresses(members: &Map<String, Value>) -> Result<Vec<IpAddr>, Malformed> {
    let list = match member(members, "IPs") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(Malformed::Type { member: "IPs", expected: "a list" }),
    };
    if list.len() > MAX_IPS {
        return Err(Malformed::TooMany(list.len()));
    }
    let mut ips = Vec::new();
    for one in list {
        let Value::Object(one) = one else {
            return Err(Malformed::Type { member: "IPs[]", expected: "an object" });
        };
        let address = match member(one, "Address") {
            None => continue,
            Some(Value::Object(address)) => address,
            Some(_) => return Err(Malformed::Type { member: "IPs[].Address", expected: "an object" }),
        };
        let ip = text(address, "IP", MAX_NAME)?;
        if !ip.is_empty() {
            let parsed: IpAddr = ip.parse().map_err(|_| Malformed::Address(ip))?;
            ips.push(parsed.to_canonical());
        }
    }
    Ok(ips)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
