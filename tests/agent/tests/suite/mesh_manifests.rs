//! Ambient mode with pods and namespaces from a directory: the plugin, the agent and a ztunnel, without an API server.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::json;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::ztunnel::Ztunnel;
use testkit::{Agent, Launch, PATIENCE, PodCall, PodObject, assert_says, eventually};

/// What kubelet calls a pod whose manifest has no uid.
const HASH: &str = "5f4dcc3b5aa765d61d8327deb882cf99";

struct Scene {
    mesh: Mesh,
    dir: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        let dir = mesh.node.manifests();
        Self { mesh, dir }
    }

    fn launch(&self) -> Launch<'_> {
        self.mesh
            .agent()
            .without("KUBERNETES_SERVICE_HOST")
            .env("POD_SOURCE", &format!("manifests:{}", self.dir.display()))
            .env("AMBIENT_VERIFY_INTERVAL", "300ms")
    }

    fn agent(&self) -> Agent {
        self.launch().ready().unwrap()
    }

    /// Replaces a file as careful programs do.
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(".new"), text).unwrap();
        std::fs::rename(self.dir.join(".new"), self.dir.join(name)).unwrap();
    }

    /// Describes namespace `default`.
    fn namespace(&self, mode: Option<&str>) {
        let labels = mode.map(|mode| format!("{MODE}: {mode}")).unwrap_or_default();
        self.write("spaces.yaml", &format!("kind: Pod\nmetadata: {{name: other}}\nspec: {{containers: [{{name: a}}]}}\n---\nkind: Namespace\nmetadata: {{name: default, labels: {{{labels}}}}}\n"));
    }

    fn describe(&self, name: &str, labels: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}\nspec:\n  serviceAccountName: sa-{name}\n  containers: [{{name: app}}]\n"
        );
        self.write(&format!("default_{name}.yaml"), &text);
    }

    /// A sandbox whose path the agent sees, too.
    fn sandbox(&self, name: &str) -> MeshPod {
        let pod = self.mesh.sandbox("default", name).unwrap();
        let seen = self.mesh.root().join(pod.netns.path().strip_prefix("/").unwrap());
        std::fs::create_dir_all(seen.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&seen);
        symlink(pod.netns.path(), seen).unwrap();
        pod
    }

    /// The runtime takes the sandbox down.
    fn remove(&self, pod: &MeshPod) {
        std::fs::remove_file(self.mesh.root().join(pod.netns.path().strip_prefix("/").unwrap())).unwrap();
    }

    fn call(&self, pod: &MeshPod, uid: &str) -> PodCall {
        let mut call = PodCall::new(&self.mesh.node, &pod.name, uid, pod.netns.path()).unwrap();
        call.conf["prevResult"]["ips"] = json!([{"address": format!("{}/24", pod.ip), "interface": 0}]);
        call
    }

    fn notes(&self) -> usize {
        std::fs::read_dir(self.mesh.node.run_dir().join("sandboxes")).map_or(0, |files| files.count())
    }

    /// Waits until the pod is wholly in; gives the uid by which it is known.
    #[track_caller]
    fn wait_in(&self, pod: &MeshPod, ztunnel: &Ztunnel, agent: &Agent) -> String {
        let mut uid = String::new();
        let is_in = || {
            ensure!(pod.is_redirected()?, "no rules: {}", agent.log().text());
            let known = self.mesh.probes()?;
            let known = known.get(&pod.ip.to_string()).context("its address is not in the set")?;
            let workloads = ztunnel.workloads();
            let workload = workloads.get(known).context("ztunnel does not know it")?;
            let told = (&*workload.namespace, &*workload.name, &*workload.service_account);
            ensure!(told == ("default", &*pod.name, &*format!("sa-{}", pod.name)), "{told:?}");
            uid.clone_from(known);
            Ok(())
        };
        eventually("the pod is in the mesh", PATIENCE, is_in).unwrap();
        uid
    }

    #[track_caller]
    fn wait_out(&self, pod: &MeshPod, ztunnel: &Ztunnel, agent: &Agent) {
        let is_out = || {
            ensure!(pod.is_clean()?, "something is left: {}", agent.log().text());
            ensure!(!self.mesh.probes()?.contains_key(&pod.ip.to_string()), "its address is left");
            ensure!(ztunnel.workloads().values().all(|workload| workload.name != pod.name), "ztunnel has it");
            Ok(())
        };
        eventually("the pod is out of the mesh", PATIENCE, is_out).unwrap();
    }
}

/// A manifest says nothing of the pod's address, and no API server does.
#[test]
fn a_sidecar_pod_of_a_manifest_is_verified_where_the_plugin_was_called() {
    let scene = Scene::new();
    scene.namespace(None);
    let agent = scene.launch().env("VERIFY_INTERVAL", "1s").ready().unwrap();
    let pod = scene.mesh.sandbox("default", "web").unwrap();
    let object = PodObject::named("web").in_namespace("default").uid(&pod.uid).sidecar();
    let mut manifest = object.json();
    (manifest["apiVersion"], manifest["kind"]) = (json!("v1"), json!("Pod"));
    scene.write("default_web.yaml", &manifest.to_string());
    assert_says(&scene.call(&pod, &pod.uid).add().unwrap().stderr, &["pod is captured"]);
    scene.mesh.run(&pod).unwrap();
    let verified = || {
        let metrics = agent.metrics()?;
        let found = metrics.value("istio_cni_pods_verified{mode=\"sidecar\"}");
        let others =
            metrics.series.iter().filter(|(name, value)| name.contains("pods_unverified") && **value > 0.0);
        ensure!(found == 1.0, "{:?}\n{}", others.collect::<Vec<_>>(), agent.log().text());
        Ok(())
    };
    eventually("the pod is verified", PATIENCE, verified).unwrap();
    pod.netns.nft("delete table inet istio-proxy-nat").unwrap();
    agent
        .log()
        .wait_for(&["the rules of a pod differed and are put right", "pod=default/web"], PATIENCE)
        .unwrap();
    eventually("the pod is verified again", PATIENCE, verified).unwrap();
}

#[test]
fn labels_of_manifests_take_pods_in_and_out() {
    let scene = Scene::new();
    scene.namespace(Some("ambient"));
    let agent = scene.agent();
    let ztunnel = scene.mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let pod = scene.sandbox("web");
    // At the moment of its ADD, as kubelet would.
    scene.describe("web", "");
    let call = scene.call(&pod, HASH);
    let answer = call.add().unwrap();
    assert_says(&answer.stderr, &["the node agent has taken it", "manifests"]);
    let uid = scene.wait_in(&pod, &ztunnel, &agent);
    assert_eq!(uid.len(), 36, "{uid}");
    for verb in ["CHECK", "STATUS"] {
        let mut call = scene.call(&pod, HASH);
        call.conf["cniVersion"] = json!(if verb == "STATUS" { "1.1.0" } else { "1.0.0" });
        let answer = call.run(verb).unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
        assert!(!answer.stderr.contains("no record") && !answer.stderr.contains("not known"), "{answer:#?}");
    }
    // Labels of the pod and of the namespace, away and back.
    scene.describe("web", &format!("{MODE}: none"));
    scene.wait_out(&pod, &ztunnel, &agent);
    scene.describe("web", "");
    assert_eq!(scene.wait_in(&pod, &ztunnel, &agent), uid);
    scene.namespace(None);
    scene.wait_out(&pod, &ztunnel, &agent);
    scene.namespace(Some("ambient"));
    assert_eq!(scene.wait_in(&pod, &ztunnel, &agent), uid);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    // The next agent goes on where this one was.
    agent.kill().unwrap();
    drop(ztunnel);
    assert!(pod.is_redirected().unwrap());
    let agent = scene.agent();
    let ztunnel = scene.mesh.ztunnel().unwrap();
    assert_eq!(scene.wait_in(&pod, &ztunnel, &agent), uid);
    std::fs::remove_file(scene.dir.join("spaces.yaml")).unwrap();
    scene.wait_out(&pod, &ztunnel, &agent);
    scene.namespace(Some("ambient"));
    assert_eq!(scene.wait_in(&pod, &ztunnel, &agent), uid);
    // Its sandbox is taken down, and its manifest stays.
    assert_eq!(scene.notes(), 1);
    scene.remove(&pod);
    assert_eq!(call.run("DEL").unwrap().exit, Some(0));
    assert_eq!(scene.notes(), 0);
    eventually("the sandbox is forgotten", PATIENCE, || {
        ensure!(ztunnel.workloads().is_empty() && scene.mesh.probes()?.is_empty(), "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    // A new one for the same manifest.
    let next = scene.sandbox("web");
    scene.call(&next, HASH).add().unwrap();
    assert_eq!(scene.wait_in(&next, &ztunnel, &agent), uid);
    std::fs::remove_file(scene.dir.join("default_web.yaml")).unwrap();
    eventually("the pod is gone", PATIENCE, || {
        ensure!(ztunnel.workloads().is_empty() && scene.mesh.probes()?.is_empty(), "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
}

/// The agent was not told of it, and was not even there.
#[test]
fn a_pod_that_started_outside_of_the_mesh_is_taken_in_later() {
    let scene = Scene::new();
    scene.namespace(None);
    let agent = scene.agent();
    let (pod, hidden, own) = (scene.sandbox("web"), scene.sandbox("hidden"), scene.sandbox("own"));
    for pod in [&pod, &hidden] {
        scene.describe(&pod.name, "");
    }
    let of_its_own = format!(
        "kind: Pod\nmetadata: {{name: own, uid: {}}}\nspec: {{serviceAccountName: sa-own, containers: [{{name: a}}]}}\n",
        own.uid
    );
    scene.write("own.yaml", &of_its_own);
    agent.kill().unwrap();
    for (pod, uid) in [(&pod, HASH), (&hidden, &*HASH.replace('5', "6")), (&own, &*own.uid)] {
        let answer = scene.call(pod, uid).add().unwrap();
        assert!(!answer.stderr.contains("has taken it"), "{answer:#?}");
    }
    assert_eq!(scene.notes(), 3);
    // One is seen by its processes only, whose cgroup has the runtime's name of the pod.
    std::fs::remove_dir_all(scene.mesh.root().join("proc").join(std::process::id().to_string())).unwrap();
    let cgroup = |uid: &str, pid: u32| format!("/kubepods/burstable/pod{uid}/{pid:064x}");
    let hash = HASH.replace('5', "6");
    scene.mesh.process(hidden.pid(), hidden.netns.path(), &cgroup(&hash, hidden.pid()), 7).unwrap();
    let agent = scene.agent();
    let ztunnel = scene.mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    assert!(pod.is_clean().unwrap() && hidden.is_clean().unwrap());
    scene.namespace(Some("ambient"));
    scene.wait_in(&hidden, &ztunnel, &agent);
    assert!(pod.is_clean().unwrap(), "its namespace is nowhere to be seen");
    let seen = scene.mesh.root().join(pod.netns.path().strip_prefix("/").unwrap());
    std::fs::create_dir_all(seen.parent().unwrap()).unwrap();
    for pod in [&pod, &own] {
        let seen = scene.mesh.root().join(pod.netns.path().strip_prefix("/").unwrap());
        symlink(pod.netns.path(), seen).unwrap();
    }
    scene.wait_in(&pod, &ztunnel, &agent);
    assert_eq!(scene.wait_in(&own, &ztunnel, &agent), own.uid);
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

#[test]
fn a_broken_file_takes_nothing_out_and_lets_no_pod_start_outside() {
    let scene = Scene::new();
    scene.namespace(Some("ambient"));
    scene.describe("web", "");
    scene.describe("new", "");
    let agent = scene.agent();
    let ztunnel = scene.mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let (pod, new) = (scene.sandbox("web"), scene.sandbox("new"));
    scene.call(&pod, "").add().unwrap();
    scene.wait_in(&pod, &ztunnel, &agent);
    scene.write("spaces.yaml", "kind: Namespace\nmetadata: {name: default, labels: {");
    eventually("the file is named", PATIENCE, || {
        ensure!(agent.log().find(&["spaces.yaml", "stays in force"]).is_some(), "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    let text = scene.call(&new, HASH).refused().unwrap();
    assert_says(&text, &["spaces.yaml", "default"]);
    std::thread::sleep(std::time::Duration::from_millis(700));
    scene.wait_in(&pod, &ztunnel, &agent);
    assert!(new.is_clean().unwrap());
    assert_eq!(agent.log().text().matches("stays in force").count(), 1);
    scene.namespace(Some("ambient"));
    scene.call(&new, HASH).add().unwrap();
    scene.wait_in(&new, &ztunnel, &agent);
}

/// A manifest's uid that is not the runtime's is another pod's.
#[test]
fn a_manifest_of_another_uid_is_refused() {
    let scene = Scene::new();
    let agent = scene.agent();
    let pod = scene.sandbox("web");
    scene.write("web.yaml", &format!("kind: Pod\nmetadata: {{name: web, uid: other, labels: {{{MODE}: ambient}}}}\nspec: {{containers: [{{name: a}}]}}\n"));
    let text = scene.call(&pod, &pod.uid).refused().unwrap();
    assert_says(&text, &["stale", &pod.uid, "other"]);
    assert!(pod.is_clean().unwrap(), "{}", agent.log().text());
}
