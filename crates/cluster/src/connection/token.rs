//! The bearer token of a service account.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use http::header::HeaderValue;
use trusted::Links;

use super::MAX_FILE;

/// A file with a token, read anew for each request: requests are few, and the old token ends at some point. While the file cannot be
/// read, the last token goes on being used.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    last: Mutex<Option<HeaderValue>>,
}

impl TokenFile {
    /// Fails when there is no token to begin with.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let first = read(path)?;
        Ok(Self { path: path.to_owned(), last: Mutex::new(Some(first)) })
    }

    /// The value of `Authorization`.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(now) = read(&self.path) {
            *last = Some(now);
        }
        last.clone()
    }
}

fn read(path: &Path) -> Result<HeaderValue, String> {
    let text = trusted::read(path, Links::Followed, MAX_FILE).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&text).map_err(|_| format!("{} is no text", path.display()))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| format!("{} holds no token", path.display()))?;
    header.set_sensitive(true);
    Ok(header)
}
