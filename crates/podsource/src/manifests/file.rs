//! All objects of one manifest file: for the node agent, and for people who point at a file instead of naming a pod.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use facts::Object;
use facts::object::NO_CONTAINERS;

use super::document::{Broken, ManifestFormat};
use super::written::{self, Written};

/// A manifest file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFileError {
    /// It does not exist, is no regular file, is too large, is no text, or can be written by others where that counts.
    #[error("read manifest {path}: {cause}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The operating system's words, or the limit that was exceeded.
        cause: io::Error,
    },
    /// A document is not YAML or JSON, or a pod's members have wrong types or its containers are missing.
    #[error("read manifest {path}: broken at line {line}, column {column}: {reason}; correct the file", path = path.display())]
    Broken {
        /// Which.
        path: PathBuf,
        /// Line, from 1; 0 when unknown.
        line: u64,
        /// Column, from 1; 0 when unknown.
        column: u64,
        /// The parser's words.
        reason: String,
    },
    /// It describes other things.
    #[error(
        "read manifest {path}: no object of kind Pod in it; give the manifest of a pod (kubectl get pod NAME -o yaml), not of what creates it",
        path = path.display()
    )]
    NoPod {
        /// Which.
        path: PathBuf,
    },
}

/// What a manifest file describes that decides about pods: one object, a list, or several YAML documents. Objects of other kinds are
/// skipped.
#[derive(Debug, Default)]
pub struct ManifestFile {
    /// The pods, in order.
    pub pods: Vec<Object>,
    /// Labels of the namespaces, by name.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl ManifestFile {
    /// Reads a file. One that is not named `*.json` is read as YAML, of which JSON is a part.
    ///
    /// # Errors
    /// The file cannot be read, any document of it is broken, or none is a pod.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ManifestFileError> {
        let path = path.as_ref();
        Self::of(written_in(path, super::read_any(path), &decides)?, path)
    }

    /// The same of a stream, such as standard input, by a name for messages.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_stream(stream: impl Read, name: &str) -> Result<Self, ManifestFileError> {
        let path = Path::new(name);
        Self::of(written_in(path, super::read_stream(stream), &decides)?, path)
    }

    fn of(written: Vec<Written>, path: &Path) -> Result<Self, ManifestFileError> {
        let mut file = Self::default();
        for one in written {
            let mut object: Object = one.read()?;
            object.kind = Some(one.kind().to_owned());
            if one.kind() == "Namespace" {
                file.namespaces.insert(object.name().to_owned(), object.labels());
            } else if object.has_containers() {
                file.pods.push(object);
            } else {
                return Err(one.refuse(format!("the pod {:?} {NO_CONTAINERS}", object.name())));
            }
        }
        if file.pods.is_empty() {
            return Err(ManifestFileError::NoPod { path: path.to_owned() });
        }
        Ok(file)
    }
}

/// Whether objects of a kind decide about pods.
fn decides(kind: &str) -> bool {
    matches!(kind, "Pod" | "Namespace")
}

/// The objects that a manifest file describes of the kinds that `is_wanted` names, which may be none.
///
/// # Errors
/// The file cannot be read, others can write it, or any document of it is broken.
pub fn written_in_file(
    path: impl AsRef<Path>,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Written>, ManifestFileError> {
    let path = path.as_ref();
    written_in(path, super::read_believed(path), is_wanted)
}

/// The same of a file that a person has named, whoever can write it; of standard input for `-`.
///
/// # Errors
/// The file cannot be read, or any document of it is broken.
pub fn written_in_named_file(
    path: impl AsRef<Path>,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Written>, ManifestFileError> {
    let path = path.as_ref();
    if path == Path::new("-") {
        let text = super::read_stream(io::stdin().lock());
        return written_in(Path::new("standard input"), text, is_wanted);
    }
    written_in(path, super::read_any(path), is_wanted)
}

fn written_in(
    path: &Path,
    text: io::Result<String>,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Written>, ManifestFileError> {
    let text = text.map_err(|cause| ManifestFileError::Unreadable { path: path.to_owned(), cause })?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let format = if is_json { ManifestFormat::Json } else { ManifestFormat::Yaml };
    written::all(&text, format, path, is_wanted).map_err(|broken| ManifestFileError::broken(path, broken))
}

// === impl ManifestFileError ===

impl ManifestFileError {
    pub(super) fn broken(path: &Path, broken: Broken) -> Self {
        let Broken { line, column, reason, is_it: _ } = broken;
        Self::Broken { path: path.to_owned(), line, column, reason }
    }
}

#[cfg(test)]
mod tests {
    use capture::Pod;
    use facts::PodRef;

    use super::*;

    fn pods_in_file(path: impl AsRef<Path>) -> Result<Vec<Pod>, ManifestFileError> {
        let pods = ManifestFile::read(path)?.pods.into_iter();
        Ok(pods.map(|object| object.into_pod(&PodRef::default()).unwrap()).collect())
    }

    fn read(name: &str, text: &str) -> Result<Vec<Pod>, ManifestFileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        pods_in_file(path)
    }

    #[test]
    fn every_pod_of_documents_and_lists_is_found_in_order() {
        let text = "kind: Service\nmetadata: {name: s}\nspec: {containers: no list}\n---\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c}]}\n\
                    ---\nkind: List\nitems:\n- {kind: Pod, metadata: {name: b, namespace: n}, spec: {containers: [{name: c}]}}\n- {kind: Secret}\n\
                    ---\nkind: PodList\nitems:\n- {metadata: {name: c}, spec: {containers: [{name: c}]}}\n";
        let names: Vec<String> =
            read("p.yaml", text).unwrap().iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
        assert_eq!(names, ["default/a", "n/b", "default/c"]);
    }

    #[test]
    fn json_is_read_by_either_name() {
        let text = r#"{"kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c"}]}}"#;
        assert_eq!(read("p.json", text).unwrap()[0].name, "a");
        assert_eq!(read("p.txt", text).unwrap()[0].name, "a");
    }

    #[test]
    fn errors_name_the_file_and_the_place() {
        let text =
            read("p.yaml", "kind: Node\n---\nkind: Pod\nspec: {hostNetwork: 7x}\n").unwrap_err().to_string();
        assert!(text.contains("p.yaml: broken at line 2, column 1: in this document"), "{text}");
        let cut = "kind: Node\n---\nkind: Pod\nmetadata: {name: a}\nspec:\n";
        let text = read("p.yaml", cut).unwrap_err().to_string();
        let expected = "broken at line 2, column 1: the pod \"a\" has no spec.containers";
        assert!(text.contains(expected), "{text}");
        let text = read("p.yaml", "kind: Deployment\nmetadata: {name: d}\n").unwrap_err().to_string();
        assert!(text.contains("no object of kind Pod") && text.contains("kubectl get pod"), "{text}");
        let text = read("p.yaml", "").unwrap_err().to_string();
        assert!(text.contains("no object of kind Pod"), "{text}");
        let text = pods_in_file("/nosuch/pod.yaml").unwrap_err().to_string();
        assert!(text.contains("read manifest /nosuch/pod.yaml: No such file"), "{text}");
    }

    #[test]
    fn namespaces_of_the_same_input_tell_their_labels() {
        let text = "kind: Namespace\nmetadata: {name: shop, labels: {a: b}}\n---\nkind: NamespaceList\nitems: [{metadata: {name: bare}}]\n---\n\
                    kind: List\nitems: [{kind: Namespace, metadata: {name: c, labels: {d: e}}}, {kind: Pod, metadata: {name: p}, spec: {containers: [{name: x}]}}]\n";
        let file = ManifestFile::read_stream(text.as_bytes(), "standard input").unwrap();
        assert_eq!(file.pods.len(), 1);
        let labels: Vec<String> =
            file.namespaces.iter().map(|(name, labels)| format!("{name} {labels:?}")).collect();
        assert_eq!(labels, ["bare {}", "c {\"d\": \"e\"}", "shop {\"a\": \"b\"}"]);
        let error = ManifestFile::read_stream(&b"kind: Pod\nmetadata: ["[..], "standard input").unwrap_err();
        assert!(error.to_string().starts_with("read manifest standard input: broken at line"), "{error}");
    }
}
