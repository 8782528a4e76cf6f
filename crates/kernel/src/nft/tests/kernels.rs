//! Kernels that lack parts of nf_tables, by their answers.
//!
//! The double reads the transaction as a kernel does (`nfnetlink_rcv` in `net/netfilter/nfnetlink.c`, `nf_tables_api.c`) and answers each message
//! with the number that a kernel without the part gives.

use ruleset::{ALL_BITS, Families, Family, Limit, RejectWith};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::*;
use crate::netlink::flags;
use crate::nft::missing::Release;
use crate::nft::uapi::{chain, message, rule};
use crate::nft::{Support, changed, encode, probe, setup};
use crate::{Change, netlink::NetlinkSocket};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// What a kernel has.
#[derive(Clone, Copy)]
struct Kernel {
    release: &'static str,
    /// Transactions, with or without somebody who takes them.
    batches: bool,
    nf_tables: bool,
    inet: bool,
    /// Types of chains of tables for both families.
    chains: &'static [&'static str],
    lacks_exprs: &'static [&'static str],
    lacks_sets: bool,
    lacks_objects: bool,
}

const ALL: Kernel = Kernel {
    release: "6.12.3",
    batches: true,
    nf_tables: true,
    inet: true,
    chains: &["filter", "nat", "route"],
    lacks_exprs: &[],
    lacks_sets: false,
    lacks_objects: false,
};

impl Kernel {
    /// The errors of a transaction.
    fn errors(&self, transaction: &[u8]) -> Vec<(u32, Errno)> {
        let messages = Messages::new(transaction);
        if !self.batches {
            return messages.map(|message| (message.sequence, Errno::INVAL)).collect();
        }
        if !self.nf_tables {
            return vec![(0, Errno::OPNOTSUPP)];
        }
        let mut chains = Vec::new();
        let mut errors = Vec::new();
        for message in messages {
            let attributes = message.attributes(HEADER);
            let text = |kind| attributes.find(kind).map(|found| found.text().into_owned());
            let result = match message.kind {
                message::NEW_TABLE if !self.inet => Err(Errno::AFNOSUPPORT),
                message::NEW_SET if self.inet && self.lacks_sets => Err(Errno::OPNOTSUPP),
                // No callback for a message of that number: `nfnetlink_find_client`.
                message::NEW_OBJECT if self.inet && self.lacks_objects => Err(Errno::INVAL),
                message::NEW_CHAIN => match text(chain::TYPE) {
                    Some(kind) if !self.inet || !self.chains.contains(&&*kind) => Err(Errno::NOENT),
                    _ => {
                        chains.push(text(chain::NAME));
                        Ok(())
                    }
                },
                message::NEW_RULE => self.rule(chains.contains(&text(rule::CHAIN)), attributes),
                message::BATCH_BEGIN | message::BATCH_END => Ok(()),
                _ if !self.inet => Err(Errno::NOENT),
                _ => Ok(()),
            };
            errors.extend(result.err().map(|errno| (message.sequence, errno)));
        }
        errors
    }

    fn rule(&self, chain_is_there: bool, attributes: Attributes<'_>) -> Result<(), Errno> {
        let exprs = attributes.find(rule::EXPRESSIONS).map(|found| found.nested());
        let mut names = exprs.into_iter().flatten().filter_map(|expr| expr.nested().find(uapi::NAME));
        let lacks = names.any(|name| self.lacks_exprs.contains(&&*name.text()));
        if lacks || !chain_is_there { Err(Errno::NOENT) } else { Ok(()) }
    }

    /// A socket in which the answers to a list of tables and to this transaction are already; every answer is in a real socket, too, when
    /// `send(2)` returns.
    fn socket(&self, asks_for_tables: bool, transaction: &[u8]) -> NetlinkSocket {
        let (ours, kernels) =
            socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        let say = |kind, sequence, code: i32| {
            let mut w = MessageWriter::default();
            let header = [&code.to_ne_bytes()[..], &[0; 16]].concat();
            w.message(kind, flags::CAPPED, sequence, &header, |_| {});
            send(&kernels, w.bytes(), SendFlags::empty()).unwrap();
        };
        if asks_for_tables {
            match self.nf_tables {
                true => say(DONE, 1, 0),
                false => say(ERROR, 1, -Errno::INVAL.raw_os_error()),
            }
        }
        let errors = self.errors(transaction);
        errors.iter().for_each(|(sequence, errno)| say(ERROR, *sequence, -errno.raw_os_error()));
        let last = Messages::new(transaction).filter(|message| message.flags & flags::ACK != 0).last();
        if let (true, Some(message)) = (errors.is_empty(), last) {
            say(ERROR, message.sequence, 0);
        }
        // Whoever sends needs the other end; it ends with the test's process.
        std::mem::forget(kernels);
        NetlinkSocket::over(ours)
    }

    fn setup(&self, ruleset: &Ruleset) -> Result<Change, Error> {
        let layers = std::slice::from_ref(ruleset);
        setup(&mut self.socket(true, &encode(layers)), layers, changed)
    }

    fn probe(&self) -> Support {
        let layers = [probe::questions()];
        let mut batch = super::super::Batch::dormant(&layers);
        batch.add_tables(&layers[0], &[]);
        probe::ask(&mut self.socket(false, &batch.finish())).unwrap()
    }
}

/// As a pod with TPROXY has them, and with a set.
fn tproxy_rules() -> Ruleset {
    let mut ruleset = twenty_five_rules();
    let kind = TableKind::Mangle;
    let matches = vec![Match::Protocol(Protocol::Tcp), Match::CtMark { mark: 1, mask: ALL_BITS, not: false }];
    let rule = Rule {
        families: Families::Only(Family::V4),
        matches,
        action: Action::Tproxy { port: 15006, mark: 1337 },
        counting: ruleset::Counting::Rule,
        why: "".into(),
    };
    let chain = |kind, hook: Hook, rules| Chain {
        name: hook.name().into(),
        base: Some(Base { kind, hook, priority: TableKind::Mangle.priority(hook) }),
        rules,
        leading: 0,
    };
    let restore = Rule::new(Vec::new(), Action::RestoreMark, "");
    let chains = vec![
        chain(ChainKind::Filter, Hook::Prerouting, vec![rule]),
        chain(ChainKind::Route, Hook::Output, vec![restore]),
    ];
    ruleset.tables.insert(0, Table { kind, sets: Vec::new(), chains });
    ruleset
}

/// Rules with a set of ports.
fn port_rules() -> Ruleset {
    let mut ruleset = twenty_five_rules();
    let ports = Match::DestinationPort { ports: Ports::AnyOf(vec![80, 443]), not: false };
    let matches = vec![Match::Protocol(Protocol::Tcp), ports];
    ruleset.tables[0].chains[0].rules.push(Rule::new(matches, Action::Return, ""));
    ruleset
}

/// Rules that reject, log within a limit, and count by name.
fn policy_rules() -> Ruleset {
    let kind = TableKind::Filter;
    let limit = Some(Limit { per_second: 1, burst: 1 });
    let log = Action::Log { group: 1, prefix: "1".into(), limit };
    let reject = Action::Reject(RejectWith::PortUnreachable);
    let rules = [log, reject].map(|action| Rule::new(Vec::new(), action, "").counted_as("n")).to_vec();
    let base = Base { kind: ChainKind::Filter, hook: Hook::Input, priority: kind.priority(Hook::Input) };
    let input = Chain { name: "input".into(), base: Some(base), rules, leading: 0 };
    let tables = vec![Table { kind, sets: Vec::new(), chains: vec![input] }];
    Ruleset { tables, ..twenty_five_rules() }
}

/// Kernel, rules, what the error says, and what it does not say.
#[test]
fn a_kernel_without_a_part_is_told_with_what_helps() {
    type Rules = fn() -> Ruleset;
    const INET_NAT: &[&str] = &["nf_tables nat for both families", "came with Linux 5.2"];
    let old = Kernel { chains: &["filter"], lacks_exprs: &["redir", "nat"], ..ALL };
    let cases: &[(Kernel, Rules, &[&str], &[&str])] = &[
        (
            Kernel { release: "3.10.0-1160.el7.x86_64", batches: false, nf_tables: false, ..ALL },
            twenty_five_rules,
            &["transactions", "came with Linux 3.13; this is Linux 3.10"],
            &["module"],
        ),
        // A kernel that is new and does not know transactions: nothing that can be loaded changes that.
        (
            Kernel { release: "5.10.0", batches: false, nf_tables: false, ..ALL },
            tproxy_rules,
            &["transactions", "in no module"],
            &["load"],
        ),
        (
            Kernel { release: "4.19.0-27-amd64", nf_tables: false, ..ALL },
            twenty_five_rules,
            &["no nf_tables (CONFIG_NF_TABLES)", "load the module nf_tables"],
            &["came with"],
        ),
        (
            Kernel { release: "3.13.1", inet: false, ..ALL },
            twenty_five_rules,
            &["tables for both families", "came with Linux 3.14; this is Linux 3.13"],
            &["module"],
        ),
        (
            Kernel { release: "6.1.0-18", inet: false, ..ALL },
            tproxy_rules,
            &["CONFIG_NF_TABLES_INET", "in no module"],
            &["load"],
        ),
        (Kernel { release: "4.19.0-27-amd64", ..old }, twenty_five_rules, INET_NAT, &["module"]),
        (Kernel { release: "5.1.21", ..old }, twenty_five_rules, INET_NAT, &["module"]),
        (Kernel { release: "5.1.21", ..old }, port_rules, INET_NAT, &["module"]),
        (
            Kernel { release: "5.1", ..old },
            tproxy_rules,
            &["route chains for both families", "came with Linux 5.2; this is Linux 5.1"],
            &["module"],
        ),
        (
            Kernel { release: "5.15.0-91-generic", chains: &["filter", "route"], ..ALL },
            twenty_five_rules,
            &["add chain prerouting of type nat", "load the module nft_chain_nat"],
            &["came with"],
        ),
        (
            Kernel { release: "6.8.0", lacks_exprs: &["redir"], ..ALL },
            twenty_five_rules,
            &["CONFIG_NFT_REDIR", "load the module nft_redir"],
            &["came with"],
        ),
        (
            Kernel { release: "4.18.0-553.el8.x86_64", lacks_exprs: &["tproxy"], ..ALL },
            tproxy_rules,
            &["tproxy", "came with Linux 4.19; this is Linux 4.18"],
            &["module"],
        ),
        (
            Kernel { release: "6.8.0", lacks_exprs: &["tproxy"], ..ALL },
            tproxy_rules,
            &["load the module nft_tproxy"],
            &["came with"],
        ),
        (
            Kernel { release: "5.4.0", lacks_exprs: &["reject"], ..ALL },
            policy_rules,
            &["CONFIG_NFT_REJECT_INET", "load the module nft_reject_inet"],
            &["came with"],
        ),
        (
            Kernel { release: "5.4.0", lacks_exprs: &["limit"], ..ALL },
            policy_rules,
            &["CONFIG_NFT_LIMIT", "load the module nft_log, nfnetlink_log or nft_limit"],
            &["came with"],
        ),
        (
            Kernel { release: "4.9.1", lacks_objects: true, ..ALL },
            policy_rules,
            &["counters by name", "came with Linux 4.10; this is Linux 4.9"],
            &["module"],
        ),
        (
            Kernel { release: "5.3.0", lacks_sets: true, ..ALL },
            port_rules,
            &["nf_tables sets", "load the module nf_tables_set"],
            &["came with", "chain of this type"],
        ),
        (
            Kernel { release: "a kernel of its own", chains: &["filter"], ..ALL },
            twenty_five_rules,
            &["load the module nft_chain_nat"],
            &["came with"],
        ),
    ];
    for (kernel, rules, says, silent) in cases {
        let error = kernel.setup(&rules()).unwrap_err();
        assert!(error.is_unsupported(), "{}: {error}", kernel.release);
        let Error::Unsupported { operation, missing, source } = error else { unreachable!() };
        let missing = missing.on(Release::parse(kernel.release));
        let text = Error::Unsupported { operation, missing, source }.to_string();
        assert!(says.iter().all(|part| text.contains(part)), "{}: {text}", kernel.release);
        assert!(!silent.iter().any(|part| text.contains(part)), "{}: {text}", kernel.release);
        assert!(text.len() < 350 && !text.contains("backend"), "{text}");
    }
    for rules in [twenty_five_rules, tproxy_rules, port_rules, policy_rules, probe::questions] {
        assert_eq!(ALL.setup(&rules()).unwrap(), Change::Fresh);
    }
}

#[test]
fn a_probe_says_what_a_kernel_has() {
    let support = |redirect, marks, tproxy| Support { tables: true, redirect, marks, tproxy };
    let nothing = Support { tables: false, ..support(false, false, false) };
    for (kernel, wanted) in [
        (ALL, support(true, true, true)),
        (Kernel { batches: false, nf_tables: false, ..ALL }, nothing),
        (Kernel { nf_tables: false, ..ALL }, nothing),
        (Kernel { inet: false, ..ALL }, support(false, false, false)),
        (Kernel { chains: &["filter"], lacks_exprs: &["redir"], ..ALL }, support(false, false, false)),
        (Kernel { chains: &["filter", "route"], ..ALL }, support(false, true, true)),
        (Kernel { lacks_exprs: &["redir"], ..ALL }, support(false, true, true)),
        (Kernel { lacks_exprs: &["tproxy"], ..ALL }, support(true, true, false)),
        (Kernel { lacks_exprs: &["ct"], ..ALL }, support(true, false, false)),
        // What nothing of ours is loaded with yet is not asked for.
        (
            Kernel { lacks_exprs: &["log", "limit", "reject", "objref"], lacks_objects: true, ..ALL },
            support(true, true, true),
        ),
    ] {
        assert_eq!(kernel.probe(), wanted, "{:?}", (kernel.nf_tables, kernel.chains, kernel.lacks_exprs));
    }
}

#[test]
fn releases_are_read() {
    for (text, wanted) in [
        ("6.18.44-fc-v657", Some((6, 18))),
        ("5.1", Some((5, 1))),
        ("3.10.0-1160.el7.x86_64", Some((3, 10))),
        ("5.15+", Some((5, 15))),
        ("6", None),
        ("", None),
        ("next-20260801", None),
        ("99999999999.1", None),
    ] {
        assert_eq!(Release::parse(text), wanted.map(|(major, minor)| Release(major, minor)), "{text}");
    }
    assert!(Release(3, 10) < Release(5, 2) && Release(5, 10) > Release(5, 2));
}
