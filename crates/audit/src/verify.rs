//! Reads a chain again and says where it is broken.

use std::path::{Path, PathBuf};

use crate::chain::{ChainLink, LineError, SealedLine};
use crate::files::lines;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Lines that were read.
    pub lines: u64,
    /// The number of the first line: those before have been removed by age.
    pub first: u64,
    /// The last line.
    pub last: ChainLink,
}

/// Evidence from elsewhere: the chain had a line of this number and a hash that begins so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Number of the line.
    pub seq: u64,
    /// What its hash begins with.
    pub hash_prefix: String,
}

/// The first place where a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// A file that cannot be read.
    #[error("{}: line {line}: cannot be read: {cause}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// Why.
        cause: String,
    },
    /// A line that is wrong by itself.
    #[error("{}: line {line} {cause}", path.display())]
    Line {
        /// In which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// Why.
        cause: LineError,
    },
    /// The last line has no newline.
    #[error("{}: line {line} was not written to its end", path.display())]
    Torn {
        /// In which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
    },
    /// Numbers are missing or come again.
    #[error("{}: line {line} has seq {found} and not {expected}: lines or a file are missing, or not in their order", path.display())]
    Missing {
        /// In which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// The number that should follow.
        expected: u64,
        /// The one that stands there.
        found: u64,
    },
    /// The number is right and the line before is another.
    #[error("{}: line {line} (seq {seq}) follows another line than the one before it: one of them was replaced", path.display())]
    Replaced {
        /// In which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// Its number.
        seq: u64,
    },
    /// The end is missing, or written anew.
    #[error("the chain ends with seq {last}, and an anchor knows seq {}: lines are missing at the end", anchor.seq)]
    Truncated {
        /// The number of the last line.
        last: u64,
        /// What is known of it.
        anchor: Anchor,
    },
    /// Another line has the anchor's number.
    #[error("seq {} has another hash than its anchor {}: the chain was written anew", anchor.seq, anchor.hash_prefix)]
    Rewritten {
        /// What is known of it.
        anchor: Anchor,
    },
}

/// Reads these files in this order. Without a line there is nothing to verify.
///
/// # Errors
/// The first place where the chain is broken.
pub fn verify(paths: &[PathBuf], anchors: &[Anchor]) -> Result<Option<Verified>, BrokenChain> {
    let mut verified: Option<Verified> = None;
    for path in paths {
        verify_file(path, anchors, &mut verified)?;
    }
    let last = verified.as_ref().map_or(0, |verified| verified.last.seq);
    match anchors.iter().find(|anchor| anchor.seq > last) {
        Some(anchor) => Err(BrokenChain::Truncated { last, anchor: anchor.clone() }),
        None => Ok(verified),
    }
}

fn verify_file(path: &Path, anchors: &[Anchor], verified: &mut Option<Verified>) -> Result<(), BrokenChain> {
    let unreadable = |line, cause: std::io::Error| BrokenChain::Unreadable {
        path: path.to_owned(),
        line,
        cause: cause.to_string(),
    };
    let found = lines(path).map_err(|cause| unreadable(0, cause))?;
    for (text, line) in found.zip(1..) {
        let text = text.map_err(|cause| unreadable(line, cause))?;
        if !text.is_whole {
            return Err(BrokenChain::Torn { path: path.to_owned(), line });
        }
        let sealed = SealedLine::check(&text.text);
        let sealed = sealed.map_err(|cause| BrokenChain::Line { path: path.to_owned(), line, cause })?;
        let link = &sealed.link;
        if let Some(before) = verified.as_ref().map(|verified| &verified.last) {
            let (expected, seq) = (before.seq + 1, link.seq);
            if seq != expected {
                return Err(BrokenChain::Missing { path: path.to_owned(), line, expected, found: seq });
            }
            if !sealed.follows(before) {
                return Err(BrokenChain::Replaced { path: path.to_owned(), line, seq });
            }
        }
        let of = |anchor: &&Anchor| anchor.seq == link.seq && !link.hash.starts_with(&anchor.hash_prefix);
        if let Some(anchor) = anchors.iter().find(of) {
            return Err(BrokenChain::Rewritten { anchor: anchor.clone() });
        }
        let verified =
            verified.get_or_insert_with(|| Verified { lines: 0, first: link.seq, last: link.clone() });
        verified.lines += 1;
        verified.last = sealed.link;
    }
    Ok(())
}
