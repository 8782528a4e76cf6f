use super::*;

/// The plugin must not look for the agent, its kubeconfig or its facts where this process does not put them.
#[test]
fn where_plugins_look_changes_only_with_a_new_process() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &str| std::fs::write(dir.path().join(name), value).unwrap();
    write("CNI_AGENT_RUN_DIR", "/run/one");
    let config_dir = format!("--config-dir={}", dir.path().display());
    let (agent, _) = Agent::new(Flags::parse(["install-cni".into(), config_dir.into()]).unwrap()).unwrap();
    write("CNI_AGENT_RUN_DIR", "/run/two");
    write("POD_SOURCE", "manifests:/pods");
    write("CAPTURE", "disabled");
    let (config, waiting) = agent.changed(&mut agent.options.clone()).unwrap();
    assert_eq!(waiting, ["cni-agent-run-dir", "pod-source"]);
    let entry = config.install.entry;
    assert_eq!(entry.cni_agent_run_dir, std::path::Path::new("/run/one"));
    assert_eq!(entry.extra.keys().collect::<Vec<_>>(), ["capabilities", "capture"]);
    std::fs::remove_file(dir.path().join("CAPTURE")).unwrap();
    let (config, _) = agent.changed(&mut agent.options.clone()).unwrap();
    assert_eq!(config.install.entry.extra.keys().collect::<Vec<_>>(), ["capabilities"]);
}
