use super::*;
use crate::watch;

type Store = Objects<String>;

fn uid(number: u64) -> Uid {
    Uid::new(&number.to_string())
}

fn item(name: &str, number: u64, version: u64, object: &str) -> Item<Arc<String>> {
    Item { key: ObjectKey::new("shop", name), uid: uid(number), version, object: Arc::new(object.to_owned()) }
}

fn there(name: &str, number: u64, object: &str) -> News<Arc<String>> {
    News::Watched(watch::ObjectChange::Updated, item(name, number, 0, object))
}

/// Name, before and after.
fn told(changes: Vec<Change<String>>) -> Vec<(String, Option<String>, Option<String>)> {
    let text = |object: Option<Arc<String>>| object.map(|object| (*object).clone());
    changes.into_iter().map(|one| (one.key.name.into(), text(one.before), text(one.after))).collect()
}

fn known(store: &Store) -> Vec<(&str, &str)> {
    store.iter().map(|(_, name, object)| (name, object.as_str())).collect()
}

#[test]
fn changes_are_told_with_what_was_and_what_is() {
    let mut store = Store::default();
    let change = |before: Option<&str>, after: Option<&str>| {
        vec![("web".to_owned(), before.map(str::to_owned), after.map(str::to_owned))]
    };
    assert_eq!(told(store.take(there("web", 1, "a"))), change(None, Some("a")));
    assert_eq!(told(store.take(there("web", 1, "a"))), [], "the same again");
    assert_eq!(told(store.take(there("web", 1, "b"))), change(Some("a"), Some("b")));
    assert_eq!(told(store.take(there("web", 2, "b"))), change(Some("b"), Some("b")), "another of the name");
    assert_eq!(told(store.take(News::Gone(item("web", 1, 0, "")))), [], "the end of the first one, late");
    assert_eq!(told(store.take(News::Gone(item("web", 2, 0, "")))), change(Some("b"), None));
    assert_eq!(told(store.take(News::Gone(item("web", 2, 0, "")))), []);
    assert!(store.is_empty() && store.held.is_empty(), "nothing is left of it");
}

#[test]
fn a_list_forgets_what_it_lacks_and_only_at_its_end() {
    let mut store = Store::default();
    for name in ["stays", "goes", "odd"] {
        store.take(there(name, 1, "a"));
    }
    assert!(!store.is_listed());
    // one that breaks off
    store.take(News::ListBegins);
    store.take(News::Listed(item("stays", 1, 1, "a")));
    assert_eq!(told(store.take(News::ListFails { most: Some(10) })), []);
    assert_eq!(store.len(), 3);

    store.take(News::ListBegins);
    assert_eq!(told(store.take(News::Listed(item("stays", 1, 1, "a")))), []);
    store.take(News::Unreadable(ObjectKey::new("shop", "odd")));
    store.take(News::Unreadable(ObjectKey::new("shop", "never read")));
    store.take(News::Listed(item("new", 1, 1, "n")));
    assert_eq!(store.len(), 4);
    assert_eq!(told(store.take(News::ListEnds(1))), [("goes".into(), Some("a".into()), None)]);
    assert_eq!(known(&store), [("new", "n"), ("odd", "a"), ("stays", "a")]);
    assert!(store.is_listed() && store.is_absent("shop", "goes") && !store.is_absent("shop", "new"));
    assert!(!store.is_absent("shop", "never read"), "it exists, whatever it is");
    store.take(News::ListBegins);
    assert!(!store.is_absent("shop", "never read"), "nor does the next list say otherwise before its end");
    store.take(News::ListEnds(2));
    assert!(store.is_absent("shop", "never read") && store.is_empty());
}

#[test]
fn what_is_remembered_counts_until_a_list_says_otherwise() {
    let mut store = Store::default();
    for name in ["same", "gone"] {
        store.remember(ObjectKey::new("shop", name), uid(1), Arc::new("old".into()));
    }
    assert!(store.is_remembered("shop", "same") && !store.has(&ObjectKey::new("shop", "same"), uid(1)));
    store.take(News::ListBegins);
    assert_eq!(told(store.take(News::Listed(item("same", 1, 1, "old")))), [], "nothing is new of it");
    assert!(
        store.has(&ObjectKey::new("shop", "same"), uid(1))
            && !store.has(&ObjectKey::new("shop", "same"), uid(2))
    );
    store.remember(ObjectKey::new("shop", "same"), uid(1), Arc::new("older".into()));
    assert_eq!(told(store.take(News::ListEnds(1))), [("gone".into(), Some("old".into()), None)]);
    store.remember(ObjectKey::new("shop", "gone"), uid(1), Arc::new("old".into()));
    assert_eq!(known(&store), [("same", "old")]);
}

/// A generator without a short period (an LCG of 64 bits, upper half).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

type Model = BTreeMap<String, (u64, String)>;

/// Any order of changes, deletions and lists leaves what a plain map would have, and every change goes from the one state to the other.
#[test]
fn after_any_changes_the_store_is_as_a_plain_map() {
    for seed in 0..200 {
        let (mut random, mut store, mut model) = (Random(seed), Store::default(), Model::new());
        let mut mirror: BTreeMap<String, String> = BTreeMap::new();
        for step in 1..120 {
            let (name, number) = (format!("p{}", random.below(6)), random.below(2));
            let changes = match random.below(8) {
                0..=3 => {
                    let object = random.below(3).to_string();
                    model.insert(name.clone(), (number, object.clone()));
                    store
                        .take(News::Watched(watch::ObjectChange::Updated, item(&name, number, step, &object)))
                }
                4..=5 => {
                    model.retain(|known, (uid, _)| *known != name || *uid != number);
                    store.take(News::Gone(item(&name, number, step, "")))
                }
                _ => relist(&mut random, &mut store, &mut model, step),
            };
            for (name, before, after) in told(changes) {
                let known = match after {
                    Some(object) => mirror.insert(name, object),
                    None => mirror.remove(&name),
                };
                assert_eq!(known, before, "seed {seed}, step {step}");
            }
            let expected: Vec<(&str, &str)> =
                model.iter().map(|(name, (_, object))| (name.as_str(), object.as_str())).collect();
            assert_eq!(known(&store), expected, "seed {seed}, step {step}");
            assert!(mirror.iter().map(|(name, object)| (name.as_str(), object.as_str())).eq(expected));
            assert_eq!(store.len(), model.len());
        }
    }
}

/// A list of some of what is there and of some that is new, which may break off.
fn relist(random: &mut Random, store: &mut Store, model: &mut Model, version: u64) -> Vec<Change<String>> {
    let mut changes = store.take(News::ListBegins);
    let mut listed: Model = model.clone();
    listed.retain(|_, _| random.below(3) > 0);
    for _ in 0..random.below(4) {
        listed.insert(format!("p{}", random.below(8)), (random.below(2), random.below(3).to_string()));
    }
    for (name, (number, object)) in &listed {
        changes.extend(store.take(News::Listed(item(name, *number, version, object))));
        model.insert(name.clone(), (*number, object.clone()));
    }
    if random.below(3) == 0 {
        changes.extend(store.take(News::ListFails { most: Some(100) }));
    } else {
        changes.extend(store.take(News::ListEnds(version)));
        model.retain(|name, _| listed.contains_key(name));
    }
    changes
}
