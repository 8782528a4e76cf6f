use crate::Files;

#[test]
fn help_has_examples_and_exit_codes() {
    let files = Files::new();
    let text = files.run("--help").ok();
    for part in ["Examples:", "Exit codes:", "3    there is nothing to show", "cnictl explain web.yaml"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    for verb in ["add", "explain", "pods", "policy eval", "render", "status", "uninstall", "verify"] {
        let text = files.run(&format!("{verb} --help")).ok();
        assert!(text.contains("Examples:") && text.contains("xit codes"), "{text}");
    }
    files.run("").fails(2, &["Usage: cnictl"]);
    files.run("fly").fails(2, &["unrecognized subcommand 'fly'"]);
}

#[test]
fn every_shell_gets_a_completion_that_knows_the_verbs() {
    let files = Files::new();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let text = files.run(&format!("completion {shell}")).ok();
        for word in ["explain", "render", "uninstall", "--net-dir", "--dry-run"] {
            // fish writes options without their dashes
            assert!(text.contains(word.trim_start_matches('-')), "{word} for {shell}");
        }
    }
    let bash = files.write("complete.bash", &files.run("completion bash").ok());
    assert!(std::process::Command::new("bash").arg("-n").arg(bash).status().unwrap().success());
}

#[test]
fn manual_pages_are_made() {
    let files = Files::new();
    let text = files.run("man").ok();
    assert!(text.contains(".TH cnictl 1") && text.contains("Exit codes"), "{text}");
    std::fs::create_dir(files.path("man")).unwrap();
    files.run("man --dir @man").ok();
    for page in ["cnictl.1", "cnictl-explain.1", "cnictl-status.1", "cnictl-uninstall.1"] {
        assert!(files.path("man").join(page).is_file(), "{page}");
    }
    let page = std::fs::read_to_string(files.path("man/cnictl-uninstall.1")).unwrap();
    assert!(page.contains("dry") && page.contains("Exit codes"), "{page}");
    files.run("man --dir @nosuch").fails(1, &["write manual pages to", "No such file"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let files = Files::new();
    let mut child = files
        .command("completion bash")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
