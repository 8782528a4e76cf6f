//! The audit file: its lines and stated gaps come to what the kernel has counted, whatever becomes of the agent and the disk.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::Flow;
use testkit::{Agent, PATIENCE, eventually};

use crate::denials::{denied_by_rule, friends_only, set_policy, wait_isolated, wire};

fn agent(mesh: &Mesh, file: &Path) -> Agent {
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
    let agent = agent.env("POLICY_POINT", "node").env("AUDIT_WINDOW", "1s").env("AUDIT_LOG_MAX_MB", "1");
    let agent = agent.env("AUDIT_LOG_FILES", "1000");
    agent.env("AUDIT_LOG", file.to_str().unwrap()).ready().unwrap()
}

/// The tool reads files, and asks nobody.
fn cnictl(mesh: &Mesh, words: &str) -> Result<(Option<i32>, String, String)> {
    let mut command = Command::new(testkit::programs().join("cnictl"));
    let output = mesh.host.output(command.args(words.split(' ')))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code(), text(output.stdout), text(output.stderr)))
}

/// All lines of all files, by the tool.
fn lines(mesh: &Mesh, file: &Path) -> Result<Vec<Value>> {
    let question = format!("audit query -n 1000000 -o jsonl --file {}", file.display());
    let (exit, text, error) = cnictl(mesh, &question)?;
    ensure!(exit == Some(0), "{exit:?} {error}");
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn verified(mesh: &Mesh, file: &Path) -> Result<String> {
    let (exit, text, error) = cnictl(mesh, &format!("audit verify --file {}", file.display()))?;
    ensure!(exit == Some(0), "{exit:?} {text} {error}");
    Ok(text)
}

/// Packets that lines tell, and those that they state as missing.
fn sums(lines: &[Value]) -> (u64, u64) {
    let sum = |key: &str| lines.iter().filter_map(|line| line[key].as_u64()).sum();
    (sum("packets"), sum("lost"))
}

fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

fn pods(mesh: &Mesh) -> (MeshPod, MeshPod) {
    set_policy(mesh, &friends_only());
    let web = mesh.running("default", "web", &[("app", "web")]).unwrap();
    let client = mesh.running("default", "client", &[("app", "client")]).unwrap();
    wire(mesh, &web);
    wire(mesh, &client);
    (web, client)
}

/// So many datagrams a second, for so long.
fn send(from: &MeshPod, to: SocketAddr, rate: u64, time: Duration) {
    let work = || {
        let socket = UdpSocket::bind((from.ip, 0)).unwrap();
        let end = Instant::now() + time;
        while Instant::now() < end {
            let next = Instant::now() + Duration::from_millis(10);
            (0..rate / 100).for_each(|_| drop(socket.send_to(b"a-marker-in-the-payload", to)));
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    };
    from.netns.enter(|_| work()).unwrap();
}

#[test]
fn a_denied_connection_is_one_line_at_once_and_the_chain_is_whole_without_an_agent() {
    let mesh = Mesh::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log/audit.jsonl");
    let (web, client) = pods(&mesh);
    let agent = agent(&mesh, &file);
    wait_isolated(&mesh, &web);
    let to = SocketAddr::new(web.ip, 8080);
    let began = Instant::now();
    let flow = Flow::from(&client.netns).patience(Duration::from_millis(150)).tcp(to).unwrap();
    assert_eq!(flow.port(), None);
    let line = eventually("the denial is a line", PATIENCE, || {
        let lines = lines(&mesh, &file)?;
        Ok((*of_type(&lines, "policy_violation").first().context("no line yet")?).clone())
    })
    .unwrap();
    println!("the line is there {:?} after the connection was tried", began.elapsed());
    let paths = [
        "/verdict",
        "/traffic_direction",
        "/reporter",
        "/source/pod_name",
        "/destination/pod_name",
        "/destination/port",
    ];
    let more = ["/protocol", "/tcp_flags", "/policy/selecting", "/packets", "/node", "/schema", "/allowed"];
    let found: Vec<Value> =
        paths.iter().chain(&more).map(|path| line.pointer(path).cloned().unwrap_or_default()).collect();
    let wanted = json!([
        "DROPPED",
        "INGRESS",
        "dst",
        "client",
        "web",
        8080,
        "TCP",
        "SYN",
        ["default/closed"],
        1,
        "n1",
        "istio-cni.audit/v1",
        false
    ]);
    assert_eq!(json!(found), wanted, "{line:#}");
    let text = serde_json::to_string(&line).unwrap();
    assert!(text.len() < 4096 && line["policy"]["id"].as_str().unwrap().starts_with("ic1:"), "{text}");
    // One packet is one line, also when its window has ended.
    std::thread::sleep(Duration::from_millis(2500));
    let found = lines(&mesh, &file).unwrap();
    assert_eq!((of_type(&found, "policy_violation").len(), sums(&found)), (1, (1, 0)), "{found:#?}");
    let info = agent.metrics().unwrap();
    let events = r#"istio_cni_audit_events_total{type="policy_violation",verdict="DROPPED"}"#;
    assert_eq!(agent.metric(events).unwrap(), 1.0, "{info:?}");
    agent.stop().unwrap();
    // The agent is gone; its files are not.
    let found = lines(&mesh, &file).unwrap();
    let kinds: Vec<&str> = found.iter().filter_map(|line| line["type"].as_str()).collect();
    assert_eq!(kinds, ["audit_start", "policy_violation", "audit_stop"]);
    assert_eq!(found[0]["after"], "new");
    println!("{}", verified(&mesh, &file).unwrap().trim_end());
    let (exit, table, error) = cnictl(&mesh, &format!("audit tail -n 2 --file {}", file.display())).unwrap();
    assert!(
        exit == Some(0) && table.contains("default/web:8080") && table.contains("DROPPED"),
        "{table} {error}"
    );
    let top = format!("audit top --by peer --file {}", file.display());
    let (exit, table, error) = cnictl(&mesh, &top).unwrap();
    assert!(exit == Some(0) && table.contains("default/client"), "{table} {error}");
    let other = format!("audit query --pod default/nobody --file {}", file.display());
    assert_eq!(cnictl(&mesh, &other).unwrap().0, Some(3));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("default/closed", "default/opened", 1)).unwrap();
    let (exit, _, error) = cnictl(&mesh, &format!("audit verify --file {}", file.display())).unwrap();
    assert!(exit == Some(1) && error.contains("was changed"), "{exit:?} {error}");
}

/// A small disk of its own, taken away at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: &Path, size: &str) -> Self {
        let path = dir.join("disk");
        std::fs::create_dir(&path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "audit"])
            .arg(&path)
            .status();
        assert!(mount.unwrap().success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// For `SOAK_SECONDS` it takes longer: a rotation each while, a full disk, and the agent killed again and again.
#[test]
fn lines_and_stated_gaps_come_to_what_the_kernel_has_counted() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12_u64);
    let mesh = Mesh::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(dir.path(), "24m");
    let file = disk.0.join("audit.jsonl");
    let (web, client) = pods(&mesh);
    let mut agent = Some(agent(&mesh, &file));
    wait_isolated(&mesh, &web);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut kills, mut stops, mut fulls) = (0, 0, 0);
    std::thread::scope(|scope| {
        let (from, ip) = (&client, web.ip);
        let sender = scope.spawn(move || {
            let mut port = 1000;
            while Instant::now() < end {
                // Other ports, so that there is more to tell than one line.
                port = if port < 9000 { port + 1 } else { 1000 };
                send(from, SocketAddr::new(ip, port), 1000, Duration::from_millis(200));
            }
        });
        let mut turn = 0_u64;
        while Instant::now() + Duration::from_secs(3) < end {
            turn += 1;
            std::thread::sleep(Duration::from_millis(700 + 37 * (turn % 11)));
            match turn % 3 {
                0 => {
                    let ballast = disk.0.join("ballast");
                    let _ = std::fs::write(&ballast, vec![0; 25 << 20]);
                    std::thread::sleep(Duration::from_millis(1500));
                    std::fs::remove_file(&ballast).unwrap();
                    fulls += 1;
                    continue;
                }
                1 => (kills, _) = (kills + 1, agent.take().unwrap().kill().unwrap()),
                _ => (stops, _) = (stops + 1, agent.take().unwrap().stop().unwrap()),
            }
            agent = Some(self::agent(&mesh, &file));
        }
        sender.join().unwrap();
    });
    let (told, lost, counted) = eventually("lines come to the counter", 2 * PATIENCE, || {
        let found = lines(&mesh, &file)?;
        let ((told, lost), counted) = (sums(&found), denied_by_rule(&mesh)?);
        ensure!(told + lost == counted, "{told} are told and {lost} stated as missing, of {counted}");
        Ok((told, lost, counted))
    })
    .unwrap();
    agent.take().unwrap().stop().unwrap();
    let found = lines(&mesh, &file).unwrap();
    println!(
        "{seconds} s: {kills} kills, {stops} stops, {fulls} times a full disk; {counted} packets denied, {told} told in {} lines, {lost} stated as \
         missing; {}",
        found.len(),
        verified(&mesh, &file).unwrap().trim_end()
    );
    assert!(kills > 0 && stops > 0 && counted > 500 * seconds, "{kills} {stops} {counted}");
    assert_eq!(sums(&found), (told, lost), "the last stop tells nothing twice");
    let text = found.iter().map(Value::to_string).collect::<String>();
    assert!(!text.contains("marker"), "a payload is in the file");
}

/// What a process has had of the processors.
fn processor_time(pid: u32) -> Duration {
    let schedstat = |task: &Path| std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |task: &Path| {
        schedstat(task).split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default()
    };
    Duration::from_nanos(tasks.map(|task| of_task(&task.unwrap().path())).sum())
}

#[test]
fn a_flood_makes_few_lines_and_all_of_it_is_told() {
    let mesh = Mesh::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.jsonl");
    let (web, client) = pods(&mesh);
    let agent = agent(&mesh, &file);
    wait_isolated(&mesh, &web);
    let (before, began) = (processor_time(agent.pid()), Instant::now());
    let flood = || {
        let socket = UdpSocket::bind((client.ip, 0)).unwrap();
        (0..200_000).for_each(|_| drop(socket.send_to(b"x", (web.ip, 53))));
    };
    client.netns.enter(|_| flood()).unwrap();
    let took = began.elapsed();
    let (told, count) = eventually("lines come to the counter", 2 * PATIENCE, || {
        let found = lines(&mesh, &file)?;
        let (sums, counted) = (sums(&found), denied_by_rule(&mesh)?);
        ensure!(sums.0 + sums.1 == counted && counted >= 200_000, "{sums:?} of {counted}");
        Ok((sums, of_type(&found, "policy_violation").len()))
    })
    .unwrap();
    let used = processor_time(agent.pid()) - before;
    println!(
        "200,000 denied packets in {took:?}: {used:?} of the agent's processor time, {count} lines, {told:?} told and missing"
    );
    assert!(count <= 60, "{count} lines");
}
