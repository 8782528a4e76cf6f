//! Which backend holds the rules, and what is said where there is none.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::ensure;
use testkit::plugin::{Answer, Call, WITHOUT_NFTABLES};
use testkit::ztunnel::Script;
use testkit::{Families, Mesh, Node, PATIENCE, Pod, PodCall, assert_says, at_once, eventually};

/// Words that run a program where `/usr/sbin` is this folder.
fn with_programs(dir: &Path) -> Vec<String> {
    let line = format!("mount --bind {} /usr/sbin && exec \"$@\"", dir.display());
    ["unshare", "--mount", "sh", "-c", &line, "bound"].map(str::to_owned).to_vec()
}

/// The same on a kernel without nf_tables.
fn without_nftables(dir: &Path) -> Vec<String> {
    let kernel = ["python3", "-c", WITHOUT_NFTABLES].map(str::to_owned);
    with_programs(dir).into_iter().chain(kernel).collect()
}

fn words(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn add_behind(call: &PodCall, wrapper: &[String]) -> Answer {
    let (plugin, stdin) = call.command("ADD");
    let mut command = Command::new(&wrapper[0]);
    command.args(&wrapper[1..]).arg(plugin.get_program()).env_clear();
    command.envs(plugin.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Call { env: Vec::new(), stdin }.run_as(command).unwrap()
}

/// Tables of nf_tables and chains of iptables in a pod's namespace that are a sidecar's.
fn holds(pod: &Pod) -> (bool, bool) {
    let iptables = ["iptables-nft-save", "iptables-legacy-save"]
        .map(|program| pod.run(&mut Command::new(program)).unwrap().contains("ISTIO_OUTPUT"));
    (pod.nft_text().unwrap().contains("istio-proxy-nat"), iptables.contains(&true))
}

/// The agent sees the node's programs and may ask the kernel.
#[test]
fn a_node_where_neither_backend_works_is_not_ready_until_one_does() {
    at_once(
        [
            (None, "cannot find iptables-restore in"),
            (Some("xtables-nft-multi"), "works by nf_tables, which this kernel does not have"),
        ],
        |(program, cause)| {
            let node = Node::new().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let put = |name: &str, link: &str| {
                std::fs::copy("/bin/false", dir.path().join(name)).unwrap();
                for kind in ["restore", "save"] {
                    std::os::unix::fs::symlink(name, dir.path().join(format!("{link}-{kind}"))).unwrap();
                }
            };
            program.into_iter().for_each(|program| put(program, "iptables"));
            let wrapper = without_nftables(dir.path());
            let mut agent = node.agent().without("NATIVE_NFTABLES").behind(&words(&wrapper)).start().unwrap();
            let wanted =
                ["backend: no pod can get rules on this node: the kernel has no nf_tables, and ", cause];
            let body = agent.wait_unready(&wanted).unwrap();
            assert!(!body.contains("native_nftables") && !body.contains("NATIVE_NFTABLES"), "{body}");
            // What the agent logs comes here a moment later.
            agent.log().wait_for(&["\terror\t", "no pod can get rules"], PATIENCE).unwrap();
            put("xtables-legacy-multi", "iptables-legacy");
            agent.wait_ready().unwrap();
            agent.log().wait_for(&["pods get their rules by iptables"], PATIENCE).unwrap();
            assert_eq!(
                agent.log().count(&["\terror\t", "no pod can get rules"]),
                1,
                "once: {}",
                agent.log().text()
            );
            assert_eq!(agent.log().count(&["\twarn\t", "nf_tables"]), 0, "{}", agent.log().text());
        },
    );
}

/// What is asked for is not there, and nothing else is taken.
#[test]
fn a_node_without_the_backend_that_is_asked_for_is_not_ready() {
    let node = Node::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (asked, why) in [
        ("true", "the kernel has no nf_tables, and NATIVE_NFTABLES=true asks for it"),
        ("false", "NATIVE_NFTABLES=false asks for iptables, and cannot find iptables-restore"),
    ] {
        let wrapper = without_nftables(dir.path());
        let agent = node.agent().env("NATIVE_NFTABLES", asked).behind(&words(&wrapper)).start().unwrap();
        agent.wait_unready(&["backend: no pod can get rules on this node: ", why]).unwrap();
    }
}

/// In a container the agent does not see the node's programs: plugins tell.
#[test]
fn plugins_tell_that_neither_backend_works() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let pod = Pod::new(Families::V4).unwrap();
    let mut agent = node.agent().without("NATIVE_NFTABLES").ready().unwrap();
    let (nothing, mut call) =
        (tempfile::tempdir().unwrap(), PodCall::new(&node, "web", "uid-1", pod.path()).unwrap());
    for (native, parts) in [
        (None, &["neither backend works here: nf_tables: ", "; iptables: cannot find"][..]),
        (Some(true), &["this kernel has no ", "native_nftables asks for nftables only"][..]),
        (Some(false), &["cannot find iptables", "native_nftables asks for iptables only"][..]),
    ] {
        let conf = call.conf.as_object_mut().unwrap();
        match native {
            Some(native) => conf.insert("native_nftables".to_owned(), native.into()),
            None => conf.remove("native_nftables"),
        };
        let answer = add_behind(&call, &without_nftables(nothing.path()));
        assert_says(&answer.error().unwrap().1, parts);
        let unready = [&["backend: pods with a sidecar cannot be set up on this node: "][..], parts].concat();
        agent.wait_unready(&unready).unwrap();
        // The next pod that can be set up counts.
        call.conf.as_object_mut().unwrap().remove("native_nftables");
        call.add().unwrap();
        agent.wait_ready().unwrap();
    }
    // Another failure says nothing about the node.
    let gone = PodCall::new(&node, "web", "uid-1", Path::new("/run/netns/gone")).unwrap();
    gone.refused().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(agent.readyz().unwrap().status, 200);
}

/// `auto` and nothing said: the key is left out. Pods that run keep their rules where they are through every change.
#[test]
fn sidecars_keep_their_backend_through_upgrades_and_new_pods_get_the_new_one() {
    let node = Node::new().unwrap();
    let mut pods: Vec<(Pod, PodCall, (bool, bool))> = Vec::new();
    for (number, native) in
        [Some("false"), None, Some("false"), Some("auto"), Some("true")].into_iter().enumerate()
    {
        let launch = node.agent();
        let agent = match native {
            Some(text) => launch.env("NATIVE_NFTABLES", text),
            None => launch.without("NATIVE_NFTABLES"),
        };
        let agent = agent.env("CLEANUP_ON_EXIT", "never").ready().unwrap();
        let key = match native {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        let entry = eventually("the entry has the new option", PATIENCE, || {
            let entry = node.entry()?;
            ensure!(entry.get("native_nftables").and_then(serde_json::Value::as_bool) == key, "{entry}");
            Ok(entry)
        });
        assert!(key.is_some() || entry.unwrap().get("native_nftables").is_none());
        let (name, uid) = (format!("web-{number}"), format!("uid-{number}"));
        node.sidecar(&name, &uid);
        let pod = Pod::new(Families::V4).unwrap();
        let call = PodCall::new(&node, &name, &uid, pod.path()).unwrap();
        call.add().unwrap();
        let wanted = if native == Some("false") { (false, true) } else { (true, false) };
        pods.push((pod, call, wanted));
        for (pod, call, wanted) in &mut pods {
            assert_eq!(holds(pod), *wanted, "{native:?}");
            // By the configuration of now.
            let entry = node.entry().unwrap();
            let uid = call.uid.clone();
            let name = call.container.trim_start_matches("c0ffee-").to_owned();
            let check = PodCall::with(entry, &name, &uid, pod.path());
            let answer = check.run("CHECK").unwrap();
            assert_eq!(answer.exit, Some(0), "{native:?}: {answer:#?}");
        }
        agent.kill().unwrap();
    }
}

/// Ambient mode by itself: nf_tables where the kernel has it, and both reasons where there is nothing.
#[test]
fn ambient_mode_takes_what_the_node_has() {
    let mesh = Mesh::new().unwrap();
    let nothing = tempfile::tempdir().unwrap();
    let wrapper = without_nftables(nothing.path());
    let agent = mesh.agent().without("NATIVE_NFTABLES").behind(&words(&wrapper)).start().unwrap();
    let both = [
        "ambient: ",
        "neither backend works here: the kernel has no nf_tables, and cannot find iptables-restore in",
    ];
    agent.wait_unready(&both).unwrap();
    agent.kill().unwrap();

    let agent = mesh.agent().env("NATIVE_NFTABLES", "auto").ready().unwrap();
    let _ztunnel = mesh.ztunnel().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    agent.log().wait_for(&["ready for host probes", "backend=nftables"], PATIENCE).unwrap();
    assert!(
        pod.netns.run(Command::new("nft").args(["list", "tables"])).unwrap().contains("istio-ambient-nat")
    );
}

/// From an agent with iptables to `auto` and back, with pods in the mesh: with the programs in the image, and without, as ours is.
#[test]
fn pods_in_the_mesh_live_through_a_change_of_the_backend() {
    at_once([true, false], |programs_stay| {
        let mesh = Mesh::new().unwrap();
        let mut agent = mesh.agent().env("NATIVE_NFTABLES", "false").ready().unwrap();
        let ztunnel = mesh.ztunnel_that(Script::default().reconnecting()).unwrap();
        let mut pods = Vec::new();
        let nothing = tempfile::tempdir().unwrap();
        let hidden = with_programs(nothing.path());
        for (number, native) in ["false", "auto", "false", "auto"].into_iter().enumerate() {
            if number > 0 {
                agent.kill().unwrap();
                let launch =
                    mesh.agent().env("NATIVE_NFTABLES", native).env("AMBIENT_VERIFY_INTERVAL", "300ms");
                let hide = !programs_stay && native == "auto";
                let launch = if hide { launch.behind(&words(&hidden)) } else { launch };
                agent = launch.ready().unwrap();
            }
            let pod = mesh.running("mesh", &format!("web-{number}"), &[]).unwrap();
            pods.push(pod);
            for pod in &pods {
                mesh.wait_annotation(pod, Some("enabled")).unwrap();
                assert!(pod.is_redirected().unwrap(), "{native}: {}", pod.name);
                // Never out of the mesh in between.
                assert_eq!(mesh.patches(pod), [Some("enabled".to_owned())], "{native}: {}", pod.name);
            }
            eventually("every pod is in", PATIENCE, || {
                let enrolled = agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}")?;
                ensure!(enrolled == pods.len() as f64, "{enrolled}\n{}", agent.log().text());
                Ok(())
            })
            .unwrap();
        }
        agent.kill().unwrap();
        assert_eq!(ztunnel.violations(), Vec::<String>::new());
    });
}
