//! What the kernel lists, without what differs from run to run.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::namespace::TestNetns;

/// Whether comments of rules and set elements stay in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comments {
    /// They stay.
    Keep,
    /// They are removed: for comparing with rules that explain themselves in other words.
    Strip,
}

/// The two implementations of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// The family of a list of iptables rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl TestNetns {
    /// `nft -j list ruleset`, as the array of its objects: without the header, handles and counter values; elements of
    /// sets are sorted.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn nft_json(&self, comments: Comments) -> Result<Vec<Value>> {
        let text = self.run(Command::new("nft").args(["-j", "list", "ruleset"]))?;
        let mut all: Value = serde_json::from_str(&text).context("nft printed something that is not JSON")?;
        normalise(&mut all, comments);
        let Some(Value::Array(objects)) = all.get_mut("nftables").map(Value::take) else {
            anyhow::bail!("nft printed no list of objects: {text}");
        };
        Ok(objects.into_iter().filter(|o| o.get("metainfo").is_none()).collect())
    }

    /// `nft -s list ruleset`: the same for humans, without counter values.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn nft_text(&self) -> Result<String> {
        self.run(Command::new("nft").args(["-s", "list", "ruleset"]))
    }

    /// `iptables-save` of one variant and family, without the lines of the program about itself and without counter
    /// values. Policy lines stay: `:INPUT ACCEPT`.
    ///
    /// # Errors
    /// When the program fails.
    pub fn iptables_save(&self, variant: Variant, family: Family) -> Result<String> {
        let text = self.run(&mut Command::new(save_program(variant, family)))?;
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Ok(lines.fold(String::new(), |all, line| all + without_counters(line) + "\n"))
    }

    /// Loads rules with `iptables-restore --noflush`.
    ///
    /// # Errors
    /// When the program refuses them.
    pub fn iptables_restore(&self, variant: Variant, family: Family, text: &str) -> Result<()> {
        let program = save_program(variant, family).replace("-save", "-restore");
        self.pipe(Command::new(program).arg("--noflush"), text).with_context(|| format!("in:\n{text}"))?;
        Ok(())
    }
}

fn save_program(variant: Variant, family: Family) -> &'static str {
    match (variant, family) {
        (Variant::Nft, Family::V4) => "iptables-nft-save",
        (Variant::Nft, Family::V6) => "ip6tables-nft-save",
        (Variant::Legacy, Family::V4) => "iptables-legacy-save",
        (Variant::Legacy, Family::V6) => "ip6tables-legacy-save",
    }
}

/// `:INPUT ACCEPT [12:3456]` without its end; other lines have none without `-c`.
fn without_counters(line: &str) -> &str {
    if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line }
}

fn normalise(value: &mut Value, comments: Comments) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| normalise(item, comments)),
        Value::Object(fields) => {
            fields.remove("handle");
            if comments == Comments::Strip {
                fields.remove("comment");
            }
            if let Some(Value::Object(counter)) = fields.get_mut("counter") {
                counter.remove("packets");
                counter.remove("bytes");
            }
            fields.values_mut().for_each(|field| normalise(field, comments));
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.sort_by_cached_key(Value::to_string);
            }
        }
        _ => {}
    }
}
