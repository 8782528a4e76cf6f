//! A directory of manifests as the source.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use cluster::{Source, WatchName};
use tempfile::TempDir;

use crate::agent::Agent;

fn start(dir: &Path) -> Agent {
    Agent::start(Source::Manifests { dir: dir.into(), own: None })
}

fn manifest(name: &str, label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{v: '{label}'}}\n\
         spec:\n  containers:\n  - name: app\n    env: [{{name: PASSWORD, value: hush}}]\n"
    )
}

fn put(dir: &Path, file: &str, text: &str) {
    fs::write(dir.join(file), text).unwrap();
}

/// As careful programs write.
fn replace(dir: &Path, file: &str, text: &str) {
    put(dir, ".new", text);
    fs::rename(dir.join(".new"), dir.join(file)).unwrap();
}

#[tokio::test]
async fn files_that_come_change_and_go_are_followed() {
    let dir = TempDir::new().unwrap();
    let agent = start(dir.path());
    agent.synced().await;
    assert!(agent.pods().is_empty(), "an empty directory is complete");
    let state = agent.cluster.state();
    assert!(state.stands(WatchName::MANIFESTS), "{state:?}");
    put(dir.path(), "a.yaml", &format!("{}---\n{}", manifest("one", "1"), manifest("two", "1")));
    put(dir.path(), "notes.txt", "kind: Pod");
    put(dir.path(), "service.yaml", "kind: Service\nmetadata: {name: web}\n");
    agent.until("two pods", |agent| agent.pods() == ["shop/one", "shop/two"]).await;
    let pod = agent.cluster.index().facts("shop", "one").unwrap().pod;
    assert!(!format!("{pod:?}").contains("hush"), "trimmed");
    replace(dir.path(), "a.yaml", &manifest("one", "2"));
    agent.until("the change", |agent| agent.label("shop", "one", "v") == "2").await;
    assert_eq!(agent.pods(), ["shop/one"]);
    fs::rename(dir.path().join("a.yaml"), dir.path().join("b.yml")).unwrap();
    put(
        dir.path(),
        "c.json",
        r#"{"kind": "Pod", "metadata": {"name": "three"}, "spec": {"containers": [{"name": "a"}]}}"#,
    );
    agent.until("the third", |agent| agent.pods() == ["default/three", "shop/one"]).await;
    fs::remove_file(dir.path().join("b.yml")).unwrap();
    agent.until("the end of the first", |agent| agent.pods() == ["default/three"]).await;
    assert_eq!((agent.failures(WatchName::MANIFESTS), agent.unreadable()), (vec![], vec![]));
}

#[tokio::test]
async fn a_broken_file_is_named_and_keeps_its_pods() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "web.yaml", &manifest("web", "1"));
    put(dir.path(), "broken.yaml", "kind: Pod\nmetadata: [");
    let agent = start(dir.path());
    agent.synced().await;
    assert_eq!(agent.pods(), ["shop/web"]);
    agent.until("the broken file to be told", |agent| agent.unreadable().len() == 1).await;
    assert!(agent.unreadable()[0].contains("broken.yaml"), "{:?}", agent.unreadable());
    put(dir.path(), "web.yaml", "kind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {containers: 7}\n");
    agent
        .until("the next one", |agent| agent.unreadable().iter().any(|text| text.contains("/web.yaml")))
        .await;
    assert_eq!(agent.label("shop", "web", "v"), "1", "what it said before stays");
    // told once, not at every look
    let told = agent.unreadable().len();
    put(dir.path(), "other.yaml", &manifest("other", "1"));
    agent.until("the other pod", |agent| agent.pods() == ["shop/other", "shop/web"]).await;
    assert_eq!(agent.unreadable().len(), told);
    put(dir.path(), "web.yaml", &manifest("web", "2"));
    agent.until("the correction", |agent| agent.label("shop", "web", "v") == "2").await;
}

#[tokio::test]
async fn the_file_that_is_named_after_a_pod_is_believed_first() {
    let dir = TempDir::new().unwrap();
    for (file, label) in [("a.yaml", "other"), ("web.yaml", "name"), ("shop_web.yaml", "whole")] {
        put(dir.path(), file, &manifest("web", label));
    }
    let agent = start(dir.path());
    agent.synced().await;
    for (label, file) in [("whole", "shop_web.yaml"), ("name", "web.yaml"), ("other", "a.yaml")] {
        agent.until(label, |agent| agent.label("shop", "web", "v") == label).await;
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    agent.until("nothing", |agent| agent.pods().is_empty()).await;
}

#[tokio::test]
async fn a_directory_that_comes_late_goes_and_comes_again() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("manifests");
    let agent = start(&dir);
    agent.until("a failure", |agent| !agent.failures(WatchName::MANIFESTS).is_empty()).await;
    let (text, _) = agent.failures(WatchName::MANIFESTS).remove(0);
    assert!(text.contains(&dir.display().to_string()) && text.contains("create the directory"), "{text}");
    assert!(!agent.cluster.state().synced);
    fs::create_dir(&dir).unwrap();
    put(&dir, "web.yaml", &manifest("web", "1"));
    agent.until("the pod", |agent| agent.pods() == ["shop/web"]).await;
    assert!(agent.restored(WatchName::MANIFESTS));

    agent.forget();
    fs::remove_dir_all(&dir).unwrap();
    agent.until("the failure", |agent| !agent.failures(WatchName::MANIFESTS).is_empty()).await;
    let state = agent.cluster.state();
    assert!(state.synced && !state.stands(WatchName::MANIFESTS) && state.last_error.is_some(), "{state:?}");
    fs::create_dir(&dir).unwrap();
    put(&dir, "new.yaml", &manifest("new", "1"));
    agent.until("the new pod", |agent| agent.pods() == ["shop/new"]).await;
    assert!(agent.cluster.state().stands(WatchName::MANIFESTS));
}

#[tokio::test]
async fn links_as_in_a_mounted_config_map_are_followed() {
    let dir = TempDir::new().unwrap();
    for (version, label) in [("..v1", "1"), ("..v2", "2")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        put(&dir.path().join(version), "web.yaml", &manifest("web", label));
    }
    symlink("..v1", dir.path().join("..data")).unwrap();
    symlink("..data/web.yaml", dir.path().join("web.yaml")).unwrap();
    let agent = start(dir.path());
    agent.synced().await;
    assert_eq!(agent.label("shop", "web", "v"), "1");
    symlink("..v2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    agent.until("the second version", |agent| agent.label("shop", "web", "v") == "2").await;
}

#[tokio::test]
async fn a_link_to_a_directory_that_is_turned_to_another_is_followed() {
    let parent = TempDir::new().unwrap();
    for label in ["1", "2"] {
        fs::create_dir(parent.path().join(label)).unwrap();
        put(&parent.path().join(label), "web.yaml", &manifest("web", label));
    }
    let dir = parent.path().join("manifests");
    symlink("1", &dir).unwrap();
    let agent = start(&dir);
    agent.synced().await;
    assert_eq!(agent.label("shop", "web", "v"), "1");
    symlink("2", parent.path().join("tmp")).unwrap();
    fs::rename(parent.path().join("tmp"), &dir).unwrap();
    agent.until("the other directory", |agent| agent.label("shop", "web", "v") == "2").await;
    put(&parent.path().join("2"), "new.yaml", &manifest("new", "1"));
    agent.until("a change in it", |agent| agent.pods().len() == 2).await;
}

#[tokio::test]
async fn a_thousand_files_at_once_arrive() {
    let dir = TempDir::new().unwrap();
    let agent = start(dir.path());
    agent.synced().await;
    for number in 0..1000 {
        put(dir.path(), &format!("web-{number}.yaml"), &manifest(&format!("web-{number}"), "1"));
    }
    agent.until("all pods", |agent| agent.pods().len() == 1000).await;
    assert_eq!((agent.failures(WatchName::MANIFESTS), agent.unreadable()), (vec![], vec![]));
}

fn namespace(name: &str, mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{mode: {mode}}}\nspec: {{finalizers: [kubernetes]}}\n"
    )
}

/// What is known of a pod's namespace, as `key=value` words.
fn labels(agent: &Agent, pod: &str) -> String {
    let facts = agent.cluster.index().facts("shop", pod);
    let labels = facts.and_then(|facts| facts.namespace_labels).unwrap_or_default();
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

const NAME_ONLY: &str = "kubernetes.io/metadata.name=shop";

#[tokio::test]
async fn namespaces_are_followed_and_have_their_names_without_a_file() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "web.yaml", &manifest("web", "1"));
    let agent = start(dir.path());
    agent.synced().await;
    assert_eq!(labels(&agent, "web"), NAME_ONLY);
    agent.forget();
    replace(dir.path(), "all.yaml", &format!("{}---\n{}", namespace("bank", "a"), namespace("shop", "a")));
    let with = |mode: &str| format!("{NAME_ONLY} mode={mode}");
    agent.until("the labels", |agent| labels(agent, "web") == with("a")).await;
    let told: Vec<String> = agent.changed().into_iter().map(|key| key.name).collect();
    assert_eq!(told, ["web"], "the pods of a changed namespace are told of, and no others");
    // As the API server lists them, in a file of the name, which goes before others.
    let list =
        r#"{"kind": "NamespaceList", "items": [{"metadata": {"name": "shop", "labels": {"mode": "b"}}}]}"#;
    replace(dir.path(), "shop.json", list);
    agent.until("the list", |agent| labels(agent, "web") == with("b")).await;
    fs::remove_file(dir.path().join("shop.json")).unwrap();
    agent.until("the other file", |agent| labels(agent, "web") == with("a")).await;
    replace(dir.path(), "all.yaml", &manifest("new", "1"));
    agent.until("the end of the labels", |agent| labels(agent, "web") == NAME_ONLY).await;
    assert_eq!(
        (agent.pods(), labels(&agent, "new")),
        (vec!["shop/new".into(), "shop/web".into()], NAME_ONLY.into())
    );
    assert_eq!((agent.failures(WatchName::MANIFESTS), agent.unreadable()), (vec![], vec![]));
}

/// A part of a file is often a good file, which says less.
#[tokio::test]
async fn a_file_that_is_being_written_counts_when_it_is_whole() {
    use std::io::Write;
    let dir = TempDir::new().unwrap();
    let whole =
        format!("{}---\n{}---\n{}", namespace("shop", "a"), manifest("one", "1"), manifest("two", "1"));
    put(dir.path(), "all.yaml", &whole);
    let agent = start(dir.path());
    agent.synced().await;
    let mut file = fs::File::create(dir.path().join("all.yaml")).unwrap();
    let longer = whole.replace("mode: a", "mode: b") + "---\n" + &manifest("three", "1");
    let parts =
        [longer.find("  labels").unwrap(), longer.find("---\n").unwrap(), longer.rfind("---\n").unwrap()];
    let mut from = 0;
    for (number, to) in parts.into_iter().enumerate() {
        file.write_all(&longer.as_bytes()[from..to]).unwrap();
        from = to;
        // Whatever leads to a look meanwhile.
        put(dir.path(), &format!("other-{number}.yaml"), &manifest(&format!("other-{number}"), "1"));
        agent.until("another file", |agent| agent.pods().len() == 3 + number).await;
        let _ = agent.cluster.fetch("shop", "one", std::time::Duration::from_secs(5)).await;
        assert!(agent.pods().contains(&"shop/two".to_owned()), "{:?}", agent.pods());
        assert!(labels(&agent, "one").contains("mode=a"), "{}", labels(&agent, "one"));
    }
    file.write_all(&longer.as_bytes()[from..]).unwrap();
    drop(file);
    agent.until("the whole file", |agent| agent.pods().contains(&"shop/three".to_owned())).await;
    assert!(labels(&agent, "one").contains("mode=b"));
    assert_eq!(agent.unreadable(), Vec::<String>::new());
}

/// Nothing of this may be waited for, take pods away that are described still, or be told again and again.
#[tokio::test]
async fn hostile_files_are_named_once_and_change_nothing() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "web.yaml", &format!("{}---\n{}", namespace("shop", "a"), manifest("web", "1")));
    let path = |name: &str| dir.path().join(name);
    let pipe = |name: &str| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    };
    pipe("a.yaml");
    symlink("b.yaml", path("b.yaml")).unwrap();
    fs::File::create(path("c.json")).unwrap().set_len(1 << 40).unwrap();
    put(dir.path(), "d.yaml", &format!("kind: Pod\nmetadata: {}", "[".repeat(1 << 16)));
    put(dir.path(), "e.json", &("[".repeat(1 << 20) + "]"));
    put(dir.path(), "f.yaml", "kind: Namespace\nmetadata: {labels: {mode: b}}\n");
    fs::create_dir(path("g.yaml")).unwrap();
    let agent = start(dir.path());
    agent.synced().await;
    assert_eq!(agent.pods(), ["shop/web"]);
    agent.until("six files to be told", |agent| agent.unreadable().len() == 6).await;
    for name in ["a.yaml", "b.yaml", "c.json", "d.yaml", "e.json", "f.yaml"] {
        let its = agent.unreadable().into_iter().filter(|text| text.contains(&format!("/{name}:"))).count();
        assert_eq!(its, 1, "{name}: {:?}", agent.unreadable());
    }
    // A good file becomes one of these.
    agent.forget();
    pipe(".new");
    fs::rename(path(".new"), path("web.yaml")).unwrap();
    agent.until("the pipe to be told", |agent| agent.unreadable().len() == 1).await;
    assert!(agent.unreadable()[0].contains("stays in force"), "{:?}", agent.unreadable());
    symlink("web.yaml", path(".new")).unwrap();
    fs::rename(path(".new"), path("web.yaml")).unwrap();
    agent.until("the link to be told", |agent| agent.unreadable().len() == 2).await;
    assert_eq!(
        (agent.pods(), labels(&agent, "web")),
        (vec!["shop/web".into()], format!("{NAME_ONLY} mode=a"))
    );
    put(dir.path(), "z.yaml", &manifest("new", "1"));
    agent.until("the next pod", |agent| agent.pods() == ["shop/new", "shop/web"]).await;
    assert_eq!((agent.unreadable().len(), agent.failures(WatchName::MANIFESTS)), (2, vec![]));
    fs::remove_file(path("web.yaml")).unwrap();
    agent.until("the end", |agent| agent.pods() == ["shop/new"]).await;
}

#[tokio::test]
async fn pods_of_manifests_have_uids_that_tell_them_apart() {
    let dir = TempDir::new().unwrap();
    for name in ["one", "two"] {
        put(dir.path(), &format!("{name}.yaml"), &manifest(name, "1"));
        let copy = manifest(&format!("copy-{name}"), "1").replace("  namespace", "  uid: 8-8\n  namespace");
        put(dir.path(), &format!("copy-{name}.yaml"), &copy);
    }
    let agent = start(dir.path());
    agent.synced().await;
    let uid = |name: &str| agent.cluster.index().pod("shop", name).unwrap().uid().unwrap().to_owned();
    let (one, two) = (uid("one"), uid("two"));
    assert_eq!((one.len(), one == two, uid("copy-one")), (36, false, "8-8".to_owned()));
    assert!(uid("copy-two") != "8-8" && uid("copy-two").len() == 36);
    // It is the same pod, whatever else its manifest says.
    replace(dir.path(), "one.yaml", &manifest("one", "2"));
    agent.until("the change", |agent| agent.label("shop", "one", "v") == "2").await;
    assert_eq!(uid("one"), one);
}
