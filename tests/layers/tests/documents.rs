//! Links in documents lead to files and headings that are there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use layers::Workspace;

const FOLDERS: [&str; 5] = [".", "docs", "deploy/charts/istio-cni", ".github", ".github/ISSUE_TEMPLATE"];

fn documents(root: &Path) -> Vec<PathBuf> {
    let entries = FOLDERS.iter().flat_map(|folder| fs::read_dir(root.join(folder)).unwrap());
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect()
}

/// The targets of `[text](target)`, without those on the web.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

/// What a heading is called in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn has_anchor(document: &Path, wanted: &str) -> bool {
    let text = fs::read_to_string(document).unwrap();
    text.lines().any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == wanted)
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = Workspace::load().unwrap().workspace_root;
    let documents = documents(Path::new(&root));
    let mut seen = 0;
    for document in &documents {
        for link in links(&fs::read_to_string(document).unwrap()) {
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, h)| (file, Some(h)));
            let target = if file.is_empty() { document.clone() } else { document.with_file_name(file) };
            assert!(target.exists(), "{}: no file {link}", document.display());
            if let Some(heading) = heading {
                assert!(has_anchor(&target, heading), "{}: no heading {link}", document.display());
            }
            seen += 1;
        }
    }
    assert!(documents.len() > 10 && seen > 30, "{} documents, {seen} links", documents.len());
}
