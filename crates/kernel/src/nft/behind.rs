//! Rules of ours in the chains that iptables-nft has in common for all, put behind those of others by one transaction. Its programs take tens of
//! milliseconds for that.

use std::ops::ControlFlow;

use netns::Inside;
use ruleset::iptables::Names;
use ruleset::listed::ListedAct;
use ruleset::{ChainKind, Hook, Ruleset, TableKind};

use super::list::{self, AttachedChain};
use super::read::{self, SetRanges};
use super::uapi::{batch_header, family, header, message, rule};
use crate::netlink::wire::MessageWriter;
use crate::netlink::{self, NetlinkSocket, flags};

/// Rules of a chain that are read. Whoever has more waits for the programs.
const MOST: usize = 1024;

/// A rule of ours as the kernel lists it.
struct OwnJump {
    handle: u64,
    expressions: Vec<u8>,
    comment: Option<Vec<u8>>,
}

/// Puts jumps to the owners' chains behind the rules of others, where what comes in is translated; both families. Whether there were any before them.
pub(crate) fn put_behind(_: &Inside, owners: &[Ruleset]) -> Result<bool, super::Error> {
    let failed = |e| super::question("put rules of ours behind those of others", e);
    let Some(mut socket) = super::open_if_supported()? else { return Ok(false) };
    let names: Vec<Names> = owners.iter().map(|owner| Names::of(owner, TableKind::Nat)).collect();
    let mut moved = false;
    for chain in list::attached(&mut socket).map_err(failed)?.iter().filter(|chain| is_of_iptables(chain)) {
        if let Some(jump) = before_others(&mut socket, chain, &names).map_err(failed)? {
            put_last(&mut socket, chain, &jump).map_err(failed)?;
            moved = true;
        }
    }
    Ok(moved)
}

fn is_of_iptables(chain: &AttachedChain) -> bool {
    let (kind, hook, priority, _) = &chain.base;
    let base = read::base(kind, *hook, *priority);
    let is_nat = base.is_some_and(|base| (base.kind, base.hook) == (ChainKind::Nat, Hook::Prerouting));
    is_nat && [family::IPV4, family::IPV6].contains(&chain.family) && chain.table == TableKind::Nat.name()
}

/// The owner's jump in a chain, where a rule of others comes after it. Who has several, before and behind others, has them where they belong.
fn before_others(
    socket: &mut NetlinkSocket,
    chain: &AttachedChain,
    names: &[Names],
) -> Result<Option<OwnJump>, netlink::Error> {
    let in_chain = |w: &mut MessageWriter| {
        w.text(rule::TABLE, &chain.table);
        w.text(rule::CHAIN, &chain.name);
    };
    let leads_to_ours =
        |act: &ListedAct| matches!(act, ListedAct::Jump(to) if names.iter().any(|names| names.contain(to)));
    let (mut jumps, mut is_followed, mut read) = (Vec::new(), false, 0);
    let whole = list::dump(socket, chain.family, message::GET_RULE, in_chain, |part| {
        let Some((_, attributes)) = part else {
            jumps.clear();
            (is_followed, read) = (false, 0);
            return ControlFlow::Continue(());
        };
        read += 1;
        let parts = attributes.find(rule::EXPRESSIONS);
        let acts = parts.map_or_else(Vec::new, |parts| read::rule(parts.nested(), &SetRanges::new()).acts);
        match (parts, list::handle(attributes, rule::HANDLE)) {
            (Some(parts), Some(handle)) if acts.iter().any(leads_to_ours) => jumps.push(OwnJump {
                handle,
                expressions: parts.data.to_vec(),
                comment: attributes.find(rule::USERDATA).map(|comment| comment.data.to_vec()),
            }),
            _ => is_followed |= !jumps.is_empty(),
        }
        if read > MOST { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(jumps.pop().filter(|_| whole && is_followed && jumps.is_empty()))
}

fn put_last(socket: &mut NetlinkSocket, chain: &AttachedChain, jump: &OwnJump) -> Result<(), netlink::Error> {
    let mut request = MessageWriter::default();
    let own = header(chain.family);
    let of_chain = |w: &mut MessageWriter| {
        w.text(rule::TABLE, &chain.table);
        w.text(rule::CHAIN, &chain.name);
    };
    request.message(message::BATCH_BEGIN, flags::REQUEST, 0, &batch_header(), |_| {});
    request.message(message::DEL_RULE, flags::REQUEST, 1, &own, |w| {
        of_chain(w);
        w.attribute(rule::HANDLE, &jump.handle.to_be_bytes());
    });
    // One answer, after the commit.
    let new = flags::REQUEST | flags::CREATE | flags::APPEND | flags::ACK;
    request.message(message::NEW_RULE, new, 2, &own, |w| {
        of_chain(w);
        w.nested_as_is(rule::EXPRESSIONS, &jump.expressions);
        jump.comment.iter().for_each(|comment| w.attribute(rule::USERDATA, comment));
    });
    request.message(message::BATCH_END, flags::REQUEST, 3, &batch_header(), |_| {});
    let answers = socket.exchange(request.bytes())?;
    let is_done = answers.iter().any(|answer| answer.sequence == 2 && answer.result.is_ok());
    answers.into_iter().try_for_each(|answer| answer.result)?;
    if is_done { Ok(()) } else { Err(netlink::Error::NoAnswer) }
}
