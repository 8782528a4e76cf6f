//! Which server certificates the agent trusts: the kinds that the plugin is tested with, by the same server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::{Access, ApiConnection, Cluster, Event, Limits, Source, watch};
use serde_json::json;
use testkit::openssl::{KINDS, Kind, Openssl, TlsServer};
use tokio::sync::mpsc;

/// The way to the server: as a pod finds it, or by a kubeconfig with the list in it or beside it.
fn access(index: usize, kind: &Kind, server: &TlsServer, authorities: &str, dir: &Path) -> Access {
    std::fs::write(dir.join("ca.crt"), authorities).unwrap();
    std::fs::write(dir.join("token"), "token").unwrap();
    let (host, port) = (server.address.ip().to_string(), server.address.port().to_string());
    if kind.server_name.is_none() && index.is_multiple_of(3) {
        return Access::in_cluster(&host, &port, dir);
    }
    let mut cluster =
        json!({"server": format!("https://{}", server.address), "tls-server-name": kind.server_name});
    if index % 3 == 1 {
        cluster["certificate-authority-data"] = STANDARD.encode(authorities).into();
    } else {
        cluster["certificate-authority"] = "ca.crt".into();
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "token"}}],
    });
    std::fs::write(dir.join("kubeconfig"), config.to_string()).unwrap();
    Access::Kubeconfig(dir.join("kubeconfig"))
}

/// The first failure of a watch. Behind a trusted certificate it is what the server answers, which is no list.
async fn first_failure(access: Access) -> String {
    let connection = Arc::new(ApiConnection::new(access, "1"));
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let source = Source::Kubernetes { connection, node: "n".into(), limits: Limits::default(), own: None };
    let observer = move |event| {
        if let Event::WatchFailed { error, .. } = event {
            let _ = sender.send(error.to_string());
        }
    };
    let watching = tokio::spawn(watch::run(source, Cluster::new(), observer));
    let failure = tokio::time::timeout(Duration::from_secs(10), receiver.recv()).await.unwrap().unwrap();
    watching.abort();
    failure
}

#[tokio::test]
async fn the_same_certificates_as_by_go_are_trusted() {
    let mut wrong = Vec::new();
    for (index, kind) in KINDS.iter().enumerate() {
        let openssl = Openssl::new().unwrap();
        let (server, authorities) = kind.serve(&openssl).unwrap();
        let access = access(index, kind, &server, &authorities, openssl.dir());
        let is_broken =
            kind.refused.is_none() && (kind.name.contains("broken") || kind.name.contains("no certificate"));
        assert_eq!(access.unreadable_authorities(), usize::from(is_broken), "{}", kind.name);
        let text = first_failure(access).await;
        println!("{}: {text}", kind.name);
        let good = match kind.refused {
            None => text.contains("the answer is not understood"),
            Some(words) => text.contains(words) && !text.contains("CertificateError"),
        };
        if !good {
            wrong.push(format!("{}: {text}", kind.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A renewed list counts for the next connection, and one that is broken meanwhile changes nothing.
#[tokio::test]
async fn a_renewed_list_counts_without_a_restart() {
    let kind = |name: &str| KINDS.iter().find(|kind| kind.name == name).unwrap();
    let (first, second) = (Openssl::new().unwrap(), Openssl::new().unwrap());
    let (server, authorities) = kind("P-256").serve(&first).unwrap();
    let (_other, other_authorities) = kind("P-256").serve(&second).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let access = access(0, kind("P-256"), &server, &other_authorities, dir.path());
    assert!(first_failure(access.clone()).await.contains("is not trusted"));
    let connection = Arc::new(ApiConnection::new(access, "1"));
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let observer = move |event| {
        if let Event::WatchFailed { error, .. } = event {
            let _ = sender.send(error.to_string());
        }
    };
    let source = Source::Kubernetes { connection, node: "n".into(), limits: Limits::default(), own: None };
    let watching = tokio::spawn(watch::run(source, Cluster::new(), observer));
    let mut wait_for = async |words: &str| {
        let found = async { while !receiver.recv().await.unwrap().contains(words) {} };
        tokio::time::timeout(Duration::from_secs(30), found).await.unwrap();
    };
    wait_for("is not trusted").await;
    std::fs::write(dir.path().join("ca.crt"), authorities).unwrap();
    wait_for("not understood").await;
    std::fs::write(dir.path().join("ca.crt"), "").unwrap();
    wait_for("not understood").await;
    watching.abort();
}

#[tokio::test]
async fn credentials_in_the_clear_are_refused() {
    for (server, user, words) in [
        ("http://127.0.0.1:1", json!({"token": "t"}), "is not https"),
        ("https://127.0.0.1:1", json!({"username": "u", "password": "p"}), "user names and passwords"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": user}],
        });
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, config.to_string()).unwrap();
        let text = first_failure(Access::Kubeconfig(path)).await;
        assert!(text.contains(words), "{text}");
    }
}
