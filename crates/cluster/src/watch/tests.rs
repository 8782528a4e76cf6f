//! A list, and single questions that are answered while it runs.

use serde_json::json;
use serde_json::value::to_raw_value;

use super::list::{Item, Kind};
use crate::index::Index;

fn kind() -> Kind {
    Kind::Pods { node: "n1".into() }
}

/// A pod in a version, which is its label as well.
fn pod(name: &str, version: u64) -> (Item, u64) {
    let text = version.to_string();
    let pod = json!({"metadata": {
        "namespace": "shop", "name": name, "uid": name, "resourceVersion": text, "labels": {"version": text},
    }});
    let (item, _) = kind().read(&to_raw_value(&pod).unwrap()).unwrap();
    (item, version)
}

fn listed(index: &mut Index, name: &str, version: u64) {
    let (item, version) = pod(name, version);
    kind().apply(index, item, version);
}

fn fetched(index: &mut Index, name: &str, version: u64) {
    let (item, version) = pod(name, version);
    kind().fetched(index, item, version);
}

fn known(index: &Index) -> Vec<(String, String)> {
    let version = |pod: &facts::Object| pod.label("version").unwrap_or_default().to_owned();
    index.pods().map(|pod| (pod.name().to_owned(), version(pod))).collect()
}

/// An index that has reached version 100.
fn index() -> Index {
    let mut index = Index::default();
    kind().begin(&mut index);
    listed(&mut index, "old", 90);
    kind().commit(&mut index, 100);
    index
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect()
}

#[test]
fn an_answer_that_is_older_than_the_running_list_changes_nothing() {
    let mut index = index();
    kind().begin(&mut index);
    listed(&mut index, "old", 115);
    fetched(&mut index, "old", 110);
    assert_eq!(known(&index), pairs(&[("old", "115")]));
    kind().commit(&mut index, 120);
    assert_eq!(known(&index), pairs(&[("old", "115")]));
}

/// It was deleted after the answer and before the list, so that no watch tells of its end.
#[test]
fn a_pod_that_the_list_does_not_have_is_gone_at_its_end() {
    let mut index = index();
    kind().begin(&mut index);
    listed(&mut index, "old", 90);
    fetched(&mut index, "ghost", 110);
    assert_eq!(known(&index).len(), 2, "until then it is there");
    let gone = kind().commit(&mut index, 120);
    assert_eq!((known(&index), gone.len()), (pairs(&[("old", "90")]), 1));
}

#[test]
fn what_is_newer_than_the_list_stays_whenever_it_came() {
    for after in [false, true] {
        let mut index = index();
        kind().begin(&mut index);
        if after {
            listed(&mut index, "old", 90);
        }
        fetched(&mut index, "new", 130);
        fetched(&mut index, "old", 125);
        if !after {
            listed(&mut index, "old", 90);
        }
        kind().commit(&mut index, 120);
        assert_eq!(known(&index), pairs(&[("new", "130"), ("old", "125")]), "{after}");
        // The watch comes to them later.
        listed(&mut index, "new", 110);
        listed(&mut index, "new", 140);
        assert_eq!(known(&index), pairs(&[("new", "140"), ("old", "125")]), "{after}");
    }
}

/// A list that breaks off decides nothing.
#[test]
fn a_list_that_breaks_off_takes_nothing_away() {
    let mut index = index();
    kind().begin(&mut index);
    fetched(&mut index, "new", 110);
    kind().begin(&mut index);
    assert_eq!(known(&index).len(), 2);
    listed(&mut index, "old", 90);
    listed(&mut index, "new", 110);
    kind().commit(&mut index, 120);
    assert_eq!(known(&index), pairs(&[("new", "110"), ("old", "90")]));
}
