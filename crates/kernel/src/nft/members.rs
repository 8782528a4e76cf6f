//! Members of named sets that come and go without the rules.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use netns::Inside;
use ruleset::{Element as Member, Key, KeyType, Set, SetDelta};
use rustix::io::Errno;

use super::set::{AT_A_TIME, WireElement, members_of, write_elements};
use super::uapi::{batch_header, element, family, header, message};
use crate::netlink::wire::MessageWriter;
use crate::netlink::{self, NetlinkSocket, flags};
use crate::sets::{ElementCounts, Error, SetPlace};

/// Up to so many keys of a set are asked for one by one, and of more the whole set is listed.
const KEYS_ASKED_FOR: usize = 16;
/// How often a change is made anew that somebody else's change has overtaken.
const TRIES: usize = 2;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// The changes of one set in a transaction: whole elements, of which prefixes have two.
struct Part<'a> {
    set: &'a Set,
    table: &'a str,
    gone: Vec<WireElement>,
    new: Vec<WireElement>,
}

/// Sets in tables of family inet, by a socket that stays in their namespace.
pub(crate) struct NftSets {
    socket: NetlinkSocket,
}

// === impl NftSets ===

impl NftSets {
    pub(crate) fn new(_: &Inside) -> Result<Self, Error> {
        let socket = NetlinkSocket::netfilter().map_err(|source| Error::Kernel {
            operation: "speak to nf_tables".to_owned(),
            hint: "",
            source,
        })?;
        Ok(Self { socket })
    }

    /// The element of a key; nothing where it is not there.
    pub(crate) fn get(&mut self, at: &SetPlace, key: &Key) -> Result<Option<Member>, Error> {
        let mut request = MessageWriter::with_capacity(128);
        request.message(message::GET_ELEMENTS, flags::REQUEST | flags::ACK, 1, &header(family::INET), |w| {
            write_elements(w, &at.table, &at.set.name, &WireElement::of(&Member::from(*key)));
        });
        let mut found = Vec::new();
        let result = self.socket.get(request.bytes(), |answer| {
            let list = answer.attributes(HEADER).find(element::LIST_ELEMENTS);
            found.extend(list.iter().flat_map(|list| list.nested()).map(|item| WireElement::read(&item)));
        });
        match result {
            Ok(()) => Ok(members_of(at.set.keys, found).pop()),
            // The set is missing, or the element is: the kernel says the same of both.
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("look a key up in", at, error)),
        }
    }

    pub(crate) fn list(&mut self, at: &SetPlace) -> Result<Vec<Member>, Error> {
        let mut request = MessageWriter::with_capacity(128);
        request.message(message::GET_ELEMENTS, flags::REQUEST | flags::DUMP, 1, &header(family::INET), |w| {
            w.text(element::LIST_TABLE, &at.table);
            w.text(element::LIST_SET, &at.set.name);
        });
        let mut found = Vec::new();
        let result = self.socket.dump(request.bytes(), |part| match part {
            None => found.clear(),
            Some(part) => {
                let list = part.attributes(HEADER).find(element::LIST_ELEMENTS);
                found.extend(list.iter().flat_map(|list| list.nested()).map(|item| WireElement::read(&item)));
            }
        });
        result.map_err(|error| failed("list", at, error))?;
        Ok(members_of(at.set.keys, found))
    }

    /// Changes sets, all in one transaction. A transaction that fails costs milliseconds, a question microseconds: of few keys the kernel is
    /// asked first, and of many only where it does not have what it is taken to have.
    pub(crate) fn change(&mut self, changes: &[(&SetPlace, &SetDelta)]) -> Result<ElementCounts, Error> {
        let is_asked =
            |(at, delta): &(&SetPlace, &SetDelta)| !is_prefixes(at) && keys(delta).count() <= KEYS_ASKED_FOR;
        let mut asked = changes.iter().all(is_asked);
        for _ in 0..TRIES {
            let (parts, changed) = if asked { self.compared(changes)? } else { taken_as_missing(changes) };
            match self.commit(&parts) {
                Ok(()) => return Ok(changed),
                Err(error) if is_unexpected(&error) => asked = true,
                Err(error) => return Err(failed_of_all(changes, error)),
            }
        }
        let (parts, changed) = self.compared(changes)?;
        self.commit(&parts).map_err(|error| failed_of_all(changes, error))?;
        Ok(changed)
    }

    /// The changes that are needed by what the kernel has.
    fn compared<'a>(
        &mut self,
        changes: &[(&'a SetPlace, &SetDelta)],
    ) -> Result<(Vec<Part<'a>>, ElementCounts), Error> {
        let (mut parts, mut changed) = (Vec::new(), ElementCounts::default());
        for (at, delta) in changes {
            let present = self.present(at, delta)?;
            let mut part = Part { set: &at.set, table: &at.table, gone: Vec::new(), new: Vec::new() };
            for key in delta.removed() {
                match present.get(&key) {
                    Some(member) => part.gone.extend(WireElement::of(member)),
                    None => changed.as_before += 1,
                }
                changed.removed += usize::from(present.contains_key(&key));
            }
            for member in delta.added() {
                match present.get(&member.key) {
                    Some(old) if *old == member => {
                        changed.as_before += 1;
                        continue;
                    }
                    // Adding what is there would keep its comment, and is refused for another verdict.
                    Some(old) => {
                        part.gone.extend(WireElement::of(old));
                        changed.replaced += 1;
                    }
                    None => changed.added += 1,
                }
                part.new.extend(WireElement::of(&member));
            }
            parts.push(part);
        }
        Ok((parts, changed))
    }

    /// Those of a delta's keys that are there.
    fn present(&mut self, at: &SetPlace, delta: &SetDelta) -> Result<BTreeMap<Key, Member>, Error> {
        let keys: Vec<Key> = keys(delta).collect();
        let members = if keys.len() > KEYS_ASKED_FOR || is_prefixes(at) {
            self.list(at)?
        } else {
            let found: Result<Vec<Option<Member>>, Error> =
                keys.iter().map(|key| self.get(at, key)).collect();
            found?.into_iter().flatten().collect()
        };
        Ok(members.into_iter().map(|member| (member.key, member)).collect())
    }

    fn commit(&mut self, parts: &[Part<'_>]) -> Result<(), netlink::Error> {
        let mut batch = MessageWriter::with_capacity(1024);
        batch.message(message::BATCH_BEGIN, flags::REQUEST, 0, &batch_header(), |_| {});
        let mut last = None;
        let gone = parts.iter().map(|part| (part, &part.gone, message::DEL_ELEMENTS, 0));
        // First what goes, also from other sets: a prefix may take the place of one around it.
        let new =
            parts.iter().map(|part| (part, &part.new, message::NEW_ELEMENTS, flags::CREATE | flags::EXCL));
        for (part, elements, kind, extra) in gone.chain(new) {
            for chunk in elements.chunks(AT_A_TIME) {
                last = Some(batch.len());
                batch.message(kind, flags::REQUEST | extra, 1, &header(family::INET), |w| {
                    write_elements(w, part.table, &part.set.name, chunk);
                });
            }
        }
        let Some(last) = last else { return Ok(()) };
        batch.add_flag(last, flags::ACK);
        batch.message(message::BATCH_END, flags::REQUEST, 2, &batch_header(), |_| {});
        let answers = self.socket.exchange(batch.bytes())?;
        let acknowledged = !answers.is_empty();
        answers.into_iter().try_for_each(|answer| answer.result)?;
        if acknowledged { Ok(()) } else { Err(netlink::Error::NoAnswer) }
    }
}

/// The changes as if nothing that is added were there, and all that is removed.
fn taken_as_missing<'a>(changes: &[(&'a SetPlace, &SetDelta)]) -> (Vec<Part<'a>>, ElementCounts) {
    let mut changed = ElementCounts::default();
    let parts = changes.iter().map(|(at, delta)| {
        changed.added += delta.added().len();
        changed.removed += delta.removed().len();
        Part {
            set: &at.set,
            table: &at.table,
            gone: delta.removed().flat_map(|key| WireElement::of(&key.into())).collect(),
            new: delta.added().flat_map(|member| WireElement::of(&member)).collect(),
        }
    });
    (parts.collect(), changed)
}

fn keys(delta: &SetDelta) -> impl Iterator<Item = Key> {
    delta.added().map(|member| member.key).chain(delta.removed())
}

fn is_prefixes(at: &SetPlace) -> bool {
    matches!(at.set.keys, KeyType::Prefix(_))
}

/// Whether something is there that was taken to be missing, or the other way round.
fn is_unexpected(error: &netlink::Error) -> bool {
    matches!(error.errno(), Some(Errno::EXIST | Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY))
}

fn failed(what: &str, at: &SetPlace, source: netlink::Error) -> Error {
    let hint = match source.errno() {
        Some(Errno::PERM) => " (this needs CAP_NET_ADMIN)",
        Some(Errno::NOENT) => {
            " (the set, or a chain that it leads to, is missing; it is made with the rules)"
        }
        Some(Errno::BUSY) => " (its content is part of the rules, or its elements lead elsewhere)",
        Some(Errno::EXIST | Errno::NOTEMPTY) => " (a prefix of somebody else's in it overlaps)",
        _ => "",
    };
    Error::Kernel {
        operation: format!("{what} set {} of table inet {}", at.set.name, at.table),
        hint,
        source,
    }
}

fn failed_of_all(changes: &[(&SetPlace, &SetDelta)], source: netlink::Error) -> Error {
    match changes {
        [(at, _)] => failed("change", at, source),
        [(at, _), rest @ ..] => failed(&format!("change {} sets, one of them", rest.len() + 1), at, source),
        [] => Error::Kernel { operation: "change no set".to_owned(), hint: "", source },
    }
}
