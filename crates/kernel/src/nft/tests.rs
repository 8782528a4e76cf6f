//! Reading what anything may have written.

mod kernels;
pub(crate) mod lists;

use std::borrow::Cow;
use std::slice::from_ref;

use proptest::prelude::*;
use ruleset::{
    Action, Base, Chain, ChainKind, Hook, Match, Ports, Protocol, Rule, Ruleset, Table, TableKind,
};

use rustix::io::Errno;

use super::batch::{BatchObject, TableOf};
use super::error::{Error, RefusedMessage};
use super::expr::{Expr, RegisterValue};
use super::uapi::{expr as uapi, set};
use crate::netlink;
use crate::netlink::wire::{Attributes, MessageWriter, Messages};

fn value() -> impl Strategy<Value = RegisterValue> {
    (any::<[u8; 16]>(), 1u8..=16).prop_map(|(bytes, len)| RegisterValue::prefix(bytes, len))
}

fn name() -> impl Strategy<Value = Cow<'static, str>> {
    // Not the name of anonymous sets, for which the batch adds an id.
    "[a-z0-9-]{1,40}".prop_map(Cow::Owned)
}

fn expr() -> impl Strategy<Value = Expr<'static>> {
    prop_oneof![
        any::<u32>().prop_map(Expr::MetaLoad),
        any::<u32>().prop_map(Expr::MetaSet),
        any::<u32>().prop_map(Expr::CtLoad),
        any::<u32>().prop_map(Expr::CtOriginal),
        any::<u32>().prop_map(Expr::CtSet),
        any::<[u32; 3]>().prop_map(|[base, offset, len]| Expr::Payload { base, offset, len }),
        (2..20u32, any::<u32>()).prop_map(|(register, key)| Expr::MetaLoadTo { register, key }),
        (2..20u32, any::<[u32; 3]>())
            .prop_map(|(register, [base, offset, len])| { Expr::PayloadTo { register, base, offset, len } }),
        name().prop_map(|map| Expr::Verdicts { map }),
        (any::<[u8; 16]>(), any::<[u8; 16]>(), 1u8..=16).prop_map(|(mask, xor, len)| Expr::Bitwise {
            mask: RegisterValue::prefix(mask, len),
            xor: RegisterValue::prefix(xor, len),
        }),
        (any::<u32>(), value()).prop_map(|(op, data)| Expr::Cmp { op, data }),
        (name(), any::<bool>()).prop_map(|(set, inverted)| Expr::Lookup { set, inverted }),
        value().prop_map(Expr::Load),
        (any::<i32>(), proptest::option::of(name())).prop_map(|(code, chain)| Expr::Verdict { code, chain }),
        Just(Expr::Counter),
        any::<u32>().prop_map(|flags| Expr::Redir { flags }),
        any::<u32>().prop_map(|family| Expr::Tproxy { family }),
    ]
}

fn encoded(expr: &Expr<'_>) -> MessageWriter {
    let mut w = MessageWriter::default();
    expr.encode(&mut w, &mut std::iter::empty());
    w
}

fn decoded(bytes: &[u8]) -> Option<Expr<'static>> {
    Attributes::new(bytes).next().map(|item| Expr::decode(&item))
}

proptest! {
    #[test]
    fn what_is_written_is_read(expr in expr()) {
        let w = encoded(&expr);
        prop_assert_eq!(w.len() % 4, 0);
        prop_assert_eq!(decoded(w.bytes()), Some(expr));
    }

    /// Closer to the real thing, so that the inner parts see damage too.
    #[test]
    fn a_damaged_expression_can_be_read(expr in expr(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encoded(&expr).bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decoded(&bytes).map(|e| e.to_string());
    }
}

#[test]
fn what_ours_lack_is_other() {
    let other = |name: &str, operands: &[(u16, u32)]| {
        let mut w = MessageWriter::default();
        w.nest(uapi::ITEM, |w| {
            w.text(uapi::NAME, name);
            w.nest(uapi::DATA, |w| operands.iter().for_each(|(kind, n)| w.be32(*kind, *n)));
        });
        matches!(decoded(w.bytes()), Some(Expr::Raw { name: other, .. }) if other == name)
    };
    assert!(other("log", &[]));
    assert!(other("ct", &[(1, 2), (2, 3)]), "another register");
    assert!(other("meta", &[(2, 3), (3, 2)]), "from another register");
    assert!(other("lookup", &[(2, 2)]), "another register");
    assert!(other("payload", &[(1, 1), (2, 1), (3, 12), (4, 4), (5, 1)]), "writes to the packet");
    assert!(other("redir", &[]), "to the same port");
    assert!(other("tproxy", &[(1, 2), (2, 1), (3, 1)]), "to an address");
    assert!(other("ct", &[(1, 1), (2, 3), (77, 1)]), "an unknown attribute");
    assert!(other("ct", &[(1, 1), (2, 3), (3, 0)]), "a direction of another length");
    assert!(!other("meta", &[(1, 1), (2, 3)]));
}

#[test]
fn anonymous_sets_get_their_ids_in_order() {
    let lookup = Expr::Lookup { set: Cow::Borrowed(set::ANONYMOUS_NAME), inverted: false };
    let (mut w, mut ids) = (MessageWriter::default(), 7..);
    lookup.encode(&mut w, &mut ids);
    lookup.encode(&mut w, &mut ids);
    let ids: Vec<Option<u32>> = Attributes::new(w.bytes())
        .map(|item| item.nested().find(uapi::DATA)?.nested().find(4)?.be32())
        .collect();
    assert_eq!(ids, [Some(7), Some(8)]);
}

#[test]
fn a_kernel_that_lacks_something_is_told_from_a_refusal() {
    let ruleset = twenty_five_rules();
    let table = &ruleset.tables[0];
    let of = TableOf { owner: &ruleset.owner, kind: table.kind };
    let (chain, rule) = (&table.chains[0], &table.chains[0].rules[0]);
    let error = |object, errno: Errno| {
        let error = netlink::Error::Refused { text: None, source: errno.into() };
        Error::from(RefusedMessage { object, layers: from_ref(&ruleset), error })
    };
    let cases = [
        (BatchObject::Whole, Errno::OPNOTSUPP, Some("CONFIG_NF_TABLES)")),
        (BatchObject::Whole, Errno::INVAL, Some("transactions (CONFIG_NF_TABLES)")),
        (BatchObject::AddSet(of, "a"), Errno::OPNOTSUPP, Some("nf_tables sets")),
        (BatchObject::AddTable(of), Errno::AFNOSUPPORT, Some("CONFIG_NF_TABLES_INET")),
        (BatchObject::AddChain(of, chain), Errno::NOENT, Some("CONFIG_NFT_NAT")),
        (BatchObject::AddRule(of, chain, rule), Errno::NOENT, Some("CONFIG_NFT_REDIR")),
        (BatchObject::AddRule(of, chain, rule), Errno::OPNOTSUPP, None),
        (BatchObject::AddTable(of), Errno::NOMEM, None),
        (BatchObject::AddTable(of), Errno::INVAL, None),
        (BatchObject::AddChain(of, chain), Errno::INVAL, None),
        (BatchObject::Whole, Errno::PERM, None),
    ];
    for (object, errno, missing) in cases {
        let error = error(object, errno);
        assert_eq!(error.is_unsupported(), missing.is_some(), "{error}");
        assert!(error.to_string().contains(missing.unwrap_or("cannot ")), "{error}");
    }
    let denied = error(BatchObject::Whole, Errno::PERM).to_string();
    assert!(denied.contains("CAP_NET_ADMIN"), "{denied}");
    // The socket itself is refused by a kernel without netfilter.
    let source = netlink::Error::Socket(Errno::PROTONOSUPPORT.into());
    assert!(Error::of_question("ask".to_owned(), source).is_unsupported());
    let source = netlink::Error::Socket(Errno::MFILE.into());
    assert!(!Error::of_question("ask".to_owned(), source).is_unsupported());
}

#[test]
fn a_rehearsal_says_what_would_fail() -> Result<(), Box<dyn std::error::Error>> {
    let mut ruleset = twenty_five_rules();
    ruleset.tables[0].chains[1].rules[3].action = Action::Jump("nowhere".into());
    let ns = testkit::TestNetns::new()?;
    let failures = ns.enter(|_| -> Result<Vec<String>, Error> {
        let mut batch = super::Batch::dormant(from_ref(&ruleset));
        batch.add_tables(&ruleset, &[]);
        let failures = batch.rehearse(&mut super::open()?)?;
        Ok(failures.into_iter().map(|failure| Error::from(failure).to_string()).collect())
    })??;
    let [failure] = &failures[..] else { return Err(format!("{failures:?}").into()) };
    assert!(failure.contains("jump nowhere") && failure.contains("to chain output"), "{failure}");
    Ok(())
}

fn twenty_five_rules() -> Ruleset {
    let net = |i: u8| ipnet::IpNet::V4(ipnet::Ipv4Net::new([10, i, 0, 0].into(), 16).expect("a prefix"));
    let rules = |count: u8| -> Vec<Rule> {
        let matches = |i| {
            vec![
                Match::OutInterface { name: "lo".into(), not: false },
                Match::Protocol(Protocol::Tcp),
                Match::Destination { net: net(i), not: true },
                Match::DestinationPort { ports: Ports::One(15008), not: false },
            ]
        };
        (0..count)
            .map(|i| Rule::new(matches(i), Action::Redirect { port: 15001 }, "a rule like those of a pod"))
            .collect()
    };
    let kind = TableKind::Nat;
    let chain = |name: &'static str, hook, rules| {
        let base = Some(Base { kind: ChainKind::Nat, hook, priority: kind.priority(hook) });
        Chain { name: name.into(), base, rules, leading: 0 }
    };
    let chains =
        vec![chain("prerouting", Hook::Prerouting, rules(12)), chain("output", Hook::Output, rules(13))];
    Ruleset {
        owner: "istio-cost".into(),
        known_chains: Vec::new().into(),
        ipv6: false,
        tables: vec![Table { kind, sets: Vec::new(), chains }],
    }
}
