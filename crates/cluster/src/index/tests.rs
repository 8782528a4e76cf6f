use facts::PodRef;
use serde_json::json;

use super::*;

fn pod(namespace: &str, name: &str, uid: &str, label: &str) -> Object {
    serde_json::from_value(json!({"kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": uid, "labels": {"app": label}},
        "spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Running"}}))
    .unwrap()
}

fn labels(value: &str) -> BTreeMap<String, Option<String>> {
    [("team".to_owned(), Some(value.to_owned())), ("empty".to_owned(), None)].into()
}

fn key(namespace: &str, name: &str, uid: &str) -> PodRef {
    PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into() }
}

#[test]
fn applying_tells_what_changed() {
    let mut index = Index::default();
    assert_eq!(index.apply_pod(pod("shop", "web", "u1", "a")), [key("shop", "web", "u1")]);
    assert_eq!(index.apply_pod(pod("shop", "web", "u1", "a")), [], "the same again");
    assert_eq!(index.apply_pod(pod("shop", "web", "u1", "b")), [key("shop", "web", "u1")]);
    let both = [key("shop", "web", "u1"), key("shop", "web", "u2")];
    assert_eq!(index.apply_pod(pod("shop", "web", "u2", "b")), both, "another pod of the name");
    assert_eq!(index.delete_pod("shop", "web", "u1"), [], "the deletion of the first one, late");
    assert_eq!(index.delete_pod("shop", "web", "u2"), [key("shop", "web", "u2")]);
    assert_eq!(index.delete_pod("shop", "web", "u2"), []);
    assert_eq!(index.delete_pod("none", "web", ""), []);
    assert!(index.namespaces.is_empty(), "nothing is left of it");
}

#[test]
fn a_change_of_status_counts() {
    let mut index = Index::default();
    index.apply_pod(pod("shop", "web", "u1", "a"));
    let mut done = pod("shop", "web", "u1", "a");
    done.status.as_mut().unwrap().phase = Some("Succeeded".into());
    assert_eq!(index.apply_pod(done), [key("shop", "web", "u1")]);
    assert_eq!(
        index.pod("shop", "web").unwrap().status.as_ref().unwrap().phase.as_deref(),
        Some("Succeeded")
    );
}

#[test]
fn labels_of_a_namespace_change_the_facts_of_its_pods() {
    let mut index = Index::default();
    assert_eq!(index.apply_namespace("shop", &labels("red")), []);
    index.apply_pod(pod("shop", "web", "u1", "a"));
    index.apply_pod(pod("bank", "web", "u2", "a"));
    assert_eq!(index.facts("bank", "web").unwrap().namespace_labels, None);
    let facts = index.facts("shop", "web").unwrap();
    let expected = [("team".to_owned(), "red".to_owned()), ("empty".to_owned(), String::new())].into();
    assert_eq!(facts.namespace_labels, Some(expected));
    assert_eq!(*facts.pod, pod("shop", "web", "u1", "a"));
    assert_eq!(index.apply_namespace("shop", &labels("red")), []);
    assert_eq!(index.apply_namespace("shop", &labels("blue")), [key("shop", "web", "u1")]);
    assert_eq!(index.delete_namespace("shop"), [key("shop", "web", "u1")]);
    assert_eq!(index.delete_namespace("shop"), []);
    assert_eq!(index.facts("shop", "web").unwrap().namespace_labels, None);
    assert!(index.facts("shop", "other").is_none());
}

#[test]
fn a_list_forgets_what_it_lacks_and_only_at_its_end() {
    let mut index = Index::default();
    for name in ["stays", "goes", "odd", "replaced"] {
        index.apply_pod(pod("shop", name, "u1", "a"));
    }
    for namespace in ["shop", "gone", "odd"] {
        index.apply_namespace(namespace, &labels("red"));
    }
    assert!(!index.is_synced());
    // one that breaks off
    index.begin_pods();
    index.apply_pod(pod("shop", "stays", "u1", "a"));
    assert_eq!(index.pods().count(), 4);

    index.begin_pods();
    assert_eq!(index.apply_pod(pod("shop", "stays", "u1", "a")), []);
    index.apply_pod(pod("shop", "replaced", "u2", "a"));
    index.keep_pod("shop", "odd");
    index.apply_pod(pod("new", "new", "u3", "a"));
    assert_eq!(index.pods().count(), 5);
    assert_eq!(index.commit_pods(), [key("shop", "goes", "u1")]);
    assert!(!index.is_synced());

    index.begin_namespaces();
    index.apply_namespace("shop", &labels("red"));
    index.keep_namespace("odd");
    assert_eq!(index.commit_namespaces(), []);
    assert!(index.is_synced());
    assert_eq!(index.namespaces.keys().collect::<Vec<_>>(), ["new", "odd", "shop"]);
    index.begin_namespaces();
    let mut changed = index.commit_namespaces();
    changed.sort_unstable();
    let expected = [("odd", "u1"), ("replaced", "u2"), ("stays", "u1")];
    assert_eq!(changed, expected.map(|(name, uid)| key("shop", name, uid)));
    assert_eq!(index.pods_in("shop").len(), 3);
}

fn remembered(namespace: &str, name: &str, uid: &str, team: &str) -> Facts {
    let labels = BTreeMap::from([("team".to_owned(), team.to_owned())]);
    Facts { pod: Arc::new(pod(namespace, name, uid, "kept")), namespace_labels: Some(labels) }
}

/// What an earlier process kept counts until the lists are complete, and never more than they do.
#[test]
fn what_is_remembered_counts_until_a_list_says_otherwise() {
    let mut index = Index::default();
    for (name, uid) in [("same", "u1"), ("changed", "u2"), ("gone", "u3")] {
        index.remember(remembered("shop", name, uid, "old"));
    }
    assert!(!index.is_synced());
    assert_eq!(index.facts("shop", "gone").unwrap(), remembered("shop", "gone", "u3", "old"));
    index.begin_pods();
    index.begin_namespaces();
    assert_eq!(index.apply_pod(pod("shop", "same", "u1", "kept")), [], "nothing is new of it");
    assert_eq!(index.apply_pod(pod("shop", "changed", "u2", "new")), [key("shop", "changed", "u2")]);
    assert!(!index.is_remembered("shop", "same") && index.is_remembered("shop", "gone"));
    // The list breaks off: what it has said stays, and so does what it has not come to.
    index.begin_pods();
    index.remember(remembered("shop", "changed", "u2", "old"));
    let app = |index: &Index, name: &str| index.pod("shop", name).unwrap().label("app").map(str::to_owned);
    assert_eq!(app(&index, "changed").as_deref(), Some("new"), "listed counts more");
    index.apply_pod(pod("shop", "same", "u1", "kept"));
    index.apply_pod(pod("shop", "changed", "u2", "new"));
    assert_eq!(index.commit_pods(), [key("shop", "gone", "u3")]);
    assert_eq!(index.facts("shop", "same").unwrap().namespace_labels.unwrap()["team"], "old");
    assert_eq!(index.apply_namespace("shop", &labels("new")).len(), 2);
    index.commit_namespaces();
    // Late, it says nothing.
    index.remember(remembered("shop", "gone", "u3", "old"));
    index.remember(remembered("bank", "web", "u4", "old"));
    assert!(index.pod("shop", "gone").is_none() && index.pod("bank", "web").is_none());
    assert!(!index.namespaces.contains_key("bank"));
}

#[test]
fn labels_that_are_only_remembered_go_with_a_list_that_lacks_their_namespace() {
    let mut index = Index::default();
    index.remember(remembered("shop", "web", "u1", "old"));
    index.begin_namespaces();
    assert_eq!(index.commit_namespaces(), [key("shop", "web", "u1")]);
    assert_eq!(index.facts("shop", "web").unwrap().namespace_labels, None);
}
