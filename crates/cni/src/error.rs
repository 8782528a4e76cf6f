//! The error object that a plugin prints.

use std::fmt;

use serde::Serialize;

use crate::version::SpecVersion;

/// Error codes. 1 to 99 are reserved by the CNI spec (1.1.0, section "Error"), 100 and up are the plugin's own.
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration; the message names key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Invalid necessary environment variables, such as `CNI_COMMAND` or `CNI_CONTAINERID`.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input or output failed, e.g. stdin could not be read.
    pub const IO_FAILURE: u32 = 5;
    /// Content could not be decoded, e.g. the configuration is no JSON.
    pub const DECODING_FAILURE: u32 = 6;
    /// The network configuration does not pass a validation.
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    /// The network namespace is not usable. Assigned by containernetworking/cni (`pkg/types`, 1.2 and later), not by
    /// the text of the spec.
    pub const INVALID_NETNS: u32 = 8;
    /// A transient condition; the runtime should try the operation again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin is not available, an ADD could not be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: not available, and containers of the network may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Anything else. Not reserved by the spec; the value that plugins built on containernetworking/cni use for every
    /// error without a code of its own.
    pub const INTERNAL: u32 = 999;
}

/// Longest piece of untrusted text that is repeated in a message, in characters.
const QUOTE_LIMIT: usize = 256;

/// A failed operation, as the runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// See [`code`].
    pub code: u32,
    /// One line for the user: what failed, on what, why, what to do.
    pub msg: String,
    /// More about the same, empty when there is nothing to add.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// An error with code [`code::INTERNAL`], the one for every failure of the plugin's own work.
    pub fn internal(msg: impl Into<String>) -> Self {
        Self::new(code::INTERNAL, msg)
    }

    /// The same error with `details`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The JSON object for stdout: 4-space indentation, keys `cniVersion`, `code`, `msg`, `details` (left out when
    /// empty), no newline at the end.
    pub fn render(&self, version: SpecVersion) -> Vec<u8> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(rename = "cniVersion")]
            version: String,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let wire =
            Wire { version: version.to_string(), code: self.code, msg: &self.msg, details: &self.details };
        // Texts and a number always encode; should that ever change, the runtime still gets a valid error.
        crate::json::to_pretty(&wire)
            .unwrap_or_else(|_| br#"{"code":999,"msg":"cannot encode error"}"#.to_vec())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// `text`, cut to a length that is fit for a message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTE_LIMIT) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
    }
}

#[cfg(test)]
mod tests;
