//! What is kept of an attachment: `<cache>/results/<network>-<container>-<interface>`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Attachment, Libcni, List};

impl Libcni<'_> {
    fn kept_file(&self, network: &str, attachment: &Attachment) -> PathBuf {
        let name = format!("{network}-{}-{}", attachment.container_id, attachment.if_name);
        self.cache.join("results").join(name)
    }

    pub(super) fn keep(&self, list: &List, attachment: &Attachment, result: &Value) -> Result<()> {
        let mut kept = serde_json::to_value(attachment)?;
        kept["kind"] = json!("cniCacheV1");
        kept["networkName"] = json!(list.name);
        kept["config"] = json!(BASE64_STANDARD.encode(&list.bytes));
        kept["result"] = result.clone();
        let file = self.kept_file(&list.name, attachment);
        std::fs::create_dir_all(self.cache.join("results"))?;
        std::fs::write(&file, kept.to_string()).with_context(|| format!("write {}", file.display()))
    }

    pub(super) fn kept_result(&self, list: &List, attachment: &Attachment) -> Option<Value> {
        let kept = self.kept(&list.name, attachment)?;
        kept.get("result").filter(|result| !result.is_null()).cloned()
    }

    pub(super) fn forget(&self, list: &List, attachment: &Attachment) {
        // It is not there when the ADD failed.
        let _ = std::fs::remove_file(self.kept_file(&list.name, attachment));
    }

    /// The list by which an attachment was added, and the attachment as it was then.
    pub fn kept_list(&self, network: &str, attachment: &Attachment) -> Option<(List, Attachment)> {
        let kept = self.kept(network, attachment)?;
        let list = BASE64_STANDARD.decode(kept["config"].as_str()?).ok()?;
        let before: Attachment = serde_json::from_value(kept).ok()?;
        let (cni_args, capability_args) = (before.cni_args, before.capability_args);
        Some((List::parse(list).ok()?, Attachment { cni_args, capability_args, ..attachment.clone() }))
    }

    /// The result that an ADD ended with, if it is kept.
    pub fn result(&self, network: &str, attachment: &Attachment) -> Option<Value> {
        self.kept(network, attachment).map(|kept| kept["result"].clone())
    }

    pub(super) fn kept_attachments(&self, network: &str) -> Result<Vec<Attachment>> {
        // It is not there before the first ADD.
        let Ok(files) = std::fs::read_dir(self.cache.join("results")) else { return Ok(Vec::new()) };
        let mut kept = Vec::new();
        for file in files {
            let value: Value = serde_json::from_slice(&std::fs::read(file?.path())?)?;
            if value["networkName"] == network {
                kept.push(serde_json::from_value(value)?);
            }
        }
        Ok(kept)
    }

    fn kept(&self, network: &str, attachment: &Attachment) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.kept_file(network, attachment)).ok()?).ok()
    }
}
