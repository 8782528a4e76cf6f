//! Certificates of every kind and a TLS server that shows them, by the program `openssl`.

mod kinds;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::process::Process;
pub use kinds::{KINDS, Kind};

/// What `openssl ca` wants to be told; it is the command that takes dates.
const CA_CONFIG: &str = "[ca]\ndefault_ca = d\n[d]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\npolicy = p\n\
                         unique_subject = no\n[p]\ncommonName = supplied\n";

/// A folder of keys and certificates, each by its name: `<name>.key`, `<name>.pem`.
#[derive(Debug)]
pub struct Openssl {
    dir: TempDir,
}

/// A certificate that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Certificate<'a> {
    /// Of its files, and its common name.
    pub name: &'a str,
    /// Such as `P-256`, `RSA:2048` or `ED25519`.
    pub key: &'a str,
    /// Lines of the extensions, such as `subjectAltName=IP:127.0.0.1`.
    pub extensions: &'a str,
    /// Years of its beginning and its end.
    pub years: (u16, u16),
}

/// A server that shows a certificate and answers as the files of its folder say. It ends when dropped.
#[derive(Debug)]
pub struct TlsServer {
    /// Where it listens.
    pub address: SocketAddr,
    _process: Process,
}

impl Openssl {
    /// An empty folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        for (file, text) in [("config", CA_CONFIG), ("index", ""), ("serial", "1000")] {
            std::fs::write(dir.path().join(file), text)?;
        }
        Ok(Self { dir })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The text of a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text(&self, file: &str) -> Result<String> {
        std::fs::read_to_string(self.dir().join(file)).with_context(|| format!("read {file}"))
    }

    /// Makes a key and a certificate, signed by the certificate of a name or by itself.
    ///
    /// # Errors
    /// openssl fails.
    pub fn certificate(&self, made: Certificate<'_>, issuer: &str, more: &[&str]) -> Result<()> {
        let name = made.name;
        let algorithm = match made.key.split_once(':') {
            Some((_, bits)) => format!("-algorithm RSA -pkeyopt rsa_keygen_bits:{bits}"),
            None if made.key.starts_with("P-") => {
                format!("-algorithm EC -pkeyopt ec_paramgen_curve:{}", made.key)
            }
            None => format!("-algorithm {}", made.key),
        };
        self.run(&format!("genpkey {algorithm} -out {name}.key"), &[])?;
        self.run(&format!("req -new -config config -key {name}.key -subj /CN={name} -out {name}.csr"), &[])?;
        std::fs::write(self.dir().join("extensions"), made.extensions)?;
        let by = if issuer == name {
            format!("-selfsign -keyfile {name}.key")
        } else {
            format!("-cert {issuer}.pem -keyfile {issuer}.key")
        };
        let (from, to) = made.years;
        let dates = format!("-startdate {from}0101000000Z -enddate {to}0101000000Z");
        self.run(&format!("ca -batch -notext -config config {by} {dates} -extfile extensions -in {name}.csr -out {name}.pem"), more)
    }

    /// Serves with the certificate of a name and these others behind it. Requests are answered by the files under the folder.
    ///
    /// # Errors
    /// openssl does not start.
    pub fn serve(&self, name: &str, chain: &[&str]) -> Result<TlsServer> {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-HTTP", "-cert"]).arg(format!("{name}.pem"));
        command.arg("-key").arg(format!("{name}.key"));
        if !chain.is_empty() {
            let texts: Vec<String> =
                chain.iter().map(|name| self.text(&format!("{name}.pem"))).collect::<Result<_>>()?;
            std::fs::write(self.dir().join("chain"), texts.concat())?;
            command.args(["-cert_chain", "chain"]);
        }
        let child = command.current_dir(self.dir()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut process = Process::new(child);
        let output = process.child().stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(output).lines();
        let address =
            lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok());
        let address = address.with_context(|| format!("openssl does not serve {name}"))?;
        // Or it would stop at a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(TlsServer { address, _process: process })
    }

    /// Runs a command of openssl in the folder.
    fn run(&self, command: &str, more: &[&str]) -> Result<()> {
        let args = command.split(' ').chain(more.iter().copied());
        let output =
            Command::new("openssl").args(args).current_dir(self.dir()).output().context("run openssl")?;
        ensure!(output.status.success(), "openssl {command}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
