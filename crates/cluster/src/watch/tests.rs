//! A list, and single questions that are answered while it runs.

use std::sync::Arc;

use facts::Object;
use serde_json::json;
use serde_json::value::to_raw_value;

use super::read;
use crate::index::Index;
use crate::kind::Pods;
use crate::news::{Item, News};

/// A pod in a version, which is its label as well.
fn pod(name: &str, version: u64) -> Item<Arc<Object>> {
    let text = version.to_string();
    let pod = json!({"metadata": {
        "namespace": "shop", "name": name, "uid": name, "resourceVersion": text, "labels": {"version": text},
    }});
    let (Item { key, uid, version, object }, _) = read::object::<Pods>(&to_raw_value(&pod).unwrap()).unwrap();
    Item { key, uid, version, object: Arc::new(object) }
}

fn listed(index: &mut Index, name: &str, version: u64) {
    index.take_pods(News::Listed(pod(name, version)));
}

fn watched(index: &mut Index, name: &str, version: u64) {
    index.take_pods(News::Watched(super::ObjectChange::Updated, pod(name, version)));
}

fn fetched(index: &mut Index, name: &str, version: u64) {
    index.take_pods(News::Fetched(pod(name, version)));
}

fn known(index: &Index) -> Vec<(String, String)> {
    let version = |pod: &facts::Object| pod.label("version").unwrap_or_default().to_owned();
    index.pods().map(|pod| (pod.name().to_owned(), version(pod))).collect()
}

/// An index that has reached version 100.
fn index() -> Index {
    let mut index = Index::default();
    index.take_pods(News::ListBegins);
    listed(&mut index, "old", 90);
    index.take_pods(News::ListEnds(100));
    index
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect()
}

#[test]
fn an_answer_that_is_older_than_the_running_list_changes_nothing() {
    let mut index = index();
    index.take_pods(News::ListBegins);
    listed(&mut index, "old", 115);
    fetched(&mut index, "old", 110);
    assert_eq!(known(&index), pairs(&[("old", "115")]));
    index.take_pods(News::ListEnds(120));
    assert_eq!(known(&index), pairs(&[("old", "115")]));
}

/// It was deleted after the answer and before the list, so that no watch tells of its end.
#[test]
fn a_pod_that_the_list_does_not_have_is_gone_at_its_end() {
    let mut index = index();
    index.take_pods(News::ListBegins);
    listed(&mut index, "old", 90);
    fetched(&mut index, "ghost", 110);
    assert_eq!(known(&index).len(), 2, "until then it is there");
    let gone = index.take_pods(News::ListEnds(120));
    assert_eq!((known(&index), gone.len()), (pairs(&[("old", "90")]), 1));
}

#[test]
fn what_is_newer_than_the_list_stays_whenever_it_came() {
    for after in [false, true] {
        let mut index = index();
        index.take_pods(News::ListBegins);
        if after {
            listed(&mut index, "old", 90);
        }
        fetched(&mut index, "new", 130);
        fetched(&mut index, "old", 125);
        if !after {
            listed(&mut index, "old", 90);
        }
        index.take_pods(News::ListEnds(120));
        assert_eq!(known(&index), pairs(&[("new", "130"), ("old", "125")]), "{after}");
        // The watch comes to them later.
        watched(&mut index, "new", 121);
        watched(&mut index, "new", 140);
        assert_eq!(known(&index), pairs(&[("new", "140"), ("old", "125")]), "{after}");
    }
}

/// A list that breaks off decides nothing.
#[test]
fn a_list_that_breaks_off_takes_nothing_away() {
    let mut index = index();
    index.take_pods(News::ListBegins);
    fetched(&mut index, "new", 110);
    index.take_pods(News::ListBegins);
    assert_eq!(known(&index).len(), 2);
    listed(&mut index, "old", 90);
    listed(&mut index, "new", 110);
    index.take_pods(News::ListEnds(120));
    assert_eq!(known(&index), pairs(&[("new", "110"), ("old", "90")]));
}
