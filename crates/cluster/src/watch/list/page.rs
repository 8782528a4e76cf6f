//! The text of a list around its objects.

use serde::Deserialize;

use crate::error::place;

/// A page of a list, without its objects.
#[derive(Debug, Deserialize)]
pub(in crate::watch) struct Page {
    #[serde(default)]
    pub(super) kind: String,
    pub(in crate::watch) metadata: PageMetadata,
    /// What is no object, and should not be there.
    #[serde(default)]
    pub(super) items: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::watch) struct PageMetadata {
    #[serde(default)]
    pub(in crate::watch) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(in crate::watch) next: String,
}

// === impl Page ===

impl Page {
    /// From the text around the objects. One that has not ended yet is closed, so that what stands before the objects can be read.
    pub(in crate::watch) fn parse(text: &[u8], ended: bool) -> Result<Self, String> {
        let closed = [text, if ended { b"" } else { b"]}" }].concat();
        let page: Self = serde_json::from_slice(&closed).map_err(|error| place(&error))?;
        let strangers = page.items.as_ref().is_some_and(|items| !items.is_empty());
        if strangers { Err("has an item that is no object".into()) } else { Ok(page) }
    }
}
