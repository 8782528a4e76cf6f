//! What the other end is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the other end is to the tenant of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PeerClass {
    /// A pod of the same tenant.
    Own,
    /// A pod of another tenant that a rule or a grant names.
    Tenant(Box<str>),
    /// A pod of a namespace without a tenant.
    Unassigned,
    /// A node of the cluster.
    Node,
    /// An address of a Service: where packets are counted before a service proxy has chosen where they go.
    Service,
    /// Everything else: what is outside of the cluster, and what is in no other class.
    External,
    /// Whatever it is: what was dropped at the pod.
    Denied,
}

/// What the text of a tenant begins with.
const TENANT: &str = "tenant:";

// === impl PeerClass ===

impl PeerClass {
    /// The tenant at the other end, where there is one, of a pod of `own`.
    pub fn tenant<'a>(&'a self, own: &'a str) -> Option<&'a str> {
        match self {
            Self::Own => Some(own),
            Self::Tenant(name) => Some(name),
            _ => None,
        }
    }

    /// The class as a part of names in the kernel, which are short. Names of tenants are longer.
    pub(crate) fn short(&self) -> String {
        match self {
            Self::Own => "own".to_owned(),
            Self::Tenant(name) => format!("t-{:016x}", hash(name)),
            Self::Unassigned => "unassigned".to_owned(),
            Self::Node => "node".to_owned(),
            Self::Service => "service".to_owned(),
            Self::External => "external".to_owned(),
            Self::Denied => "denied".to_owned(),
        }
    }
}

impl fmt::Display for PeerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own",
            Self::Tenant(name) => return write!(f, "{TENANT}{name}"),
            Self::Unassigned => "unassigned",
            Self::Node => "node",
            Self::Service => "service",
            Self::External => "external",
            Self::Denied => "denied",
        })
    }
}

impl FromStr for PeerClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "own" => Self::Own,
            "unassigned" => Self::Unassigned,
            "node" => Self::Node,
            "service" => Self::Service,
            "external" => Self::External,
            "denied" => Self::Denied,
            _ => match text.strip_prefix(TENANT).filter(|name| !name.is_empty()) {
                Some(name) => Self::Tenant(name.into()),
                None => return Err(format!("{text:?} is no class of peers")),
            },
        })
    }
}

impl TryFrom<String> for PeerClass {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PeerClass> for String {
    fn from(class: PeerClass) -> Self {
        class.to_string()
    }
}

/// FNV-1a: the names have to be the same for each version of the agent.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
