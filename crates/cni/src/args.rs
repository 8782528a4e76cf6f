//! `CNI_ARGS`: the pod that the call is about.

/// What the runtime tells about the pod. A text is empty when the runtime gave none.
///
/// The values are the runtime's words and are not validated here: whoever puts a name into a path or a URL has to check
/// it first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// `IgnoreUnknown`: keys that are not listed here are no error.
    pub ignore_unknown: bool,
    /// `K8S_POD_NAME`
    pub k8s_pod_name: String,
    /// `K8S_POD_NAMESPACE`
    pub k8s_pod_namespace: String,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    pub k8s_pod_infra_container_id: String,
    /// `K8S_POD_UID`
    pub k8s_pod_uid: String,
}

/// Why `CNI_ARGS` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A piece between semicolons without exactly one `=`; also the empty piece after a trailing `;`.
    #[error("ARGS: invalid pair {0:?}")]
    InvalidPair(String),
    /// `IgnoreUnknown` is not a boolean.
    #[error("ARGS: error parsing value of pair {0:?}: IgnoreUnknown takes 1, true, 0 or false")]
    NotABoolean(String),
    /// Unknown keys, while `IgnoreUnknown` is not set.
    #[error("ARGS: unknown args [{}]", quoted(.0))]
    Unknown(Vec<String>),
}

fn quoted(pairs: &[String]) -> String {
    pairs.iter().map(|pair| format!("{pair:?}")).collect::<Vec<_>>().join(" ")
}

/// How many unknown pairs an error repeats.
const UNKNOWN_LIMIT: usize = 8;

impl Args {
    /// Reads `KEY=value;KEY=value`. Keys are case-sensitive, the last of equal ones counts, the place of
    /// `IgnoreUnknown` does not matter.
    pub fn parse(text: &str) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        if text.is_empty() {
            return Ok(args);
        }
        let mut unknown = Vec::new();
        for pair in text.split(';') {
            let short = || crate::error::shorten(pair);
            let (key, value) = pair
                .split_once('=')
                .filter(|(_, value)| !value.contains('='))
                .ok_or_else(|| ArgsError::InvalidPair(short()))?;
            match key {
                "IgnoreUnknown" => {
                    args.ignore_unknown = match value.to_ascii_lowercase().as_str() {
                        "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(ArgsError::NotABoolean(short())),
                    }
                }
                "K8S_POD_NAME" => args.k8s_pod_name = value.to_owned(),
                "K8S_POD_NAMESPACE" => args.k8s_pod_namespace = value.to_owned(),
                "K8S_POD_INFRA_CONTAINER_ID" => args.k8s_pod_infra_container_id = value.to_owned(),
                "K8S_POD_UID" => args.k8s_pod_uid = value.to_owned(),
                _ if unknown.len() < UNKNOWN_LIMIT => unknown.push(short()),
                _ => {}
            }
        }
        if args.ignore_unknown || unknown.is_empty() { Ok(args) } else { Err(ArgsError::Unknown(unknown)) }
    }
}

#[cfg(test)]
mod tests;
