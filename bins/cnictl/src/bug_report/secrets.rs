//! The last look at what is about to be handed out: nothing that lets anybody in.

use std::fmt;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SecretKind {
    /// A JSON web token, such as one of a service account.
    Jwt,
    /// A certificate or a private key, as PEM or as the base64 of PEM.
    Pem,
    /// A header that carries a credential.
    Bearer,
    /// A URL with a password.
    Password,
}

/// Characters that a token has at least: English words behind "bearer" are shorter.
const TOKEN: usize = 16;
/// Characters that each part of a JSON web token has at least.
const JWT_PART: usize = 8;
/// `-----BEGIN` and `-----END`, for a text that begins after the first, and the base64 of the first wherever it begins a text.
const PEM: [&str; 3] = ["-----BEGIN", "-----END", "LS0tLS1CRUdJTi"];
/// What comes before a credential, in lower case: as people write it, in logfmt and in JSON.
const BEFORE_CREDENTIAL: [&str; 7] = [
    "bearer ",
    "bearer:",
    "bearer=",
    "authorization: basic ",
    "authorization=basic ",
    "authorization\":\"basic ",
    "authorization\": \"basic ",
];

/// The first secret in a text, and the number of its line, from 1.
pub(super) fn find(text: &str) -> Option<(SecretKind, usize)> {
    text.lines().enumerate().find_map(|(at, line)| Some((find_in(line)?, at + 1)))
}

fn find_in(line: &str) -> Option<SecretKind> {
    if PEM.iter().any(|mark| line.contains(mark)) {
        return Some(SecretKind::Pem);
    }
    if line.match_indices("eyJ").any(|(at, _)| is_jwt(&line[at..])) {
        return Some(SecretKind::Jwt);
    }
    let lower = line.to_ascii_lowercase();
    let credential = |word: &str| {
        lower.match_indices(word).any(|(at, _)| {
            token_length(lower[at + word.len()..].trim_start_matches([' ', '"', ':', '='])) >= TOKEN
        })
    };
    if BEFORE_CREDENTIAL.into_iter().any(credential) {
        return Some(SecretKind::Bearer);
    }
    line.match_indices("://").any(|(at, _)| has_password(&line[at + 3..])).then_some(SecretKind::Password)
}

/// Two parts of base64url with a dot behind each, the form of RFC 7515.
fn is_jwt(text: &str) -> bool {
    let mut parts = text.split('.');
    let is_part = |part: &str| {
        part.len() >= JWT_PART
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let first = parts.next().is_some_and(is_part);
    // What follows may go on with anything that ends the last part.
    first && parts.next().is_some_and(is_part) && parts.next().is_some()
}

fn token_length(text: &str) -> usize {
    text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte)).count()
}

/// `user:password@` before the end of the authority.
fn has_password(text: &str) -> bool {
    let end = text
        .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '<' | '>'))
        .unwrap_or(text.len());
    text[..end]
        .split_once('@')
        .is_some_and(|(user, _)| user.split_once(':').is_some_and(|(_, password)| !password.is_empty()))
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jwt => "a token (JWT)",
            Self::Pem => "a certificate or a key (PEM)",
            Self::Bearer => "a credential of a request",
            Self::Password => "a password in a URL",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_and_other_text_is_not_taken_for_one() {
        let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl";
        for (text, found) in [
            (format!("ok\ntoken={jwt}"), Some((SecretKind::Jwt, 2))),
            (format!("\\\"{jwt}\\\""), Some((SecretKind::Jwt, 1))),
            ("-----BEGIN RSA PRIVATE KEY-----".to_owned(), Some((SecretKind::Pem, 1))),
            ("certificate-authority-data: LS0tLS1CRUdJTiBDRVJU".to_owned(), Some((SecretKind::Pem, 1))),
            ("Authorization: Bearer 0123456789abcdef0123".to_owned(), Some((SecretKind::Bearer, 1))),
            ("\"BEARER sha256~aaaaaaaaaaaaaaaaa\"".to_owned(), Some((SecretKind::Bearer, 1))),
            ("authorization: basic dXNlcjpwYXNzd29yZA==".to_owned(), Some((SecretKind::Bearer, 1))),
            ("authorization=Basic dXNlcjpwYXNzd29yZA==".to_owned(), Some((SecretKind::Bearer, 1))),
            (r#"{"Authorization":"Basic dXNlcjpwYXNzd29yZA=="}"#.to_owned(), Some((SecretKind::Bearer, 1))),
            ("MIIB\n-----END CERTIFICATE-----".to_owned(), Some((SecretKind::Pem, 2))),
            ("proxy http://me:hidden@10.0.0.1:3128/".to_owned(), Some((SecretKind::Password, 1))),
            ("the bearer token was refused; a bearer credential".to_owned(), None),
            ("eyJ is how they begin. eyJhbGci.short".to_owned(), None),
            ("https://10.0.0.1:6443/api?user=a@b:c".to_owned(), None),
            ("unix:///run/x.sock, mail a:b@c".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(find(&text), found, "{text:?}");
        }
    }
}
