//! `ports` of a policy's rule.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, de};

/// A protocol with ports that a policy can name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyProtocol {
    /// Where none is named.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which is never TCP, whether or not the kernel has it.
    Sctp,
}

/// Ports of the destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// All ports of a protocol.
    All(PolicyProtocol),
    /// From a number to a number, both included; none is 0.
    Range(PolicyProtocol, (u16, u16)),
    /// Those that the destination's containers give this name, with this protocol. It has none outside of pods.
    Named(PolicyProtocol, Box<str>),
}

/// Why the API server would refuse a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Another protocol.
    #[error("a protocol is not TCP, UDP or SCTP")]
    Protocol,
    /// Not from 1 to 65535.
    #[error("a port is not a number from 1 to 65535")]
    Number,
    /// No name that a container's port can have.
    #[error("a port's name is not a valid name of a container port")]
    Name,
    /// `endPort` below `port`, or beside a name, or alone.
    #[error("endPort is below port, or port is no number")]
    End,
}

/// A port as it is written: a number or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NumberOrName {
    /// A number, which may be out of range.
    Number(i64),
    /// A name.
    Name(Box<str>),
}

impl PolicyProtocol {
    /// From its name in an object; TCP where there is none.
    ///
    /// # Errors
    /// There is no such protocol.
    pub fn parse(name: Option<&str>) -> Result<Self, PortError> {
        match name {
            None | Some("TCP") => Ok(Self::Tcp),
            Some("UDP") => Ok(Self::Udp),
            Some("SCTP") => Ok(Self::Sctp),
            Some(_) => Err(PortError::Protocol),
        }
    }

    /// Its name in objects.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl Port {
    /// From the fields of an entry.
    ///
    /// # Errors
    /// See [`PortError`].
    pub fn parse(
        protocol: Option<&str>,
        port: Option<NumberOrName>,
        end: Option<i64>,
    ) -> Result<Self, PortError> {
        let protocol = PolicyProtocol::parse(protocol)?;
        match (port, end) {
            (None, None) => Ok(Self::All(protocol)),
            (Some(NumberOrName::Name(name)), None) if is_port_name(&name) => Ok(Self::Named(protocol, name)),
            (Some(NumberOrName::Name(_)), None) => Err(PortError::Name),
            (Some(NumberOrName::Number(first)), end) => {
                let (first, last) = (number(first)?, number(end.unwrap_or(first))?);
                if last < first { Err(PortError::End) } else { Ok(Self::Range(protocol, (first, last))) }
            }
            (_, Some(_)) => Err(PortError::End),
        }
    }

    /// The numbers, where they do not depend on a pod.
    pub fn numbers(&self) -> Option<RangeInclusive<u16>> {
        match self {
            Self::All(_) => Some(1..=u16::MAX),
            Self::Range(_, (first, last)) => Some(*first..=*last),
            Self::Named(..) => None,
        }
    }
}

/// A port's number.
///
/// # Errors
/// It is none.
pub(crate) fn number(number: i64) -> Result<u16, PortError> {
    u16::try_from(number).ok().filter(|number| *number > 0).ok_or(PortError::Number)
}

/// As Kubernetes validates it (`IsValidPortName` in apimachinery's `validation.go`): an IANA service name.
pub(crate) fn is_port_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=15).contains(&name.len())
        && name.bytes().all(allowed)
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !(name.starts_with('-') || name.ends_with('-') || name.contains("--"))
}

impl<'de> Deserialize<'de> for NumberOrName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = NumberOrName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a name")
            }

            fn visit_i64<E>(self, number: i64) -> Result<NumberOrName, E> {
                Ok(NumberOrName::Number(number))
            }

            fn visit_u64<E>(self, number: u64) -> Result<NumberOrName, E> {
                Ok(NumberOrName::Number(i64::try_from(number).unwrap_or(i64::MAX)))
            }

            fn visit_str<E>(self, name: &str) -> Result<NumberOrName, E> {
                Ok(NumberOrName::Name(name.into()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
