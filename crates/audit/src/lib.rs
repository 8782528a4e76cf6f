//! Audit lines on disk: a hash chain over JSON lines in files that are rotated, packed and removed by age. It is written by an agent and read by
//! anything else, also where no agent runs.

mod chain;
mod event;
mod files;
mod ledger;
mod log;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub use chain::{ChainLink, LineError, MAX_LINE_BYTES, SealedLine};
pub use event::{AUDIT_GAP, AUDIT_START, AUDIT_STOP, AddressMask, AuditEvent, EVENT_SCHEMA, RuleKey};
pub use files::{FileLine, FileSet, Naming, is_packed, lines};
pub use ledger::{AuditLedger, LedgerConfig};
pub use log::{AuditLog, Before, LogConfig, LogNote, LogStanding, TellWriting, read_note};
pub use verify::{Anchor, BrokenChain, Verified, verify};
pub use writer::{ChainStart, ChainWriter, FileLimits};
