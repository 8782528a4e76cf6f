//! Sets as the ipset program has them. Rules refer to them, so they are made first.

use std::fmt::Write;

use crate::rule::{Family, Ruleset};
use crate::set::{Element, Key, KeyType, Set};

/// How many elements a set is made for at least: the default of the ipset program, which is more than the pods of any node.
pub const LEAST_ROOM: usize = 65_536;

/// How many elements a set is made for that has so many now.
#[must_use]
pub fn room(elements: usize) -> usize {
    LEAST_ROOM.max(2 * elements)
}

/// The type of a set with such keys.
#[must_use]
pub fn type_name(keys: KeyType) -> &'static str {
    match keys {
        // Of interfaces there are only verdict maps, which ipset lacks.
        KeyType::Address(_) | KeyType::Arrival(_) => "hash:ip",
        KeyType::Prefix(_) => "hash:net",
        KeyType::Endpoint(_) => "hash:ip,port",
    }
}

/// Lines for `ipset restore -exist` that make the sets of all layers, with the content of fixed ones. Verdict maps, which iptables lacks, are
/// left out.
#[must_use]
pub fn render_sets(layers: &[Ruleset]) -> Vec<String> {
    let tables = layers.iter().flat_map(|layer| &layer.tables);
    let sets = tables.flat_map(|table| &table.sets).filter(|set| !set.is_map());
    sets.flat_map(|set| {
        let content = set.planned_elements();
        let elements = content.iter().flat_map(|element| render_element(set, element)).collect::<Vec<_>>();
        std::iter::once(render_set(set)).chain(elements)
    })
    .collect()
}

/// The keys that the kernel takes in the place of one: a prefix of no length at all is two.
#[must_use]
pub fn kernel_keys(key: &Key) -> Vec<Key> {
    match key {
        Key::Prefix(net) if net.prefix_len() == 0 => {
            net.subnets(1).map(|halves| halves.map(Key::Prefix).collect()).unwrap_or_default()
        }
        key => vec![*key],
    }
}

fn render_set(set: &Set) -> String {
    let family = if set.family() == Family::V4 { "inet" } else { "inet6" };
    let mut out = format!("create {} {} family {family}", set.name, type_name(set.keys));
    let room = room(set.fixed_elements().len());
    if room > LEAST_ROOM {
        // Writing to a String cannot fail.
        let _ = write!(out, " maxelem {room}");
    }
    if set.commented {
        out.push_str(" comment");
    }
    out
}

/// The lines that add an element.
fn render_element(set: &Set, element: &Element) -> Vec<String> {
    let line = |key: Key| {
        let key = match key {
            Key::Address(address) => address.to_string(),
            Key::Arrival(key) => key.name.to_string(),
            Key::Prefix(net) => net.to_string(),
            Key::Endpoint(to) => format!("{},{}:{}", to.address, to.protocol.name(), to.port),
        };
        let comment = match element.comment.as_str() {
            "" => String::new(),
            // The program knows no escapes in texts.
            text => format!(" comment \"{}\"", text.replace(['"', '\n'], "'")),
        };
        format!("add {} {key}{}", set.name, if set.commented { comment } else { String::new() })
    };
    kernel_keys(&element.key).into_iter().map(line).collect()
}
