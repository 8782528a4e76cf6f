//! CNI configuration files of others: our entry goes in and out, and everything else stays.

use cni::conflist::{ConflistError, Document, Form, PluginEntry};
use cni::libcni::Folder;
use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;

use crate::json;

fn generate() -> BoxedStrategy<Vec<u8>> {
    let plugins = prop::collection::vec(json::tree(), 0..4);
    let list = (json::tree(), plugins, json::tree()).prop_map(|(first, plugins, last)| {
        let plugins: Vec<_> =
            plugins.into_iter().map(|conf| serde_json::json!({"type": "x", "conf": conf})).collect();
        serde_json::json!({"name": "n", "cniVersion": "1.0.0", "x": first, "plugins": plugins, "z": last})
    });
    prop_oneof![list, json::tree()].prop_map(|tree| tree.to_string().into_bytes()).boxed()
}

fn entry() -> PluginEntry {
    let extra = [("facts_timeout".to_owned(), "5s".into())].into_iter().collect();
    PluginEntry {
        plugin_log_level: "info".into(),
        exclude_namespaces: vec!["kube-system".into()],
        extra,
        ..PluginEntry::default()
    }
}

fn run(input: &[u8]) -> Outcome {
    let outcomes =
        [None, Some(Form::List), Some(Form::Single)].map(|form| match Document::of_form(form, input) {
            Err(refusal) => of_text(&refusal.to_string()),
            Ok(document) => look_at(form, input, &document),
        });
    Outcome::of(outcomes)
}

fn look_at(form: Option<Form>, input: &[u8], before: &Document) -> Outcome {
    let folder = Folder::default();
    let verdict = before.verdict(&folder);
    let without = before.without_entry(&folder);
    match before.merge(&entry(), &folder) {
        Err(ConflistError::WouldDiffer(why)) => of_text(&why),
        Err(error) => of_text(&error.to_string()),
        Ok(merged) => {
            assert!(verdict.is_agreed() || form.is_none(), "changed although runtimes differ about it");
            let list = Document::of_form(Some(Form::List), &merged).expect("what was written is read");
            assert!(list.holds(&entry()), "our entry is not there");
            assert!(list.is_same_network(before), "another network");
            assert_eq!(
                list.merge(&entry(), &folder).expect("again"),
                merged,
                "a second time changes something"
            );
            let after = list.without_entry(&folder).expect("out again").unwrap_or_default();
            let without = without.expect("out of what was merged").unwrap_or_default();
            assert_eq!(text(&after), text(&without), "taking out does not undo putting in");
            // Runtimes read what is no UTF-8 as other characters, and so it is written.
            if let (Ok(given), Some(Form::List), []) =
                (std::str::from_utf8(input), form, &before.entries()[..])
            {
                let (given, kept) = (json::tokens(given), json::tokens(text(&after)));
                assert_eq!(kept, given, "not everything of others stays");
            }
            Outcome::of((
                before.plugin_types().len(),
                before.entries().len(),
                before.gives_address(),
                before.network().is_some(),
            ))
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("what is written is text")
}

const TARGET: Target = Target {
    name: "conflist",
    package: env!("CARGO_PKG_NAME"),
    dictionary: json::DICTIONARY,
    max_len: 8192,
    memory: 2 << 20,
    generate,
    run,
};

#[test]
fn fuzz_conflist() {
    TARGET.fuzz();
}
