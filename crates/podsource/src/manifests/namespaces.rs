//! The labels of a namespace, from the manifest that describes it.
//!
//! A file that is named after the namespace is tried first, then all in the order of their names; the first that describes it wins. A
//! broken file that may describe it counts only if no other does, and then nothing is known of its labels: a pod that its namespace puts
//! into the mesh must not start outside of it because of an unfinished file.

use std::collections::BTreeMap;
use std::path::Path;

use facts::object::namespace_labels;

use super::document::{self, Broken, ManifestFormat};
use super::{EXTENSIONS, Manifests, broken_manifest, files_of, is_file_name_part, read};
use crate::error::{Cause, Error};

impl Manifests {
    /// The labels of a namespace as an API server would have them. One that no file describes has its name only.
    ///
    /// # Errors
    /// The directory cannot be read, or a file that may describe the namespace is broken and no other describes it.
    pub fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, Error> {
        let object = Search { name, broken: None }.run(&self.dir);
        let object =
            object.map_err(|cause| Error::new(format!("get namespace {name}"), self.origin(), cause))?;
        Ok(namespace_labels(name, object))
    }
}

struct Search<'a> {
    name: &'a str,
    /// The first trouble that another file may still make up for.
    broken: Option<Cause>,
}

impl Search<'_> {
    fn run(mut self, dir: &Path) -> Result<Option<facts::Object>, Cause> {
        if is_file_name_part(self.name) {
            for (extension, format) in EXTENSIONS {
                let path = dir.join(format!("{}.{extension}", self.name));
                let Some(text) = read(&path)? else { continue };
                if let Some(found) = self.text(&path, &text, format)? {
                    return Ok(Some(found));
                }
            }
        }
        for (path, format) in files_of(dir)? {
            // What is no text describes nothing; the node agent tells of it.
            let Ok(Some(text)) = read(&path) else { continue };
            if let Some(found) = self.text(&path, &text, format)? {
                return Ok(Some(found));
            }
        }
        self.broken.map_or(Ok(None), Err)
    }

    fn text(
        &mut self,
        path: &Path,
        text: &str,
        format: ManifestFormat,
    ) -> Result<Option<facts::Object>, Cause> {
        match document::namespace(text, format, self.name) {
            Err(broken @ Broken { is_it: false, .. }) => {
                self.broken.get_or_insert(broken_manifest(path, broken));
                Ok(None)
            }
            found => found.map_err(|broken| broken_manifest(path, broken)),
        }
    }
}
