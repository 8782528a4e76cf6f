//! `audit verify`: whether the audit files are as they were written.

use std::path::PathBuf;

use anyhow::Result;
use audit::{Anchor, read_note, verify};

use super::files::FileArgs;
use crate::output::VerbAnswer;
use crate::pods::NOTHING;

const EXAMPLES: &str = "\
Examples:
  # Are the files of this node as they were written?
  cnictl audit verify

  # Does the chain still have the line that the monitoring saw (istio_cni_audit_chain_info)?
  cnictl audit verify --anchor 1842:90ab12cd34ef5678

Exit codes: 0 whole, 1 broken, 2 wrong command line, 3 there are no lines";

/// Check the hash chain of this node's audit files
///
/// Each line has a number and the hash of the line before it: a line that was changed, removed or put elsewhere is found, and a file that is missing. That lines
/// were removed at the end, or all written anew, shows by anchors: those that are named, and the note that the agent keeps beside the files.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AuditVerifyArgs {
    /// Files to be read in this order, in place of those of the directory
    files: Vec<PathBuf>,
    /// Number of a line and what its hash begins with
    #[arg(long, value_name = "SEQ:HASH", value_parser = anchor)]
    anchor: Vec<Anchor>,
    #[command(flatten)]
    file: FileArgs,
}

fn anchor(text: &str) -> Result<Anchor, String> {
    let parts =
        text.split_once(':').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.to_ascii_lowercase())));
    let is_hash = |hash: &String| !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts = parts.filter(|(_, hash)| is_hash(hash));
    parts.map(|(seq, hash_prefix)| Anchor { seq, hash_prefix }).ok_or_else(|| "not SEQ:HASH".to_owned())
}

impl AuditVerifyArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let mut anchors = self.anchor.clone();
        let files = if self.files.is_empty() {
            let note = read_note(self.file.path()).filter(|note| note.seq > 0);
            anchors.extend(note.map(|note| Anchor { seq: note.seq, hash_prefix: note.hash }));
            self.file.files()?
        } else {
            self.files.clone()
        };
        match verify(&files, &anchors) {
            Ok(Some(found)) => {
                let (lines, first, last) = (found.lines, found.first, found.last);
                let hash = &last.hash[..16];
                let text = format!(
                    "{lines} lines in {} files, from {first} to {}; the last hash begins with {hash}; {} anchors\n",
                    files.len(),
                    last.seq,
                    anchors.len()
                );
                Ok(VerbAnswer::text(text))
            }
            Ok(None) => {
                Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::text("there are no lines\n".to_owned()) })
            }
            Err(broken) => Ok(VerbAnswer::failed(String::new(), format!("the chain is broken: {broken}"))),
        }
    }
}
