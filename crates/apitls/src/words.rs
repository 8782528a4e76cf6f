//! What is wrong with a TLS connection, in the words of those who look after certificates.

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// In seconds.
const DAY: u64 = 24 * 60 * 60;

/// Whether the error is about trust in the server's certificate, and not about the connection.
pub fn is_untrusted(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(_))
}

/// The reason, a clause without an end.
pub fn reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => of_certificate(reason),
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::InvalidMessage(_) => "the server does not speak TLS".into(),
        Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            "the server speaks TLS 1.1 or older; 1.2 is the minimum".into()
        }
        Error::NoCertificatesPresented => "the server presented no certificate".into(),
        other => other.to_string(),
    }
}

fn of_certificate(reason: &CertificateError) -> String {
    use CertificateError as C;
    match reason {
        C::UnknownIssuer => "it is signed by an authority that is not listed".into(),
        C::BadSignature => "its signature is not that of the listed authority of this name".into(),
        C::ExpiredContext { time, not_after } => format!("it expired {} ago", span(*not_after, *time)),
        C::Expired => "it has expired".into(),
        C::NotValidYetContext { time, not_before } => {
            format!(
                "it is not valid yet, for {}; the clock of this node may be wrong",
                span(*time, *not_before)
            )
        }
        C::NotValidYet => "it is not valid yet; the clock of this node may be wrong".into(),
        C::NotValidForName => "it is for another name".into(),
        C::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            if presented.is_empty() {
                format!("it has no subject alternative name, and {expected} is expected")
            } else {
                format!("it is for {} and not for {expected}", names(presented))
            }
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            "it is not for servers (extended key usage serverAuth is missing)".into()
        }
        C::Other(other) => match other.0.downcast_ref() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "it is an authority's own certificate, and not listed".into()
            }
            Some(error) => of_webpki(error),
            None => reason.to_string(),
        },
        C::UnsupportedSignatureAlgorithmContext { .. }
        | C::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it is signed by an algorithm that is not supported, such as SHA-1 or Ed448".into()
        }
        C::BadEncoding => "it is not a valid X.509 certificate".into(),
        C::UnhandledCriticalExtension => "it has a critical extension that is not known".into(),
        other => other.to_string(),
    }
}

/// The time from one to the other, in the unit that fits.
fn span(from: UnixTime, to: UnixTime) -> String {
    let seconds = to.as_secs().saturating_sub(from.as_secs());
    if seconds < DAY { format!("{} minutes", seconds / 60) } else { format!("{} days", seconds / DAY) }
}

/// rustls has them as `DnsName("a.example")` and `IpAddress(10.0.0.1)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"').to_owned()
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

/// webpki displays its errors as the names of their variants.
fn of_webpki(error: &webpki::Error) -> String {
    use webpki::Error as E;
    match error {
        E::EndEntityUsedAsCa => "its issuer is not an authority (basic constraints)".into(),
        E::NameConstraintViolation => "its name is outside of what its authority may sign".into(),
        E::PathLenConstraintViolated => {
            "its chain of authorities is longer than the path length allows".into()
        }
        E::UnsupportedCertVersion => "it is an X.509 certificate of version 1 or 2".into(),
        E::InvalidSerialNumber => "its serial number is invalid".into(),
        error => format!("it cannot be verified ({error:?})"),
    }
}

fn of_alert(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::HandshakeFailure | A::InsufficientSecurity => {
            "the server refused the handshake: it has no protocol, cipher or key type in common with this program".into()
        }
        A::ProtocolVersion => "the server refused TLS 1.2 and 1.3".into(),
        A::UnknownCA => "the server does not know the authority of the client certificate".into(),
        A::CertificateRequired => "the server requires a client certificate, which is missing".into(),
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate | A::AccessDenied => {
            "the server refused the client certificate".into()
        }
        A::CertificateExpired => "the server says that the client certificate has expired".into(),
        A::UnrecognisedName => "the server does not know the name that it was asked for (tls-server-name)".into(),
        other => format!("the server answered with the alert {other:?}"),
    }
}
