//! Which server certificates are trusted: every kind, by a real server of another library, against what Go says of it.
// clippy takes helpers outside of #[test] for production code
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use facts::PodRef;
use podsource::{Kubernetes, PodSource};
use serde_json::json;
use testkit::openssl::{KINDS, Kind, Openssl};

/// What the server answers: the pod.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n\
    {\"kind\":\"Pod\",\"metadata\":{\"name\":\"web\",\"namespace\":\"shop\",\"uid\":\"u\"},\"spec\":{\"containers\":[{\"name\":\"app\"}]}}";

/// Asks a server with a certificate of the kind for the pod.
fn ask(kind: &Kind) -> Result<(), String> {
    let openssl = Openssl::new().unwrap();
    let pods = openssl.dir().join("api/v1/namespaces/shop/pods");
    std::fs::create_dir_all(&pods).unwrap();
    std::fs::write(pods.join("web"), ANSWER).unwrap();
    let (server, authorities) = kind.serve(&openssl).unwrap();
    std::fs::write(openssl.dir().join("authorities"), authorities).unwrap();
    let config = json!({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {
            "server": format!("https://{}", server.address), "certificate-authority": "authorities",
            "tls-server-name": kind.server_name,
        }}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    });
    let kubeconfig = openssl.dir().join("kubeconfig");
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let source = Kubernetes::new(&kubeconfig, "1").with_timeout(Duration::from_secs(5));
    let id = PodRef::named("shop", "web");
    source.pod(&id).map(drop).map_err(|error| error.to_string())
}

#[test]
fn the_same_certificates_as_by_go_are_trusted() {
    let wrong: Vec<String> = KINDS
        .iter()
        .filter_map(|kind| {
            let answer = ask(kind);
            println!("{}: {answer:?}", kind.name);
            match (&answer, kind.refused) {
                (Ok(()), None) => None,
                (Err(text), Some(words)) if text.contains(words) && is_plain(text) => None,
                _ => Some(format!("{}: {answer:?}", kind.name)),
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// In the words of people: no name of a type or a variant of the library.
fn is_plain(text: &str) -> bool {
    !["CertificateError", "Context {", "OtherError", "CaUsed", "Cert(", "DnsName("]
        .iter()
        .any(|name| text.contains(name))
}
