//! Writing when the server refuses, hangs or is away.

use std::time::{Duration, Instant};

use cluster::Writer;
use cluster::write::EventText;
use facts::PodRef;
use serde_json::json;
use testkit::apiserver::{Fault, Resource};

use crate::agent::{NODE, Setup};

const TEXT: EventText<'_> =
    EventText { warning: false, reason: "R", message: "m", component: "istio-cni-node" };

fn web() -> PodRef {
    PodRef { namespace: "shop".into(), name: "web".into(), uid: String::new() }
}

impl Setup {
    pub(crate) fn writer(&self) -> Writer {
        Writer::new(self.connection(), NODE)
    }
}

#[tokio::test]
async fn a_label_goes_by_the_status_with_the_uid() {
    let setup = Setup::new();
    setup.set_pod("web", "1");
    let uid = setup.server.object(Resource::Pods, "shop", "web").unwrap()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let web = PodRef { uid: uid.clone(), ..web() };
    setup.writer().label_pod(&web, "cni.istio.io/uninitialized", "true").await.unwrap();
    let patches = setup.server.patches();
    assert_eq!(patches.len(), 1);
    assert!(patches[0].path.starts_with("/api/v1/namespaces/shop/pods/web/status"), "{}", patches[0].path);
    let expected = json!({"metadata": {"uid": uid, "labels": {"cni.istio.io/uninitialized": "true"}}});
    assert_eq!(patches[0].body, expected);
}

/// The patch names the uid, so that the next pod of the name is left alone.
#[tokio::test]
async fn an_annotation_is_set_and_taken_away_by_the_status() {
    let setup = Setup::new();
    setup.server.set_pod(testkit::PodObject::named("web").in_namespace("shop").uid("u1"));
    let web = PodRef { uid: "u1".into(), ..web() };
    let writer = setup.writer();
    const KEY: &str = "ambient.istio.io/redirection";
    for value in [Some("pending"), Some("enabled"), None] {
        writer.annotate_pod(&web, KEY, value).await.unwrap();
        let patch = setup.server.patches().pop().unwrap();
        assert!(patch.path.starts_with("/api/v1/namespaces/shop/pods/web/status"), "{}", patch.path);
        assert_eq!(patch.body, json!({"metadata": {"uid": "u1", "annotations": {KEY: value}}}));
        let pod = setup.server.object(Resource::Pods, "shop", "web").unwrap();
        assert_eq!(pod["metadata"]["annotations"][KEY].as_str(), value);
    }
    let gone = PodRef { uid: "u0".into(), ..web.clone() };
    assert_eq!(writer.annotate_pod(&gone, KEY, Some("enabled")).await.unwrap_err().status(), Some(409));
    setup.server.delete_pod("shop", "web");
    assert_eq!(writer.annotate_pod(&web, KEY, None).await.unwrap_err().status(), Some(404));
}

#[tokio::test]
async fn nothing_takes_longer_than_its_time_and_nothing_is_repeated() {
    let setup = Setup::new();
    let writer = setup.writer();
    for (fault, text) in [
        (Fault::Hang, "no answer within 2.0 s"),
        (Fault::Slow(Duration::from_millis(100)), "no answer within 2.0 s"),
        (Fault::status(503), "503 the double was told to fail"),
        (Fault::Reset, "check that the API server runs"),
        (Fault::status(403), "lacks a role"),
    ] {
        setup.server.fail_path("/events", 1, fault.clone());
        let start = Instant::now();
        let error = writer.create_event(&web(), TEXT).await.unwrap_err();
        assert!(error.to_string().contains("create an Event about pod shop/web: "), "{error}");
        assert!(error.to_string().contains(text), "{fault:?}: {error}");
        assert!(start.elapsed() < Duration::from_millis(2500), "{fault:?}: {:?}", start.elapsed());
    }
    assert!(setup.server.events().is_empty());
    writer.create_event(&web(), TEXT).await.unwrap();
    assert_eq!(setup.server.events().len(), 1);
}
