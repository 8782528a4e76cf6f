//! Lists as nobody's kernel gives them: every reader comes to an end, within what it may hold.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use fuzz::{Outcome, Target};
use proptest::prelude::*;

use crate::netlink::wire::MessageWriter;
use crate::netlink::{self, NetlinkSocket};

/// Gives a socket that has the answers already.
pub(crate) type Open<'a> = &'a dyn Fn() -> NetlinkSocket;

/// What came of a list: so many objects, or an error.
pub(crate) type Read = Option<usize>;

/// How many lists one socket can be asked for.
const LISTS: usize = 4;
const DONE: u16 = 3;

fn run(input: &[u8]) -> Outcome {
    let kernels = RefCell::new(Vec::new());
    let open = || {
        let (socket, kernel) = answering(input);
        // Whoever sends needs the other end.
        kernels.borrow_mut().push(kernel);
        socket
    };
    let read = [
        crate::nft::tests::lists::read(&open),
        crate::nft::members::tests::read(&open),
        crate::ipset::tests::read(&open),
        crate::route::tests::read(&open),
        crate::sockets::tests::read(&open),
        crate::conntrack::read_entries(&open),
        crate::nflog::read_packets(&open),
        crate::watch::tests::read(&open, input),
    ];
    let few = |found: usize| found.min(3);
    Outcome::of(read.concat().into_iter().map(|found| found.map(few)).collect::<Vec<_>>())
}

fn answering(input: &[u8]) -> (NetlinkSocket, OwnedFd) {
    let mut done = MessageWriter::default();
    done.message(DONE, 0, 1, &[0; 4], |_| {});
    netlink::tests::answering([input, done.bytes()].into_iter().cycle().take(2 * LISTS))
}

/// An attribute: a text, a number, bytes, or attributes.
#[derive(Debug, Clone)]
enum Part {
    Bytes(u16, Vec<u8>),
    Nest(u16, Vec<Part>),
}

impl Part {
    fn write(&self, w: &mut MessageWriter) {
        match self {
            Self::Bytes(kind, bytes) => w.attribute(*kind, bytes),
            Self::Nest(kind, parts) => w.nest(*kind, |w| parts.iter().for_each(|part| part.write(w))),
        }
    }
}

fn part() -> impl Strategy<Value = Part> {
    let kind = || prop_oneof![4 => 0u16..16, 1 => 0u16..48];
    let text = prop::sample::select(DICTIONARY).prop_map(|text| [text.as_bytes(), &[0]].concat());
    let number = prop_oneof![(0u32..20).prop_map(u32::to_be_bytes), any::<u32>().prop_map(u32::to_ne_bytes)];
    let bytes = prop_oneof![
        text,
        number.prop_map(|number| number.to_vec()),
        prop::sample::select(vec![1usize, 2, 4, 8, 16, 20])
            .prop_flat_map(|len| prop::collection::vec(any::<u8>(), len)),
    ];
    let leaf = (kind(), bytes).prop_map(|(kind, bytes)| Part::Bytes(kind, bytes));
    leaf.prop_recursive(6, 40, 6, move |inner| {
        (kind(), prop::collection::vec(inner, 0..6)).prop_map(|(kind, parts)| Part::Nest(kind, parts))
    })
}

/// Messages with headers as long as those of nf_tables, routing and sockets.
fn generate() -> BoxedStrategy<Vec<u8>> {
    let header = prop::sample::select(vec![4, 8, 12, 16, 72]).prop_flat_map(|len| {
        (prop::sample::select(vec![1u8, 2, 10]), prop::collection::vec(any::<u8>(), len - 1))
            .prop_map(|(family, rest)| [vec![family], rest].concat())
    });
    // Errors and ends among them.
    let kind = prop_oneof![6 => any::<u16>(), 1 => Just(2), 1 => Just(DONE)];
    let message = (kind, header, prop::collection::vec(part(), 0..6));
    prop::collection::vec(message, 1..5)
        .prop_map(|messages| {
            let mut w = MessageWriter::default();
            for (kind, header, parts) in messages {
                w.message(kind, 0, 1, &header, |w| parts.iter().for_each(|part| part.write(w)));
            }
            w.bytes().to_vec()
        })
        .boxed()
}

/// Names of instructions, chains, types and interfaces.
const DICTIONARY: &[&str] = &[
    "meta",
    "ct",
    "payload",
    "bitwise",
    "cmp",
    "range",
    "lookup",
    "immediate",
    "counter",
    "redir",
    "tproxy",
    "nat",
    "reject",
    "log",
    "limit",
    "queue",
    "notrack",
    "objref",
    "dynset",
    "exthdr",
    "fib",
    "socket",
    "lo",
    "eth0",
    "nat",
    "filter",
    "route",
    "__set%d",
    "istio-output",
    "istio-proxy-nat",
    "hash:ip",
    "\u{7f}\u{7f}",
];

const TARGET: Target = Target {
    name: "netlink",
    package: env!("CARGO_PKG_NAME"),
    dictionary: DICTIONARY,
    max_len: 8192,
    memory: 1 << 20,
    generate,
    run,
};

#[test]
fn fuzz_netlink() {
    TARGET.fuzz();
}
