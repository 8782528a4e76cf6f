//! A taint of the agent's own node. Every change says what the list of taints was, so that what others write meanwhile is neither lost nor undone.

use std::time::Duration;

use kube::core::Request;
use kube::core::params::GetParams;
use serde_json::{Value, json};

use crate::error::{Error, place};
use crate::write::{LIMIT, MAX_ANSWER, Writer, segment};

/// How often a change is tried that another one has overtaken.
const TRIES: u32 = 10;
/// Pause before another try, as many times as there were tries.
const PAUSE: Duration = Duration::from_millis(20);

/// The effect that is set: pods that run stay.
const EFFECT: &str = "NoSchedule";

impl Writer {
    /// Sets a taint of this key on the node, or takes every taint of it away; whether that changed anything.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked, also when others have changed the taints each time in between.
    pub async fn set_taint(&self, key: &str, wanted: bool) -> Result<bool, Error> {
        let mut attempt = 1;
        loop {
            let taints = self.taints().await?;
            let Some(patch) = patch(&taints, key, wanted) else { return Ok(false) };
            match self.patch_node(key, &patch).await {
                Ok(()) => return Ok(true),
                // The list was another one by then.
                Err(error) if matches!(error.status(), Some(409 | 422)) && attempt < TRIES => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(PAUSE * attempt).await;
            attempt += 1;
        }
    }

    /// The taints as the API server has them, whatever members they have; null where there are none.
    async fn taints(&self) -> Result<Value, Error> {
        let operation = format!("get Node {}", self.node());
        let request = Request::new("/api/v1/nodes").get(&segment(self.node()), &GetParams::default());
        let body = self.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await?;
        let not_understood = |reason| Error::NotUnderstood { operation: operation.clone(), reason };
        let mut node: Value = serde_json::from_slice(&body).map_err(|error| not_understood(place(&error)))?;
        // Something in between may answer 200 to anything.
        if node["kind"] != "Node" {
            return Err(not_understood("is not a Node".to_owned()));
        }
        Ok(node["spec"]["taints"].take())
    }

    async fn patch_node(&self, key: &str, patch: &Value) -> Result<(), Error> {
        let operation = format!("change the taint {key} of node {}", self.node());
        let request = http::Request::patch(format!("/api/v1/nodes/{}", segment(self.node())))
            .header(http::header::CONTENT_TYPE, "application/json-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(kube::core::request::Error::BuildRequest);
        self.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await.map(drop)
    }
}

/// The JSON patch (RFC 6902) that brings it about, on the condition that the taints are these; nothing where they are as wanted.
fn patch(taints: &Value, key: &str, wanted: bool) -> Option<Value> {
    let known = taints.as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |taint: &&Value| taint["key"] == key;
    let new: Vec<Value> = if wanted {
        if known.iter().filter(is_ours).any(|taint| taint["effect"] == EFFECT) {
            return None;
        }
        known.iter().cloned().chain([json!({"key": key, "effect": EFFECT})]).collect()
    } else {
        if !known.iter().any(|taint| is_ours(&taint)) {
            return None;
        }
        known.iter().filter(|taint| !is_ours(taint)).cloned().collect()
    };
    let change = match new.as_slice() {
        [] => json!({"op": "remove", "path": "/spec/taints"}),
        new => json!({"op": "add", "path": "/spec/taints", "value": new}),
    };
    // A list that is not there is null to the test.
    Some(json!([{"op": "test", "path": "/spec/taints", "value": taints}, change]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "cni.istio.io/not-ready";

    fn change(taints: &Value, wanted: bool) -> Option<Value> {
        let patch = patch(taints, KEY, wanted)?;
        assert_eq!(patch[0], json!({"op": "test", "path": "/spec/taints", "value": taints}));
        Some(patch[1].clone())
    }

    #[test]
    fn a_patch_keeps_what_others_have() {
        let ours = json!({"key": KEY, "effect": "NoSchedule"});
        let registered =
            json!({"key": KEY, "value": "true", "effect": "NoSchedule", "timeAdded": "2026-08-01T09:30:00Z"});
        let other = json!({"key": "a/b", "effect": "NoExecute", "later": {"member": 1}});
        let add = |list: Value| Some(json!({"op": "add", "path": "/spec/taints", "value": list}));
        assert_eq!(change(&Value::Null, true), add(json!([ours])));
        assert_eq!(change(&json!([other]), true), add(json!([other, ours])));
        assert_eq!(change(&json!([other, registered]), true), None, "it is there already");
        assert_eq!(change(&json!([registered, other]), false), add(json!([other])));
        assert_eq!(change(&json!([ours]), false), Some(json!({"op": "remove", "path": "/spec/taints"})));
        assert_eq!(change(&json!([other]), false), None);
        assert_eq!(change(&Value::Null, false), None);
    }

    #[test]
    fn no_pod_is_evicted() {
        let evicting = json!([{"key": KEY, "effect": "NoExecute"}]);
        let set = change(&evicting, true).unwrap();
        assert_eq!(set["value"][1], json!({"key": KEY, "effect": "NoSchedule"}));
        assert_eq!(change(&evicting, false), Some(json!({"op": "remove", "path": "/spec/taints"})));
    }
}
