//! One transaction: the messages, and whose fault an answer is.

mod object;
mod parts;

use ruleset::{Base, Chain, Rule, Ruleset, Set, Table};

pub(super) use object::{BatchObject, TableOf};

use super::error::RefusedMessage;
use super::lower::{self, Lowered};
use super::set::{self as sets, SetType, WireElement};
use super::uapi::{
    batch_header, chain, element, family, header, message, object as object_uapi, rule as rule_uapi, set,
    table as table_uapi,
};
use crate::netlink::wire::MessageWriter;
use crate::netlink::{self, NetlinkAnswer, NetlinkSocket, flags};

/// A transaction that is being written.
pub(super) struct Batch<'a> {
    writer: MessageWriter,
    layers: &'a [Ruleset],
    /// What each message is about; the index is its sequence number.
    objects: Vec<BatchObject<'a>>,
    /// Where the last message starts.
    last: usize,
    set_ids: u32,
    /// `NFT_TABLE_F_*` of the tables that are added.
    table_flags: u32,
}

/// A table that stays, because it has sets that somebody else fills; and what is in it.
#[derive(Debug)]
pub(super) struct KeptTable<'a> {
    pub(super) table: TableOf<'a>,
    /// Chains that stay without their rules, because elements of a kept verdict map may lead to them.
    pub(super) chains: Vec<String>,
    /// Chains that do not.
    pub(super) other_chains: Vec<String>,
    /// Sets that stay.
    pub(super) sets: Vec<String>,
    /// Sets that do not.
    pub(super) other_sets: Vec<String>,
    /// Counters that do not; the others go on counting.
    pub(super) other_counters: Vec<String>,
    /// What goes from the sets that stay: elements of verdict maps that lead to chains which do not.
    pub(super) elements: Vec<(String, Vec<WireElement>)>,
}

impl KeptTable<'_> {
    /// Whether it has more than sets.
    pub(super) fn has_chains(&self) -> bool {
        !self.chains.is_empty() || !self.other_chains.is_empty()
    }
}

/// The answers to a transaction with the indices of their objects.
type Answers<'a> = Vec<(usize, Result<(), RefusedMessage<'a>>)>;

impl<'a> Batch<'a> {
    /// For tables of these layers.
    pub(super) fn new(layers: &'a [Ruleset]) -> Self {
        let mut batch = Self {
            writer: MessageWriter::with_capacity(16 * 1024),
            layers,
            objects: Vec::with_capacity(64),
            last: 0,
            set_ids: 0,
            table_flags: 0,
        };
        batch.objects.push(BatchObject::Whole);
        batch.writer.message(message::BATCH_BEGIN, flags::REQUEST, 0, &batch_header(), |_| {});
        batch
    }

    /// A transaction whose chains are not attached to the packet path, not even until the kernel forgets it.
    pub(super) fn dormant(layers: &'a [Ruleset]) -> Self {
        Self { table_flags: table_uapi::DORMANT, ..Self::new(layers) }
    }

    /// Deletes a table with all that is in it.
    pub(super) fn delete_table(&mut self, table: TableOf<'a>) {
        let name = table.name();
        self.message(BatchObject::DeleteTable(table), message::DEL_TABLE, 0, |w| {
            w.text(table_uapi::NAME, &name);
        });
    }

    /// Deletes the rules and chains of a table and those of its sets that are not to stay.
    fn empty_table(&mut self, kept: &'a KeptTable<'a>) {
        let (table, name) = (kept.table, kept.table.name());
        self.message(BatchObject::DeleteRules(table), message::DEL_RULE, 0, |w| {
            w.text(rule_uapi::TABLE, &name);
        });
        for (from, elements) in &kept.elements {
            for part in elements.chunks(sets::AT_A_TIME) {
                self.message(BatchObject::DeleteElements(table, from), message::DEL_ELEMENTS, 0, |w| {
                    sets::write_elements(w, &name, from, part);
                });
            }
        }
        let sets = kept.other_sets.iter().map(|set| (BatchObject::DeleteSet(table, set), set));
        let chains = kept.other_chains.iter().map(|chain| (BatchObject::DeleteChain(table, chain), chain));
        let counters = kept.other_counters.iter().map(|name| (BatchObject::DeleteCounter(table, name), name));
        for (gone, called) in sets.chain(chains).chain(counters) {
            let (kind, table, attribute) = match gone {
                BatchObject::DeleteSet(..) => (message::DEL_SET, set::TABLE, set::NAME),
                BatchObject::DeleteChain(..) => (message::DEL_CHAIN, chain::TABLE, chain::NAME),
                _ => (message::DEL_OBJECT, object_uapi::TABLE, object_uapi::NAME),
            };
            self.message(gone, kind, 0, |w| {
                w.text(table, &name);
                w.text(attribute, called);
                if kind == message::DEL_OBJECT {
                    w.be32(object_uapi::TYPE, object_uapi::COUNTER);
                }
            });
        }
    }

    /// Adds all tables of a layer. It fails when one is there, but for those that are kept: these get new content.
    pub(super) fn add_tables(&mut self, layer: &'a Ruleset, kept: &'a [KeptTable<'a>]) {
        for table in &layer.tables {
            let of = TableOf { owner: &layer.owner, kind: table.kind };
            let kept = kept.iter().find(|kept| kept.table == of);
            match kept {
                Some(kept) => self.empty_table(kept),
                None => self.add_table(of),
            }
            self.add_content(of, table, kept.map_or(&[], |kept| &kept.sets));
        }
    }

    fn add_table(&mut self, table: TableOf<'a>) {
        let name = table.name();
        let (new, table_flags) = (flags::CREATE | flags::EXCL, self.table_flags);
        self.message(BatchObject::AddTable(table), message::NEW_TABLE, new, |w| {
            w.text(table_uapi::NAME, &name);
            w.be32(table_uapi::FLAGS, table_flags);
        });
    }

    /// Everything in a table but the sets that are there.
    fn add_content(&mut self, of: TableOf<'a>, table: &'a Table, there: &[String]) {
        let name = of.name();
        let new = table.sets.iter().filter(|set| there.iter().all(|name| *name != set.name));
        let sets: Vec<(&Set, u32)> = new.map(|set| (set, self.add_set(of, &name, set))).collect();
        for counter in table.counters() {
            self.message(BatchObject::AddCounter(of, counter), message::NEW_OBJECT, flags::CREATE, |w| {
                w.text(object_uapi::TABLE, &name);
                w.text(object_uapi::NAME, counter);
                w.be32(object_uapi::TYPE, object_uapi::COUNTER);
                w.nest(object_uapi::DATA, |_| {});
            });
        }
        for chain in ruleset::nft::chains(table) {
            self.message(BatchObject::AddChain(of, chain), message::NEW_CHAIN, flags::CREATE, |w| {
                write_chain(w, &name, chain);
            });
        }
        // The elements of a verdict map lead to chains.
        for (set, id) in sets {
            let elements = sets::fixed(set);
            self.add_elements(BatchObject::AddElements(of, &set.name), &name, &set.name, id, &elements);
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                self.add_rule(of, &name, chain, rule);
            }
        }
    }

    /// Adds an empty set; gives its number in the transaction.
    fn add_set(&mut self, of: TableOf<'a>, table: &str, set: &'a Set) -> u32 {
        let id = self.next_set_id();
        self.message(BatchObject::AddSet(of, &set.name), message::NEW_SET, flags::CREATE, |w| {
            w.text(set::TABLE, table);
            w.text(set::NAME, &set.name);
            SetType::of(set).write(w);
            w.be32(set::ID, id);
            let mut data = SetType::of(set).key_order().to_vec();
            push_comment(&mut data, set::USERDATA_COMMENT, &set.comment);
            w.attribute(set::USERDATA, &data);
        });
        id
    }

    fn add_rule(&mut self, of: TableOf<'a>, table: &str, chain: &'a Chain, rule: &'a Rule) {
        let lowered = lower::lower(rule);
        let first_id = self.set_ids + 1;
        for ports in &lowered.ports {
            self.add_ports(BatchObject::AddPorts(of, chain, rule), table, ports);
        }
        let new = flags::CREATE | flags::APPEND;
        self.message(BatchObject::AddRule(of, chain, rule), message::NEW_RULE, new, |w| {
            w.text(rule_uapi::TABLE, table);
            w.text(rule_uapi::CHAIN, &chain.name);
            write_exprs(w, &lowered, first_id);
            write_comment(w, rule);
        });
    }

    fn add_ports(&mut self, object: BatchObject<'a>, table: &str, ports: &[u16]) {
        let id = self.next_set_id();
        self.message(object, message::NEW_SET, flags::CREATE, |w| {
            w.text(set::TABLE, table);
            w.text(set::NAME, set::ANONYMOUS_NAME);
            w.be32(set::FLAGS, set::ANONYMOUS | set::CONSTANT);
            numbers(w, &[(set::KEY_TYPE, set::TYPE_PORT), (set::KEY_LEN, 2), (set::ID, id)]);
            // There are at most 65536 ports.
            w.nest(set::DESC, |w| w.be32(set::DESC_SIZE, u32::try_from(ports.len()).unwrap_or(u32::MAX)));
            w.attribute(set::USERDATA, &set::BIG_ENDIAN_KEYS);
        });
        let elements: Vec<WireElement> =
            ports.iter().map(|port| WireElement::plain(port.to_be_bytes().to_vec())).collect();
        self.add_elements(object, table, set::ANONYMOUS_NAME, id, &elements);
    }

    fn add_elements(
        &mut self,
        object: BatchObject<'a>,
        table: &str,
        set: &str,
        id: u32,
        elements: &[WireElement],
    ) {
        for part in elements.chunks(sets::AT_A_TIME) {
            self.message(object, message::NEW_ELEMENTS, flags::CREATE, |w| {
                w.text(element::LIST_TABLE, table);
                w.text(element::LIST_SET, set);
                w.be32(element::LIST_SET_ID, id);
                w.nest(element::LIST_ELEMENTS, |w| part.iter().for_each(|e| e.write(w)));
            });
        }
    }

    /// Sends it. The kernel does all of it or nothing.
    pub(super) fn run(mut self, socket: &mut NetlinkSocket) -> Result<(), RefusedMessage<'a>> {
        let last = self.objects.len() - 1;
        if last == 0 {
            return Ok(());
        }
        self.end();
        let mut acknowledged = false;
        for (index, result) in self.send(socket)? {
            acknowledged |= index == last && result.is_ok();
            result?;
        }
        if acknowledged { Ok(()) } else { Err(self.failure(0, netlink::Error::NoAnswer)) }
    }

    /// What the kernel takes as a complete transaction.
    fn end(&mut self) {
        // One answer is enough, and it comes after the commit.
        self.writer.add_flag(self.last, flags::ACK);
        self.objects.push(BatchObject::Whole);
        self.message_of(message::BATCH_END, 0, self.objects.len() - 1, &batch_header(), |_| {});
    }

    /// The bytes of it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.end();
        self.writer.bytes().to_vec()
    }

    /// Sends it without the end that makes the kernel commit, and returns what would fail.
    pub(super) fn rehearse(
        self,
        socket: &mut NetlinkSocket,
    ) -> Result<Vec<RefusedMessage<'a>>, RefusedMessage<'a>> {
        Ok(self.send(socket)?.into_iter().filter_map(|(_, result)| result.err()).collect())
    }

    /// The answers in the kernel's order, with the index of the object.
    fn send(&self, socket: &mut NetlinkSocket) -> Result<Answers<'a>, RefusedMessage<'a>> {
        let answers = socket.exchange(self.writer.bytes()).map_err(|error| self.failure(0, error))?;
        let attribute = |answer: NetlinkAnswer| {
            let index = answer.sequence as usize;
            (index, answer.result.map_err(|error| self.failure(index, error)))
        };
        Ok(answers.into_iter().map(attribute).collect())
    }

    fn failure(&self, index: usize, error: netlink::Error) -> RefusedMessage<'a> {
        let object = self.objects.get(index).copied().unwrap_or(BatchObject::Whole);
        RefusedMessage { object, layers: self.layers, error }
    }

    fn message(
        &mut self,
        object: BatchObject<'a>,
        kind: u16,
        extra: u16,
        body: impl FnOnce(&mut MessageWriter),
    ) {
        self.last = self.writer.len();
        self.objects.push(object);
        self.message_of(kind, extra, self.objects.len() - 1, &header(family::INET), body);
    }

    fn message_of(
        &mut self,
        kind: u16,
        extra: u16,
        index: usize,
        header: &[u8; 4],
        body: impl FnOnce(&mut MessageWriter),
    ) {
        // 2³² messages do not fit into memory.
        let sequence = u32::try_from(index).unwrap_or(u32::MAX);
        self.writer.message(kind, flags::REQUEST | extra, sequence, header, body);
    }

    fn next_set_id(&mut self) -> u32 {
        self.set_ids += 1;
        self.set_ids
    }
}

fn numbers(w: &mut MessageWriter, list: &[(u16, u32)]) {
    for (kind, number) in list {
        w.be32(*kind, *number);
    }
}

/// A chain, as it is added to a table.
pub(super) fn write_chain(w: &mut MessageWriter, table: &str, chain: &Chain) {
    w.text(chain::TABLE, table);
    w.text(chain::NAME, &chain.name);
    if let Some(Base { kind, hook, priority }) = chain.base {
        w.text(chain::TYPE, kind.name());
        w.nest(chain::HOOK, |w| {
            w.be32(chain::HOOK_NUMBER, lower::hook_number(hook));
            w.be32(chain::HOOK_PRIORITY, priority.cast_unsigned());
        });
    }
}

/// `first_id` is the set id of the rule's first anonymous set; those of the others follow.
pub(super) fn write_exprs(w: &mut MessageWriter, lowered: &Lowered<'_>, first_id: u32) {
    let mut ids = first_id..;
    w.nest(rule_uapi::EXPRESSIONS, |w| lowered.exprs.iter().for_each(|e| e.encode(w, &mut ids)));
}

/// The comment as nft stores it: type, length with the zero, text, zero.
fn write_comment(w: &mut MessageWriter, rule: &Rule) {
    let mut data = Vec::new();
    push_comment(&mut data, rule_uapi::USERDATA_COMMENT, ruleset::nft::comment(rule));
    if !data.is_empty() {
        w.attribute(rule_uapi::USERDATA, &data);
    }
}

/// An empty one, or one that is too long, is left out.
pub(super) fn push_comment(data: &mut Vec<u8>, kind: u8, comment: &str) {
    if let (false, Ok(len)) = (comment.is_empty(), u8::try_from(comment.len() + 1)) {
        data.extend_from_slice(&[kind, len]);
        data.extend_from_slice(comment.as_bytes());
        data.push(0);
    }
}

/// The owners, for people.
pub(super) fn owners(layers: &[Ruleset]) -> String {
    layers.iter().map(|layer| &*layer.owner).collect::<Vec<_>>().join(" and ")
}
