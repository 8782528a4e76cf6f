//! The API server source against a server that speaks TLS, checks credentials and misbehaves on demand.
// clippy takes helpers outside of #[test] for production code
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::fs;
use std::ops::ControlFlow;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use capture::Pod;
use facts::PodRef;
use fault::{Fault as _, Retry};
use podsource::{Error, Kubernetes, PodSource};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::PodObject;
use testkit::apiserver::{ApiServer, Credentials, Fault, Trust};

const SECOND: Duration = Duration::from_secs(1);

struct Setup {
    server: ApiServer,
    dir: TempDir,
    kubeconfig: PathBuf,
}

fn shop(name: &str) -> PodObject {
    PodObject::named(name).in_namespace("shop")
}

fn setup_with(credentials: Credentials, trust: Trust) -> Setup {
    let server = ApiServer::start().unwrap();
    server.set_pod(
        shop("web")
            .uid("u-1")
            .sidecar()
            .with("/metadata/managedFields", json!([{"fieldsV1": {"f:x": {}}}]))
            .with("/metadata/creationTimestamp", Value::Null)
            .with("/spec/containers/1/securityContext/runAsUser", 1337)
            .with("/status/phase", "Pending"),
    );
    let dir = TempDir::new().unwrap();
    let kubeconfig = server.write_kubeconfig_with(dir.path(), credentials, trust).unwrap();
    Setup { server, dir, kubeconfig }
}

fn setup() -> Setup {
    setup_with(Credentials::Token, Trust::AuthorityData)
}

fn web() -> PodRef {
    PodRef::named("shop", "web")
}

impl Setup {
    fn source(&self) -> Kubernetes<'_> {
        Kubernetes::new(&self.kubeconfig, "1.2.3").with_timeout(SECOND)
    }

    fn get(&self) -> Result<Pod, Error> {
        self.source().pod(&web())
    }

    /// The error after a second, having checked that it names what and where.
    fn fails(&self) -> Error {
        let start = Instant::now();
        let error = self.get().unwrap_err();
        assert!(start.elapsed() < SECOND + Duration::from_millis(400), "{:?}: {error}", start.elapsed());
        let text = error.to_string();
        println!("{text}");
        for part in ["get pod shop/web from ", &self.kubeconfig.display().to_string()] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("token-of-the-node-agent"), "{text}");
        error
    }

    /// The same for faults that are worth retrying: the server's URL is named, and there was more than one try.
    fn fails_with(&self, fault: Fault, parts: &[&str]) {
        self.server.set_fault(Some(fault));
        let error = self.fails();
        assert_eq!(error.retry(), Retry::Backoff, "{error}");
        let text = error.to_string();
        for part in parts.iter().chain([&self.server.url().as_str()]) {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let hangs = text.contains("timed out");
        assert!(
            hangs || (error.tries > 2 && text.contains("gave up after")),
            "{} tries: {text}",
            error.tries
        );
    }

    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.kubeconfig).unwrap();
        assert!(text.contains(from), "{from:?} in {text}");
        fs::write(&self.kubeconfig, text.replace(from, to)).unwrap();
    }

    /// An error in the kubeconfig: found at once, before any connection, also by `ready`.
    fn kubeconfig_fails(&self, parts: &[&str]) {
        let start = Instant::now();
        for error in [self.fails(), self.source().ready().unwrap_err()] {
            assert_eq!((error.retry(), error.tries), (Retry::OnChange, 1), "{error}");
            for part in parts {
                assert!(error.to_string().contains(part), "{part:?} in {error}");
            }
        }
        assert!(start.elapsed() < SECOND / 2);
        assert_eq!(self.server.connections(), 0);
    }
}

// === what works ===

#[test]
fn the_request_is_as_upstream_sends_it_and_the_facts_arrive() {
    let setup = setup();
    let pod = setup.get().unwrap();
    assert_eq!((pod.name.as_str(), pod.uid.as_deref()), ("web", Some("u-1")));
    assert_eq!(pod.containers[1].run_as_user, Some(1337));
    let requests = setup.server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        (requests[0].method.as_str(), requests[0].path.as_str()),
        ("GET", "/api/v1/namespaces/shop/pods/web")
    );
    assert_eq!(requests[0].headers["user-agent"], "istio-cni/1.2.3");
    assert_eq!(requests[0].headers["accept"], "application/json");
    assert_eq!(requests[0].headers["host"], setup.server.address().to_string());
    assert_eq!(requests[0].headers["authorization"], "Bearer token-of-the-node-agent");
}

#[test]
fn every_form_of_credentials_and_trust_works() {
    for credentials in [
        Credentials::Token,
        Credentials::TokenFile,
        Credentials::ClientCertificateData,
        Credentials::ClientCertificateFiles,
    ] {
        for trust in [Trust::AuthorityData, Trust::AuthorityFile, Trust::Insecure] {
            let setup = setup_with(credentials, trust);
            setup.source().ready().unwrap();
            assert!(setup.get().is_ok(), "{credentials:?} {trust:?}");
            let by_certificate = matches!(
                credentials,
                Credentials::ClientCertificateData | Credentials::ClientCertificateFiles
            );
            assert_eq!(setup.server.requests()[0].client_certificate, by_certificate);
        }
    }
}

#[test]
fn a_json_kubeconfig_works() {
    let setup = setup();
    let text = json!({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": setup.server.url(), "insecure-skip-tls-verify": true}}],
        "users": [{"name": "u", "user": {"token": "token-of-the-node-agent"}}],
    });
    fs::write(&setup.kubeconfig, text.to_string()).unwrap();
    setup.get().unwrap();
}

#[test]
fn a_host_name_and_a_server_name_are_used() {
    let setup = setup();
    setup.edit("//127.0.0.1:", "//localhost:");
    let text = setup.fails().to_string();
    assert!(text.contains("certificate is not trusted") && text.contains("localhost"), "{text}");
    setup.edit("    server:", "    tls-server-name: kubernetes.default.svc\n    server:");
    setup.get().unwrap();
}

#[test]
fn a_chunked_answer_is_put_together() {
    let setup = setup();
    for size in [1, 7, 100_000] {
        setup.server.set_fault(Some(Fault::Chunked(size)));
        assert_eq!(setup.get().unwrap().name, "web");
    }
}

#[test]
fn path_segments_are_encoded_and_steps_refused() {
    let setup = setup();
    let id = |name: &str| PodRef { name: name.into(), ..web() };
    assert!(setup.source().pod(&id("a/../b?x#y z%\r\nX: y")).is_err());
    let paths: Vec<_> = setup.server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths[0], "/api/v1/namespaces/shop/pods/a%2F..%2Fb%3Fx%23y%20z%25%0D%0AX%3A%20y");
    let before = setup.server.connections();
    for bad in ["", ".", "..", &"x".repeat(254)] {
        let error = setup.source().pod(&id(bad)).unwrap_err();
        assert!(error.to_string().contains("is not a Kubernetes name"), "{error}");
    }
    assert_eq!(setup.server.connections(), before);
}

#[test]
fn failures_are_retried_and_observed_until_one_try_succeeds() {
    let setup = setup();
    setup.server.fail_next(3, Fault::status(503));
    let seen = RefCell::new(Vec::new());
    let source = setup.source().with_on_retry(|error, tries, pause| {
        seen.borrow_mut().push((error.to_string(), tries, pause));
        ControlFlow::Continue(())
    });
    source.pod(&web()).unwrap();
    drop(source);
    let seen = seen.into_inner();
    assert_eq!(seen.iter().map(|(_, tries, _)| *tries).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(seen[0].0.contains("503 Service Unavailable: the double was told to fail"), "{}", seen[0].0);
    assert!(!seen[2].0.contains("gave up"), "{}", seen[2].0);
    let within =
        |pause: Duration, ms: u64| (ms * 8 / 10..=ms * 12 / 10).contains(&(pause.as_millis() as u64));
    assert!(within(seen[0].2, 50) && within(seen[1].2, 100) && within(seen[2].2, 200), "{seen:?}");
}

/// Whoever is told of a failed try can end the tries.
#[test]
fn the_tries_end_where_they_are_stopped() {
    let setup = setup();
    for (tries, after) in [(1, 1), (3, 3)] {
        setup.server.set_fault(Some(Fault::status(403)));
        let source = setup.source().with_on_retry(|_, tries, _| match tries < after {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        });
        let error = source.pod(&web()).unwrap_err();
        assert_eq!(error.tries, tries, "{error}");
        assert!(error.is_refusal(), "{error}");
    }
}

#[test]
fn a_pod_that_becomes_visible_and_a_renewed_token_are_found() {
    let setup = setup();
    setup.server.delete_pod("shop", "web");
    setup.server.set_token("the-next");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(150));
            setup.server.write_kubeconfig(setup.dir.path(), Credentials::Token).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            setup.server.set_pod(shop("web"));
        });
        let source = setup.source().with_timeout(SECOND * 5);
        assert_eq!(source.pod(&web()).unwrap().name, "web");
    });
}

#[test]
fn another_incarnation_is_asked_for_again() {
    let setup = setup();
    let id = PodRef { uid: "u-2".into(), ..web() };
    let error = setup.source().pod(&id).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("stale object: the runtime starts the pod with uid u-2, the object has uid u-1")
    );
    assert!(setup.server.requests().len() > 2);
    setup.server.set_pod(shop("web").uid("u-2"));
    assert_eq!(setup.source().pod(&id).unwrap().uid.as_deref(), Some("u-2"));
}

// === what the server refuses ===

#[test]
fn an_expired_token_is_explained() {
    let setup = setup();
    setup.server.set_token("the-next");
    let text = setup.fails().to_string();
    assert!(text.contains("401 Unauthorized") && text.contains("may have expired"), "{text}");
    assert!(setup.server.requests().len() > 2);
}

#[test]
fn a_missing_role_is_explained() {
    let setup = setup();
    setup.server.forbid_everyone();
    let text = setup.fails().to_string();
    assert!(
        text.contains("403 Forbidden: pods is forbidden: User") && text.contains("ClusterRole"),
        "{text}"
    );
}

#[test]
fn no_credentials_are_anonymous() {
    let setup = setup_with(Credentials::None, Trust::AuthorityData);
    assert!(setup.fails().to_string().contains("401 Unauthorized"));
    setup.server.admit_everyone();
    setup.get().unwrap();
    assert!(!setup.server.requests()[0].headers.contains_key("authorization"));
}

#[test]
fn a_missing_pod_is_explained() {
    let setup = setup();
    setup.server.delete_pod("shop", "web");
    let text = setup.fails().to_string();
    assert!(
        text.contains("404 Not Found: pods \"web\" not found") && text.contains("still exists"),
        "{text}"
    );
}

#[test]
fn statuses_are_explained() {
    let setup = setup();
    for (code, parts) in [
        (500, ["500 Internal Server Error", "check the health"]),
        (502, ["502 Bad Gateway", "check the health"]),
        (429, ["429 Too Many Requests", "flow control"]),
    ] {
        setup.fails_with(Fault::status(code), &parts);
    }
    setup.fails_with(Fault::HtmlStatus(503), &["503 Service Unavailable: an HTML page", "check the health"]);
}

#[test]
fn statuses_that_no_waiting_changes_end_at_once() {
    let setup = setup();
    for fault in [Fault::status(400), Fault::status(422), Fault::Redirect("https://elsewhere/".into())] {
        setup.server.set_fault(Some(fault));
        let error = setup.fails();
        assert_eq!((error.retry(), error.tries), (Retry::OnChange, 1), "{error}");
    }
}

#[test]
fn retry_after_is_honoured_as_far_as_the_time_goes() {
    let setup = setup();
    setup.server.fail_next(1, Fault::Status { code: 429, retry_after: Some(1) });
    let start = Instant::now();
    setup.source().with_timeout(SECOND * 3).pod(&web()).unwrap();
    assert!(start.elapsed() >= SECOND, "{:?}", start.elapsed());

    setup.server.fail_next(1, Fault::Status { code: 429, retry_after: Some(86_400) });
    let start = Instant::now();
    let error = setup.source().pod(&web()).unwrap_err();
    assert!(error.to_string().contains("429 Too Many Requests"), "{error}");
    assert!(start.elapsed() < SECOND / 2, "waiting would be in vain");
}

// === what goes wrong on the way ===

#[test]
fn a_hanging_server_times_out() {
    let setup = setup();
    setup.fails_with(
        Fault::HangBeforeTls,
        &["timed out after 1.0 s while shaking hands for TLS", "check the load"],
    );
    setup.fails_with(Fault::Hang, &["timed out after 1.0 s while waiting for the answer"]);
    setup.fails_with(
        Fault::Slow(Duration::from_millis(100)),
        &["timed out after 1.0 s while reading the answer"],
    );
}

#[test]
fn a_reason_is_not_hidden_by_the_last_short_try() {
    let setup = setup();
    setup.server.set_fault(Some(Fault::Hang));
    setup.server.fail_next(2, Fault::status(500));
    let text = setup.fails().to_string();
    assert!(text.contains("500 Internal Server Error"), "{text}");
}

#[test]
fn lost_connections_are_explained() {
    let setup = setup();
    setup.fails_with(Fault::ResetBeforeTls, &["onnect", "reset by peer"]);
    setup.fails_with(Fault::Reset, &["connection lost while waiting for the answer", "reset by peer"]);
    setup.fails_with(
        Fault::Close,
        &["connection lost while waiting for the answer: closed by the other side"],
    );
    setup.fails_with(Fault::PlainHttp, &["TLS: the server does not speak TLS"]);
}

#[test]
fn unusable_answers_are_explained() {
    let setup = setup();
    let url = "check that the server URL in the kubeconfig leads to the API server";
    setup.fails_with(Fault::Html, &["an HTML page", url]);
    setup.fails_with(Fault::Body("hello there".into()), &["is not JSON (line 1, column 1)", url]);
    setup.fails_with(Fault::Garbage, &["not understandable HTTP", url]);
    setup.fails_with(Fault::Truncated, &["the answer is truncated: it ends after", "bytes"]);
    setup.fails_with(
        Fault::TruncatedChunks,
        &["the answer is truncated: it ends after", "without a last chunk"],
    );
    setup.fails_with(Fault::Oversized(9 << 20), &["the answer is larger than 8 MiB", url]);
    setup.fails_with(Fault::OversizedChunks(9 << 20), &["the answer is larger than 8 MiB", url]);
    // below the limit it is an answer
    setup.server.set_fault(Some(Fault::OversizedChunks(1 << 20)));
    setup.get().unwrap();
}

#[test]
fn another_object_is_no_pod() {
    let setup = setup();
    for (body, part) in [
        (
            r#"{"kind": "Secret", "metadata": {"name": "web", "namespace": "shop"}}"#,
            "is a Secret and not a Pod",
        ),
        (
            r#"{"kind": "Pod", "metadata": {"name": "other", "namespace": "shop"}}"#,
            "describes no pod or another pod",
        ),
        (
            r#"{"kind": "Pod", "spec": {"containers": "secret words"}}"#,
            "does not have the shape of a pod (line 1, ",
        ),
        (r#"{"kind": "Pod", "spec": {"containers": ["#, "is JSON that ends early"),
        ("[7]", "does not have the shape of a pod"),
        ("{}", "has no kind and is not a Pod"),
        (
            r#"{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"containers": [{"name": "app"}]}}"#,
            "has no kind and is not a Pod",
        ),
        (
            r#"{"kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}}"#,
            "the answer has no spec.containers",
        ),
        (
            r#"{"kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"containers": []}}"#,
            "the answer has no spec.containers",
        ),
    ] {
        setup.server.set_fault(Some(Fault::Body(body.into())));
        let text = setup.source().with_timeout(SECOND / 5).pod(&web()).unwrap_err().to_string();
        assert!(text.contains(part) && !text.contains("secret words"), "{part:?} in {text}");
    }
}

#[test]
fn nobody_listens() {
    let setup = setup();
    let port = setup.server.address().port();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    setup.edit(&format!(":{port}\n"), &format!(":{free}\n"));
    let text = setup.fails().to_string();
    let expected = format!("connect to 127.0.0.1:{free}: Connection refused");
    assert!(text.contains(&expected) && text.contains("check that the API server runs"), "{text}");
}

#[test]
fn a_foreign_authority_ends_at_once() {
    let (setup, other) = (setup(), ApiServer::start().unwrap());
    let start = Instant::now();
    let foreign = TempDir::new().unwrap();
    let kubeconfig = other.write_kubeconfig(foreign.path(), Credentials::Token).unwrap();
    let (there, here) = (other.address().to_string(), setup.server.address().to_string());
    fs::write(&setup.kubeconfig, fs::read_to_string(kubeconfig).unwrap().replace(&there, &here)).unwrap();
    let error = setup.fails();
    let text = error.to_string();
    assert_eq!(error.retry(), Retry::OnChange);
    assert!(start.elapsed() < SECOND);
    assert!(
        text.contains("certificate is not trusted: it is signed by an authority that is not listed"),
        "{text}"
    );
    assert!(text.contains("check certificate-authority(-data)"), "{text}");
    assert!(setup.server.requests().is_empty(), "the token must not be sent");
}

// === kubeconfig ===

#[test]
fn a_kubeconfig_that_is_missing_or_unreadable() {
    let setup = setup();
    fs::remove_file(&setup.kubeconfig).unwrap();
    setup.kubeconfig_fails(&["read the kubeconfig: No such file", "the node agent writes this file"]);
    fs::create_dir(&setup.kubeconfig).unwrap();
    setup.kubeconfig_fails(&["read the kubeconfig: not a regular file"]);
    fs::remove_dir(&setup.kubeconfig).unwrap();
    fs::write(&setup.kubeconfig, vec![b' '; (1 << 20) + 1]).unwrap();
    setup.kubeconfig_fails(&["read the kubeconfig: larger than 1 MiB"]);
}

#[test]
fn a_kubeconfig_that_is_garbage_names_the_problem_and_quotes_nothing() {
    let setup = setup();
    for (garbage, part) in [
        ("", "no current-context"),
        ("\u{0}\u{1}", "invalid at line 1"),
        ("users: secretword", "invalid because a field has another type"),
        ("{\"users\": \"secretword\"}", "invalid at line 1, column"),
        ("{\"users\": [", "invalid at line 1, column"),
        ("a: [b", "invalid at line"),
        ("current-context: x", "no context named \"x\""),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: k}}]", "no cluster named \"k\""),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {}}]",
            "no user named \"u\"",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: k}}]\nclusters: [{name: k, cluster: {}}]",
            "the cluster has no server URL",
        ),
    ] {
        fs::write(&setup.kubeconfig, garbage).unwrap();
        setup.kubeconfig_fails(&[part, "the node agent writes it"]);
        assert!(!setup.fails().to_string().contains("secretword"));
    }
}

#[test]
fn unsupported_and_contradictory_members_are_refused_by_name() {
    for (from, to, part) in [
        ("    # end", "    exec: {command: aws}", "exec credential plugins, which are not supported"),
        ("    # end", "    auth-provider: {name: gcp}", "auth-provider plugins"),
        ("    # end", "    username: admin\n    password: hunter2", "user names and passwords"),
        ("    # end", "    as: admin", "impersonation"),
        ("    server:", "    proxy-url: http://proxy:3128\n    server:", "proxies (proxy-url)"),
        ("    server:", "    insecure-skip-tls-verify: true\n    server:", "exclude each other"),
        ("https://", "http://", "credentials would be sent in the clear"),
        ("https://", "ftp://", "its scheme is neither https nor http"),
        (
            "token: \"token-of-the-node-agent\"",
            "token: \"two words\"",
            "the token is empty or has characters",
        ),
        ("token: \"token-of-the-node-agent\"", "tokenFile: gone", "read tokenFile "),
        ("    # end", "    client-certificate-data: AAAA", "no client-key(-data)"),
        ("    # end", "    client-key: /nowhere", "read client-key /nowhere: No such file"),
        (
            "    # end",
            "    client-certificate-data: AAAA\n    client-key-data: AAAA",
            "has no PEM certificate",
        ),
        (
            "certificate-authority-data: ",
            "certificate-authority-data: '*' # ",
            "certificate-authority-data is not base64",
        ),
        ("certificate-authority-data: ", "certificate-authority-data: AAAA # ", "has no PEM certificate"),
        (
            "certificate-authority-data: ",
            "certificate-authority: /nowhere # ",
            "read certificate-authority /nowhere",
        ),
        ("certificate-authority-data: ", "x: ", "the system's certificate store is not used"),
    ] {
        let setup = setup();
        setup.edit(from, to);
        setup.kubeconfig_fails(&[part]);
        assert!(!setup.fails().to_string().contains("hunter2"));
    }
}

#[test]
fn a_token_that_goes_with_a_missing_token_file_is_used() {
    let setup = setup();
    setup.edit("    # end", "    tokenFile: gone");
    setup.get().unwrap();
    fs::write(setup.dir.path().join("gone"), "another").unwrap();
    assert!(setup.fails().to_string().contains("401"), "the file wins");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (setup, other) = (setup_with(Credentials::ClientCertificateFiles, Trust::AuthorityData), setup());
    other.server.write_kubeconfig(other.dir.path(), Credentials::ClientCertificateFiles).unwrap();
    fs::copy(other.dir.path().join("client.key"), setup.dir.path().join("client.key")).unwrap();
    setup.kubeconfig_fails(&["client certificate and key: "]);
}

#[test]
fn readiness_does_not_ask_the_server() {
    let setup = setup();
    setup.server.set_fault(Some(Fault::HangBeforeTls));
    setup.source().ready().unwrap();
    assert_eq!(setup.server.connections(), 0);
}
