//! Requests as they come in, and what they ask for.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::objects::{Resource, Selector};

/// Largest head or body that is read.
const MAX: usize = 4 << 20;

/// A request as it came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path and query as sent, still percent-encoded.
    pub path: String,
    /// Headers; names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body, empty if there is none.
    pub body: String,
    /// Whether the client showed a certificate that our authority signed.
    pub client_certificate: bool,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// All objects of a kind, perhaps of one namespace.
    Collection(Resource, Option<String>),
    /// One object: namespace (empty where there is none), name, and what of it.
    Object(Resource, String, String, Option<String>),
}

/// What a watch asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watch {
    pub(super) resource: Resource,
    pub(super) selector: Selector,
    /// Nothing means the state first, as additions.
    pub(super) version: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) ends_initial_events: bool,
    pub(super) seconds: Option<u64>,
}

impl Request {
    /// The next request of a connection, nothing at its end. `buffer` holds what came already.
    pub(super) fn read(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break buffer.drain(..end + 4).collect::<Vec<u8>>();
            }
            if !more(stream, buffer)? {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&head);
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let headers: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while buffer.len() < length {
            if !more(stream, buffer)? {
                return Ok(None);
            }
        }
        let body: Vec<u8> = buffer.drain(..length).collect();
        Ok(Some(Self {
            method: method.into(),
            path: path.into(),
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            client_certificate: false,
        }))
    }

    /// Whether the client wants no further answer on this connection.
    pub(super) fn closes(&self) -> bool {
        self.headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// As roles name it.
    pub(super) fn verb(&self) -> &'static str {
        match (self.method.as_str(), self.target()) {
            ("GET", _) if self.watch().is_some() => "watch",
            ("GET", Some(Target::Collection(..))) => "list",
            ("GET", _) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("DELETE", _) => "delete",
            _ => "patch",
        }
    }

    pub(super) fn target(&self) -> Option<Target> {
        let path = self.path.split('?').next().unwrap_or_default();
        let api = Resource::ALL.into_iter().map(Resource::api).find(|api| path.starts_with(api))?;
        let rest = &path[api.len()..];
        let named = |plural: &str| {
            Resource::ALL.into_iter().find(|resource| resource.plural() == plural && resource.api() == api)
        };
        let parts: Vec<&str> = rest.split('/').collect();
        Some(match parts[..] {
            [plural] => Target::Collection(named(plural)?, None),
            [plural @ ("namespaces" | "nodes" | "networktenants"), name] => {
                Target::Object(named(plural)?, String::new(), name.into(), None)
            }
            [plural @ "networktenants", name, part] => {
                Target::Object(named(plural)?, String::new(), name.into(), Some(part.into()))
            }
            ["namespaces", namespace, plural] => Target::Collection(named(plural)?, Some(namespace.into())),
            ["namespaces", namespace, plural, name] => {
                Target::Object(named(plural)?, namespace.into(), name.into(), None)
            }
            ["namespaces", namespace, plural, name, part] => {
                Target::Object(named(plural)?, namespace.into(), name.into(), Some(part.into()))
            }
            _ => return None,
        })
    }

    /// A value of the query, decoded; nothing if it is absent or empty.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        let query = self.path.split_once('?')?.1;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .into_iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| decode(value))
            .filter(|v| !v.is_empty())
    }

    pub(super) fn selector(&self, namespace: Option<&str>) -> Selector {
        let mut selector = Selector { namespace: namespace.map(String::from), ..Selector::default() };
        let fields = self.query("fieldSelector").unwrap_or_default();
        for (key, value) in fields.split(',').filter_map(|field| field.split_once('=')) {
            let value = Some(value.trim_start_matches('=').to_owned());
            match key {
                "spec.nodeName" => selector.node = value,
                "metadata.name" => selector.name = value,
                _ => {}
            }
        }
        selector
    }

    /// What it asks for, if it is a watch.
    pub(super) fn watch(&self) -> Option<Watch> {
        let Some(Target::Collection(resource, namespace)) = self.target() else { return None };
        let is = |name: &str| self.query(name).is_some_and(|value| value == "true" || value == "1");
        let initial = is("sendInitialEvents");
        let version = self.query("resourceVersion").and_then(|version| version.parse().ok());
        is("watch").then(|| Watch {
            resource,
            selector: self.selector(namespace.as_deref()),
            version: version.filter(|version| *version > 0 && !initial),
            bookmarks: is("allowWatchBookmarks"),
            ends_initial_events: initial,
            seconds: self.query("timeoutSeconds").and_then(|seconds| seconds.parse().ok()),
        })
    }
}

/// Whether anything came.
fn more(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 8 << 10];
    let length = stream.read(&mut chunk)?;
    buffer.extend_from_slice(&chunk[..length]);
    if buffer.len() > MAX {
        return Err(io::Error::other("request too large"));
    }
    Ok(length > 0)
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex =
            |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
        match (first, tail.get(..2).and_then(hex)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
