#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;

#[test]
fn the_example_of_the_specification() {
    let body = br#"{"Netns":"/var/run/netns/cni-1","PodName":"a","PodNamespace":"n","IPs":[{"Interface":2,"Address":{"IP":"10.244.1.5","Mask":"////AA=="},"Gateway":"10.244.1.1"}]}"#;
    let event = StartingPod::parse(body).unwrap();
    let wanted = StartingPod {
        netns: "/var/run/netns/cni-1".into(),
        name: "a".into(),
        namespace: "n".into(),
        uid: None,
        ips: vec!["10.244.1.5".parse().unwrap()],
    };
    assert_eq!(event, wanted);
}

#[test]
fn what_may_be_absent_or_otherwise_spelt() {
    assert_eq!(StartingPod::parse(b"{}").unwrap().ips, Vec::<IpAddr>::new());
    let body = br#"{"netns":null,"podname":"a","PODNAMESPACE":"n","IPs":null,"Other":[1]}"#;
    let event = StartingPod::parse(body).unwrap();
    assert_eq!((event.name.as_str(), event.namespace.as_str(), event.netns.as_str()), ("a", "n", ""));
    assert_eq!(StartingPod::parse(br#"{"PodUID":""}"#).unwrap().uid, None);
    assert_eq!(StartingPod::parse(br#"{"podUid":"1-2"}"#).unwrap().uid.as_deref(), Some("1-2"));
    let mapped = br#"{"IPs":[{"Address":{"IP":"::ffff:10.0.0.1","Mask":null}},{"Address":{"IP":""}},{}]}"#;
    assert_eq!(StartingPod::parse(mapped).unwrap().ips, vec!["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn what_is_refused() {
    let refused = |body: &str| StartingPod::parse(body.as_bytes()).unwrap_err().to_string();
    for (body, says) in [
        ("notjson", "is not JSON"),
        ("", "is not JSON"),
        ("{} {}", "is not JSON"),
        ("{\"PodName\":\"a\"", "is not JSON"),
        ("[]", "body is not an object"),
        (r#"{"PodName":1}"#, "PodName is not text"),
        (r#"{"PodUID":7}"#, "PodUID is not text"),
        (r#"{"Netns":["/a"]}"#, "Netns is not text"),
        (r#"{"Netns":"/a\u0000b"}"#, "zero byte"),
        (r#"{"IPs":"10.0.0.1"}"#, "IPs is not a list"),
        (r#"{"IPs":[1]}"#, "IPs[] is not an object"),
        (r#"{"IPs":[{"Address":"10.0.0.1"}]}"#, "IPs[].Address is not an object"),
        (r#"{"IPs":[{"Address":{"IP":"10.0.0.300"}}]}"#, "\"10.0.0.300\" is not an IP address"),
        (r#"{"IPs":[{"Address":{"IP":"10.0.0.1; drop"}}]}"#, "is not an IP address"),
    ] {
        let text = refused(body);
        assert!(text.contains(says), "{body}: {text}");
    }
    assert!(refused(&format!(r#"{{"PodName":"{}"}}"#, "a".repeat(254))).contains("longer than 253"));
    let many = vec!["{}"; 33].join(",");
    assert!(refused(&format!(r#"{{"IPs":[{many}]}}"#)).contains("33 addresses"));
}
