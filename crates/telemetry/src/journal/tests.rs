use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn written(levels: &str, json: bool, work: impl FnOnce(&Journal)) -> String {
    let sink = Sink::default();
    let journal = Journal::new(Levels::parse(levels).unwrap(), json, sink.clone()).unwrap();
    work(&journal);
    assert!(journal.finish(Duration::from_secs(20)));
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// The plugin's level is that of the scope `cni-plugin`, with the original's quirk.
#[test]
fn levels_are_of_scopes() {
    for (text, agent, plugin) in [
        ("", Level::Info, Level::Info),
        ("default:info,grpc:none", Level::Info, Level::Info),
        ("debug", Level::Info, Level::Info),
        ("all:debug", Level::Debug, Level::Debug),
        ("cni-plugin:debug", Level::Info, Level::Debug),
        ("all:error,cni-agent:warn", Level::Warn, Level::Error),
        ("cni-agent:none", Level::None, Level::Info),
    ] {
        let levels = Levels::parse(text).unwrap();
        assert_eq!((levels.of("cni-agent"), levels.of("cni-plugin")), (agent, plugin), "{text}");
    }
    for text in ["loud", "cni-agent:", ":debug", "a:b:debug", "cni-agent=debug"] {
        assert!(Levels::parse(text).unwrap_err().to_string().contains(text), "{text}");
    }
}

#[test]
fn text_has_tabs_between_its_columns_and_stays_on_a_line() {
    let text = written("", false, |journal| {
        journal.scope("cni-agent").info("two\nlines", &[("path", &"/a b"), ("n", &1)]);
        journal.scope("cni-agent").debug("not wanted", &[]);
    });
    let columns: Vec<&str> = text.trim_end().split('\t').collect();
    assert_eq!(columns[1..], ["info", "cni-agent", "two\\nlines", "path=\"/a b\" n=1"]);
    assert_eq!(columns[0].len(), "2026-08-01T09:30:00.000001Z".len());
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn json_has_the_scope() {
    let text =
        written("", true, |journal| journal.scope("cni-agent").warn("w", &[("k", &"v\""), ("lines", &3)]));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["lines"], 3);
    assert_eq!(
        (&line["level"], &line["scope"], &line["msg"], &line["k"]),
        (&"warn".into(), &"cni-agent".into(), &"w".into(), &"v\"".into())
    );
}

#[test]
fn relayed_lines_keep_their_time_and_are_filtered() {
    let text = written("cni-plugin:warn", false, |journal| {
        let line = |level, msg| Relayed {
            level,
            time: "2020-01-01T00:00:00.000001Z",
            msg,
            labels: &[("pod", &"a/b")],
        };
        journal.scope("cni-plugin").relay(&[line(Level::Info, "no"), line(Level::Error, " yes\n")]);
    });
    assert_eq!(text, "2020-01-01T00:00:00.000001Z\terror\tcni-plugin\tyes\tpod=a/b\n");
}

#[test]
fn a_repeated_warning_is_not_told_until_its_subject_is_well() {
    let text = written("", true, |journal| {
        let scope = journal.scope("ambient");
        let fails = || scope.warn("no namespace", &[("pod", &"a/b"), ("after_s", &3)]);
        (0..12).for_each(|_| fails());
        scope.info("another pod is well", &[("pod", &"a/c")]);
        fails();
        scope.info("well", &[("pod", &"a/b")]);
        scope.info("well", &[("pod", &"a/b")]);
        fails();
        scope.settled(&[("pod", &"a/b")]);
        fails();
    });
    let line = |line: &str| -> (String, Option<String>) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let member = |name: &str| line[name].as_str().map(str::to_owned);
        (member("msg").unwrap(), member("repeated"))
    };
    let told: Vec<_> = text.lines().map(line).collect();
    let told: Vec<_> = told.iter().map(|(msg, repeated)| (msg.as_str(), repeated.as_deref())).collect();
    let failed = ("no namespace", None);
    let expected = [failed, ("another pod is well", None), ("well", None), ("well", None), failed, failed];
    assert_eq!(told, expected);
}

/// A level that hides what says that a pod is well must not hide its next failure.
#[test]
fn what_is_well_counts_also_where_it_is_not_logged() {
    let text = written("all:warn", false, |journal| {
        let scope = journal.scope("ambient");
        for _ in 0..3 {
            scope.warn("no", &[("pod", &"a/b")]);
            scope.info("well", &[("pod", &"a/b")]);
        }
    });
    assert_eq!(text.lines().count(), 3, "{text}");
}

/// Its sender chooses the pauses.
#[test]
fn what_sums_up_is_told_each_time() {
    let sums = |levels| {
        written(levels, false, |journal| {
            let scope = journal.scope("ambient");
            (0..3).for_each(|_| scope.sum_up("2 pods wait", &[("waiting_s", &1)]));
        })
    };
    let text = sums("all:warn");
    assert_eq!(
        text.lines().filter(|line| line.ends_with("warn\tambient\t2 pods wait\twaiting_s=1")).count(),
        3,
        "{text}"
    );
    assert_eq!(sums("all:error"), "");
}

/// Scopes that were made before follow, and those of which nothing is said have the level of the start again.
#[test]
fn levels_change_while_the_journal_is_written() {
    let text = written("ambient:warn", false, |journal| {
        let (ambient, agent) = (journal.scope("ambient"), journal.scope("cni-agent"));
        let both = |word: &str| [&ambient, &agent].map(|scope| scope.debug(word, &[]));
        both("1");
        journal.set_levels(&Levels::parse("ambient:debug").unwrap());
        assert_eq!(journal.levels(), "ambient:debug,cni-agent:info");
        both("2");
        journal.set_levels(&Levels::parse("all:debug").unwrap());
        both("3");
        journal.set_levels(&Levels::default());
        assert_eq!(journal.levels(), "ambient:warn,cni-agent:info");
        both("4");
    });
    let told: Vec<_> =
        text.lines().map(|line| line.split('\t').skip(2).take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(told, ["ambient 2", "ambient 3", "cni-agent 3"]);
}
