use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::news::{Hold, Item, News};
use crate::watch::ObjectChange;

fn peer(labels: &[(&str, &str)], addresses: &[&str]) -> Peer {
    let addresses: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    serde_json::from_value(
        json!({"metadata": {"labels": labels, "creationTimestamp": "2026-11-29T10:00:00Z"},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": addresses}}),
    )
    .unwrap()
}

fn uid(number: u64) -> Uid {
    Uid::new(&format!("uid-{number}"))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn names<'a>(views: impl Iterator<Item = PeerView<'a>>) -> Vec<&'a str> {
    let mut names: Vec<&str> = views.map(|view| view.name()).collect();
    names.sort_unstable();
    names
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn an_effect_says_what_changed() {
    let mut peers = Peers::default();
    let web = peer(&[("app", "web")], &["10.1.0.2", "fd00::2"]);
    let effect = peers.apply(key("web"), uid(1), web.clone()).unwrap();
    assert_eq!((effect.added(), effect.removed()), (vec![ip("10.1.0.2"), ip("fd00::2")], vec![]));
    assert_eq!(peers.apply(key("web"), uid(1), web.clone()), None, "the same again");

    let moved = peer(&[("app", "web")], &["10.1.0.9", "fd00::2"]);
    let effect = peers.apply(key("web"), uid(1), moved).unwrap();
    assert_eq!((effect.added(), effect.removed()), (vec![ip("10.1.0.9")], vec![ip("10.1.0.2")]));
    assert!(!effect.labels_changed() && !effect.ports_changed() && effect.before == Some(web));

    let other = peer(&[("app", "db")], &["10.1.0.9", "fd00::2"]);
    let effect = peers.apply(key("web"), uid(1), other.clone()).unwrap();
    assert!(effect.labels_changed() && effect.added().is_empty() && effect.removed().is_empty());

    let ended = Peer { phase: Phase::Failed, ..other };
    let effect = peers.apply(key("web"), uid(1), ended).unwrap();
    assert_eq!(effect.removed(), [ip("10.1.0.9"), ip("fd00::2")], "before it is deleted");
    assert_eq!(peers.delete(key("web"), uid(7)), None, "late, of an earlier one");
    let effect = peers.delete(key("web"), uid(1)).unwrap();
    assert!(effect.removed().is_empty() && effect.after.is_none());
    assert_eq!(peers.delete(key("web"), uid(1)), None);
    assert_eq!((peers.len(), peers.texts.len(), peers.labels.len(), peers.ports.len()), (0, 0, 0, 0));
    assert!(peers.groups.is_empty() && peers.by_address.is_empty(), "nothing is left of it");
}

#[test]
fn pods_are_found_by_name_address_namespace_and_labels() {
    let mut peers = Peers::default();
    let apply = |peers: &mut Peers, namespace: &str, name: &str, labels: &[(&str, &str)], address: &str| {
        peers.apply(ObjectKey::new(namespace, name), Uid::new(name), peer(labels, &[address])).unwrap();
    };
    apply(&mut peers, "shop", "web-1", &[("app", "web"), ("team", "red")], "10.1.0.1");
    apply(&mut peers, "shop", "web-2", &[("app", "web"), ("team", "red")], "10.1.0.2");
    apply(&mut peers, "shop", "db", &[("app", "db")], "10.1.0.3");
    apply(&mut peers, "bank", "web-1", &[("app", "web")], "10.1.0.4");
    assert_eq!((peers.len(), peers.labels.len(), peers.ports.len()), (4, 3, 1), "replicas share");
    let view = peers.get("shop", "web-2").unwrap();
    assert_eq!(
        (view.label("team"), view.label("none"), view.addresses()),
        (Some("red"), None, &[ip("10.1.0.2")][..])
    );
    assert_eq!(view.ports().collect::<Vec<_>>(), [("http", PolicyProtocol::Tcp, 8080)]);
    assert_eq!(view.labels().collect::<Vec<_>>(), [("app", "web"), ("team", "red")]);
    assert!(view.is_live() && peers.get("shop", "web-3").is_none() && peers.get("none", "web-1").is_none());
    assert_eq!(peers.by_address(ip("10.1.0.4")).unwrap().namespace(), "bank");
    assert!(peers.by_address(ip("10.9.9.9")).is_none());
    assert_eq!(names(peers.in_namespace("shop")), ["db", "web-1", "web-2"]);
    assert_eq!(names(peers.in_namespace("none")), [""; 0]);
    assert_eq!(peers.namespaces().collect::<std::collections::BTreeSet<_>>(), ["bank", "shop"].into());
    let select = |namespace: &str, text: &str| {
        let selector: facts::labels::WireSelector = serde_json::from_str(text).unwrap();
        names(peers.select(namespace, &selector.read_whole().unwrap()))
    };
    assert_eq!(select("shop", r#"{"matchLabels": {"app": "web"}}"#), ["web-1", "web-2"]);
    assert_eq!(select("bank", r#"{"matchLabels": {"app": "web"}}"#), ["web-1"]);
    assert_eq!(
        select("shop", r#"{"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}"#),
        ["db"]
    );
    assert_eq!(select("shop", "{}"), ["db", "web-1", "web-2"]);
}

#[test]
fn of_two_that_claim_an_address_the_living_and_then_the_younger_has_it() {
    let mut peers = Peers::default();
    let base = peer(&[], &["10.1.0.2"]);
    for (name, claim) in [
        ("ended", Peer { phase: Phase::Succeeded, created: 9, ..base.clone() }),
        ("old", Peer { created: 1, ..base.clone() }),
        ("ending", Peer { is_deleting: true, created: 8, ..base.clone() }),
        ("young", Peer { created: 2, ..base }),
    ] {
        peers.apply(key(name), Uid::new(name), claim);
    }
    for name in ["young", "old", "ending", "ended"] {
        assert_eq!(peers.by_address(ip("10.1.0.2")).unwrap().name(), name);
        peers.delete(key(name), Uid::default()).unwrap();
    }
    assert!(peers.by_address(ip("10.1.0.2")).is_none());
}

/// What a store is to say, in the plainest way.
#[derive(Default)]
struct Model(BTreeMap<(String, String), (u64, Peer)>);

/// A generator without a short period (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn peer(&mut self) -> Peer {
        let all = [("app", "web"), ("app", "db"), ("team", "red"), ("tier", "a"), ("pod", "")];
        let labels: Vec<_> = all.into_iter().filter(|_| self.below(2) == 0).collect();
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        let labels: Vec<_> = labels.into_iter().collect();
        let addresses: Vec<String> =
            (0..self.below(4)).map(|_| format!("10.1.0.{}", self.below(20))).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let phase = [Phase::Pending, Phase::Running, Phase::Failed][self.below(3) as usize];
        let mut peer = Peer {
            phase,
            created: self.below(5),
            host_network: self.below(9) == 0,
            ..peer(&labels, &addresses)
        };
        if self.below(2) == 0 {
            peer.ports = Box::default();
        }
        peer
    }
}

fn same(peers: &Peers, model: &Model, step: u64) {
    let known: BTreeMap<_, _> = peers
        .iter()
        .map(|view| ((view.namespace().to_owned(), view.name().to_owned()), view.to_peer()))
        .collect();
    let expected: BTreeMap<_, _> =
        model.0.iter().map(|(key, (_, peer))| (key.clone(), peer.clone())).collect();
    assert_eq!(known, expected, "step {step}");
    assert_eq!(peers.len(), expected.len());
    for number in 0..20 {
        let address = ip(&format!("10.1.0.{number}"));
        let claims =
            expected.values().flat_map(|peer| peer.addresses.iter().filter(|one| **one == address)).count();
        assert_eq!(peers.claims(address).count(), claims, "step {step}, {address}");
    }
    let selector: facts::labels::WireSelector =
        serde_json::from_str(r#"{"matchLabels": {"app": "web"}}"#).unwrap();
    let selector = selector.read_whole().unwrap();
    for namespace in ["a", "b", "c"] {
        let selected = names(peers.select(namespace, &selector));
        let expected = expected
            .iter()
            .filter(|((of, _), peer)| of == namespace && peer.labels.get("app") == Some("web"));
        assert_eq!(selected, expected.map(|((_, name), _)| name.as_str()).collect::<Vec<_>>(), "step {step}");
    }
}

/// Any order of changes, deletions and lists leaves what a plain map would have, and each effect goes from the one state to the other.
#[test]
fn after_any_changes_the_store_is_as_a_plain_map() {
    for seed in 0..40 {
        let (mut random, mut peers, mut model) = (Random(seed), Peers::default(), Model::default());
        for step in 0..150 {
            let (namespace, name) =
                (["a", "b", "c"][random.below(3) as usize], format!("p{}", random.below(6)));
            let (key, number) = (ObjectKey::new(namespace, &*name), random.below(2));
            let id = (namespace.to_owned(), name);
            let item = |peer: Peer| Item { key: key.clone(), uid: uid(number), version: step, object: peer };
            match random.below(8) {
                0..=3 => {
                    let peer = random.peer();
                    let effects = peers.take(News::Watched(ObjectChange::Updated, item(peer.clone())));
                    let before = model.0.insert(id, (number, peer.clone()));
                    let changed = before.as_ref().is_none_or(|(uid, old)| *uid != number || *old != peer);
                    assert_eq!(effects.len(), usize::from(changed), "seed {seed}, step {step}");
                    for effect in effects {
                        assert_eq!(
                            (effect.before, effect.after),
                            (before.clone().map(|(_, old)| old), Some(peer.clone()))
                        );
                    }
                }
                4..=5 => {
                    let effects = peers.take(News::Gone(item(Peer::default())));
                    let goes = model.0.get(&id).is_some_and(|(uid, _)| *uid == number);
                    let before = if goes { model.0.remove(&id).map(|(_, old)| old) } else { None };
                    let told = effects.into_iter().next().and_then(|effect| effect.before);
                    assert_eq!(told, before, "seed {seed}, step {step}");
                }
                _ => relist(&mut random, &mut peers, &mut model),
            }
            same(&peers, &model, step);
        }
    }
}

/// A list of some of what is there and of some that is new, which may break off.
fn relist(random: &mut Random, peers: &mut Peers, model: &mut Model) {
    peers.take(News::ListBegins);
    let mut listed: BTreeMap<_, _> = BTreeMap::new();
    for (id, entry) in &model.0 {
        if random.below(3) > 0 {
            listed.insert(id.clone(), entry.clone());
        }
    }
    for _ in 0..random.below(4) {
        let name = format!("p{}", random.below(8));
        listed.insert(("b".to_owned(), name), (random.below(2), random.peer()));
    }
    let breaks = random.below(3) == 0;
    for ((namespace, name), (number, peer)) in &listed {
        let key = ObjectKey::new(&**namespace, &**name);
        peers.take(News::Listed(Item { key, uid: uid(*number), version: 1, object: peer.clone() }));
        model.0.insert((namespace.clone(), name.clone()), (*number, peer.clone()));
    }
    if breaks {
        peers.take(News::ListFails { most: Some(100) });
    } else {
        peers.take(News::ListEnds(1));
        model.0.retain(|id, _| listed.contains_key(id));
    }
}

#[test]
fn a_list_that_is_not_believed_goes_again() {
    let mut peers = Peers::default();
    let listed = |peers: &mut Peers, name: &str| {
        let object = peer(&[("app", name)], &["10.1.0.2"]);
        peers.take(News::Listed(Item { key: key(name), uid: uid(1), version: 1, object }))
    };
    peers.take(News::ListBegins);
    listed(&mut peers, "stays");
    peers.take(News::ListEnds(1));
    peers.take(News::ListBegins);
    listed(&mut peers, "stranger");
    assert_eq!(peers.take(News::ListFails { most: Some(1) }), []);
    let gone = peers.take(News::ListFails { most: None });
    assert_eq!(gone.len(), 1);
    assert_eq!((&*gone[0].key.name, names(peers.iter())), ("stranger", vec!["stays"]));
    peers.take(News::ListBegins);
    peers.take(News::Unreadable(key("stays")));
    assert_eq!(peers.take(News::ListEnds(2)), [], "what cannot be read is there");
}
