use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use facts::PodRef;
use http1::{Deadline, Response, exchange};
use proptest::prelude::*;

use super::{is_name, pause, pod};
use crate::error::Cause;
use crate::segment;

const TOKEN: &str = "eyJhbGci.Secret/of-the-agent";

/// What comes of these bytes as the answer. They have to fit into a socket's buffer.
fn answer(bytes: impl AsRef<[u8]>) -> Result<Response, Cause> {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(bytes.as_ref()).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    Ok(exchange(&mut ours, b"GET", Some(TOKEN), 100, Deadline::within(Duration::from_secs(5)))?)
}

#[test]
fn an_echoed_token_is_in_no_error() {
    let escaped = TOKEN.replace('/', "\\/");
    let padding = "x".repeat(60);
    for text in [
        format!("HTTP/1.1 403 No\r\n\r\nAuthorization: Bearer {TOKEN}"),
        // the token lies across the place where the message is shortened
        format!("HTTP/1.1 403 No\r\n\r\n{padding}Authorization: Bearer {TOKEN}"),
        format!("HTTP/1.1 403 No\r\n\r\n{{\"message\":\"Bearer {TOKEN}\"}}"),
        format!("HTTP/1.1 403 No\r\n\r\n{{\"message\":\"Bearer {escaped}\"}}"),
        format!("HTTP/1.1 418 Bearer {TOKEN}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n\r\n{{\"kind\":\"Bearer {TOKEN}\"}}"),
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: bearer {TOKEN}\r\n\r\n"),
    ] {
        let cause = answer(text.as_str())
            .and_then(|response| pod(&response, &PodRef::default(), Some(TOKEN)))
            .unwrap_err();
        let message = cause.to_string().to_lowercase();
        assert!(message.contains("<token>"), "{text:?}: {message}");
        assert!(!message.contains("eyjh") && !message.contains("secret"), "{text:?}: {message}");
    }
}

#[test]
fn pauses_grow_to_a_second_and_honour_the_server() {
    let pauses: Vec<_> = (1..=40).map(|tries| pause(tries, None).as_millis()).collect();
    assert!((40..=60).contains(&pauses[0]) && (320..=480).contains(&pauses[3]), "{pauses:?}");
    assert!(pauses[5..].iter().all(|pause| (800..=1000).contains(pause)), "{pauses:?}");
    assert_eq!(pause(1, Some(Duration::from_secs(3))), Duration::from_secs(3));
    assert_eq!(pause(1, Some(Duration::MAX)), Duration::from_secs(10));
    assert!(pause(1, Some(Duration::ZERO)).as_millis() >= 40, "a zero does not mean a busy loop");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_body_panics(bytes in prop_oneof![any::<Vec<u8>>(), "[{}\\[\\]\":,a-z0-9 ]{0,60}".prop_map(String::into_bytes)]) {
        let mut response = answer("HTTP/1.1 200 OK\r\n\r\n").unwrap();
        response.body = bytes;
        let _ = pod(&response, &PodRef::default(), Some(TOKEN));
    }

    #[test]
    fn segments_stay_one_segment(text: String) {
        let encoded = segment(&text);
        prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
        prop_assert!(!is_name(&text) || !matches!(encoded.as_str(), "" | "." | ".."));
    }
}
