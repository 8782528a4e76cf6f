//! A rule of others as its own program lists it: only that text can be put back as it was.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use netns::Netns;
use rundir::pods::ConflictReport;

/// What ends the table's name in a listing of iptables' legacy variant.
const LEGACY: &str = " (legacy)";
/// Largest listing of a chain or table, in bytes.
const MAX_LISTING: usize = 16 << 20;

/// A rule, and how to delete it and put it back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ForeignRule {
    Nft {
        /// `inet mesh output`
        chain: String,
        handle: u64,
        text: String,
        /// The rule before it.
        after: Option<u64>,
    },
    Iptables {
        /// `iptables-nft-restore` and so on.
        program: &'static str,
        table: String,
        chain: String,
        /// From 1.
        number: usize,
        /// As `iptables-save -c` has it: counters, `-A`, chain, rule.
        text: String,
    },
}

impl ForeignRule {
    /// The rule of a conflict.
    ///
    /// # Errors
    /// The conflict is no single rule, its program is missing, or the rule is gone.
    pub(super) fn find(conflict: &ConflictReport, netns: &Netns) -> Result<Self> {
        let ConflictReport { family, table, chain, handle, foreign, .. } = conflict;
        ensure!(
            !table.is_empty() && !chain.is_empty(),
            "conflict {} is not a single rule, so it has to be solved by hand: {}",
            conflict.id,
            conflict.advice
        );
        match handle {
            Some(handle) => {
                let chain = format!("{family} {table} {chain}");
                let listing =
                    run(netns, Command::new("nft").args(["-a", "list", "chain"]).args(chain.split(' ')), "")?;
                Self::in_nft(&listing, &chain, *handle)
            }
            None => {
                let (save, restore) = programs(family, table)?;
                let table = table.trim_end_matches(LEGACY);
                let listing = run(netns, Command::new(save).args(["-c", "-t", table]), "")?;
                Self::in_iptables(&listing, restore, table, chain, foreign)
            }
        }
        .with_context(|| format!("find the rule {foreign:?}"))
    }

    /// In `nft -a list chain`.
    fn in_nft(listing: &str, chain: &str, handle: u64) -> Result<Self> {
        let mut after = None;
        for line in listing.lines() {
            let Some((text, number)) = line.rsplit_once(" # handle ") else { continue };
            let text = text.trim();
            // Table and chain have handles, too, and end with a brace before it.
            let Some(number) = number.parse::<u64>().ok().filter(|_| !text.ends_with('{')) else { continue };
            if number == handle {
                return Ok(Self::Nft { chain: chain.to_owned(), handle, text: text.to_owned(), after });
            }
            after = Some(number);
        }
        bail!("chain {chain} has no rule with handle {handle} any more")
    }

    /// In `iptables-save -c` of one table.
    fn in_iptables(
        listing: &str,
        program: &'static str,
        table: &str,
        chain: &str,
        foreign: &str,
    ) -> Result<Self> {
        let wanted = rule_of(foreign, chain);
        let prefix = format!("-A {chain} ");
        let rules = listing.lines().filter(|line| bare(line).starts_with(&prefix));
        let mut found = rules.enumerate().filter(|(_, line)| rule_of(bare(line), chain) == wanted);
        match (found.next(), found.next()) {
            (Some((index, line)), None) => Ok(Self::Iptables {
                program,
                table: table.to_owned(),
                chain: chain.to_owned(),
                number: index + 1,
                text: line.to_owned(),
            }),
            (None, _) => bail!("chain {chain} of table {table} has it no more"),
            (Some(_), Some(_)) => {
                bail!("chain {chain} of table {table} has it more than once; delete one by hand")
            }
        }
    }

    pub(super) fn place(&self) -> String {
        match self {
            Self::Nft { chain, handle, .. } => format!("nf_tables chain {chain}, handle {handle}"),
            Self::Iptables { table, chain, number, .. } => {
                format!("iptables table {table} chain {chain}, rule {number}")
            }
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Nft { text, .. } => text,
            Self::Iptables { text, .. } => bare(text),
        }
    }

    /// What deletes it, for its program.
    pub(super) fn deletion(&self) -> String {
        match self {
            Self::Nft { chain, handle, .. } => format!("delete rule {chain} handle {handle}\n"),
            // Its number may be another rule's by now.
            Self::Iptables { table, chain, text, .. } => {
                format!("*{table}\n-D {chain} {}\nCOMMIT\n", rule_of(bare(text), chain))
            }
        }
    }

    /// What puts it back, for its program, with the counters that it had.
    pub(super) fn undo(&self) -> String {
        match self {
            Self::Nft { chain, text, after: Some(after), .. } => {
                format!("add rule {chain} position {after} {text}\n")
            }
            Self::Nft { chain, text, after: None, .. } => format!("insert rule {chain} {text}\n"),
            Self::Iptables { table, chain, number, text, .. } => {
                let counters = text.strip_suffix(bare(text)).unwrap_or_default();
                let rule = rule_of(bare(text), chain);
                format!("*{table}\n{counters}-I {chain} {number} {rule}\nCOMMIT\n")
            }
        }
    }

    /// The end of the name of the file with that.
    pub(super) fn extension(&self) -> &'static str {
        match self {
            Self::Nft { .. } => "nft",
            Self::Iptables { .. } => "iptables",
        }
    }

    /// What to type to put it back.
    pub(super) fn undo_command(&self, file: &Path, netns: &Path) -> String {
        let (netns, file) = (netns.display(), file.display());
        match self {
            Self::Nft { .. } => format!("nsenter --net={netns} nft -f {file}"),
            Self::Iptables { program, .. } => {
                format!("nsenter --net={netns} {program} --noflush --counters {file}")
            }
        }
    }

    /// Deletes it.
    ///
    /// # Errors
    /// Its program says so.
    pub(super) fn delete(&self, netns: &Netns) -> Result<()> {
        let mut command = match self {
            Self::Nft { .. } => Command::new("nft"),
            Self::Iptables { program, .. } => Command::new(program),
        };
        match self {
            Self::Nft { .. } => command.args(["-f", "-"]),
            Self::Iptables { .. } => command.arg("--noflush"),
        };
        run(netns, &mut command, &self.deletion()).map(drop)
    }
}

/// The programs that list and load a table.
fn programs(family: &str, table: &str) -> Result<(&'static str, &'static str)> {
    Ok(match (family, table.ends_with(LEGACY)) {
        ("ip", false) => ("iptables-nft-save", "iptables-nft-restore"),
        ("ip", true) => ("iptables-legacy-save", "iptables-legacy-restore"),
        ("ip6", false) => ("ip6tables-nft-save", "ip6tables-nft-restore"),
        ("ip6", true) => ("ip6tables-legacy-save", "ip6tables-legacy-restore"),
        _ => bail!("table {family} {table} is none of iptables, and its rule has no handle"),
    })
}

/// A line of `iptables-save -c` without its counters.
fn bare(line: &str) -> &str {
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, rule)) => rule,
        None => line,
    }
}

/// The rule without `-A` and its chain.
fn rule_of<'a>(line: &'a str, chain: &str) -> &'a str {
    let rest = line.strip_prefix("-A ").and_then(|rest| rest.strip_prefix(chain));
    rest.unwrap_or(line).trim()
}

/// Runs a program in the namespace, and gives what it printed.
fn run(netns: &Netns, command: &mut Command, input: &str) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = netns
        .enter(|_| command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn())?;
    let mut child = child.with_context(|| format!("start {name}; install it on this node"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops early says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {name}"))?;
    ensure!(output.stdout.len() <= MAX_LISTING, "{name} printed more than {} MiB", MAX_LISTING >> 20);
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("read what {name} printed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFT: &str = "table inet mesh { # handle 4\n\tchain out { # handle 1\n\t\ttype nat hook output priority -110; policy accept;\n\
        \t\ttcp dport 80 accept # handle 2\n\t\ttcp dport 443 counter packets 3 bytes 180 redirect to :9999 # handle 7\n\t}\n}\n";

    #[test]
    fn a_rule_of_nft_is_put_back_after_the_one_before_it() {
        let rule = ForeignRule::in_nft(NFT, "inet mesh out", 7).unwrap();
        assert_eq!(rule.text(), "tcp dport 443 counter packets 3 bytes 180 redirect to :9999");
        assert_eq!(rule.deletion(), "delete rule inet mesh out handle 7\n");
        assert_eq!(rule.undo(), format!("add rule inet mesh out position 2 {}\n", rule.text()));
        let first = ForeignRule::in_nft(NFT, "inet mesh out", 2).unwrap();
        assert_eq!(first.undo(), "insert rule inet mesh out tcp dport 80 accept\n");
        assert!(ForeignRule::in_nft(NFT, "inet mesh out", 1).is_err(), "that is the chain");
    }

    #[test]
    fn a_rule_of_iptables_is_put_back_at_its_number() {
        let listing = "*nat\n:OUTPUT ACCEPT [1:60]\n:MESH - [0:0]\n[1:60] -A OUTPUT -p tcp -j MESH\n[0:0] -A MESH -p udp -j RETURN\n\
            [4:240] -A MESH -p tcp -j REDIRECT --to-ports 9999\nCOMMIT\n";
        let find =
            |foreign: &str| ForeignRule::in_iptables(listing, "iptables-nft-restore", "nat", "MESH", foreign);
        let rule = find("-A MESH -p tcp -j REDIRECT --to-ports 9999").unwrap();
        assert_eq!(rule, find("-p tcp -j REDIRECT --to-ports 9999").unwrap());
        assert_eq!(rule.deletion(), "*nat\n-D MESH -p tcp -j REDIRECT --to-ports 9999\nCOMMIT\n");
        assert_eq!(rule.undo(), "*nat\n[4:240] -I MESH 2 -p tcp -j REDIRECT --to-ports 9999\nCOMMIT\n");
        assert!(find("-p sctp -j DROP").unwrap_err().to_string().contains("no more"));
    }
}
