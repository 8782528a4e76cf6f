//! The ways to load a plan.

use kernel::iptables::{Iptables, Variant};
use ruleset::Backend;

/// A way to load a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Nft,
    Iptables(Variant),
}

impl Way {
    pub(crate) const ALL: [Self; 3] =
        [Self::Nft, Self::Iptables(Variant::Nft), Self::Iptables(Variant::Legacy)];

    pub(crate) fn backend(self) -> Backend {
        match self {
            Self::Nft => Backend::Nftables,
            Self::Iptables(_) => Backend::Iptables,
        }
    }

    pub(crate) fn iptables(self) -> Iptables {
        match self {
            Self::Nft => Iptables::new(),
            Self::Iptables(variant) => Iptables::forced(variant),
        }
    }
}
