//! Whether the cluster's DNS answers: one question by UDP, the same by TCP.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use checks::CheckFinding;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Most servers that are asked.
const MAX_SERVERS: usize = 3;
/// Largest resolv.conf that is read, in bytes, and largest answer.
const MAX_FILE: u64 = 64 << 10;
const MAX_ANSWER: usize = 4096;
const PORT: u16 = 53;
const ADVICE: &str = "look at the pods of kube-dns, and at the way from this node to them";

/// Whom to ask, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDns {
    /// Servers, three at most.
    pub servers: Vec<SocketAddr>,
    /// The cluster's domain, such as `cluster.local`.
    pub domain: String,
}

impl ClusterDns {
    /// By servers that people name; the domain from the resolver's file where it has one.
    #[must_use]
    pub fn named(servers: &[SocketAddr], resolv_conf: &Path) -> Self {
        let domain = Self::read(resolv_conf).map_or_else(|| "cluster.local".to_owned(), |found| found.domain);
        Self { servers: servers.iter().copied().take(MAX_SERVERS).collect(), domain }
    }

    /// By a `resolv.conf`, where it is the cluster's: it searches `svc.<domain>`. Nothing where it is another's.
    #[must_use]
    pub fn read(resolv_conf: &Path) -> Option<Self> {
        let mut text = String::new();
        std::fs::File::open(resolv_conf).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Self> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = text.lines().map(words).collect();
        let of = |key: &str| {
            lines
                .iter()
                .filter(|line| line.first().is_some_and(|word| word == key))
                .flat_map(|line| line[1..].to_vec())
                .collect::<Vec<_>>()
        };
        let domain =
            of("search").into_iter().find_map(|domain| domain.strip_prefix("svc.").map(str::to_owned))?;
        let servers = of("nameserver")
            .iter()
            .filter_map(|server| server.parse::<IpAddr>().ok())
            .map(|server| SocketAddr::new(server, PORT))
            .take(MAX_SERVERS)
            .collect();
        Some(Self { servers, domain: domain.trim_end_matches('.').to_owned() })
    }

    /// Asks each server by UDP and by TCP.
    #[must_use]
    pub fn look(&self) -> CheckFinding {
        let name = format!("kubernetes.default.svc.{}", self.domain);
        if self.servers.is_empty() {
            return CheckFinding::skipped("no server of the cluster's DNS is known");
        }
        let begun = Instant::now();
        for server in &self.servers {
            for (way, ask) in [("UDP", ask_udp as Ask), ("TCP", ask_tcp as Ask)] {
                match ask(*server, &question(&name)).and_then(|answer| judge(&answer)) {
                    Ok(()) => {}
                    Err(error) => {
                        let text = format!("{server} does not answer for {name} by {way}: {error}");
                        return CheckFinding::failed(text, ADVICE);
                    }
                }
            }
        }
        let (servers, taken) = (self.servers.len(), begun.elapsed().as_millis());
        CheckFinding::ok(format!(
            "{servers} of the cluster's DNS servers answered by UDP and TCP in {taken} ms"
        ))
    }
}

type Ask = fn(SocketAddr, &[u8]) -> io::Result<Vec<u8>>;

/// Number of our question; each has a socket of its own, which is connected, so nobody else answers.
const ID: u16 = 0x1c71;

/// A question for an A record, as RFC 1035 has it.
fn question(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    // One question, recursion wanted.
    for word in [ID, 0x0100, 1, 0, 0, 0] {
        out.extend(word.to_be_bytes());
    }
    for label in name.split('.').filter(|label| !label.is_empty() && label.len() < 64) {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    out.extend([0, 0, 1, 0, 1]);
    out
}

/// An answer is one also where the name has no address of this family.
fn judge(answer: &[u8]) -> io::Result<()> {
    let bad = |text: &str| Err(io::Error::other(text.to_owned()));
    let [id_high, id_low, flags, code, ..] = answer else { return bad("the answer is too short") };
    if u16::from_be_bytes([*id_high, *id_low]) != ID || flags & 0x80 == 0 {
        return bad("what came is not an answer to the question");
    }
    match code & 0x0f {
        0 => Ok(()),
        2 => bad("SERVFAIL"),
        3 => bad("NXDOMAIN: the name is not known there"),
        5 => bad("REFUSED"),
        other => bad(&format!("code {other}")),
    }
}

fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut answer = vec![0; MAX_ANSWER];
    let length = socket.recv(&mut answer).map_err(patience)?;
    answer.truncate(length);
    Ok(answer)
}

fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).map_err(patience)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut message = (question.len() as u16).to_be_bytes().to_vec();
    message.extend(question);
    stream.write_all(&message)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).map_err(patience)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length)).min(MAX_ANSWER)];
    stream.read_exact(&mut answer).map_err(patience)?;
    Ok(answer)
}

/// The system calls an answer that does not come in time "resource temporarily unavailable".
fn patience(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::other(format!("no answer within {PATIENCE:?}"))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::net::TcpListener;

    use checks::CheckState;

    use super::*;

    #[test]
    fn a_resolver_file_is_the_clusters_where_it_searches_services() {
        let pod = "search istio-system.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        let dns = ClusterDns::parse(pod).unwrap();
        assert_eq!(
            (dns.domain.as_str(), dns.servers),
            ("cluster.local", vec!["10.96.0.10:53".parse().unwrap()])
        );
        assert_eq!(ClusterDns::parse("search example.org\nnameserver 192.0.2.1\n"), None);
        assert_eq!(ClusterDns::parse("search\nnameserver\n\n"), None);
    }

    /// Answers each question by UDP and TCP at one port of loopback with this code, so many times.
    fn server(code: u8, tcp: bool) -> SocketAddr {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let answer = move |question: &[u8]| [&question[..2], &[0x80, code], &question[4..]].concat();
        std::thread::spawn(move || {
            let mut question = [0; 512];
            udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            if let Ok((length, from)) = udp.recv_from(&mut question) {
                udp.send_to(&answer(&question[..length]), from).unwrap();
            }
        });
        if tcp {
            let listener = TcpListener::bind(address).unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut question = [0; 512];
                let length = stream.read(&mut question).unwrap();
                let answer = answer(&question[2..length]);
                stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).unwrap();
            });
        }
        address
    }

    #[test]
    fn a_server_answers_by_both_ways_or_it_is_said_which_fails() {
        for (address, state, part) in [
            (server(0, true), CheckState::Ok, "answered by UDP and TCP"),
            (server(2, true), CheckState::Failed, "by UDP: SERVFAIL"),
            (server(3, true), CheckState::Failed, "by UDP: NXDOMAIN"),
            (server(0, false), CheckState::Failed, "by TCP: "),
        ] {
            let found = ClusterDns { servers: vec![address], domain: "cluster.local".into() }.look();
            assert_eq!(found.state, state, "{found}");
            assert!(found.text.contains(part), "{found}");
        }
    }

    #[test]
    fn an_answer_is_judged_by_its_head() {
        for (answer, good) in [
            (vec![0x1c, 0x71, 0x80, 0], true),
            (vec![0x1c, 0x71, 0x00, 0], false),
            (vec![0, 0, 0x80, 0], false),
            (vec![0x1c], false),
            (Vec::new(), false),
        ] {
            assert_eq!(judge(&answer).is_ok(), good, "{answer:?}");
        }
    }
}
