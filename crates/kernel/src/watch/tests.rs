//! Events and tables with any content.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use netns::Netns;
use ruleset::{Backend, Family, Plan};
use rustix::io::Errno;

use super::events::{self, LastTransaction, noticed};
use super::legacy::mask_counters;
use super::{Fingerprint, KeptSockets};
use crate::fuzz::{Open, Read};
use crate::iptables::Iptables;
use crate::netlink::tests::answering;
use crate::netlink::wire::MessageWriter;
use crate::netlink::{Error, FilterOperation, attach_filter};
use crate::nft::{Nftables, generation as uapi};
use crate::{Check, Kernel};

/// Types of messages, `linux/netlink.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A message of the kernel's: an error number, or the end of a list, or a generation.
fn message(kind: u16, number: i32) -> Vec<u8> {
    let mut w = MessageWriter::default();
    let mut header = number.to_ne_bytes().to_vec();
    header.resize(if kind == ERROR { 20 } else { 4 }, 0);
    w.message(kind, 0, 1, &header, |w| w.be32(uapi::ID, 7));
    w.bytes().to_vec()
}

/// What the last transaction is by these answers of the kernel's, one for each question.
fn last(answers: &[Vec<u8>]) -> Result<LastTransaction, Error> {
    let (mut socket, _kernel) = answering(answers.iter().map(Vec::as_slice));
    LastTransaction::ask(&mut socket)
}

#[test]
fn a_kernel_that_does_not_tell_of_transactions_says_of_no_time_that_there_were_none() {
    let refused = |errno: Errno| message(ERROR, -errno.raw_os_error());
    let of = |last: LastTransaction| Fingerprint { last, ..Fingerprint::default() };
    let same = |answers: &[Vec<u8>]| of(last(answers).unwrap()) == of(last(answers).unwrap());
    assert!(same(&[message(uapi::NEW, 0)]));
    // It has nf_tables, and lists them.
    for errno in [Errno::INVAL, Errno::OPNOTSUPP] {
        assert!(!same(&[refused(errno), message(DONE, 0)]));
    }
    // It has none: what is not there does not change.
    assert!(same(&[refused(Errno::INVAL), refused(Errno::INVAL)]));
    // A refusal for other reasons, no answer, and an answer without a number.
    for answers in [vec![refused(Errno::PERM)], vec![refused(Errno::INVAL), refused(Errno::PERM)], vec![]] {
        assert!(last(&answers).is_err(), "{answers:?}");
    }
    assert!(last(&[message(uapi::NEW - 1, 0)[..20].to_vec()]).is_err());
}

/// A filter on the socket keeps back what the kernel tells of transactions: events, and the answer to the question for the last one.
#[test]
fn nothing_is_found_as_planned_where_the_kernel_gives_no_answer() {
    let netns = Arc::new(Netns::unnamed().unwrap());
    let iptables = Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let plan = Arc::new(Plan { backend: Backend::Nftables, routing: Vec::new(), layers: Vec::new() });
    let mut kept = KeptSockets::open(&netns).unwrap();
    assert_eq!(kernel.check(&mut kept, &plan).unwrap(), Check::Equal);
    assert!(kept.unchanged().unwrap());
    // BPF_RET with nothing of the message.
    let nothing = FilterOperation { code: 0x06, yes: 0, no: 0, value: 0 };
    attach_filter(&kept.netfilter, &[nothing]);
    assert!(kept.unchanged().is_err());
    assert!(!kept.unchanged().unwrap_or_default(), "nor at the next time");
    assert!(kernel.check(&mut kept, &plan).is_err());
    netns.enter(crate::nft::touch).unwrap().unwrap();
    assert_eq!(kept.take_events().unwrap(), events::Noticed::default(), "it is deaf");
    let mut anew = KeptSockets::open(&netns).unwrap();
    assert_eq!(kernel.check(&mut anew, &plan).unwrap(), Check::Equal);
}

/// What is heard, and a table of iptables-legacy of each family. A table keeps its length, and what is masked stays so.
pub(crate) fn read(open: Open<'_>, input: &[u8]) -> Vec<Read> {
    let heard = open().hearing().hear().ok();
    let commits = heard.map(|heard| noticed(&heard, &heard).commits.len());
    let masked = [Family::V4, Family::V6].map(|family| {
        let mut table = input.to_vec();
        mask_counters(family, &mut table);
        let once = table.clone();
        mask_counters(family, &mut table);
        assert_eq!(once, table);
        assert_eq!(table.len(), input.len());
        Some(usize::from(table != input))
    });
    [&[commits], &masked[..]].concat()
}
