//! Directories that are full or read-only: what is there stays, pods start, and the agent goes on when it can.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::{Cluster, RUN_DIR};
use crate::fixture::{PLUGIN, check_captured, sidecar_pod};

/// What is wrong with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Full,
    ReadOnly,
}

/// What the agent has to write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A new version of the plugin.
    Program,
    /// A changed option.
    Configuration,
    /// A new token.
    Kubeconfig,
}

impl Trouble {
    fn text(self) -> &'static str {
        match self {
            Self::Full => "No space left on device",
            Self::ReadOnly => "Read-only file system",
        }
    }

    fn begin(self, cluster: &Cluster, dir: &Path) {
        match self {
            // It ends with an error, which is what is wanted.
            Self::Full => drop(shell(cluster, &format!("cat /dev/zero >{}/.filler", dir.display()))),
            Self::ReadOnly => remount(cluster, dir, "ro"),
        }
    }

    fn end(self, cluster: &Cluster, dir: &Path) {
        match self {
            Self::Full => must(cluster, &format!("rm {}/.filler", dir.display())),
            Self::ReadOnly => remount(cluster, dir, "rw"),
        }
    }
}

fn shell(cluster: &Cluster, script: &str) -> node::Outcome {
    cluster.node.exec(&["sh", "-c", script]).expect("sh runs")
}

fn must(cluster: &Cluster, script: &str) {
    let outcome = shell(cluster, script);
    assert_eq!(outcome.code, 0, "{script}: {}", outcome.stderr);
}

/// A file that is being written at this moment makes it busy.
fn remount(cluster: &Cluster, dir: &Path, mode: &str) {
    let script = format!("mount -o remount,{mode} {}", dir.display());
    cluster.wait_for("remounted directory", || shell(cluster, &script).code == 0);
}

/// Puts a small file system under what is in the directory.
fn make_small(cluster: &Cluster, dir: &Path, kilobytes: u64) {
    let dir = dir.display();
    must(
        cluster,
        &format!(
            "mkdir -p {dir} /run/small && mount -t tmpfs -o size={kilobytes}k tmpfs /run/small \
             && cp -a {dir}/. /run/small/ && mount --move /run/small {dir}"
        ),
    );
}

impl Work {
    fn dir(self, cluster: &Cluster) -> PathBuf {
        match self {
            Self::Program => cluster.node.bin_dir(),
            Self::Configuration => cluster.node.conf_dir(),
            Self::Kubeconfig => RUN_DIR.into(),
        }
    }

    /// The file that is to be replaced.
    fn file(self, cluster: &Cluster) -> PathBuf {
        match self {
            Self::Program => self.dir(cluster).join(PLUGIN),
            Self::Configuration => cluster.conflist(),
            Self::Kubeconfig => self.dir(cluster).join("istio-cni-kubeconfig"),
        }
    }

    /// Gives the agent something to write; `turn` makes it another thing each time.
    fn give(self, cluster: &Cluster, turn: usize) {
        match self {
            Self::Program => {
                let source = cluster.dir("programs").join(PLUGIN);
                // Behind its end, an executable may have anything.
                let mut file = fs::OpenOptions::new().append(true).open(source).expect("the source");
                file.write_all(&[b'0'; 10]).expect("another version");
                // As with a new image, it comes with a new agent.
                cluster.kill_agent();
                cluster.start_agent();
            }
            Self::Configuration => cluster.set_option("ADD_TIMEOUT", Some(&format!("{}s", 40 + turn))),
            Self::Kubeconfig => drop(cluster.account.rotate(&cluster.api)),
        }
    }

    fn is_done(self, cluster: &Cluster, turn: usize) -> bool {
        let now = fs::read(cluster.on_node(&self.file(cluster))).unwrap_or_default();
        match self {
            Self::Program => now == fs::read(cluster.dir("programs").join(PLUGIN)).expect("the source"),
            Self::Configuration => cluster.entry().is_some_and(|entry| {
                entry["add_timeout"] == json!(format!("{}s", 40 + turn)) && cluster.is_loaded()
            }),
            Self::Kubeconfig => {
                let token = fs::read_to_string(cluster.account.dir().join("token")).expect("the token");
                String::from_utf8_lossy(&now).contains(&token)
            }
        }
    }
}

#[test]
fn full_and_read_only_directories() {
    let cluster = Cluster::without_agent(&[("NATIVE_NFTABLES", "true")]);
    let program = fs::metadata(testkit::programs().join(PLUGIN)).expect("the plugin").len() >> 10;
    make_small(&cluster, &cluster.node.bin_dir(), program * 5 / 2 + 512);
    make_small(&cluster, &cluster.node.conf_dir(), 256);
    make_small(&cluster, RUN_DIR.as_ref(), 1024);
    // It watches the directory that was there at its start.
    let mut cluster = cluster;
    cluster.node.restart_containerd().expect("containerd is back");
    cluster.start_agent();
    cluster.wait_ready();

    let works = [Work::Program, Work::Configuration, Work::Kubeconfig];
    let cases = works.iter().flat_map(|work| [(*work, Trouble::Full), (*work, Trouble::ReadOnly)]);
    for (turn, (work, trouble)) in cases.enumerate() {
        let what = format!("{work:?}, {trouble:?}");
        let began = Instant::now();
        let (dir, file) = (work.dir(&cluster), work.file(&cluster));
        let pod = sidecar_pod("default", &format!("pod-{turn}"));
        cluster.admit_known(std::slice::from_ref(&pod));
        let before = fs::read(cluster.on_node(&file)).expect("the file");
        let lines = cluster.agent_log().lines().count();

        trouble.begin(&cluster, &dir);
        work.give(&cluster, turn);
        cluster.wait_for("an agent that says what is wrong", || {
            let (code, body) = cluster.readyz();
            let file = file.to_string_lossy();
            code == 503
                && body.contains("install: ")
                && body.contains(trouble.text())
                && body.contains(&*file)
        });
        // A thread of its own writes the log.
        cluster.wait_for("an error in the log", || {
            let log = cluster.agent_log();
            let mut errors = log.lines().skip(lines).filter(|line| line.contains("\terror\tcni-agent\t"));
            errors.any(|line| line.contains(trouble.text()))
        });
        assert!(
            fs::read(cluster.on_node(&file)).expect("the file") == before,
            "{what}: the old file is intact"
        );
        let sandbox = cluster.must_run_bare(&pod);
        check_captured(&cluster.node, &sandbox, &what);

        trouble.end(&cluster, &dir);
        cluster.wait_for("recovery", || cluster.readyz().0 == 200 && work.is_done(&cluster, turn));
        println!("{what}: {:?}", began.elapsed());
        let left = fs::read_dir(cluster.on_node(&dir)).expect("the directory").flatten();
        let left: Vec<_> = left.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        assert!(left.iter().all(|name| !name.contains(".tmp.")), "{what}: {left:?}");
    }
    let after = sidecar_pod("default", "after");
    cluster.admit_known(std::slice::from_ref(&after));
    let sandbox = cluster.must_run_bare(&after);
    check_captured(&cluster.node, &sandbox, "a pod after all of that");
    assert!(cluster.agent_log().contains("the old state is kept"), "the hint is in the log");
}
