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

fn key(namespace: &str, name: &str, uid: &str) -> PodKey {
    PodKey { namespace: namespace.into(), name: name.into(), uid: uid.into() }
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
