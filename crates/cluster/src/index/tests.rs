use serde_json::json;

use super::*;
use crate::news::Item;
use crate::watch::ObjectChange;

fn pod(namespace: &str, name: &str, uid: &str, label: &str) -> Object {
    serde_json::from_value(json!({"kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": uid, "labels": {"app": label}},
        "spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Running"}}))
    .unwrap()
}

fn item(pod: Object) -> Item<Arc<Object>> {
    let (key, uid) = (ObjectKey::new(pod.namespace(), pod.name()), Uid::new(pod.uid().unwrap_or_default()));
    Item { key, uid, version: 0, object: Arc::new(pod) }
}

fn apply(index: &mut Index, pod: Object) -> Vec<PodRef> {
    index.take_pods(News::Watched(ObjectChange::Updated, item(pod)))
}

fn delete(index: &mut Index, namespace: &str, name: &str, uid: &str) -> Vec<PodRef> {
    index.take_pods(News::Gone(item(pod(namespace, name, uid, ""))))
}

fn namespace(name: &str, team: &str) -> Item<Arc<Namespace>> {
    let object: Namespace =
        serde_json::from_value(json!({"metadata": {"labels": {"team": team, "empty": null}}})).unwrap();
    Item { key: ObjectKey::new("", name), uid: Uid::default(), version: 0, object: Arc::new(object) }
}

fn label(index: &mut Index, name: &str, team: &str) -> Vec<PodRef> {
    index.take_namespaces(News::Watched(ObjectChange::Updated, namespace(name, team)))
}

fn key(namespace: &str, name: &str, uid: &str) -> PodRef {
    PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into() }
}

#[test]
fn applying_tells_what_changed() {
    let mut index = Index::default();
    assert_eq!(apply(&mut index, pod("shop", "web", "u1", "a")), [key("shop", "web", "u1")]);
    assert_eq!(apply(&mut index, pod("shop", "web", "u1", "a")), [], "the same again");
    assert_eq!(apply(&mut index, pod("shop", "web", "u1", "b")), [key("shop", "web", "u1")]);
    let both = [key("shop", "web", "u1"), key("shop", "web", "u2")];
    assert_eq!(apply(&mut index, pod("shop", "web", "u2", "b")), both, "another pod of the name");
    assert_eq!(delete(&mut index, "shop", "web", "u1"), [], "the deletion of the first one, late");
    assert_eq!(delete(&mut index, "shop", "web", "u2"), [key("shop", "web", "u2")]);
    assert_eq!(delete(&mut index, "shop", "web", "u2"), []);
    assert_eq!(delete(&mut index, "none", "web", ""), []);
    assert!(index.pods.is_empty(), "nothing is left of it");
}

#[test]
fn a_change_of_status_counts() {
    let mut index = Index::default();
    apply(&mut index, pod("shop", "web", "u1", "a"));
    let mut done = pod("shop", "web", "u1", "a");
    done.status.as_mut().unwrap().phase = Some("Succeeded".into());
    assert_eq!(apply(&mut index, done), [key("shop", "web", "u1")]);
    assert_eq!(
        index.pod("shop", "web").unwrap().status.as_ref().unwrap().phase.as_deref(),
        Some("Succeeded")
    );
}

#[test]
fn labels_of_a_namespace_change_the_facts_of_its_pods() {
    let mut index = Index::default();
    assert_eq!(label(&mut index, "shop", "red"), []);
    apply(&mut index, pod("shop", "web", "u1", "a"));
    apply(&mut index, pod("bank", "web", "u2", "a"));
    assert_eq!(index.facts("bank", "web").unwrap().namespace_labels, None);
    let facts = index.facts("shop", "web").unwrap();
    let expected = [("team".to_owned(), "red".to_owned()), ("empty".to_owned(), String::new())].into();
    assert_eq!(facts.namespace_labels, Some(expected));
    assert_eq!(*facts.pod, pod("shop", "web", "u1", "a"));
    assert_eq!(label(&mut index, "shop", "red"), []);
    assert_eq!(label(&mut index, "shop", "blue"), [key("shop", "web", "u1")]);
    let gone = |index: &mut Index| index.take_namespaces(News::Gone(namespace("shop", "")));
    assert_eq!(gone(&mut index), [key("shop", "web", "u1")]);
    assert_eq!(gone(&mut index), []);
    assert_eq!(index.facts("shop", "web").unwrap().namespace_labels, None);
    assert!(index.facts("shop", "other").is_none());
}

#[test]
fn namespaces_that_a_list_lacks_change_the_facts_of_their_pods() {
    let mut index = Index::default();
    for (namespace, name, uid) in
        [("shop", "a", "u1"), ("shop", "b", "u2"), ("odd", "c", "u3"), ("new", "d", "u4")]
    {
        apply(&mut index, pod(namespace, name, uid, "a"));
    }
    for namespace in ["shop", "gone", "odd"] {
        label(&mut index, namespace, "red");
    }
    index.take_pods(News::ListBegins);
    index.take_pods(News::Listed(item(pod("shop", "a", "u1", "a"))));
    index.take_pods(News::Unreadable(ObjectKey::new("odd", "c")));
    assert_eq!(index.take_pods(News::ListEnds(1)), [key("new", "d", "u4"), key("shop", "b", "u2")]);
    assert!(!index.is_synced());
    index.take_namespaces(News::ListBegins);
    index.take_namespaces(News::Listed(namespace("shop", "red")));
    index.take_namespaces(News::Unreadable(ObjectKey::new("", "odd")));
    assert_eq!(index.take_namespaces(News::ListEnds(1)), []);
    assert!(index.is_synced() && index.has_namespace("odd") && !index.has_namespace("gone"));
    index.take_namespaces(News::ListBegins);
    assert_eq!(index.take_namespaces(News::ListEnds(2)), [key("odd", "c", "u3"), key("shop", "a", "u1")]);
    assert_eq!(index.pods_in("shop"), [key("shop", "a", "u1")]);
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
    let listed = |index: &mut Index, pod: Object| index.take_pods(News::Listed(item(pod)));
    index.take_pods(News::ListBegins);
    index.take_namespaces(News::ListBegins);
    assert_eq!(listed(&mut index, pod("shop", "same", "u1", "kept")), [], "nothing is new of it");
    assert_eq!(listed(&mut index, pod("shop", "changed", "u2", "new")), [key("shop", "changed", "u2")]);
    assert!(!index.is_remembered("shop", "same") && index.is_remembered("shop", "gone"));
    // The list breaks off: what it has said stays, and so does what it has not come to.
    index.take_pods(News::ListBegins);
    index.remember(remembered("shop", "changed", "u2", "old"));
    let app = |index: &Index, name: &str| index.pod("shop", name).unwrap().label("app").map(str::to_owned);
    assert_eq!(app(&index, "changed").as_deref(), Some("new"), "listed counts more");
    listed(&mut index, pod("shop", "same", "u1", "kept"));
    listed(&mut index, pod("shop", "changed", "u2", "new"));
    assert_eq!(index.take_pods(News::ListEnds(1)), [key("shop", "gone", "u3")]);
    assert_eq!(index.facts("shop", "same").unwrap().namespace_labels.unwrap()["team"], "old");
    let changed = index.take_namespaces(News::Listed(namespace("shop", "new")));
    assert_eq!(changed.len(), 2);
    index.take_namespaces(News::ListEnds(1));
    // Late, it says nothing.
    index.remember(remembered("shop", "gone", "u3", "old"));
    index.remember(remembered("bank", "web", "u4", "old"));
    assert!(index.pod("shop", "gone").is_none() && index.pod("bank", "web").is_none());
    assert!(!index.has_namespace("bank"));
}

#[test]
fn labels_that_are_only_remembered_go_with_a_list_that_lacks_their_namespace() {
    let mut index = Index::default();
    index.remember(remembered("shop", "web", "u1", "old"));
    index.take_namespaces(News::ListBegins);
    assert_eq!(index.take_namespaces(News::ListEnds(1)), [key("shop", "web", "u1")]);
    assert_eq!(index.facts("shop", "web").unwrap().namespace_labels, None);
}
