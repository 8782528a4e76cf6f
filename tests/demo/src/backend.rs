//! The two kernel interfaces, as they are looked at from outside: with their own programs.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use testkit::TestNetns;
use testkit::rules::{Family, Variant};

/// Where the rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    Nftables,
    Iptables,
}

/// A rule as `cnictl explain` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RulePlace {
    pub(crate) table: String,
    pub(crate) chain: String,
    /// From 1.
    pub(crate) position: usize,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// How many rules of Istio the kernel lists in a namespace: through this interface, and through the other one.
    ///
    /// # Errors
    /// `nft` fails.
    pub(crate) fn count_rules(self, namespace: &TestNetns) -> Result<(usize, usize)> {
        let (nftables, iptables) = (count_nftables(namespace)?, count_iptables(namespace));
        Ok(match self {
            Self::Nftables => (nftables, iptables),
            Self::Iptables => (iptables, nftables),
        })
    }

    /// Deletes a rule, as somebody does who does not know what it is for; what the kernel called it.
    ///
    /// # Errors
    /// There is no such rule.
    pub(crate) fn delete_rule(self, namespace: &TestNetns, place: &RulePlace) -> Result<()> {
        match self {
            Self::Nftables => delete_nftables(namespace, place),
            Self::Iptables => delete_iptables(namespace, place),
        }
    }
}

fn count_nftables(namespace: &TestNetns) -> Result<usize> {
    let objects = namespace.nft_json(testkit::rules::Comments::Keep)?;
    let ours =
        |object: &&Value| object["rule"]["table"].as_str().is_some_and(|table| table.starts_with("istio-"));
    Ok(objects.iter().filter(ours).count())
}

/// Programs that the machine does not have, or that its kernel does not serve, list nothing.
fn count_iptables(namespace: &TestNetns) -> usize {
    let lists = [Variant::Nft, Variant::Legacy].into_iter().flat_map(|variant| {
        [Family::V4, Family::V6].map(|family| namespace.iptables_save(variant, family).unwrap_or_default())
    });
    lists.map(|list| list.lines().filter(|l| l.starts_with("-A ") && l.contains("ISTIO_")).count()).sum()
}

fn delete_nftables(namespace: &TestNetns, place: &RulePlace) -> Result<()> {
    let RulePlace { table, chain, position } = place;
    let text =
        namespace.run(Command::new("nft").args(["-j", "-a", "list", "chain", "inet", table, chain]))?;
    let list: Value = serde_json::from_str(&text).context("nft printed no JSON")?;
    let mut rules = list["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("rule"));
    let handle = rules
        .nth(position - 1)
        .and_then(|rule| rule["handle"].as_u64())
        .with_context(|| format!("chain {chain} of table {table} has no rule {position}"))?;
    namespace.nft(&format!("delete rule inet {table} {chain} handle {handle}"))
}

fn delete_iptables(namespace: &TestNetns, place: &RulePlace) -> Result<()> {
    let RulePlace { table, chain, position } = place;
    let legacy = namespace.iptables_save(Variant::Legacy, Family::V4).unwrap_or_default().contains(chain);
    let program = if legacy { "iptables-legacy" } else { "iptables-nft" };
    namespace.run(Command::new(program).args(["-w", "-t", table, "-D", chain, &position.to_string()]))?;
    Ok(())
}
