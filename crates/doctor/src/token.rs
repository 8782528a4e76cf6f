//! Until when a token is good, by its own word. It is not verified: that is the API server's part.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// When a token of a service account ends; nothing where it does not say, as those of old clusters.
pub(crate) fn end(token: &str) -> Option<SystemTime> {
    let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(claims.get("exp")?.as_u64()?))
}

/// The token of a kubeconfig as the agent writes it.
pub(crate) fn of_kubeconfig(text: &str) -> Option<&str> {
    let token = text.lines().find_map(|line| line.trim().strip_prefix("token: "))?;
    Some(token.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_until_when_it_is_good() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        for (text, wanted) in [
            (token(r#"{"exp":1700000000,"sub":"x"}"#), at(1_700_000_000)),
            (token(r#"{"sub":"x"}"#), None),
            (token("not json"), None),
            ("opaque".to_owned(), None),
            (String::new(), None),
            ("a.%%.b".to_owned(), None),
        ] {
            assert_eq!(end(&text), wanted, "{text}");
        }
        let config = "users:\n- name: istio-cni\n  user:\n    token: abc.def\n";
        assert_eq!(of_kubeconfig(config), Some("abc.def"));
        assert_eq!(of_kubeconfig("    token: \"1.2\"\n"), Some("1.2"));
        assert_eq!(of_kubeconfig("kind: Config\n"), None);
    }
}
