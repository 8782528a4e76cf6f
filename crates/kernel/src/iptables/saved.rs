//! What `iptables-save` prints.

use ruleset::TableKind;

/// The tables of one family and variant.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) tables: Vec<SavedTable>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SavedTable {
    pub(super) kind: TableKind,
    /// Chains that somebody made; not the built-in ones.
    pub(super) chains: Vec<String>,
    pub(super) rules: Vec<SavedRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SavedRule {
    pub(super) chain: String,
    /// Matches and target as printed.
    pub(super) text: String,
}

impl Saved {
    /// Reads the output. Tables that we never write, comments, policies and counters are left out.
    pub(super) fn parse(output: &str) -> Self {
        let mut tables: Vec<SavedTable> = Vec::new();
        let mut current: Option<SavedTable> = None;
        for line in output.lines() {
            if let Some(name) = line.strip_prefix('*') {
                current = kind_of(name.trim()).map(|kind| SavedTable {
                    kind,
                    chains: Vec::new(),
                    rules: Vec::new(),
                });
            } else if line == "COMMIT" {
                tables.extend(current.take());
            } else if let Some(table) = &mut current {
                table.line(line);
            }
        }
        Self { tables }
    }

    pub(super) fn table(&self, kind: TableKind) -> Option<&SavedTable> {
        self.tables.iter().find(|table| table.kind == kind)
    }

    /// Everything in a table that somebody made, to compare with another time's. An empty table is as none.
    pub(super) fn content(&self, kind: TableKind) -> Vec<String> {
        self.table(kind).map_or_else(Vec::new, |table| {
            let chains = table.chains.iter().map(|chain| format!("-N {chain}"));
            chains.chain(table.rules.iter().map(|rule| format!("-A {} {}", rule.chain, rule.text))).collect()
        })
    }
}

impl SavedTable {
    fn line(&mut self, line: &str) {
        if let Some(chain) = line.strip_prefix(':') {
            // `:NAME POLICY [packets:bytes]`; a chain without a policy is not built in.
            if let Some((name, rest)) = chain.split_once(' ')
                && rest.starts_with('-')
            {
                self.chains.push(name.to_owned());
            }
        } else {
            self.rules.extend(SavedRule::parse(line));
        }
    }
}

impl SavedRule {
    /// Reads a line that adds a rule.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (chain, text) = line.strip_prefix("-A ")?.split_once(' ')?;
        Some(Self { chain: chain.to_owned(), text: text.trim_end().to_owned() })
    }

    /// The chain or the built-in target that the rule ends with.
    pub(super) fn target(&self) -> Option<&str> {
        self.option(&["-j", "-g"])
    }

    /// The word behind the first of these options.
    pub(super) fn option(&self, options: &[&str]) -> Option<&str> {
        // A comment may contain anything, also " -j X "; it is printed in quotes then.
        let mut quoted = false;
        let mut words = self.text.split(' ');
        while let Some(word) = words.next() {
            let opens = word.matches('"').count() - word.matches("\\\"").count();
            if !quoted && options.contains(&word) {
                // Some versions print two spaces.
                return words.find(|word| !word.is_empty());
            }
            quoted ^= opens % 2 == 1;
        }
        None
    }
}

fn kind_of(name: &str) -> Option<TableKind> {
    [TableKind::Filter, TableKind::Mangle, TableKind::Nat, TableKind::Raw]
        .into_iter()
        .find(|kind| kind.name() == name)
}
