//! What people see on a terminal of 80 columns, and what a user sees whose surroundings are odd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use crate::machine::{CALICO, Machine};

const COLUMNS: usize = 80;

/// The lines of a call on a terminal.
fn on_terminal(machine: &Machine, line: &str) -> Vec<String> {
    let call = machine.command(line);
    let words: Vec<String> = std::iter::once(call.get_program())
        .chain(call.get_args())
        .map(|word| word.to_str().unwrap().to_owned())
        .collect();
    let typed = format!("stty cols {COLUMNS} && exec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-qec", &typed, "/dev/null"]).env("NO_COLOR", "1").stdin(Stdio::null());
    for (name, value) in call.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let output = script.output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn lines_fit_eighty_columns() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.files.write("manifests/shop_web.yaml", crate::WEB);
    let agent = machine.agent(&[]);
    let lines = |verb: &str| {
        let lines = on_terminal(&machine, verb);
        for line in &lines {
            let words = line.split_whitespace().count();
            assert!(line.chars().count() <= COLUMNS || words == 1, "{verb}: {line:?} in {lines:#?}");
        }
        assert!(lines.len() > 1, "{verb}: {lines:#?}");
        lines.len()
    };
    let well = [lines("doctor"), lines("status"), lines("doctor --explain-checks")];
    // What is wrong is long.
    agent.kill().unwrap();
    machine.files.write("net.d/05-another.conflist", CALICO);
    let bad = [lines("doctor"), lines("status"), lines("doctor --explain-checks")];
    println!("lines when all is well {well:?}, and without an agent {bad:?}");
    for verb in ["pods", "verify"] {
        let text = on_terminal(&machine, &format!("{verb} -A")).join("\n");
        let long =
            text.lines().find(|line| line.chars().count() > COLUMNS && line.split_whitespace().count() > 1);
        assert_eq!(long, None, "{verb}: {text}");
    }
    // What a program reads is not broken.
    let run = machine.run("status");
    assert!(run.stdout.lines().any(|line| line.chars().count() > COLUMNS), "{run:?}");
}

/// The plugin's program gets /dev/null instead of input and output: where that cannot be opened, it is not the program's directory that is wrong.
#[test]
fn a_null_device_that_may_not_be_used_is_not_taken_for_a_mount_option() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.files.write("manifests/shop_web.yaml", crate::WEB);
    let _agent = machine.agent(&[]);
    let program = machine.path("cnictl");
    testkit::copy_program(std::path::Path::new(env!("CARGO_BIN_EXE_cnictl")), &program).unwrap();
    machine.mode("", 0o755);
    let null = machine.files.write("null", "");
    fs::set_permissions(&null, fs::Permissions::from_mode(0o600)).unwrap();
    let as_nobody =
        "mount --bind \"$0\" /dev/null && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", as_nobody]).arg(&null).arg(&program);
    command.args(machine.command("status").get_args());
    let run = machine.seen(&command.output().unwrap());
    let said = format!("{}{}", run.stdout, run.stderr);
    assert!(
        said.contains("open /dev/null, which it is to have instead of its input and output: "),
        "{run:?}"
    );
    assert!(!said.contains("noexec"), "{run:?}");
}
