//! What is answered to a request that is no watch.

use std::sync::Arc;

use serde_json::{Value, json};

use super::objects::{Key, Resource, Stored, merge};
use super::request::{Request, Target};
use super::{Admission, Patch, State, jsonpatch};

/// Status and body.
pub(super) struct Answer(pub(super) u16, pub(super) Vec<u8>);

impl Answer {
    pub(super) fn status(code: u16, message: &str) -> Self {
        Self::status_of(code, message, &json!({}))
    }

    /// With what it speaks of, as an API server says it of objects.
    fn status_of(code: u16, message: &str, details: &Value) -> Self {
        let reason = match code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            _ => "",
        };
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "details": details, "code": code});
        Self(code, status.to_string().into_bytes())
    }

    pub(super) fn gone() -> Self {
        Self::status(410, "too old resource version")
    }

    /// The cache is behind the version that is wanted.
    fn too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Timeout",
            "details": {"causes": [cause], "retryAfterSeconds": 1}, "code": 504});
        Self(504, status.to_string().into_bytes())
    }

    fn object(code: u16, object: &Value) -> Self {
        Self(code, object.to_string().into_bytes())
    }
}

/// The refusal, if the request may not be answered.
pub(super) fn refuse(request: &Request, state: &State) -> Option<Answer> {
    let bearer = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let lives = state.bound.as_ref().is_none_or(|(pod, uid)| state.objects.is(Resource::Pods, pod, uid));
    let known = request.client_certificate || (bearer == Some(&state.token) && lives);
    match state.admission {
        Admission::Credentials if !known => Some(Answer::status(401, "Unauthorized")),
        Admission::Credentials if !request.client_certificate => lacks_role(request, state),
        Admission::Nobody => {
            let message = "pods is forbidden: User \"system:serviceaccount:istio-system:istio-cni\" cannot get resource \"pods\"";
            Some(Answer::status(403, message))
        }
        _ => None,
    }
}

/// The refusal of what no role allows.
fn lacks_role(request: &Request, state: &State) -> Option<Answer> {
    let (resource, name, part) = match request.target()? {
        Target::Collection(resource, _) => (resource, String::new(), None),
        Target::Object(resource, _, name, part) => (resource, name, part),
    };
    let (verb, plural) = (request.verb(), resource.plural());
    let what = part.map_or_else(|| plural.to_owned(), |part| format!("{plural}/{part}"));
    if !state.denied.iter().any(|(denied, verbs)| *denied == what && verbs.iter().any(|one| one == verb)) {
        return None;
    }
    let account = "system:serviceaccount:istio-system:istio-cni";
    let message = format!("{plural} {name:?} is forbidden: User {account:?} cannot {verb} resource {what:?}");
    Some(Answer::status_of(403, &message, &json!({"kind": plural, "name": name})))
}

pub(super) fn answer(request: &Request, state: &mut State) -> Answer {
    let nothing = || Answer(404, b"404 page not found\n".to_vec());
    if request.path == "/readyz" {
        return Answer(200, b"ok".to_vec());
    }
    let Some(target) = request.target() else { return nothing() };
    match (request.method.as_str(), target) {
        ("GET", Target::Collection(resource, namespace)) => {
            list(request, resource, namespace.as_deref(), state)
        }
        ("GET", Target::Object(resource, namespace, name, None | Some(_))) => {
            let key = (namespace, name.clone());
            let cached = request.query("resourceVersion").as_deref() == Some("0");
            state.objects.count_reads(usize::from(!cached));
            let found = if cached {
                state.objects.get_cached(resource, &key)
            } else {
                state.objects.get(resource, &key)
            };
            match found {
                Some(object) => Answer(200, object.text.clone().into_bytes()),
                None => not_found(resource, &name),
            }
        }
        ("POST", Target::Collection(resource, namespace)) => {
            create(request, resource, namespace.as_deref(), state)
        }
        ("PATCH", Target::Object(resource, namespace, name, part)) => {
            patch(request, resource, &(namespace, name), part.as_deref(), state)
        }
        ("PUT", Target::Object(resource, namespace, name, None)) => {
            replace(request, resource, &(namespace, name), state)
        }
        ("DELETE", Target::Object(resource, namespace, name, None))
            if request.body.contains("\"Foreground\"") =>
        {
            delete_in_foreground(resource, &(namespace, name), state)
        }
        ("DELETE", Target::Object(resource, namespace, name, None))
            if !is_as_wanted(request, resource, &(namespace.clone(), name.clone()), state) =>
        {
            Answer::status(409, "Precondition failed")
        }
        ("DELETE", Target::Object(resource, namespace, name, None)) => {
            if state.objects.delete(resource, &(namespace, name.clone())) {
                Answer::object(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            } else {
                not_found(resource, &name)
            }
        }
        _ => nothing(),
    }
}

/// Whether the object is as the preconditions of a deletion say, if there are any.
fn is_as_wanted(request: &Request, resource: Resource, key: &Key, state: &State) -> bool {
    let options: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let Some(object) = state.objects.get(resource, key) else { return true };
    let object = object.value();
    let fits = |field: &str| {
        let wanted = &options["preconditions"][field];
        wanted.is_null() || *wanted == object["metadata"][field]
    };
    fits("uid") && fits("resourceVersion")
}

/// The object is there until what belongs to it is collected, which is the test's to do.
fn delete_in_foreground(resource: Resource, key: &Key, state: &mut State) -> Answer {
    let Some(object) = state.objects.get(resource, key) else { return not_found(resource, &key.1) };
    let mut object = object.value();
    object["metadata"]["deletionTimestamp"] = "2026-08-01T09:30:00Z".into();
    object["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    state.objects.set(resource, object.clone());
    Answer::object(200, &object)
}

fn not_found(resource: Resource, name: &str) -> Answer {
    let message = format!("{} {} not found", resource.plural(), Value::from(name));
    Answer::status_of(404, &message, &json!({"kind": resource.plural(), "name": name}))
}

/// From the cache where the request takes what is not quite new and wants all of it, else from the store, as Kubernetes decides it
/// (`shouldDelegateList` in its `apiserver/pkg/storage/cacher`).
fn list(request: &Request, resource: Resource, namespace: Option<&str>, state: &mut State) -> Answer {
    let selector = request.selector(namespace);
    let limit = request.query("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let wanted: Option<u64> = request.query("resourceVersion").and_then(|version| version.parse().ok());
    if let Some(wanted) = wanted.filter(|wanted| *wanted == 0 || limit.is_none())
        && request.query("continue").is_none()
    {
        let cached = state.objects.cached();
        if cached < wanted {
            return Answer::too_large(wanted, cached);
        }
        return list_of(resource, cached, &state.objects.select(resource, &selector), None);
    }
    let token = request.query("continue");
    // A page is read from what is there now, under the version of the first page: what changed in between comes again in the watch.
    let (version, after) = match token.as_deref().map(|token| token.splitn(3, '/').collect::<Vec<_>>()) {
        None => (state.objects.version(), None),
        Some(parts) => match (parts.first().and_then(|version| version.parse().ok()), &parts[1..]) {
            (Some(version), [namespace, name]) => {
                (version, Some((String::from(*namespace), String::from(*name))))
            }
            _ => return Answer::status(400, "continue key is not valid"),
        },
    };
    if !state.objects.keeps(version) {
        return Answer::gone();
    }
    let (page, more) = state.objects.page(resource, &selector, after.as_ref(), limit.unwrap_or(usize::MAX));
    let next = page.last().filter(|_| more).map(|last| format!("{version}/{}/{}", last.key.0, last.key.1));
    list_of(resource, version, &page, next)
}

fn list_of(resource: Resource, version: u64, objects: &[Arc<Stored>], next: Option<String>) -> Answer {
    let items: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut value = object.value();
            // as the API server does: the list says it once
            if let Some(value) = value.as_object_mut() {
                value.remove("kind");
                value.remove("apiVersion");
            }
            value
        })
        .collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(next) = next {
        metadata["continue"] = next.into();
    }
    let kind = format!("{}List", resource.kind());
    // Not by serde_json's map, which sorts: an API server writes the version before the items.
    let items = Value::from(items);
    let text = format!(r#"{{"kind":"{kind}","apiVersion":"v1","metadata":{metadata},"items":{items}}}"#);
    Answer(200, text.into_bytes())
}

fn create(request: &Request, resource: Resource, namespace: Option<&str>, state: &mut State) -> Answer {
    let Ok(mut object) = serde_json::from_str::<Value>(&request.body) else {
        return Answer::status(400, "the body is not JSON");
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let about = &object["involvedObject"]["namespace"];
    let fits = |value: &Value| value.is_null() || value.as_str() == namespace;
    if name.is_empty() || name.len() > 253 || !fits(&object["metadata"]["namespace"]) || !fits(about) {
        return Answer::status(422, &format!("{} is invalid", resource.kind()));
    }
    if let (Some(metadata), Some(namespace)) = (object["metadata"].as_object_mut(), namespace) {
        metadata.insert("namespace".into(), namespace.into());
    }
    let key = (namespace.unwrap_or_default().to_owned(), name);
    if state.objects.get(resource, &key).is_some() {
        return Answer::status(409, &format!("{} {} already exists", resource.plural(), Value::from(key.1)));
    }
    state.objects.set(resource, object);
    let created = state.objects.get(resource, &key).map(|object| object.value());
    Answer::object(201, &created.unwrap_or_default())
}

/// Where the object is of the version that the new one says.
fn replace(request: &Request, resource: Resource, key: &Key, state: &mut State) -> Answer {
    let Ok(object) = serde_json::from_str::<Value>(&request.body) else {
        return Answer::status(400, "the body is not JSON");
    };
    let Some(known) = state.objects.get(resource, key) else { return not_found(resource, &key.1) };
    let (version, wanted) =
        (&known.value()["metadata"]["resourceVersion"], &object["metadata"]["resourceVersion"]);
    if !wanted.is_null() && wanted != version {
        return Answer::status(
            409,
            "the object has been modified; please apply your changes to the latest version",
        );
    }
    state.objects.set(resource, object.clone());
    Answer::object(200, &object)
}

fn patch(request: &Request, resource: Resource, key: &Key, part: Option<&str>, state: &mut State) -> Answer {
    let kind = request.headers.get("content-type").map(String::as_str).unwrap_or_default();
    let Ok(patch) = serde_json::from_str::<Value>(&request.body) else {
        return Answer::status(400, "the body is not JSON");
    };
    state.patches.push(Patch { path: request.path.clone(), body: patch.clone() });
    let Some(object) = state.objects.get(resource, key) else { return not_found(resource, &key.1) };
    let mut object = object.value();
    let patched = match (kind, part) {
        ("application/merge-patch+json", None | Some("status")) => merged(&mut object, patch, part.is_some()),
        // By one manager only: what it has said before and does not say any more goes with the whole of it.
        ("application/apply-patch+yaml", Some("status")) => {
            object["status"] = patch["status"].clone();
            Ok(())
        }
        ("application/json-patch+json", None) => {
            jsonpatch::apply(&mut object, &patch).map_err(|error| Answer::status(422, &error))
        }
        _ => Err(Answer::status(415, "only merge patches and JSON patches are supported")),
    };
    if let Err(refusal) = patched {
        return refusal;
    }
    state.objects.set(resource, object.clone());
    Answer::object(200, &object)
}

/// Merges a patch into an object, or into the part of it that may change with its status.
fn merged(object: &mut Value, mut patch: Value, of_status: bool) -> Result<(), Answer> {
    let uid = &patch["metadata"]["uid"];
    if !uid.is_null() && *uid != object["metadata"]["uid"] {
        let of = object["metadata"]["name"].as_str().unwrap_or_default();
        let message = format!("\"{of}\" is invalid: metadata.uid: Invalid value: {uid}: field is immutable");
        return Err(Answer::status(422, &message));
    }
    if of_status && let Some(patch) = patch.as_object_mut() {
        patch.retain(|key, _| key == "metadata" || key == "status");
    }
    merge(object, &patch);
    Ok(())
}
