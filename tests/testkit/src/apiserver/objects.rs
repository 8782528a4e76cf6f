//! What the server has, and what happened to it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

/// Events that are kept for watches that come back.
const HISTORY: usize = 10_000;

/// Most objects that are read from the store at once.
const MOST_READ: usize = 10_000;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` pods.
    Pods,
    /// `v1` namespaces.
    Namespaces,
    /// `v1` nodes.
    Nodes,
    /// `apps/v1` daemonsets.
    DaemonSets,
    /// `v1` events.
    Events,
    /// `v1` services.
    Services,
    /// `discovery.k8s.io/v1` endpointslices.
    EndpointSlices,
    /// `networking.k8s.io/v1` networkpolicies.
    NetworkPolicies,
    /// `tenancy.istio-cni.io/v1alpha1` networktenants.
    NetworkTenants,
    /// `tenancy.istio-cni.io/v1alpha1` tenantgrants.
    TenantGrants,
    /// `coordination.k8s.io/v1` leases.
    Leases,
}

impl Resource {
    /// All of them.
    pub(super) const ALL: [Self; 11] = [
        Self::Pods,
        Self::Namespaces,
        Self::Nodes,
        Self::DaemonSets,
        Self::Events,
        Self::Services,
        Self::EndpointSlices,
        Self::NetworkPolicies,
        Self::NetworkTenants,
        Self::TenantGrants,
        Self::Leases,
    ];

    /// Group and version, as in paths.
    pub(super) fn api(self) -> &'static str {
        match self {
            Self::DaemonSets => "/apis/apps/v1/",
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1/",
            Self::NetworkPolicies => "/apis/networking.k8s.io/v1/",
            Self::NetworkTenants | Self::TenantGrants => "/apis/tenancy.istio-cni.io/v1alpha1/",
            Self::Leases => "/apis/coordination.k8s.io/v1/",
            Self::Pods | Self::Namespaces | Self::Nodes | Self::Events | Self::Services => "/api/v1/",
        }
    }

    /// As in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::DaemonSets => "daemonsets",
            Self::Events => "events",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::NetworkPolicies => "networkpolicies",
            Self::NetworkTenants => "networktenants",
            Self::TenantGrants => "tenantgrants",
            Self::Leases => "leases",
        }
    }

    /// As in `kind`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::Namespaces => "Namespace",
            Self::Nodes => "Node",
            Self::DaemonSets => "DaemonSet",
            Self::Events => "Event",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::NetworkPolicies => "NetworkPolicy",
            Self::NetworkTenants => "NetworkTenant",
            Self::TenantGrants => "TenantGrant",
            Self::Leases => "Lease",
        }
    }

    fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespaces | Self::Nodes | Self::NetworkTenants)
    }
}

/// Namespace, empty where there is none, and name.
pub(super) type Key = (String, String);

/// An object as it was at one version. Text, because it is mostly sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) key: Key,
    node: Option<String>,
    uid: Option<String>,
    pub(super) text: String,
}

/// What a list or watch is restricted to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) namespace: Option<String>,
    pub(super) node: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Debug)]
struct Change {
    version: u64,
    resource: Resource,
    before: Option<Arc<Stored>>,
    /// For a deletion the last state, under the version of the deletion.
    after: Arc<Stored>,
    deleted: bool,
}

/// A version that is no longer kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expired;

type Collections = BTreeMap<Resource, BTreeMap<Key, Arc<Stored>>>;

/// Everything as it was at one version: what the cache of an API server holds.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(super) version: u64,
    objects: Collections,
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    objects: Collections,
    /// What the cache holds while it is behind.
    behind: Option<Snapshot>,
    /// Objects that were read from the store, as etcd would have it.
    reads: usize,
    history: VecDeque<Change>,
    version: u64,
    /// What happened up to here is forgotten.
    forgotten: u64,
}

impl Selector {
    /// The one object that can be selected; the store is asked for that only.
    fn key(&self, resource: Resource) -> Option<Key> {
        let namespace = if resource.is_namespaced() { self.namespace.clone()? } else { String::new() };
        Some((namespace, self.name.clone()?))
    }

    fn selects(&self, object: &Stored) -> bool {
        let (namespace, name) = &object.key;
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && self.name.as_ref().is_none_or(|wanted| wanted == name)
            && self.node.as_ref().is_none_or(|wanted| object.node.as_ref() == Some(wanted))
    }
}

impl Objects {
    /// The version of the last change; of the beginning 1000.
    pub(super) fn version(&self) -> u64 {
        self.version + 1000
    }

    pub(super) fn get(&self, resource: Resource, key: &Key) -> Option<&Arc<Stored>> {
        self.objects.get(&resource)?.get(key)
    }

    /// Whether the object of this key is the one of this uid.
    pub(super) fn is(&self, resource: Resource, key: &Key, uid: &str) -> bool {
        self.get(resource, key).is_some_and(|object| object.uid.as_deref() == Some(uid))
    }

    pub(super) fn all(&self, resource: Resource) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.get(&resource).into_iter().flat_map(BTreeMap::values)
    }

    /// Adds or replaces an object. What it lacks of `kind`, `uid` and `resourceVersion` is added; one that is replaced keeps its uid.
    pub(super) fn set(&mut self, resource: Resource, mut object: Value) {
        self.version += 1;
        let version = self.version();
        let member = |name: &str| object["metadata"][name].as_str().map(String::from);
        let namespace = if resource.is_namespaced() {
            member("namespace").unwrap_or_else(|| "default".into())
        } else {
            String::new()
        };
        let key = (namespace, member("name").unwrap_or_default());
        let before = self.get(resource, &key).cloned();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            let old_uid = before.as_ref().and_then(|old| old.uid.clone());
            let uid = old_uid.unwrap_or_else(|| format!("uid-{version}"));
            metadata.entry("uid").or_insert_with(|| uid.into());
            metadata.insert("resourceVersion".into(), version.to_string().into());
        }
        if let Some(object) = object.as_object_mut() {
            object.entry("kind").or_insert_with(|| resource.kind().into());
        }
        let stored = Arc::new(Stored::new(key.clone(), &object));
        self.objects.entry(resource).or_default().insert(key, stored.clone());
        self.remember(Change { version, resource, before, after: stored, deleted: false });
    }

    /// Whether there was one.
    pub(super) fn delete(&mut self, resource: Resource, key: &Key) -> bool {
        let Some(old) = self.objects.get_mut(&resource).and_then(|objects| objects.remove(key)) else {
            return false;
        };
        self.version += 1;
        let version = self.version();
        let mut value = old.value();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), version.to_string().into());
        }
        let after = Arc::new(Stored::new(key.clone(), &value));
        self.remember(Change { version, resource, before: Some(old), after, deleted: true });
        true
    }

    /// Forgets what happened so far: who does not know it yet has to list.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.forgotten = self.version();
    }

    fn remember(&mut self, change: Change) {
        self.history.push_back(change);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.forgotten = oldest.version;
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { version: self.version(), objects: self.objects.clone() }
    }

    /// Lets the cache hold what was there earlier, or everything.
    pub(super) fn set_cache(&mut self, behind: Option<Snapshot>) {
        self.behind = behind;
    }

    /// How far the cache is.
    pub(super) fn cached(&self) -> u64 {
        self.behind.as_ref().map_or(self.version(), |behind| behind.version)
    }

    /// What the cache holds of a kind.
    pub(super) fn select(&self, resource: Resource, selector: &Selector) -> Vec<Arc<Stored>> {
        let objects = self.in_cache().get(&resource).into_iter().flat_map(BTreeMap::values);
        objects.filter(|object| selector.selects(object)).cloned().collect()
    }

    pub(super) fn get_cached(&self, resource: Resource, key: &Key) -> Option<&Arc<Stored>> {
        self.in_cache().get(&resource)?.get(key)
    }

    fn in_cache(&self) -> &Collections {
        self.behind.as_ref().map_or(&self.objects, |behind| &behind.objects)
    }

    pub(super) fn reads(&self) -> usize {
        self.reads
    }

    pub(super) fn count_reads(&mut self, objects: usize) {
        self.reads += objects;
    }

    /// A page of the store after `after`, and whether more follow. The store knows no selectors: objects are read in chunks of the limit, and then
    /// of twice as many as before, until enough of them are selected (`GetList` in Kubernetes' `apiserver/pkg/storage/etcd3/store.go`).
    pub(super) fn page(
        &mut self,
        resource: Resource,
        selector: &Selector,
        after: Option<&Key>,
        limit: usize,
    ) -> (Vec<Arc<Stored>>, bool) {
        if let Some(key) = selector.key(resource) {
            self.reads += 1;
            let found = self.get(resource, &key).filter(|object| selector.selects(object));
            return (found.into_iter().cloned().collect(), false);
        }
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.objects.get(&resource).into_iter();
        let mut objects = objects.flat_map(|objects| objects.range::<Key, _>((start, Bound::Unbounded)));
        let (mut page, mut read, mut chunk, mut last) = (Vec::new(), 0, limit, limit);
        for (_, object) in objects.by_ref() {
            if read == last {
                chunk = (chunk * 2).min(MOST_READ);
                last = last.saturating_add(chunk);
            }
            read += 1;
            if selector.selects(object) {
                page.push(object.clone());
            }
            if page.len() == limit {
                break;
            }
        }
        let left = objects.count();
        self.reads += last.min(read + left);
        (page, left > 0)
    }

    /// Whether a watch or list can go on from a version.
    pub(super) fn keeps(&self, version: u64) -> bool {
        version >= self.forgotten
    }

    /// The lines of a watch after `version`, at most `limit` changes, and the version that they reach.
    pub(super) fn lines(
        &self,
        resource: Resource,
        selector: &Selector,
        version: u64,
        limit: usize,
    ) -> Result<(String, u64), Expired> {
        if !self.keeps(version) {
            return Err(Expired);
        }
        let mut lines = String::new();
        let cached = self.cached();
        let first = self.history.partition_point(|change| change.version <= version);
        let end = self.history.partition_point(|change| change.version <= cached);
        let last = first.saturating_add(limit).min(end);
        if last <= first {
            return Ok((String::new(), version.max(cached)));
        }
        let reached = if last == end { cached } else { self.history[last - 1].version };
        for change in self.history.range(first..last) {
            if change.resource == resource
                && let Some(kind) = change.seen_by(selector)
            {
                lines += &line(kind, &change.after.text);
            }
        }
        Ok((lines, reached))
    }

    /// What the state would look like as additions, for watches that begin with it.
    pub(super) fn additions(&self, resource: Resource, selector: &Selector) -> String {
        let objects = self.select(resource, selector);
        objects.iter().map(|object| line("ADDED", &object.text)).collect()
    }
}

impl Change {
    /// What it is to one who sees only a selection: an object may come into it or leave it.
    fn seen_by(&self, selector: &Selector) -> Option<&'static str> {
        let before = self.before.as_ref().is_some_and(|object| selector.selects(object));
        let after = !self.deleted && selector.selects(&self.after);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
        }
    }
}

impl Stored {
    fn new(key: Key, object: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(String::from);
        let (node, uid) = (text(&object["spec"]["nodeName"]), text(&object["metadata"]["uid"]));
        Self { key, node, uid, text: object.to_string() }
    }

    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
}

/// A line of a watch.
pub(super) fn line(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

/// A bookmark, which carries a version and nothing else.
pub(super) fn bookmark(resource: Resource, version: u64, ends_initial_events: bool) -> String {
    let mut object = json!({"kind": resource.kind(), "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}});
    if ends_initial_events {
        object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    line("BOOKMARK", &object.to_string())
}

/// A merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
