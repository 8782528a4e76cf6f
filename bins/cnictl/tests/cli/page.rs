//! The page of a node: who gets it, by which headers, and what is on it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use testkit::Agent;

use crate::Files;
use crate::fleet::{Fleet, Prepared, injected, with_proxy};
use crate::machine::{CALICO, Machine, PATIENCE};

/// Markup in what the agent tells of a pod.
const HOSTILE: &str = "<script>document.title='taken'</script><img src=http://192.0.2.1/x onerror=alert(1)>";

/// `cnictl page` while it runs.
struct Page {
    child: Child,
    port: u16,
    /// Path with the token.
    opening: String,
    _stdout: BufReader<ChildStdout>,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Page {
    fn start(files: &Files) -> Self {
        let mut command = files.command("page --host tunnel.example --net-dir @net.d --run-dir @run");
        let mut child = command.env("NODE_NAME", "worker<1>").stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let rest = line.trim().strip_prefix("http://127.0.0.1:").unwrap();
        let (port, path) = rest.split_once('/').unwrap();
        Self { child, port: port.parse().unwrap(), opening: format!("/{path}"), _stdout: stdout }
    }

    fn ask(&self, method: &str, path: &str, host: &str, cookie: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let cookie = if cookie.is_empty() { String::new() } else { format!("Cookie: {cookie}\r\n") };
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{cookie}\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn get(&self, path: &str, cookie: &str) -> Answer {
        self.ask("GET", path, "localhost", cookie)
    }

    /// Uses the token up; gives the cookie.
    fn open(&self) -> String {
        let answer = self.get(&self.opening, "");
        assert_eq!((answer.status, answer.header("location")), (303, Some("/")));
        let cookie = answer.header("set-cookie").unwrap();
        assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
        cookie.split(';').next().unwrap().to_owned()
    }
}

/// What the pages of these paths say.
pub(crate) fn bodies<const N: usize>(files: &Files, paths: [&str; N]) -> [String; N] {
    let page = Page::start(files);
    let cookie = page.open();
    paths.map(|path| page.get(path, &cookie).body)
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// A node with pods of several kinds, of which one is captured, and one has markup where people can write.
fn node() -> (Machine, Agent) {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.files.write("manifests/shop_web.yaml", crate::WEB);
    machine.files.write("manifests/shop_plain.yaml", crate::PLAIN);
    let hostile = crate::WEB
        .replace("name: web\n", "name: bad\n")
        .replace("0001", "0002")
        .replace("\"3306\"", &format!("{HOSTILE:?}"));
    machine.files.write("manifests/shop_bad.yaml", &hostile);
    let agent = machine.agent(&[]);
    let known = || machine.on_node("pods -o name").stdout.lines().count() == 3;
    testkit::until("the agent knows three pods", PATIENCE, known, || agent.log().text()).unwrap();
    (machine, agent)
}

#[test]
fn the_page_is_for_one_browser_on_this_machine_and_only_to_look_at() {
    let (machine, _agent) = node();
    let mut page = Page::start(&machine.files);
    assert_eq!(page.get("/", "").status, 403);
    assert_eq!(page.get("/open/0", "").status, 403);
    assert_eq!(page.ask("HEAD", &page.opening, "localhost", "").status, 403, "a look uses nothing up");
    for host in ["example.com", "10.0.0.1", "127.0.0.1.example.com:80"] {
        assert_eq!(page.ask("GET", &page.opening, host, "").status, 421, "{host}");
    }
    let cookie = page.open();
    assert_eq!(page.get(&page.opening, "").status, 403, "the token is good once");
    assert_eq!(page.get("/", "cnictl-1=0").status, 403);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = page.ask(method, "/", "localhost", &cookie);
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    for host in ["127.0.0.1:1234", "[::1]:8900", "tunnel.example"] {
        assert_eq!(page.ask("GET", "/", host, &cookie).status, 200, "{host}");
    }
    let head = page.ask("HEAD", "/", "localhost", &cookie);
    assert!(head.status == 200 && head.body.is_empty() && head.header("content-length").is_some());
    let policy = head.header("content-security-policy").unwrap();
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    let wanted = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    );
    assert_eq!(policy, wanted);
    let plain = [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-resource-policy", "same-origin"),
    ];
    for (name, value) in plain {
        assert_eq!(head.header(name), Some(value));
    }
    assert!(head.header("access-control-allow-origin").is_none());
    // More than a head is not taken in.
    let mut long = TcpStream::connect(("127.0.0.1", page.port)).unwrap();
    let _ = write!(long, "GET /{} HTTP/1.1\r\n", "a".repeat(20_000));
    assert!(!matches!(long.read(&mut [0; 16]), Ok(1..)), "a head of 20 kB is answered");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&page.child),
        // Whoever runs tests in the background has them ignore SIGINT.
        rustix::process::Signal::TERM,
    )
    .unwrap();
    testkit::until(
        "it ends",
        Duration::from_secs(10),
        || page.child.try_wait().unwrap().is_some(),
        || "it runs",
    )
    .unwrap();
    assert!(TcpStream::connect(("127.0.0.1", page.port)).is_err(), "it ends with its command");
}

#[test]
fn the_page_says_what_is_known_and_markup_of_others_is_text() {
    let (machine, _agent) = node();
    let page = Page::start(&machine.files);
    let cookie = page.open();
    let node = page.get("/", &cookie);
    assert_eq!(node.status, 200, "{}", node.body);
    for part in [
        "worker&lt;1&gt;",
        "<a href=\"/pod/shop/web\">",
        "&lt;script&gt;document.title=",
        "told by the agent, version ",
        "class=\"log\"",
    ] {
        assert!(node.body.contains(part), "{part} is not in {}", node.body);
    }
    for body in [&node.body, &page.get("/pod/shop/bad", &cookie).body] {
        assert!(!body.contains("<script>") && !body.contains("<img"), "{body}");
        // One script and one style, both of ours, and nothing from elsewhere.
        assert_eq!((body.matches("<script").count(), body.matches("<style").count()), (1, 1));
        assert!(!body.contains("src=\"") && !body.contains("url(") && !body.contains("style=\""), "{body}");
        assert!(body.len() < 60_000, "{} bytes", body.len());
    }
    let web = page.get("/pod/shop/web", &cookie);
    assert_eq!(web.status, 200, "{}", web.body);
    assert!(
        web.body.contains("A packet's way") && web.body.contains("captured through its sidecar"),
        "{}",
        web.body
    );
    for path in ["/pod/shop/nobody", "/pod/shop", "/pod/%ff/web", "/other", "/pod/%3Cscript%3E/x"] {
        let answer = page.get(path, &cookie);
        assert!(answer.status == 404 && !answer.body.contains("<script>"), "{path}: {}", answer.body);
    }
}

#[test]
fn the_nodes_rules_and_sets_are_shown_as_the_kernel_has_them() {
    let host = testkit::TestNetns::new().unwrap();
    let set = capture::ambient::PROBES_V4;
    host.nft(&format!(
        "table inet istio-ambient-nat {{ set {set} {{ type ipv4_addr; elements = {{ 10.0.0.5 comment \"uid-<5>\" }}; }}; }}\n\
         table ip other {{ chain out {{ type filter hook output priority 5; tcp dport 443 counter drop comment \"<b>mine</b>\"; }}; }}"
    ))
    .unwrap();
    let (machine, _agent) = node();
    let (page, rules) = host
        .enter(|_| {
            let page = Page::start(&machine.files);
            let cookie = page.open();
            let node = page.get("/", &cookie).body;
            assert!(node.contains("<a href=\"/rules\">"), "{node}");
            let rules = page.get("/rules", &cookie);
            (page, rules)
        })
        .unwrap();
    for part in ["10.0.0.5</td><td>uid-&lt;5&gt;", "<b>ip other</b> out", "443", " · of others"] {
        assert!(rules.body.contains(part), "{part} is not in {}", rules.body);
    }
    assert!(rules.status == 200 && !rules.body.contains("<b>mine"), "{}", rules.body);
    drop(page);
}

/// Two pods that are captured, one of which somebody has changed.
fn fleet() -> Fleet {
    let mut fleet = Fleet::new();
    let pod = |name, then| Prepared {
        name,
        metadata: injected(),
        spec: with_proxy(),
        loaded: &["--backend nftables"],
        then,
    };
    fleet.pod(&pod("web", ""));
    let foreign = "add table ip other\nadd chain ip other out { type filter hook output priority -200; }\n\
                   add rule ip other out tcp dport 443 drop comment \"<b>mine</b>\"\n";
    fleet.pod(&pod("cut", foreign));
    fleet.facts("shop", "plain", &json!({}), &json!({}));
    fleet
}

#[test]
fn a_pods_page_draws_a_packets_way_through_the_kernels_rules() {
    let fleet = fleet();
    let page = Page::start(&fleet.files);
    let cookie = page.open();
    let node = page.get("/", &cookie).body;
    assert!(node.contains("looked at by cnictl itself"), "without an agent: {node}");
    let web = page.get("/pod/shop/web", &cookie).body;
    for part in [
        "captured by the proxy at 15001",
        "captured by the proxy at 15006",
        "<svg class=\"way\"",
        "What is there is what is planned",
    ] {
        assert!(web.contains(part), "{part} is not in {web}");
    }
    let cut = page.get("/pod/shop/cut", &cookie).body;
    assert!(cut.contains("dropped by") && cut.contains("of others") && !cut.contains("<b>mine"), "{cut}");
    assert!(web.len() < 60_000 && cut.len() < 60_000, "{} {}", web.len(), cut.len());
    // As many reads as nobody needs are refused, and a moment later they are not.
    let (page, cookie) = (&page, &*cookie);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..8).map(|_| scope.spawn(|| page.get("/pod/shop/web", cookie).status)).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(
        statuses.contains(&429) && statuses.iter().all(|status| matches!(status, 200 | 429)),
        "{statuses:?}"
    );
    testkit::until(
        "the kernel is read again",
        PATIENCE,
        || page.get("/pod/shop/web", cookie).status == 200,
        String::new,
    )
    .unwrap();
}

/// Gives each request the cookie, so that a browser can begin at any page; where it is to have no script, the answer comes without.
fn with_cookie(port: u16, cookie: &str, script: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let cookie = format!("\r\nCookie: {cookie}\r\n");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, cookie) = (stream.unwrap(), cookie.clone());
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut bytes = [0; 8192];
                let count = stream.read(&mut bytes)?;
                let head = String::from_utf8_lossy(&bytes[..count]).replacen("\r\n", &cookie, 1);
                let mut served = TcpStream::connect(("127.0.0.1", port))?;
                served.write_all(head.as_bytes())?;
                let mut answer = String::new();
                served.read_to_string(&mut answer)?;
                if let Some((before, after)) = answer.split_once("<script").filter(|_| !script) {
                    let after = after.split_once("</script>").unwrap().1;
                    // Its length is said at the head.
                    answer = format!("{before}{after}{:1$}", "", answer.len() - before.len() - after.len());
                }
                stream.write_all(answer.as_bytes())
            });
        }
    });
    own
}

/// In a real browser: `CHROMIUM_BIN=/usr/bin/chromium PAGE_SHOTS=<directory> cargo test -p cnictl --test cli browser -- --ignored`. The pictures
/// are for people to look at.
#[test]
#[ignore = "starts Chromium, which CHROMIUM_BIN names"]
fn in_a_browser_nothing_breaks_the_policy_and_nothing_is_asked_of_others() {
    let browser = std::env::var("CHROMIUM_BIN").unwrap();
    let shots = PathBuf::from(std::env::var("PAGE_SHOTS").unwrap());
    let (machine, _agent) = node();
    let fleet = fleet();
    let (node, pods) = (Page::start(&machine.files), Page::start(&fleet.files));
    let (of_node, of_pods) = (node.open(), pods.open());
    let plain = with_cookie(node.port, &of_node, false);
    let of_node = with_cookie(node.port, &of_node, true);
    let of_pods = with_cookie(pods.port, &of_pods, true);
    let cases = [
        ("node-light", of_node, "/", "1200,1500", &[][..]),
        ("node-dark", of_node, "/", "1200,1500", &["--blink-settings=preferredColorScheme=0"]),
        ("node-narrow", of_node, "/", "400,1800", &[]),
        ("node-without-script", plain, "/", "1200,1500", &[]),
        ("rules-light", of_node, "/rules", "1200,1500", &[]),
        ("fleet-light", of_pods, "/", "1200,1000", &[]),
        ("pod-light", of_pods, "/pod/shop/web", "1200,2600", &[]),
        ("pod-dark", of_pods, "/pod/shop/cut", "1200,2000", &["--blink-settings=preferredColorScheme=0"]),
        ("pod-narrow", of_pods, "/pod/shop/web", "400,3000", &[]),
        ("hostile", of_node, "/pod/shop/bad", "800,1200", &[]),
    ];
    for (name, port, path, size, more) in cases {
        let (profile, net) =
            (machine.path(&format!("profile-{name}")), machine.path(&format!("net-{name}.json")));
        let mut command = Command::new(&browser);
        command.args([
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
        ]);
        command.args([
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ]);
        command.args(["--disable-sync", "--disable-default-apps", "--virtual-time-budget=12000"]).args(more);
        command.arg(format!("--user-data-dir={}", profile.display())).arg(format!("--window-size={size}"));
        command.arg(format!("--log-net-log={}", net.display()));
        command.arg(format!("--screenshot={}", shots.join(format!("{name}.png")).display()));
        command.arg("--dump-dom");
        let output = command.arg(format!("http://127.0.0.1:{port}{path}")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let told: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert_eq!(told, [""; 0], "{name}");
        let dom = String::from_utf8_lossy(&output.stdout);
        assert!(
            dom.contains("</main>") && !dom.contains("<title>taken") && !dom.contains("<img"),
            "{name}: {dom}"
        );
        assert_eq!(dom.matches("<script").count(), usize::from(port != plain), "{name}");
        let asked = std::fs::read_to_string(&net).unwrap();
        let own = format!("http://127.0.0.1:{port}/");
        let page_requests = asked.split("\"url\":\"").skip(1).filter_map(|rest| rest.split('"').next());
        let others: Vec<&str> =
            page_requests.filter(|url| url.starts_with("http") && !url.starts_with(&own)).collect();
        assert!(!others.iter().any(|url| url.contains("192.0.2.1")), "{name}: {others:?}");
        println!("{name}: requests besides those of the page: {others:?}");
        assert!(shots.join(format!("{name}.png")).exists() || name.is_empty(), "{name}: {said}");
    }
}
