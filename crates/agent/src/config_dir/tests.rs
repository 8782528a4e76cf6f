use std::ffi::OsString;

use super::*;

fn reader(args: &[&str]) -> OptionsReader {
    let args = std::iter::once("install-cni").chain(args.iter().copied()).map(OsString::from);
    OptionsReader::new(Flags::parse(args).unwrap())
}

/// The kill switch and an open failure policy end when they are taken out of the ConfigMap, though the container's variables still have them.
#[test]
fn what_left_the_directory_does_not_live_on_in_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_string_lossy().into_owned();
    let env = |name: &str| {
        let value = match name {
            "CONFIG_DIR" => path.as_str(),
            "CAPTURE" => "disabled",
            "FAILURE_POLICY" => "open",
            "POD_NAMESPACE" => "istio-system",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let switches = |options: &Options| {
        [Setting::Capture, Setting::FailurePolicy, Setting::PodNamespace]
            .map(|setting| options.text(setting).to_owned())
    };
    let mut reader = reader(&[]);
    // Kubelet may be late with the files.
    assert_eq!(switches(&reader.read(&env).unwrap()), ["disabled", "open", "istio-system"]);
    std::fs::write(dir.path().join("CAPTURE"), "disabled\n").unwrap();
    std::fs::write(dir.path().join("FAILURE_POLICY"), "open").unwrap();
    assert_eq!(switches(&reader.read(&env).unwrap()), ["disabled", "open", "istio-system"]);
    std::fs::remove_file(dir.path().join("CAPTURE")).unwrap();
    assert_eq!(switches(&reader.read(&env).unwrap()), ["", "open", "istio-system"]);
    std::fs::remove_file(dir.path().join("FAILURE_POLICY")).unwrap();
    assert_eq!(switches(&reader.read(&env).unwrap()), ["", "", "istio-system"]);
    // A mount that is gone says nothing of the options.
    dir.close().unwrap();
    assert!(reader.read(&env).unwrap_err().to_string().starts_with(&format!("read options from {path}: ")));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_and_not_a_default() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = reader(&[&format!("--config-dir={}", dir.path().display())]);
    let path = dir.path().join("EXCLUDE_NAMESPACES");
    for (content, says) in [(vec![0xff], "UTF-8"), (vec![b'a'; (64 << 10) + 1], "larger than 65536 bytes")] {
        std::fs::write(&path, content).unwrap();
        let error = reader.read(&|_| None).unwrap_err().to_string();
        assert!(error.contains("EXCLUDE_NAMESPACES") && error.contains(says), "{error}");
    }
    std::fs::write(&path, vec![b'a'; 64 << 10]).unwrap();
    assert_eq!(reader.read(&|_| None).unwrap().text(Setting::ExcludeNamespaces).len(), 64 << 10);
}

#[test]
fn a_file_before_a_variable_that_means_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = reader(&[&format!("--config-dir={}", dir.path().display())]);
    let env = |name: &str| (name == "AMBIENT_IPV6").then(|| "yes".to_owned());
    let error = reader.read(&env).unwrap_err().to_string();
    assert_eq!(error, "option ambient-ipv6: \"yes\" is not true or false");
    std::fs::write(dir.path().join("AMBIENT_IPV6"), "true\n").unwrap();
    assert!(reader.read(&env).unwrap().on(Setting::AmbientIpv6));
}
