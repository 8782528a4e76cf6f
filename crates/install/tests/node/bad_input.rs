//! What cannot be used: a clear text, the old state, readiness false.

use std::fs;

use testkit::at_once;

use crate::support::{CALICO, Node, Running, names, plugin};

#[test]
fn files_that_are_no_configuration_are_passed_over_by_name() {
    let node = Node::new();
    let big = format!(r#"{{"name":"n","plugins":[{{"type":"x","pad":"{}"}}]}}"#, "x".repeat(10 << 20));
    fs::write(node.net("01-big.conflist"), &big).unwrap();
    fs::write(node.net("02-latin.conflist"), b"{\"name\":\"\xe9\"}").unwrap();
    fs::write(node.net("03-deep.conflist"), "[".repeat(100_000)).unwrap();
    fs::write(node.net("04-number.conf"), "42").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        node.net("05-pipe.conf"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    // a runtime may use it, which nobody can tell who does not read it
    running.until_told("NOT READY: pods start without the plugin: read ");
    assert!(node.has_entry("10-calico.conflist"));
    for text in [
        "01-big.conflist: the file is larger than 1048576 bytes",
        "02-latin.conflist is no valid network configuration: the list has no plugins",
        "03-deep.conflist is no valid network configuration: not JSON: EOF while parsing a list",
        "04-number.conf is no valid network configuration: a number and not a JSON object",
        "05-pipe.conf: not a regular file",
    ] {
        assert!(running.told.has(text), "{text}: {:?}", running.told.all());
    }
    fs::rename(node.net("01-big.conflist"), node.net("99-big.conflist")).unwrap();
    running.until_ready();
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(fs::read_to_string(node.net("99-big.conflist")).unwrap(), big);
}

#[test]
fn more_files_than_a_node_has_are_not_all_read() {
    let node = Node::new();
    for number in 0..200 {
        node.replace(&format!("{number:03}.conf"), "{}");
    }
    let running = node.start();
    running.until_told("has more than 64 network configurations; the last ones are not looked at");
}

#[test]
fn a_configured_file_that_is_no_network_is_an_error_and_stays() {
    at_once(
        [
            (r#"{"name":"n"}"#, "the list has no plugins"),
            (r#"{"name":"n","plugins":{}}"#, "key plugins is not a list"),
            ("{", "is no valid network configuration: not JSON"),
            ("[]", "an array and not a JSON object"),
        ],
        |(text, wanted)| {
            let node = Node::new();
            node.replace("10-x.conflist", text);
            let mut options = node.options();
            options.conf_name = Some("10-x.conflist".into());
            let running = Running::new(options);
            running.until_told(wanted);
            running.until_told("FAILED Some(\"CREATE_CNI_CONFIG_FAILURE\")");
            assert_eq!(node.read("10-x.conflist"), text);
            assert!(!running.told.has("READY") || !running.told.is_ready());
            node.replace("10-x.conflist", CALICO);
            running.until_ready();
        },
    );
}

#[test]
fn the_kubeconfig_needs_a_server_a_token_and_an_authority() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let told = |change: &dyn Fn(&mut install::KubeconfigOptions), wanted: &str| {
        let mut options = node.options();
        change(options.kubeconfig.as_mut().unwrap());
        let running = Running::new(options);
        running.until_told(wanted);
        running.until_told("FAILED Some(\"CREATE_KUBECONFIG_FAILURE\"): write kubeconfig: ");
        assert!(!running.told.is_ready());
        assert!(!node.has_entry("10-calico.conflist"), "the configuration comes last");
    };
    told(&|kubeconfig| kubeconfig.host.clear(), "is KUBERNETES_SERVICE_HOST set in the environment");
    told(&|kubeconfig| kubeconfig.port.clear(), "is KUBERNETES_SERVICE_PORT set in the environment");
    told(
        &|kubeconfig| kubeconfig.port = "70000".into(),
        "\"70000\" cannot be part of the API server's address",
    );
    told(
        &|kubeconfig| kubeconfig.host = "a\nb".into(),
        "\"a\\nb\" cannot be part of the API server's address",
    );
    told(&|kubeconfig| kubeconfig.protocol = "ftp".into(), "correct KUBERNETES_SERVICE_PROTOCOL");
    told(
        &|kubeconfig| kubeconfig.ca_file = Some("/nonexistent/ca".into()),
        "read /nonexistent/ca: No such file",
    );
    fs::write(node.path("account/token"), "\n").unwrap();
    told(&|_| (), "token is empty; does the pod's service account have a token?");
    fs::write(node.path("account/token"), b"\xff\xfe").unwrap();
    told(&|_| (), "token is not text");
    fs::write(node.path("account/token"), vec![b'x'; 2 << 20]).unwrap();
    told(&|_| (), "token: larger than 1 MiB");
    fs::remove_file(node.path("account/token")).unwrap();
    told(&|_| (), "account/token: No such file or directory");
    assert!(names(&node.path("run")).is_empty());
}

#[test]
fn the_kubeconfig_reads_as_what_was_meant() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let mut options = node.options();
    let kubeconfig = options.kubeconfig.as_mut().unwrap();
    (kubeconfig.host, kubeconfig.skip_tls_verify, kubeconfig.mode) = ("fd00::1".into(), true, 0o640);
    fs::remove_file(node.path("account/ca.crt")).unwrap();
    Running::new(options).until_ready();
    assert_eq!(
        fs::read_to_string(node.path("run/istio-cni-kubeconfig")).unwrap(),
        "apiVersion: v1\nclusters:\n- cluster:\n    insecure-skip-tls-verify: true\n    server: https://[fd00::1]:443\n  name: \
         local\ncontexts:\n- context:\n    cluster: local\n    user: istio-cni\n  name: istio-cni-context\ncurrent-context: \
         istio-cni-context\nkind: Config\nusers:\n- name: istio-cni\n  user:\n    token: eyJhbGciOiJub25lIn0.e30.first\n"
    );
}

#[test]
fn a_program_that_does_not_run_is_never_swapped_in() {
    // an ELF header for the IBM S/390, and the same cut short
    let mut elf = b"\x7fELF\x02\x02\x01".to_vec();
    elf.resize(18, 0);
    elf.extend([0, 22, 0, 0, 0, 1]);
    elf.resize(120, 0);
    let this = fs::read("/bin/true").unwrap();
    at_once(
        [
            (elf.clone(), "is the image built for this architecture?"),
            (this[..400].to_vec(), "does not run here: it"),
            (b"".to_vec(), "is the image built for this architecture?"),
            (b"#!/nonexistent/sh\n".to_vec(), "it cannot be started: No such file or directory"),
            (b"#!/bin/sh\necho no\n".to_vec(), "not a JSON object with supportedVersions"),
            (b"#!/bin/sh\necho '{}'\n".to_vec(), "not a JSON object with supportedVersions"),
            (b"#!/bin/sh\nexit 3\n".to_vec(), "it ended with exit status: 3"),
            (b"#!/bin/sh\nkill -SEGV $$\n".to_vec(), "it ended with signal: 11"),
            (
                b"#!/bin/sh\nwhile :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done\n".to_vec(),
                "is longer than 65536 bytes",
            ),
        ],
        |(program, wanted)| {
            let node = Node::new();
            node.replace("10-calico.conflist", CALICO);
            node.program("bin/istio-cni", &plugin("the old one"));
            fs::write(node.path("image/istio-cni"), &program).unwrap();
            let running = node.start();
            running.until_told("FAILED Some(\"COPY_BINARIES_FAILURE\"): copy binaries: ");
            assert!(running.told.has(wanted), "{wanted}: {:?}", running.told.all());
            assert_eq!(fs::read_to_string(node.path("bin/istio-cni")).unwrap(), plugin("the old one"));
            assert_eq!(names(&node.path("bin")), ["istio-cni"]);
            node.program("image/istio-cni", &plugin("the new one"));
            running.until_ready();
            assert_eq!(fs::read_to_string(node.path("bin/istio-cni")).unwrap(), plugin("the new one"));
        },
    );
}

#[test]
fn a_program_that_hangs_is_ended_with_all_that_it_started() {
    let node = Node::new();
    node.program("bin/istio-cni", &plugin("the old one"));
    let pids = node.path("pids");
    // the child keeps the pipe open
    node.program(
        "image/istio-cni",
        &format!("#!/bin/sh\nsleep 1000 &\necho $$ $! > {}\nwait\n", pids.display()),
    );
    let running = node.start();
    running.until_told("it did not answer within 5s");
    assert_eq!(fs::read_to_string(node.path("bin/istio-cni")).unwrap(), plugin("the old one"));
    for pid in fs::read_to_string(pids).unwrap().split_whitespace() {
        let is_over = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.is_empty() || status.contains("State:\tZ")
        };
        running.until(&format!("{pid} has ended"), is_over);
    }
}

#[test]
fn directories_of_programs_have_to_be_there() {
    let node = Node::new();
    let mut options = node.options();
    options.bin_targets.push(node.path("bin2"));
    let running = Running::new(options);
    running.until_told(
        "bin2 does not exist; mount the directory where the container runtime looks for CNI plugins",
    );
    fs::create_dir(node.path("bin2")).unwrap();
    running.until("copied to both", || {
        node.path("bin2/istio-cni").exists() && node.path("bin/istio-cni").exists()
    });
    drop(running);
    fs::remove_file(node.path("image/istio-cni")).unwrap();
    fs::create_dir(node.path("image/folder")).unwrap();
    node.start().until_told("image has no files to copy; the image is incomplete");
}
