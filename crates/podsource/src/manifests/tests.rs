use std::fs;
use std::path::Path;

use facts::PodRef;
use fault::{Fault as _, Retry};
use tempfile::TempDir;

use super::Manifests;
use crate::{Cause, PodSource};

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 1d9f
  labels: {app: web, sidecar.istio.io/inject: "true"}
  annotations:
    sidecar.istio.io/status: ""
    empty: null
spec:
  hostNetwork: false
  initContainers:
  - name: istio-proxy
    restartPolicy: Always
    args: [proxy, sidecar]
    securityContext: {runAsUser: 1337, runAsGroup: 1338}
    env:
    - {name: A, value: "1"}
    - name: B
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - {name: setup, restartPolicy: Never}
  containers:
  - name: app
    image: busybox
    args: null
"#;

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn id(namespace: &str, name: &str) -> PodRef {
    PodRef::named(namespace, name)
}

fn pod_yaml(namespace: &str, name: &str, container: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{containers: [{{name: {container}}}]}}\n"
    )
}

fn first_container(dir: &Path, namespace: &str, name: &str) -> String {
    Manifests::new(dir).pod(&id(namespace, name)).unwrap().containers[0].name.clone()
}

fn message(dir: &Path, namespace: &str, name: &str) -> String {
    Manifests::new(dir).pod(&id(namespace, name)).unwrap_err().to_string()
}

#[test]
fn every_fact_is_converted() {
    let dir = dir(&[("any.yaml", WEB)]);
    let pod = Manifests::new(dir.path()).pod(&id("shop", "web")).unwrap();
    assert_eq!(
        (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()),
        ("shop", "web", Some("1d9f"))
    );
    assert_eq!(pod.labels["sidecar.istio.io/inject"], "true");
    assert_eq!(pod.annotations["sidecar.istio.io/status"], "", "an empty value is a value");
    assert!(!pod.host_network);
    let proxy = &pod.init_containers[0];
    assert_eq!((proxy.name.as_str(), proxy.restarts_always), ("istio-proxy", true));
    assert_eq!((proxy.run_as_user, proxy.run_as_group), (Some(1337), Some(1338)));
    assert_eq!(proxy.args, ["proxy", "sidecar"]);
    assert_eq!(proxy.env, [("A".into(), "1".into()), ("B".into(), String::new())]);
    assert!(!pod.init_containers[1].restarts_always);
    assert_eq!(pod.containers[0].name, "app");
    assert!(pod.containers[0].args.is_empty());
}

#[test]
fn the_file_named_after_the_pod_is_preferred() {
    let dir = dir(&[
        ("a.yaml", &pod_yaml("shop", "web", "scanned")),
        ("web.yaml", &pod_yaml("shop", "web", "by-name")),
    ]);
    assert_eq!(first_container(dir.path(), "shop", "web"), "by-name");
    fs::write(dir.path().join("shop_web.yml"), pod_yaml("shop", "web", "by-both")).unwrap();
    assert_eq!(first_container(dir.path(), "shop", "web"), "by-both");
}

#[test]
fn a_named_file_with_another_namespace_is_no_hit() {
    let dir = dir(&[
        ("web.yaml", &pod_yaml("other", "web", "wrong")),
        ("zz.yaml", &pod_yaml("shop", "web", "right")),
    ]);
    assert_eq!(first_container(dir.path(), "shop", "web"), "right");
}

#[test]
fn several_documents_lists_and_json() {
    let json = r#"{"kind":"List","items":[{"kind":"Service","metadata":{"name":"api"},"spec":{"containers":7}},
        {"kind":"Pod","metadata":{"name":"api","namespace":"shop"},"spec":{"containers":[{"name":"json"}]}}]}"#;
    let pod_list =
        "kind: PodList\nitems:\n- metadata: {name: bare}\n  spec: {containers: [{name: listed}]}\n";
    let many = format!(
        "# comment only\n---\nkind: Widget\nmetadata: {{name: db}}\nspec: {{containers: {{not: a-list}}}}\n--- # inline\n{}---\n{}",
        pod_yaml("shop", "db", "second"),
        pod_yaml("shop", "cache", "third"),
    );
    let dir = dir(&[
        ("1.json", &json.replace(r#""containers":7"#, r#""replicas":7"#)),
        ("2.yaml", pod_list),
        ("3.yml", &many),
    ]);
    assert_eq!(first_container(dir.path(), "shop", "api"), "json");
    assert_eq!(first_container(dir.path(), "", "bare"), "listed", "no namespace means default");
    assert_eq!(first_container(dir.path(), "default", "bare"), "listed");
    assert_eq!(first_container(dir.path(), "shop", "db"), "second");
    assert_eq!(first_container(dir.path(), "shop", "cache"), "third");
}

#[test]
fn windows_line_ends_byte_order_mark_and_directives() {
    let text = format!("\u{feff}%YAML 1.2\n---\n{}", pod_yaml("shop", "web", "c")).replace('\n', "\r\n");
    let dir = dir(&[("x.yaml", &text)]);
    assert_eq!(first_container(dir.path(), "shop", "web"), "c");
}

#[test]
fn a_missing_pod_names_the_directory_and_the_pod() {
    let dir = dir(&[("a.yaml", &pod_yaml("shop", "web", "c")), (".hidden.yaml", "]["), ("notes.txt", "web")]);
    let error = Manifests::new(dir.path()).pod(&id("shop", "gone")).unwrap_err();
    assert!(matches!(*error.cause, Cause::NotInManifests { files: 1, .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::OnChange);
    let text = error.to_string();
    for part in
        ["get pod shop/gone", &dir.path().display().to_string(), "none of 1 manifest files", "add a manifest"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_broken_file_is_reported_only_when_nothing_else_has_the_pod() {
    let dir = dir(&[
        (
            "a.yaml",
            "kind: ConfigMap\nmetadata: {name: x}\n---\n# web\nkind: Pod\nmetadata: {name: web, namespace: shop\n",
        ),
        ("b.yaml", &pod_yaml("shop", "web-2", "c")),
    ]);
    assert_eq!(first_container(dir.path(), "shop", "web-2"), "c");
    let text = message(dir.path(), "shop", "web");
    for part in ["get pod shop/web", "a.yaml is broken at line", "column", "correct or remove the file"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(
        !text.contains("line 1,") && !text.contains("line 2,"),
        "the line counts from the start of the file: {text}"
    );
    let elsewhere = message(dir.path(), "shop", "nobody");
    assert!(
        elsewhere.contains("none of 2"),
        "a broken file that does not mention the pod is not its problem: {elsewhere}"
    );
}

#[test]
fn a_broken_file_with_the_pods_name_is_not_overruled_by_another() {
    let whole = pod_yaml("shop", "st", "app");
    for name in ["shop_st.yaml", "shop_st.yml", "st.yaml"] {
        for (text, part) in [
            ("kind: Pod\nmetadata: {name: st, namespace: shop\nspec: [\n", "is broken at line"),
            ("kind: Pod\nmetadata: {na", "is broken at line"),
            ("kind: Pod\nmetadata:\n", "the object has no metadata.name"),
            ("apiVersion: v1\n", "the object has no kind"),
            ("# st\n", "the file is empty"),
            ("", "the file is empty"),
            ("kind: Pod\nmetadata: {name: st, namespace: shop}\n", "the pod has no spec.containers"),
        ] {
            let dir = dir(&[(name, text), ("old.yaml", &whole)]);
            let got = message(dir.path(), "shop", "st");
            assert!(got.contains(&format!("{name} is broken")) && got.contains(part), "{text:?}: {got}");
        }
    }
    let dir = dir(&[("old.yaml", &whole)]);
    fs::write(dir.path().join("shop_st.json"), b"\xff").unwrap();
    assert!(message(dir.path(), "shop", "st").contains("shop_st.json: not UTF-8 text"));
    fs::remove_file(dir.path().join("shop_st.json")).unwrap();
    fs::create_dir(dir.path().join("shop_st.yaml")).unwrap();
    assert!(message(dir.path(), "shop", "st").contains("shop_st.yaml: not a regular file"));
}

#[test]
fn a_pod_that_is_cut_off_is_an_error_and_not_a_pod_without_proxy() {
    for rest in
        ["", "spec:\n", "spec: {hostNetwork: false}\n", "spec: {containers: []}\n", "spec: {containers: 7}\n"]
    {
        let cut = format!("kind: Pod\nmetadata: {{name: web, namespace: shop}}\n{rest}");
        let dir = dir(&[("a.yaml", &cut), ("b.yaml", &pod_yaml("shop", "web", "old"))]);
        let text = message(dir.path(), "shop", "web");
        assert!(text.contains("a.yaml is broken at line 1, column 1: "), "{rest:?}: {text}");
        assert!(rest.contains('7') || text.contains("the pod has no spec.containers"), "{rest:?}: {text}");
    }
}

#[test]
fn a_pod_of_the_wrong_shape_names_file_and_position() {
    let dir = dir(&[
        ("shop_web.yaml", "kind: Pod\nmetadata: {name: web, namespace: shop}\nspec:\n  containers: 7\n"),
        (
            "shop_api.json",
            "{\"kind\":\"Pod\",\"metadata\":{\"name\":\"api\",\"namespace\":\"shop\"},\n\"spec\":{\"containers\":7}}",
        ),
    ]);
    let text = message(dir.path(), "shop", "web");
    assert!(
        text.contains("shop_web.yaml is broken at line 1, column 1: in this document, spec.containers is a number, must be a list;"),
        "{text}"
    );
    let text = message(dir.path(), "shop", "api");
    assert!(text.contains("shop_api.json is broken at line 2, column"), "{text}");
}

#[test]
fn errors_quote_no_value_of_a_pod() {
    let pod = |rest: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: web, namespace: shop}}\nspec:\n  containers:\n  - name: c\n{rest}"
        )
    };
    let mut refused = 0;
    for rest in [
        "    env: [{name: A, value: 8675309}]\n",
        "    args: hunter2\n",
        "    env: [hunter2]\n",
        "    env: [{name: A, value: hunter2]\n",
        "    env: [{name: A, value: \"hunter2\n",
        "    args: [*hunter2]\n",
        "    args: [!hunter2 x]\n",
        "    args: [!!int hunter2]\n",
        "    args: [!!binary hunter2]\n",
        "    hunter2: 1\n    hunter2: 2\n",
        "  hunter2\n    a: b\n",
        "    <<: hunter2\n",
        "    args: [.inf, hunter2]\n",
        "    args: [\"hunter2\\q\"]\n",
    ] {
        let dir = dir(&[("a.yaml", &pod(rest))]);
        // some are odd and yet valid
        let Err(error) = Manifests::new(dir.path()).pod(&id("shop", "web")) else { continue };
        refused += 1;
        let text = error.to_string();
        println!("{text}");
        assert!(text.contains("is broken at line"), "{rest:?}: {text}");
        assert!(!text.contains("hunter2") && !text.contains("8675309"), "{rest:?}: {text}");
    }
    assert!(refused >= 9, "{refused}");
}

#[test]
fn limits_and_separators_are_explained_in_our_words() {
    let mut list = String::from("kind: PodList\nitems:\n");
    while list.len() < crate::MAX_BYTES - 4000 {
        let number = list.len();
        list += &format!("- metadata: {{name: p{number}, namespace: shop}}\n  spec:\n    containers:\n");
        for container in 0..4 {
            list += &format!("    - name: c{container}\n      env:\n");
            for _ in 0..20 {
                list += "      - name: A\n        value: b\n";
            }
        }
    }
    list += "- {metadata: {name: last, namespace: shop}, spec: {containers: [{name: end}]}}\n";
    let dense = format!("x: [{}]\nkind: Pod # web\n", "1,".repeat((2 << 20) + 1));
    let deep = format!("x: {}web{}\n", "[".repeat(70), "]".repeat(70));
    let dots = format!("{}...\n{}", pod_yaml("shop", "web", "a"), pod_yaml("shop", "web-2", "b"));
    for (text, name, part) in [
        (&dense, "web", "more than 2097152 values in one document; split the file"),
        (&deep, "web", "nested deeper than 64 levels"),
        (&dots, "web", "another document follows without a line --- before it; separate documents with ---"),
    ] {
        let dir = dir(&[("a.yaml", text)]);
        let got = message(dir.path(), "shop", name);
        assert!(got.contains(part), "{part:?} in {got}");
    }
    let dir = dir(&[("list.yaml", &list)]);
    assert_eq!(first_container(dir.path(), "shop", "last"), "end");
}

#[test]
fn another_incarnation_is_stale_and_worth_another_try() {
    let dir = dir(&[("a.yaml", WEB)]);
    let manifests = Manifests::new(dir.path());
    let error = manifests.pod(&PodRef { uid: "ffff".into(), ..id("shop", "web") }).unwrap_err();
    assert_eq!(error.retry(), Retry::Backoff);
    assert!(error.to_string().contains("uid ffff") && error.to_string().contains("1d9f"), "{error}");
    assert!(manifests.pod(&PodRef { uid: "1d9f".into(), ..id("shop", "web") }).is_ok());
    assert!(manifests.pod(&PodRef { uid: String::new(), ..id("shop", "web") }).is_ok());
}

#[test]
fn a_static_pod_is_known_by_its_hash() {
    let dir = dir(&[("a.yaml", &WEB.replace("empty: null", "kubernetes.io/config.mirror: c0ffee"))]);
    let pod = Manifests::new(dir.path()).pod(&PodRef { uid: "c0ffee".into(), ..id("shop", "web") });
    assert!(pod.is_ok(), "{pod:?}");
}

#[test]
fn no_path_leaves_the_directory() {
    let outer = dir(&[("secret.yaml", &pod_yaml("default", "x", "c"))]);
    let inner = outer.path().join("inner");
    fs::create_dir(&inner).unwrap();
    for name in ["../secret", "..", "a/../../secret", "x\0y", ""] {
        let error = Manifests::new(&inner).pod(&id("", name)).unwrap_err();
        assert!(
            matches!(*error.cause, Cause::NotInManifests { files: 0, .. } | Cause::InvalidName(_)),
            "{error:?}"
        );
    }
}

#[test]
fn a_missing_directory_is_named_and_not_ready() {
    let manifests = Manifests::new("/nowhere/manifests");
    for error in [manifests.pod(&id("shop", "web")).unwrap_err(), manifests.ready().unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("/nowhere/manifests") && text.contains("No such file"), "{text}");
    }
    let there = dir(&[]);
    assert!(Manifests::new(there.path()).ready().is_ok());
}

#[test]
fn odd_files_end_with_an_error_and_never_hang() {
    let dir = dir(&[("big.yaml", &"web ".repeat(3 << 20))]);
    fs::create_dir(dir.path().join("folder.yaml")).unwrap();
    fs::write(dir.path().join("latin1.yaml"), b"web \xe9").unwrap();
    let fifo =
        std::ffi::CString::new(dir.path().join("pipe.yaml").into_os_string().into_encoded_bytes()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let text = message(dir.path(), "shop", "web");
    assert!(text.contains("big.yaml: larger than 8 MiB"), "{text}");
}

#[test]
fn aliases_that_multiply_are_refused_quickly() {
    let mut bomb = String::from("a0: &a0 [web, web, web, web, web, web, web, web, web, web]\n");
    for level in 1..12 {
        let previous = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [previous.as_str(); 10].join(", "));
    }
    bomb +=
        "kind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {containers: [{name: c, args: *a11}]}\n";
    let dir = dir(&[("bomb.yaml", &bomb)]);
    let start = std::time::Instant::now();
    let text = message(dir.path(), "shop", "web");
    assert!(text.contains("bomb.yaml is broken"), "{text}");
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

/// What the API server would say of a namespace, by the file that says it first.
#[test]
fn labels_of_a_namespace() {
    let in_mesh =
        |name: &str| format!("kind: Namespace\nmetadata: {{name: {name}, labels: {{mode: {name}}}}}\n");
    let web = "kind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {containers: [{name: a}]}\n";
    let list = r#"{"kind": "NamespaceList", "items": [{"metadata": {"name": "bank"}}, {"metadata": {"name": "shop", "labels": {"mode": "list"}}}]}"#;
    let deep = r#"{"kind": "List", "items": [{"kind": "List", "items": [{"kind": "Namespace", "metadata": {"name": "shop", "labels": {"mode": "deep"}}}]}]}"#;
    let (documents, pod_of_the_name) = (format!("{web}---\n{}", in_mesh("shop")), web.replace("web", "shop"));
    let broken_pod = format!("{web}  bad: [");
    for (files, wanted) in [
        (vec![], Ok(None)),
        (vec![("a.yaml", &*documents)], Ok(Some("shop"))),
        (vec![("a.json", list)], Ok(Some("list"))),
        (vec![("a.json", deep)], Ok(Some("deep"))),
        (vec![("a.json", list), ("shop.yaml", &in_mesh("shop"))], Ok(Some("shop"))),
        // A pod of the same name is no namespace, and what is broken elsewhere is no reason.
        (vec![("a.yaml", &*pod_of_the_name), ("b.yaml", &broken_pod)], Ok(None)),
        (vec![("a.yaml", &*in_mesh("bank")), ("b.json", "{\"kind\": \"Namespace")], Ok(None)),
        // It may be here, which cannot be seen.
        (vec![("a.yaml", "kind: Namespace\nmetadata: {name: shop, labels: [")], Err("a.yaml")),
        (
            vec![("a.yaml", "kind: Namespace\nmetadata: {name: shop, labels: ["), ("b.json", list)],
            Ok(Some("list")),
        ),
        // It certainly is, by what can be read of it.
        (
            vec![("a.yaml", "kind: Namespace\nmetadata: {name: shop}\nspec: 7\n"), ("b.json", list)],
            Err("a.yaml"),
        ),
        (vec![("shop.yaml", "kind: Namespace\nmetadata: {name: shop, labels: 7}\n")], Err("shop.yaml")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in &files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let found = Manifests::new(dir.path()).namespace_labels("shop");
        match wanted {
            Ok(mode) => {
                let labels = found.unwrap_or_else(|error| panic!("{files:?}: {error}"));
                assert_eq!(labels.get("mode").map(String::as_str), mode, "{files:?}");
                assert_eq!(labels["kubernetes.io/metadata.name"], "shop");
            }
            Err(part) => {
                let text = found.map_or_else(|error| error.to_string(), |labels| format!("{labels:?}"));
                assert!(text.contains("get namespace shop") && text.contains(part), "{files:?}: {text}");
            }
        }
    }
    let text = Manifests::new("/nowhere/manifests").namespace_labels("shop").unwrap_err().to_string();
    assert!(text.contains("/nowhere/manifests"), "{text}");
}

/// None of these may keep a call waiting, or keep it from an answer that another file has.
#[test]
fn what_is_no_text_describes_no_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    rustix::fs::mknodat(rustix::fs::CWD, path("a.yaml"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    std::os::unix::fs::symlink("b.yaml", path("b.yaml")).unwrap();
    std::os::unix::fs::symlink("/nowhere", path("c.yaml")).unwrap();
    fs::create_dir(path("d.yaml")).unwrap();
    fs::File::create(path("e.json")).unwrap().set_len(1 << 40).unwrap();
    fs::write(path("f.yaml"), b"kind: Namespace # \xff shop").unwrap();
    let manifests = Manifests::new(dir.path());
    assert_eq!(manifests.namespace_labels("shop").unwrap().len(), 1);
    fs::write(path("z.yaml"), "kind: Namespace\nmetadata: {name: shop, labels: {mode: z}}\n").unwrap();
    assert_eq!(manifests.namespace_labels("shop").unwrap()["mode"], "z");
}
