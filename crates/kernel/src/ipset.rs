//! Sets of the iptables world, over netlink.

mod message;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;

use netns::Inside;
use ruleset::iptables::ipset::{LEAST_ROOM, room};
use ruleset::{Element, Key, Set, SetDelta};

use crate::netlink::{self, NetlinkAnswer, NetlinkSocket};
use crate::sets::{ElementCounts, Error, SetPlace, octets};
use message::{ElementCommand, SetHeader, code, error};

/// Commands in one send. Each gets an answer, and all answers must fit into the socket's buffer.
const COMMANDS_AT_A_TIME: usize = 64;
/// What the name of the set ends with that takes another's place.
const NEXT: &str = ".next";

/// The ipsets of a namespace.
pub(crate) struct IpSets {
    socket: NetlinkSocket,
    /// The comments in commented sets when they were last listed, and what this process did since. Good for saying whether an addition changed
    /// something; never for whose an address is, because another agent may write to the set during an update of the node's.
    comments: HashMap<String, HashMap<Key, String>>,
}

// === impl IpSets ===

impl IpSets {
    pub(crate) fn new(_: &Inside) -> Result<Self, Error> {
        let socket = NetlinkSocket::netfilter().map_err(|source| Error::Kernel {
            operation: "speak to ipset".to_owned(),
            hint: "",
            source,
        })?;
        Ok(Self { socket, comments: HashMap::new() })
    }

    /// Whether the kernel has a set of the name, of whatever type.
    pub(crate) fn exists(&mut self, name: &str) -> Result<bool, Error> {
        match self.socket.get(&message::look_for(name), |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(failed("look for", name, error)),
        }
    }

    /// The names of all sets in the namespace.
    pub(crate) fn names(&mut self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let result = self.socket.dump(&message::list_names(), |part| match part {
            None => names.clear(),
            Some(part) => names.extend(message::name(part)),
        });
        match result {
            Ok(()) => Ok(names),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(failed("look for", "of any name", error)),
        }
    }

    /// Makes a set that is missing, and gives a fixed one its content.
    pub(crate) fn prepare(&mut self, set: &Set) -> Result<(), Error> {
        if set.is_map() {
            let problem = "iptables has no verdict maps: a set and a rule for each chain say the same";
            return Err(Error::Unfit { set: set.name.to_string(), problem });
        }
        match self.socket.order(&message::create(&set.name, set, LEAST_ROOM)) {
            Ok(()) => {}
            // One that has grown, or that somebody else has made larger.
            Err(error) if code(&error) == Some(error::EXISTS) && self.is_of_type(set)? => {}
            Err(error) => return Err(failed("make", &set.name, error)),
        }
        if set.is_kept() || self.difference(set)?.is_none() {
            return Ok(());
        }
        self.replace(set, &set.planned_elements())
    }

    fn is_of_type(&mut self, set: &Set) -> Result<bool, Error> {
        Ok(self.header(&set.name)?.is_some_and(|header| header.fits(set)))
    }

    /// How the kernel's set differs from the planned one, of a kept one but for its members.
    pub(crate) fn difference(&mut self, set: &Set) -> Result<Option<&'static str>, Error> {
        Ok(match self.header(&set.name)? {
            None => Some("is missing"),
            Some(header) if !header.fits(set) => Some("is of another type"),
            Some(_) if set.is_kept() => None,
            Some(_) => {
                let (mut there, mut wanted) = (self.list(set)?, set.planned_elements());
                there.sort_by_key(|element| element.key);
                wanted.sort_by_key(|element| element.key);
                let keys = |elements: &[Element]| elements.iter().map(|e| e.key).collect::<Vec<Key>>();
                (keys(&there) != keys(&wanted)).then_some("has other elements")
            }
        })
    }

    /// Type and size; absent where the set is missing.
    fn header(&mut self, name: &str) -> Result<Option<SetHeader>, Error> {
        let mut found = None;
        let result = self.socket.dump(&message::list(name, true), |part| match part {
            None => found = None,
            Some(part) => found = found.take().or_else(|| SetHeader::read(part)),
        });
        match result {
            Ok(()) => Ok(found),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("look at", name, error)),
        }
    }

    /// By the whole list: ipset cannot be asked for the comment of one element.
    pub(crate) fn get(&mut self, set: &Set, key: &Key) -> Result<Option<Element>, Error> {
        let mut found = None;
        let wanted = match key {
            Key::Address(address) => octets(*address),
            Key::Prefix(_) | Key::Endpoint(_) | Key::Arrival(_) => Vec::new(),
        };
        self.dump(&set.name, |item| match item {
            None => found = None,
            Some(item) if message::may_be(&item, &wanted) => {
                found =
                    found.take().or_else(|| message::read(set, &item).filter(|element| element.key == *key));
            }
            Some(_) => {}
        })?;
        Ok(found)
    }

    pub(crate) fn list(&mut self, set: &Set) -> Result<Vec<Element>, Error> {
        let mut found = Vec::new();
        self.dump(&set.name, |item| match item {
            None => found.clear(),
            Some(item) => found.extend(message::read(set, &item)),
        })?;
        if set.commented {
            let comments = found.iter().map(|element| (element.key, element.comment.clone()));
            self.comments.insert(set.name.to_string(), comments.collect());
        }
        Ok(message::whole(found))
    }

    fn dump(
        &mut self,
        name: &str,
        mut take: impl FnMut(Option<netlink::wire::Attribute<'_>>),
    ) -> Result<(), Error> {
        let result = self.socket.dump(&message::list(name, false), |part| match part {
            None => take(None),
            Some(part) => message::items(part).for_each(|item| take(Some(item))),
        });
        result.map_err(|error| failed("list", name, error))
    }

    /// Adds, then removes, set by set.
    pub(crate) fn change(&mut self, changes: &[(&SetPlace, &SetDelta)]) -> Result<ElementCounts, Error> {
        let mut changed = ElementCounts::default();
        for (at, delta) in changes {
            changed = changed.plus(self.add(&at.set, &delta.added().collect::<Vec<_>>())?);
            changed = changed.plus(self.remove(&at.set, &delta.removed().collect::<Vec<_>>())?);
        }
        Ok(changed)
    }

    pub(crate) fn add(&mut self, set: &Set, elements: &[Element]) -> Result<ElementCounts, Error> {
        let mut changed = ElementCounts::default();
        for (number, part) in elements.chunks(COMMANDS_AT_A_TIME).enumerate() {
            let answers =
                self.send(set, part.iter().map(|element| ElementCommand::Add { element, exclusive: true }))?;
            let mut refused = Vec::new();
            for (element, result) in part.iter().zip(answers) {
                match result {
                    Ok(()) => changed.added += 1,
                    Err(error) if code(&error) == Some(error::ELEMENT_EXISTS) => {
                        let other = self.write_over(set, element)?;
                        *(if other { &mut changed.replaced } else { &mut changed.as_before }) += 1;
                    }
                    Err(error) if code(&error) == Some(error::FULL) => {
                        refused.push(element.clone());
                        continue;
                    }
                    Err(error) => return Err(failed("add an element to", &set.name, error)),
                }
                if let Some(comments) = self.comments.get_mut(set.name.as_ref()) {
                    comments.insert(element.key, element.comment.clone());
                }
            }
            if !refused.is_empty() {
                self.grow(set, elements.len() - number * COMMANDS_AT_A_TIME)?;
                changed = changed.plus(self.add(set, &refused)?);
            }
        }
        Ok(changed)
    }

    pub(crate) fn remove(&mut self, set: &Set, keys: &[Key]) -> Result<ElementCounts, Error> {
        let mut changed = ElementCounts::default();
        for part in keys.chunks(COMMANDS_AT_A_TIME) {
            let answers = self.send(set, part.iter().map(|key| ElementCommand::Remove { key }))?;
            for (key, result) in part.iter().zip(answers) {
                match result {
                    Ok(()) => changed.removed += 1,
                    Err(error) if code(&error) == Some(error::ELEMENT_EXISTS) => changed.as_before += 1,
                    Err(error) => return Err(failed("remove an element from", &set.name, error)),
                }
                if let Some(comments) = self.comments.get_mut(set.name.as_ref()) {
                    comments.remove(key);
                }
            }
        }
        Ok(changed)
    }

    /// Writes an element that is there again, although it may be right: who else changed it is not known. Whether its comment was another one,
    /// as far as this process knows.
    fn write_over(&mut self, set: &Set, element: &Element) -> Result<bool, Error> {
        if !set.commented {
            return Ok(false);
        }
        if !self.comments.contains_key(set.name.as_ref()) {
            self.list(set)?;
        }
        let known = self.comments.get(set.name.as_ref()).and_then(|comments| comments.get(&element.key));
        let other = known != Some(&element.comment);
        let answers = self.send(set, std::iter::once(ElementCommand::Add { element, exclusive: false }))?;
        let failure = answers.into_iter().find_map(Result::err);
        failure.map_or(Ok(other), |error| Err(failed("add an element to", &set.name, error)))
    }

    /// Sends commands of one set in one piece, and gives the kernel's answer to each. A key may take several commands; all must have succeeded.
    fn send<'a>(
        &mut self,
        set: &Set,
        commands: impl Iterator<Item = ElementCommand<'a>>,
    ) -> Result<Vec<Result<(), netlink::Error>>, Error> {
        let mut results: Vec<Option<Result<(), netlink::Error>>> = Vec::new();
        let mut request = netlink::wire::MessageWriter::with_capacity(4096);
        for command in commands {
            command.write(&mut request, set, u32::try_from(results.len()).unwrap_or(u32::MAX));
            results.push(None);
        }
        let answers =
            self.socket.exchange(request.bytes()).map_err(|error| failed("change", &set.name, error))?;
        for NetlinkAnswer { sequence, result } in answers {
            if let Some(known) = results.get_mut(sequence as usize)
                && !matches!(known, Some(Err(_)))
            {
                *known = Some(result);
            }
        }
        Ok(results.into_iter().map(|result| result.unwrap_or(Err(netlink::Error::NoAnswer))).collect())
    }

    /// Makes room for more elements. At every instant the set of the name has all of its members.
    fn grow(&mut self, set: &Set, more: usize) -> Result<(), Error> {
        let members = self.list(set)?;
        let room = room(members.len() + more);
        self.swap(set, &members, room)
    }

    /// Gives a set another content in one step.
    fn replace(&mut self, set: &Set, content: &[Element]) -> Result<(), Error> {
        self.swap(set, content, room(content.len()))
    }

    fn swap(&mut self, set: &Set, content: &[Element], room: usize) -> Result<(), Error> {
        let next = Set { name: next_name(&set.name).into(), ..set.clone() };
        // What an agent left that was killed.
        self.destroy(&next.name)?;
        let made = self.socket.order(&message::create(&next.name, &next, room));
        made.map_err(|error| failed("make", &next.name, error))?;
        let filled = self.add(&next, content).and_then(|_| {
            let swapped = self.socket.order(&message::swap(&set.name, &next.name));
            swapped.map_err(|error| failed("make room in", &set.name, error))
        });
        // Members that somebody else added meanwhile are in the old one.
        let late = filled.and_then(|()| match set.is_kept() {
            true => Ok(SetDelta::between(content, &self.list(&next)?)),
            false => Ok(SetDelta::default()),
        });
        let gone = self.destroy(&next.name);
        let late = late?;
        self.add(set, &late.added().collect::<Vec<_>>())?;
        self.remove(set, &late.removed().collect::<Vec<_>>())?;
        gone
    }

    /// Empties a set.
    pub(crate) fn flush(&mut self, name: &str) -> Result<(), Error> {
        self.comments.remove(name);
        self.socket.order(&message::flush(name)).map_err(|error| failed("empty", name, error))
    }

    /// Removes a set; none is fine. One that something refers to is emptied at least.
    pub(crate) fn destroy(&mut self, name: &str) -> Result<(), Error> {
        self.comments.remove(name);
        for (request, what) in [(message::flush(name), "empty"), (message::destroy(name), "remove")] {
            match self.socket.order(&request) {
                Ok(()) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(failed(what, name, error)),
            }
        }
        Ok(())
    }
}

/// The name of a set while it is filled to take the place of another.
fn next_name(name: &str) -> String {
    let mut end = name.len().min(Set::MAX_NAME - NEXT.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{NEXT}", &name[..end])
}

/// No such set, or no ipset at all.
fn is_missing(error: &netlink::Error) -> bool {
    matches!(code(error), Some(error::NO_SET | error::INVALID | error::UNSUPPORTED))
}

fn failed(what: &str, name: &str, source: netlink::Error) -> Error {
    let hint = match code(&source) {
        Some(1) => " (this needs CAP_NET_ADMIN)",
        Some(error::INVALID | error::UNSUPPORTED) => " (does this kernel have ip_set and its hash types?)",
        Some(error::NO_SET) => " (the set is missing; the next verification makes it)",
        Some(error::BUSY) => " (a rule still looks addresses up in it)",
        Some(error::EXISTS | error::OTHER_TYPE) => {
            " (a set of that name and another type is there; see `ipset list`)"
        }
        _ => "",
    };
    Error::Kernel { operation: format!("{what} ipset {name}"), hint, source }
}
