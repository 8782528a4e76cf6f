//! Writing when the server refuses, hangs or is away.

use std::time::{Duration, Instant};

use cluster::write::EventText;
use cluster::{EventLimits, Writer};
use facts::PodRef;
use serde_json::json;
use testkit::apiserver::{Fault, Resource};

use crate::agent::{NODE, Setup};

const TEXT: EventText<'_> =
    EventText { warning: false, reason: "CaptureUpdated", message: "m", component: "istio-cni-node" };

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

/// Ten thousand triggers: one Event, which becomes a series, and a budget for the node.
#[tokio::test]
async fn events_have_limits_and_repeats_make_a_series() {
    let setup = Setup::new();
    let limits = EventLimits {
        quiet: Duration::from_millis(1500),
        pause: Duration::from_millis(100),
        end: Duration::from_secs(60),
        in_a_minute: 5,
    };
    let writer = setup.writer().reporting("istio-cni-node-x", limits);
    for _ in 0..10_000 {
        writer.create_event(&web(), TEXT).await.unwrap();
    }
    let posts = || {
        let events = setup.server.requests().into_iter().filter(|request| request.path.contains("/events"));
        let methods: Vec<String> = events.map(|request| request.method).collect();
        methods
    };
    let wait = async |what: &str, is: &dyn Fn() -> bool| {
        let wait = testkit::Wait::new(what, Duration::from_secs(20));
        while !is() {
            let pause = wait.pause(|| format!("{:?}", setup.server.events())).unwrap();
            tokio::time::sleep(pause).await;
        }
    };
    wait("the series", &|| setup.server.events()[0]["series"]["count"] == 10_000).await;
    let event = setup.server.events().pop().unwrap();
    assert_eq!(posts(), ["POST", "PATCH"], "{event}");
    assert_eq!((&event["count"], &event["message"]), (&json!(10_000), &json!("m")));
    assert_eq!(
        (&event["reportingComponent"], &event["reportingInstance"]),
        (&json!("istio-cni.io/agent"), &json!("istio-cni-node-x"))
    );
    assert_eq!((&event["action"], &event["eventTime"].as_str().map(str::len)), (&json!("Update"), &Some(27)));
    // Another text is told in the same Event, soon.
    writer.create_event(&web(), EventText { message: "n", ..TEXT }).await.unwrap();
    wait("the text", &|| {
        setup.server.events()[0]["message"].as_str().is_some_and(|message| message.ends_with('n'))
    })
    .await;
    // The node's budget: three of five are used, and two more are written at once; the others wait.
    for pod in 0..10 {
        writer.create_event(&PodRef::named("shop", format!("pod-{pod}")), TEXT).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(posts().len(), 5);
}
