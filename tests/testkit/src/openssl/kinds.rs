//! Kinds of server certificates, and what Go's `crypto/x509` says of each.

use anyhow::Result;

use super::{Certificate, Openssl, TlsServer};

/// A server certificate with the authorities that a kubeconfig lists.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What is special about it.
    pub name: &'static str,
    /// Makes `server`, and gives the list of authorities, PEM.
    make: fn(&Openssl) -> Result<String>,
    /// Sent behind the server's certificate.
    chain: &'static [&'static str],
    /// The name to expect instead of the address.
    pub server_name: Option<&'static str>,
    /// Nothing where Go takes it, as recorded with Go 1.26; else words that our refusal has to have.
    pub refused: Option<&'static str>,
}

impl Kind {
    /// Makes the certificates and serves; the list of authorities comes along.
    ///
    /// # Errors
    /// openssl fails.
    pub fn serve(&self, openssl: &Openssl) -> Result<(TlsServer, String)> {
        let authorities = (self.make)(openssl)?;
        Ok((openssl.serve("server", self.chain)?, authorities))
    }
}

const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,digitalSignature\n";
const LOCAL: &str = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n";
const YEARS: (u16, u16) = (2020, 2120);

const fn kind(name: &'static str, make: fn(&Openssl) -> Result<String>) -> Kind {
    Kind { name, make, chain: &[], server_name: None, refused: None }
}

const fn refused(name: &'static str, make: fn(&Openssl) -> Result<String>, words: &'static str) -> Kind {
    Kind { refused: Some(words), ..kind(name, make) }
}

/// An authority and a server with these keys.
fn keys(openssl: &Openssl, authority: &str, server: &str) -> Result<String> {
    ca(openssl, "ca", authority, CA)?;
    issued(openssl, server, "ca", LOCAL)?;
    openssl.text("ca.pem")
}

fn ca(openssl: &Openssl, name: &str, key: &str, extensions: &str) -> Result<()> {
    openssl.certificate(Certificate { name, key, extensions, years: YEARS }, name, &[])
}

fn issued(openssl: &Openssl, key: &str, issuer: &str, extensions: &str) -> Result<()> {
    openssl.certificate(Certificate { name: "server", key, extensions, years: YEARS }, issuer, &[])
}

/// Signed by `ca`, with these extensions.
fn with(openssl: &Openssl, extensions: &str) -> Result<String> {
    ca(openssl, "ca", "P-256", CA)?;
    issued(openssl, "P-256", "ca", extensions)?;
    openssl.text("ca.pem")
}

/// Signed by `ca`, between these years.
fn dated(openssl: &Openssl, years: (u16, u16)) -> Result<String> {
    ca(openssl, "ca", "P-256", CA)?;
    openssl.certificate(Certificate { name: "server", key: "P-256", extensions: LOCAL, years }, "ca", &[])?;
    openssl.text("ca.pem")
}

/// Signed by itself and listed.
fn own(openssl: &Openssl, key: &str, extensions: &str, years: (u16, u16)) -> Result<String> {
    openssl.certificate(Certificate { name: "server", key, extensions, years }, "server", &[])?;
    openssl.text("server.pem")
}

/// Signed by an intermediate of `ca`; gives the list that is asked for.
fn intermediate(openssl: &Openssl, extensions: &str, listed: &str) -> Result<String> {
    ca(openssl, "ca", "P-256", CA)?;
    openssl.certificate(Certificate { name: "middle", key: "P-256", extensions, years: YEARS }, "ca", &[])?;
    issued(openssl, "P-256", "middle", LOCAL)?;
    openssl.text(listed)
}

/// A list with the authority and something else in it.
fn list(openssl: &Openssl, around: fn(&str) -> String) -> Result<String> {
    Ok(around(&with(openssl, LOCAL)?))
}

const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUQ\n-----END CERTIFICATE-----\n";
const NO_X509: &str = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";

/// All kinds.
pub const KINDS: &[Kind] = &[
    kind("P-256", |o| keys(o, "P-256", "P-256")),
    kind("P-384", |o| keys(o, "P-384", "P-384")),
    kind("RSA 2048", |o| keys(o, "RSA:2048", "RSA:2048")),
    kind("RSA 4096 signs RSA 3072", |o| keys(o, "RSA:4096", "RSA:3072")),
    kind("RSA signs P-256", |o| keys(o, "RSA:2048", "P-256")),
    kind("Ed25519 server", |o| keys(o, "P-256", "ED25519")),
    kind("P-521 server", |o| keys(o, "P-256", "P-521")),
    kind("P-521 authority", |o| keys(o, "P-521", "P-256")),
    kind("P-521 both", |o| keys(o, "P-521", "P-521")),
    kind("P-521 signs RSA", |o| keys(o, "P-521", "RSA:2048")),
    kind("its own authority", |o| own(o, "P-256", &format!("{CA}{LOCAL}"), YEARS)),
    kind("its own authority, P-521", |o| own(o, "P-521", &format!("{CA}{LOCAL}"), YEARS)),
    kind("its own authority, RSA, without a purpose", |o| {
        own(o, "RSA:2048", &format!("{CA}subjectAltName=IP:127.0.0.1\n"), YEARS)
    }),
    kind("signed by itself, no authority", |o| {
        own(o, "P-256", &format!("basicConstraints=CA:FALSE\n{LOCAL}"), YEARS)
    }),
    kind("listed itself, its authority not", |o| with(o, LOCAL).and_then(|_| o.text("server.pem"))),
    Kind {
        server_name: Some("api.example"),
        ..kind("its own authority, by name", |o| {
            own(o, "P-256", &format!("{CA}subjectAltName=DNS:api.example\n"), YEARS)
        })
    },
    refused(
        "its own authority, another name",
        |o| own(o, "P-256", &format!("{CA}subjectAltName=IP:127.0.0.2\n"), YEARS),
        "127.0.0.1",
    ),
    refused(
        "its own authority, expired",
        |o| own(o, "P-256", &format!("{CA}{LOCAL}"), (2020, 2021)),
        "expired",
    ),
    refused(
        "its own authority, not listed",
        |o| {
            own(o, "P-256", &format!("{CA}{LOCAL}"), YEARS)?;
            ca(o, "other", "P-256", CA)?;
            o.text("other.pem")
        },
        "authority",
    ),
    refused(
        "another authority",
        |o| {
            with(o, LOCAL)?;
            ca(o, "other", "P-256", CA)?;
            o.text("other.pem")
        },
        "signed by an authority that is not listed",
    ),
    refused(
        "another authority of the same name",
        |o| {
            with(o, LOCAL)?;
            ca(o, "ca", "P-256", CA)?;
            o.text("ca.pem")
        },
        "signature",
    ),
    refused(
        "signed by a listed server",
        |o| {
            ca(o, "ca", "P-256", CA)?;
            let extensions = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:other\n";
            o.certificate(Certificate { name: "leaf", key: "P-256", extensions, years: YEARS }, "ca", &[])?;
            issued(o, "P-256", "leaf", LOCAL)?;
            o.text("leaf.pem")
        },
        "not listed",
    ),
    refused(
        "an authority that has expired",
        |o| {
            let years = (2020, 2021);
            o.certificate(Certificate { name: "ca", key: "P-256", extensions: CA, years }, "ca", &[])?;
            issued(o, "P-256", "ca", LOCAL)?;
            o.text("ca.pem")
        },
        "not listed",
    ),
    refused("expired", |o| dated(o, (2020, 2021)), "it expired"),
    refused("not valid yet", |o| dated(o, (2119, 2120)), "not valid yet"),
    refused("common name only", |o| with(o, "extendedKeyUsage=serverAuth\n"), "127.0.0.1"),
    refused("another address", |o| with(o, "subjectAltName=IP:127.0.0.9\n"), "127.0.0.9 and not for"),
    refused("a name and no address", |o| with(o, "subjectAltName=DNS:localhost\n"), "localhost"),
    refused(
        "for clients only",
        |o| with(o, "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=clientAuth\n"),
        "serverAuth",
    ),
    kind("without a purpose", |o| with(o, "subjectAltName=IP:127.0.0.1\n")),
    kind("for servers and clients", |o| {
        with(o, "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=clientAuth,serverAuth\n")
    }),
    Kind {
        server_name: Some("kubernetes.default.svc"),
        ..kind("by name", |o| with(o, "subjectAltName=DNS:kubernetes.default.svc\n"))
    },
    Kind {
        server_name: Some("a.api.example"),
        ..kind("by wildcard", |o| with(o, "subjectAltName=DNS:*.api.example\n"))
    },
    Kind {
        server_name: Some("a.b.api.example"),
        ..refused("by wildcard, too deep", |o| with(o, "subjectAltName=DNS:*.api.example\n"), "api.example")
    },
    Kind { chain: &["middle"], ..kind("intermediate, sent", |o| intermediate(o, CA, "ca.pem")) },
    refused("intermediate, not sent", |o| intermediate(o, CA, "ca.pem"), "authority that is not listed"),
    kind("intermediate, listed", |o| intermediate(o, CA, "middle.pem")),
    Kind {
        chain: &["middle"],
        ..refused(
            "intermediate that is no authority",
            |o| intermediate(o, "basicConstraints=CA:FALSE\n", "ca.pem"),
            "not an authority",
        )
    },
    kind("list with a broken certificate first", |o| list(o, |ca| format!("{BROKEN}{ca}"))),
    kind("list with a broken certificate last", |o| list(o, |ca| format!("{ca}{BROKEN}"))),
    kind("list with something that is no certificate", |o| list(o, |ca| format!("{NO_X509}{ca}"))),
    kind("list with text between", |o| list(o, |ca| format!("# authorities\nsubject=CN = ca\n{ca}# end\n"))),
    kind("list with the same authority twice", |o| list(o, |ca| format!("{ca}\n\n{ca}"))),
    kind("list with line ends of Windows", |o| list(o, |ca| ca.replace('\n', "\r\n"))),
    refused(
        "list of broken certificates",
        |o| list(o, |_| format!("{BROKEN}{NO_X509}")),
        "no readable certificate",
    ),
    refused("list without a certificate", |o| list(o, |_| "nothing\n".into()), "no PEM certificate"),
];
