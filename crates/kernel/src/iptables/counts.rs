//! What rules have counted, as `iptables-save` prints it.

use netns::InsideHost;
use ruleset::TableKind;

use super::error::{Error, Failure};
use super::probe::Present;
use super::saved::SavedRule;
use super::{FAMILIES, Iptables, VARIANTS, child};
use crate::nft::LogCount;

impl Iptables {
    /// What the rules of a table have counted that stand behind a log, in chains whose names begin so. A program runs for each family and each variant
    /// that has such a table.
    ///
    /// # Errors
    /// The kernel could not be asked, or a program is missing or failed.
    pub fn log_counts(
        &self,
        _: &InsideHost<'_>,
        kind: TableKind,
        chains: &str,
    ) -> Result<Vec<LogCount>, Error> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let present = Present::ask(family)?;
            let wanted = self.forced.as_slice();
            for variant in if wanted.is_empty() { &VARIANTS } else { wanted } {
                if !present.has_chain_of(*variant, kind, chains) {
                    continue;
                }
                let around = self.surroundings();
                let programs = match self.search.programs_of(family, *variant, &around) {
                    // Anybody may have made the table of a variant whose programs this host lacks.
                    Err(error) if self.forced.is_none() && error.is_missing() => continue,
                    programs => programs?,
                };
                let arguments = ["-c", "-t", kind.name()];
                let output =
                    child::run(&programs.save, &arguments, None, &around).map_err(|(cause, said)| {
                        Failure { program: programs.save.clone(), cause, said, left: Vec::new() }
                    })?;
                found.extend(log_counts(&output).filter(|count| count.chain.starts_with(chains)));
            }
        }
        Ok(found)
    }
}

/// Of each rule that follows one of its chain that logs.
pub(super) fn log_counts(output: &str) -> impl Iterator<Item = LogCount> + '_ {
    let mut before: Option<(String, String)> = None;
    output.lines().filter_map(move |line| {
        let counted = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
        let (counters, rule) = counted?;
        let (packets, rule) = (counters.split_once(':')?.0.parse().ok()?, SavedRule::parse(rule)?);
        let logs = before.take().filter(|(chain, _)| *chain == rule.chain);
        before = rule
            .option(&["--nflog-prefix"])
            .map(|prefix| (rule.chain.clone(), prefix.trim_matches('"').to_owned()));
        let (chain, prefix) = logs?;
        Some(LogCount { chain, prefix, packets })
    })
}
