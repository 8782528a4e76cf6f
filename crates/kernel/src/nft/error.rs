//! What can go wrong with nf_tables, and what to do about it.

use ruleset::{Action, Chain, ChainKind, Counting, Match, Rule, Ruleset};
use rustix::io::Errno;

use super::batch::BatchObject;
use super::list::NetlinkTable;
use super::missing::{
    BATCHES, CONNTRACK, COUNTER, FIB, INET, KernelPart, LOG, MissingPart, NAMED_COUNTER, NAT, NETFILTER,
    NF_TABLES, REDIRECT, REJECT, ROUTE, SETS, TPROXY,
};
use crate::netlink;

/// An nf_tables operation that failed. A change that failed has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This kernel lacks something that the rules need; the other backend may still work.
    #[error("cannot {operation}: this kernel has no {missing}")]
    Unsupported {
        /// What was done to what.
        operation: String,
        /// What is missing, and what helps.
        missing: MissingPart,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// The caller may not change this namespace's network.
    #[error("cannot {operation} without CAP_NET_ADMIN in the namespace's user namespace (run as root)")]
    Denied {
        /// What was done to what.
        operation: String,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// Anything else.
    #[error("cannot {operation}{hint}")]
    Failed {
        /// What was done to what.
        operation: String,
        /// What may be the reason, in parentheses; may be empty.
        hint: &'static str,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// A table of our name is kept by a program that runs (flag `owner`): nobody else may change it.
    #[error(
        "cannot {operation}: another program keeps table {table} for itself (nf_tables flag owner, netlink port {port}); end that program, \
         or delete the pod"
    )]
    Held {
        /// What was done to what.
        operation: String,
        /// The table.
        table: String,
        /// The port of the program's netlink socket; most often its process id, in its own pid namespace.
        port: u32,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// Others created and deleted our tables while we did.
    #[error(
        "the tables of {owner} changed during each of {tries} tries to replace them (do two programs set up this pod?)"
    )]
    Contended {
        /// See [`Ruleset::owner`]; of several layers all of them.
        owner: String,
        /// How often it was tried.
        tries: u32,
    },
}

/// A message that the kernel refused.
#[derive(Debug)]
pub(super) struct RefusedMessage<'a> {
    pub(super) object: BatchObject<'a>,
    /// Those of the transaction.
    pub(super) layers: &'a [Ruleset],
    pub(super) error: netlink::Error,
}

impl Error {
    /// Whether the kernel lacks something, so that another backend is worth a try.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }

    /// The port of the netlink socket whose program keeps a table of ours for itself, if that is why.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        match self {
            Self::Held { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// For a question, or the opening of the socket.
    pub(crate) fn of_question(operation: String, source: netlink::Error) -> Self {
        Self::classify(operation, absent(&source), source)
    }

    fn classify(operation: String, missing: Option<&'static KernelPart>, source: netlink::Error) -> Self {
        match (missing, source.errno()) {
            (Some(part), _) => Self::Unsupported { operation, missing: MissingPart::here(part), source },
            (None, Some(Errno::PERM | Errno::ACCESS)) => Self::Denied { operation, source },
            (None, errno) => Self::Failed { operation, hint: hint(errno), source },
        }
    }
}

/// Whether the kernel has no nf_tables, if it answered a question so.
pub(crate) fn is_absent(source: &netlink::Error) -> bool {
    absent(source).is_some()
}

fn absent(source: &netlink::Error) -> Option<&'static KernelPart> {
    match (source, source.errno()) {
        (
            netlink::Error::Socket(_),
            Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::SOCKTNOSUPPORT),
        ) => Some(NETFILTER),
        // nfnetlink answers so when nobody registered for the message's subsystem.
        (netlink::Error::Refused { .. }, Some(Errno::INVAL | Errno::OPNOTSUPP)) => Some(NF_TABLES),
        _ => None,
    }
}

impl RefusedMessage<'_> {
    /// Whether the owner's tables came or went since they were listed.
    pub(super) fn is_race(&self) -> bool {
        matches!(
            (self.object, self.error.errno()),
            (BatchObject::AddTable(_), Some(Errno::EXIST))
                | (
                    BatchObject::DeleteTable(_)
                        | BatchObject::DeleteRules(_)
                        | BatchObject::DeleteRulesOf(..)
                        | BatchObject::DeleteChain(..)
                        | BatchObject::DeleteSet(..)
                        | BatchObject::DeleteCounter(..)
                        | BatchObject::DeleteElements(..),
                    Some(Errno::NOENT)
                )
        )
    }

    /// What the kernel lacks, if that is the reason.
    pub(super) fn missing(&self) -> Option<&'static KernelPart> {
        let refused = matches!(self.error, netlink::Error::Refused { .. });
        // ENOENT is the kernel's answer for a type of chain or an instruction that no module provides. EOPNOTSUPP is about its place (an
        // action in a chain of the wrong type), but for a set: no module provides sets.
        match (self.object, self.error.errno().filter(|_| refused)?) {
            (BatchObject::Whole | BatchObject::AddTable(_), Errno::OPNOTSUPP) => Some(NF_TABLES),
            // The first message of a transaction has no content that could be wrong: the kernel does not know it.
            (BatchObject::Whole, Errno::INVAL) => Some(BATCHES),
            (BatchObject::AddTable(_), Errno::AFNOSUPPORT) => Some(INET),
            (BatchObject::AddChain(_, chain), Errno::NOENT) => missing_for_chain(chain),
            // Without objects the kernel does not know the message.
            (BatchObject::AddCounter(..), Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL) => {
                Some(NAMED_COUNTER)
            }
            (BatchObject::AddRule(_, _, rule), Errno::NOENT) => missing_for_rule(rule),
            (BatchObject::AddSet(..) | BatchObject::AddPorts(..), Errno::OPNOTSUPP) => Some(SETS),
            _ => None,
        }
    }
}

impl RefusedMessage<'_> {
    /// As an error, where these tables were listed before.
    pub(super) fn among(self, ours: &[NetlinkTable]) -> Error {
        let held = ours.iter().find(|table| table.holder != 0);
        match (held, self.error.errno()) {
            (Some(table), Some(Errno::PERM)) => Error::Held {
                operation: self.object.describe(self.layers),
                table: table.name.clone(),
                port: table.holder,
                source: self.error,
            },
            _ => self.into(),
        }
    }
}

impl From<RefusedMessage<'_>> for Error {
    fn from(failure: RefusedMessage<'_>) -> Self {
        let operation = failure.object.describe(failure.layers);
        let missing = failure.missing();
        Self::classify(operation, missing, failure.error)
    }
}

fn missing_for_chain(chain: &Chain) -> Option<&'static KernelPart> {
    match chain.base?.kind {
        ChainKind::Nat => Some(NAT),
        ChainKind::Route => Some(ROUTE),
        ChainKind::Filter => Some(INET),
    }
}

fn missing_for_rule(rule: &Rule) -> Option<&'static KernelPart> {
    match &rule.action {
        _ if rule.matches.iter().any(|m| matches!(m, Match::OwnDestination | Match::OwnSource)) => Some(FIB),
        Action::Redirect { .. } => Some(REDIRECT),
        Action::Snat { .. } => Some(NAT),
        Action::Tproxy { .. } => Some(TPROXY),
        Action::SaveMark | Action::RestoreMark | Action::SetCtMark { .. } | Action::SetZone(_) => {
            Some(CONNTRACK)
        }
        Action::Reject(_) => Some(REJECT),
        Action::Log { .. } => Some(LOG),
        _ if rule.matches.iter().any(Match::asks_connection) => Some(CONNTRACK),
        _ if matches!(rule.counting, Counting::Named(_)) => Some(NAMED_COUNTER),
        // A jump to a chain that is not there has the same number.
        Action::Jump(_) => None,
        _ if rule.counting == Counting::Rule => Some(COUNTER),
        _ => None,
    }
}

fn hint(errno: Option<Errno>) -> &'static str {
    match errno {
        Some(Errno::NOMEM | Errno::NOBUFS) => " (out of memory: look at the node's memory and cgroup limits)",
        Some(Errno::MSGSIZE) => {
            " (the batch is larger than the send buffer: raise net.core.wmem_max, or run as root)"
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            " (too many open files: look at the limits of the process and the node)"
        }
        Some(Errno::NOENT) => {
            " (the rules name something that does not exist, or this kernel lacks an nf_tables module)"
        }
        Some(Errno::EXIST) => " (something of that name is there, or intervals of a set overlap)",
        Some(Errno::LOOP | Errno::MLINK) => " (a chain jumps to itself, or jumps are too deep)",
        Some(Errno::OPNOTSUPP) => " (a chain of this type or at this hook cannot have that)",
        Some(Errno::NAMETOOLONG | Errno::RANGE | Errno::INVAL) => {
            " (a name is too long, or this kernel wants another form of it)"
        }
        _ => "",
    }
}
