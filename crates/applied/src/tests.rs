use super::*;

const RULES: &[u8] = b"backend iptables\nowner istio-proxy\nloopback ::6\nrule 4 1337 4294967295 133 32765\nroute 6 133\n\nfamily 4\n*nat\n";

fn origin(ino: u64) -> Origin {
    Origin {
        netns: NetnsId { dev: 4, ino },
        pod: "shop/web".to_owned(),
        uid: String::new(),
        interface: "eth0".to_owned(),
        addresses: vec!["10.1.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
    }
}

fn key(container: &str) -> RecordKey<'_> {
    RecordKey::Attachment { container, interface: "eth0" }
}

#[test]
fn what_is_written_is_read_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let record = Record::from_bytes(RULES).unwrap();
    assert_eq!(record.to_bytes(), RULES);
    let namespace = RecordKey::Namespace(NetnsId { dev: 4, ino: 9 });
    assert_eq!(read(&run, key("c1")).unwrap(), None);
    for (key, ino) in [(key("c1"), 7), (namespace, 9), (key("c1"), 8)] {
        write(&run, key, &origin(ino), &record, "").unwrap();
        let found = read(&run, key).unwrap().unwrap();
        assert_eq!(
            found,
            AppliedRecord { origin: origin(ino), record: Some(record.clone()), inputs: String::new() }
        );
    }
    write(&run, key("c2"), &origin(1), &record, "").unwrap();
    assert_eq!(keep_attachments(&run, [("c2", "eth0"), ("c1", "net1")]).unwrap(), 1);
    assert_eq!(read(&run, key("c1")).unwrap(), None);
    assert!(read(&run, key("c2")).unwrap().is_some() && read(&run, namespace).unwrap().is_some());
    let none = |_: &RecordHead| false;
    assert_eq!(keep_namespaces(&run, || None, none).unwrap(), 0);
    assert_eq!(keep_namespaces(&run, || Some(HashSet::from([NetnsId { dev: 4, ino: 9 }])), none).unwrap(), 0);
    let other = || Some(HashSet::from([NetnsId { dev: 4, ino: 1 }]));
    assert_eq!(keep_namespaces(&run, other, |head| head.origin == origin(9) && !head.has_inputs).unwrap(), 0);
    assert_eq!(keep_namespaces(&run, other, none).unwrap(), 1);
    remove(&run, key("c2")).unwrap();
    remove(&run, key("c2")).unwrap();
    assert_eq!(std::fs::read_dir(run.join(rundir::APPLIED_DIR)).unwrap().count(), 0);
}

/// Records of sidecars, whoever wrote them: the plugin's of earlier versions have no inputs, and the agent's of ambient mode never have.
#[test]
fn records_of_sidecars_are_told_from_those_of_ambient_mode() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    let record = Record::from_bytes(RULES).unwrap();
    let namespace = |ino| RecordKey::Namespace(NetnsId { dev: 4, ino });
    write(run, key("c1"), &origin(1), &record, "").unwrap();
    write(run, namespace(2), &origin(2), &record, "backend iptables\n").unwrap();
    write(run, namespace(3), &origin(3), &record, "").unwrap();
    let mut found: Vec<u64> =
        origins_with_inputs(run).unwrap().iter().map(|origin| origin.netns.ino).collect();
    found.sort_unstable();
    assert_eq!(found, [1, 2]);
    assert_eq!(keep_namespaces(run, || Some(HashSet::new()), |head| head.has_inputs).unwrap(), 1);
    assert!(read(run, namespace(2)).unwrap().is_some() && read(run, namespace(3)).unwrap().is_none());
    assert!(read(run, key("c1")).unwrap().is_some());
}

/// Whose they are is read without their rules; what is no record is left out.
#[test]
fn attachments_are_listed_with_the_time_of_writing() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    assert_eq!(attachments(run).unwrap(), []);
    let long = [RULES, &vec![b'#'; 1 << 20]].concat();
    let record = Record::from_bytes(RULES).unwrap();
    write(run, key("c1"), &origin(7), &record, "").unwrap();
    write(run, RecordKey::Namespace(NetnsId { dev: 4, ino: 9 }), &origin(9), &record, "").unwrap();
    for (name, bytes) in
        [("attachment-broken,eth0", b"no record".to_vec()), ("attachment-long,eth0", long.clone())]
    {
        std::fs::write(run.join(rundir::APPLIED_DIR).join(name), bytes).unwrap();
    }
    let whole = [head(&origin(8)).into_bytes(), long].concat();
    std::fs::write(run.join(rundir::APPLIED_DIR).join("attachment-c2,eth0"), whole).unwrap();
    let mut found = attachments(run).unwrap();
    found.sort_by_key(|found| found.origin.netns.ino);
    let origins: Vec<&Origin> = found.iter().map(|found| &found.origin).collect();
    assert_eq!(origins, [&origin(7), &origin(8)]);
    let written = run
        .join(rundir::APPLIED_DIR)
        .join(name_of(key("c1")).unwrap())
        .metadata()
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(found[0].written, written);
    std::os::unix::fs::symlink(
        "attachment-c1,eth0",
        run.join(rundir::APPLIED_DIR).join("attachment-link,eth0"),
    )
    .unwrap();
    assert_eq!(attachments(run).unwrap().len(), 2);
}

/// What was applied anew takes the place of the plugin's record, with what it was made from.
#[test]
fn what_a_plan_was_made_from_is_kept_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    let record = Record::from_bytes(RULES).unwrap();
    let inputs = "backend iptables\nistio-service-cidr \n\nowner é\n";
    write(run, key("c1"), &origin(7), &record, inputs).unwrap();
    let kept = AppliedRecord { origin: origin(7), record: Some(record), inputs: inputs.to_owned() };
    assert_eq!(read(run, key("c1")).unwrap(), Some(kept.clone()));
    let [found] = &attachments(run).unwrap()[..] else { panic!("one record") };
    assert_eq!(found.read().unwrap(), Some(kept));
    let other = Record::from_bytes(&[RULES, b"-N ISTIO_OUTPUT\n"].concat()).unwrap();
    found.replace(&other, "backend nftables\n").unwrap();
    let now = read(run, key("c1")).unwrap().unwrap();
    assert_eq!((now.origin, now.record, &*now.inputs), (origin(7), Some(other), "backend nftables\n"));
    found.remove().unwrap();
    found.remove().unwrap();
    assert_eq!((found.read().unwrap(), read(run, key("c1")).unwrap()), (None, None));
}

/// A length that is none, or more than there is, is no record.
#[test]
fn inputs_are_read_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(rundir::APPLIED_DIR).join("attachment-c,eth0");
    write(dir.path(), key("c"), &origin(1), &Record::from_bytes(RULES).unwrap(), "ipv6 true\n").unwrap();
    let good = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    for bad in ["inputs 99999", "inputs -1", "inputs ", "inputs 99999999999999999999", "inputs 1\u{e9}"] {
        std::fs::write(&path, good.replace("inputs 10", bad)).unwrap();
        assert!(matches!(read(dir.path(), key("c")), Err(Error::Unreadable { .. })), "{bad}");
    }
}

/// What could not be read is not what is not there.
#[test]
fn attachments_that_cannot_be_read_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(rundir::APPLIED_DIR), "no folder").unwrap();
    attachments(dir.path()).unwrap_err();
    let dir = tempfile::tempdir().unwrap();
    let record = Record::from_bytes(RULES).unwrap();
    write(dir.path(), key("c1"), &origin(1), &record, "").unwrap();
    let path = dir.path().join(rundir::APPLIED_DIR).join("attachment-c1,eth0");
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let text = attachments(dir.path()).unwrap_err().to_string();
    assert!(text.contains("belongs to user 65534"), "{text}");
    // What is no file is no record.
    std::fs::remove_file(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(attachments(dir.path()).unwrap(), []);
}

#[test]
fn names_stay_in_their_folder_and_apart() {
    for container in ["", "a/b", "..\n", "a b", &"x".repeat(161)] {
        assert!(matches!(name_of(key(container)), Err(Error::Name { .. })), "{container:?}");
    }
    let of = |container, interface| name_of(RecordKey::Attachment { container, interface }).unwrap();
    assert_eq!(of("c.1", "eth0"), "attachment-c.1,eth0");
    assert_ne!(of("c", "a,b"), of("c", "a"));
    assert!(!of("c", "we/ird\u{e9}").contains('/'));
}

/// What is not a whole record of this version is said to be so, and a pipe or a link is never opened.
#[test]
fn only_own_whole_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    let record = Record::from_bytes(RULES).unwrap();
    write(run, key("c"), &origin(1), &record, "").unwrap();
    let path = run.join(rundir::APPLIED_DIR).join("attachment-c,eth0");
    let good = std::fs::read(&path).unwrap();
    for cut in [0, 10, good.len() - RULES.len() - 3] {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert!(matches!(read(run, key("c")), Err(Error::Unreadable { .. })), "{cut}");
    }
    let newer = String::from_utf8(good.clone()).unwrap().replace("backend iptables", "backend ebpf");
    std::fs::write(&path, newer).unwrap();
    assert_eq!(read(run, key("c")).unwrap().unwrap().record, None, "the place is known still");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert!(matches!(read(run, key("c")), Err(Error::TooLarge { .. })));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(run.join("elsewhere"), &good).unwrap();
    std::os::unix::fs::symlink(run.join("elsewhere"), &path).unwrap();
    assert!(matches!(read(run, key("c")), Err(Error::Foreign(_))));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(read(run, key("c")), Err(Error::Foreign(_))));
    assert!(write(run, key("c"), &origin(1), &record, "").is_err());
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, &good).unwrap();
    assert!(read(run, key("c")).unwrap().is_some());
    // A file of another user's.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(matches!(read(run, key("c")), Err(Error::Foreign(_))));
    }
}
