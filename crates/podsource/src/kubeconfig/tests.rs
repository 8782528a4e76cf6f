use proptest::prelude::*;

use super::{Url, load};

#[test]
fn urls() {
    let url = |text| Url::parse(text).map(|url| url.to_string());
    assert_eq!(url("https://10.96.0.1:443").unwrap(), "https://10.96.0.1:443");
    assert_eq!(url("HTTPS://k8s.example.com").unwrap(), "https://k8s.example.com:443");
    assert_eq!(url("https://[fd00::1]").unwrap(), "https://[fd00::1]:443");
    assert_eq!(url("https://[fd00::1]:6443/").unwrap(), "https://[fd00::1]:6443");
    assert_eq!(url("http://localhost:8001").unwrap(), "http://localhost:8001");
    assert_eq!(url("https://rancher/k8s/clusters/c-1/").unwrap(), "https://rancher:443/k8s/clusters/c-1");
    assert_eq!(Url::parse("https://[::1]:1").unwrap().host, "::1");
    for bad in [
        "",
        "10.96.0.1:443",
        "https://",
        "https://:443",
        "https://host:0",
        "https://host:65536",
        "https://host:44x",
        "https://user:secret@host",
        "https://host/?a",
        "https://host#a",
        "https://[::1",
        "https://[::1]x",
        "https://[x]",
        "https://fd00::1",
        "https://ho st",
        "https://host/\r\nX: y",
        "unix:///run/x",
    ] {
        let error = url(bad).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}

const MEMBERS: &[&str] = &[
    "current-context: c\n",
    "contexts: [{name: c, context: {cluster: k, user: u}}]\n",
    "contexts:\n- name: c\n  context: {cluster: k}\n",
    "clusters: [{name: k, cluster: {server: \"https://1.2.3.4\", insecure-skip-tls-verify: true}}]\n",
    "clusters: [{name: k, cluster: {server: \"http://a\", certificate-authority-data: aGk=}}]\n",
    "users: [{name: u, user: {token: t, tokenFile: /dev/null}}]\n",
    "users: [{name: u, user: {client-certificate-data: aGk, client-key-data: \"a G k =\"}}]\n",
    "users: &a [*a]\n",
    "users: null\n",
    "{\"users\": [",
    "- \n",
    "---\n",
    "\t",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let _ = load(file.path());
    }

    #[test]
    fn no_mixture_of_members_panics(picks in prop::collection::vec(prop::sample::select(MEMBERS), 0..6)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), picks.concat()).unwrap();
        let _ = load(file.path());
    }

    #[test]
    fn no_url_panics_or_smuggles_a_header(text in "https?://[ -~\\r\\n]{0,40}") {
        if let Ok(url) = Url::parse(&text) {
            let shown = url.to_string();
            prop_assert!(!shown.contains(char::is_whitespace));
            prop_assert_eq!(Url::parse(&shown), Ok(url));
        }
    }
}
