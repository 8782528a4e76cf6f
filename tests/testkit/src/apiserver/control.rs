//! What tests tell the server to have, to do and to break, and what they ask it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::{Fault, WatchFault};
use super::objects::{Resource, Snapshot};
use super::request::Request;
use super::{Admission, ApiServer, Patch, State};

/// What the server has.
impl ApiServer {
    /// Adds or replaces an object, found by its `metadata` (namespace `default` when absent). What it lacks of `kind`, `uid` and
    /// `resourceVersion` is added.
    pub fn set_object(&self, resource: Resource, object: Value) {
        self.change(|state| state.objects.set(resource, object));
    }

    /// Changes an object as it is now, so that nothing that others wrote is lost. Nothing happens if there is none.
    pub fn change_object(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        self.change(|state| {
            let found = state.objects.get(resource, &(namespace.into(), name.into()));
            let Some(mut object) = found.map(|object| object.value()) else { return };
            change(&mut object);
            state.objects.set(resource, object);
        });
    }

    /// Removes an object; whether there was one. `namespace` is empty for what has none.
    pub fn delete_object(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        self.change(|state| state.objects.delete(resource, &(namespace.into(), name.into())))
    }

    /// An object as it is now.
    pub fn object(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        let state = self.shared.state();
        state.objects.get(resource, &(namespace.into(), name.into())).map(|object| object.value())
    }

    /// All objects of a kind.
    pub fn objects(&self, resource: Resource) -> Vec<Value> {
        self.shared.state().objects.all(resource).map(|object| object.value()).collect()
    }

    /// Adds or replaces a pod.
    pub fn set_pod(&self, pod: impl Into<Value>) {
        self.set_object(Resource::Pods, pod.into());
    }

    /// Removes a pod; the next question for it is answered with 404.
    pub fn delete_pod(&self, namespace: &str, name: &str) {
        self.delete_object(Resource::Pods, namespace, name);
    }

    /// Adds or replaces a namespace.
    pub fn set_namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        self.set_object(Resource::Namespaces, json!({"metadata": {"name": name, "labels": labels}}));
    }

    /// Removes a namespace, and nothing of what is in it.
    pub fn delete_namespace(&self, name: &str) {
        self.delete_object(Resource::Namespaces, "", name);
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.shared.state().objects.version()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.shared.state());
        self.shared.changed.notify_all();
        result
    }
}

/// Whom it lets in.
impl ApiServer {
    /// Replaces the token that is accepted; kubeconfigs written before hold the old one, which has thereby expired.
    pub fn set_token(&self, token: &str) {
        self.shared.state().token = token.into();
    }

    /// Binds the token to a pod that there is: it is not valid any more as soon as the object is gone, as kubelet's tokens. What stands
    /// goes on, as in a cluster.
    ///
    /// # Panics
    /// There is no such pod.
    pub fn bind_token(&self, namespace: &str, pod: &str) {
        let object = self.object(Resource::Pods, namespace, pod).expect("a pod to bind the token to");
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.shared.state().bound = Some(((namespace.into(), pod.into()), uid));
    }

    /// Takes away the right to these verbs on a resource, such as `pods/status`: 403 from now on. Watches that stand go on, as in a
    /// cluster.
    pub fn deny(&self, resource: &str, verbs: &[&str]) {
        let verbs = verbs.iter().map(|verb| (*verb).to_owned()).collect();
        self.shared.state().denied.push((resource.into(), verbs));
    }

    /// Everything is allowed, as at the beginning.
    pub fn allow_everything(&self) {
        self.shared.state().denied.clear();
    }

    /// Accepts requests without credentials.
    pub fn admit_everyone(&self) {
        self.shared.state().admission = Admission::Everyone;
    }

    /// Answers 403 to valid credentials, as without a role.
    pub fn forbid_everyone(&self) {
        self.shared.state().admission = Admission::Nobody;
    }

    /// Checks credentials, as at the beginning.
    pub fn check_credentials(&self) {
        self.shared.state().admission = Admission::Credentials;
    }
}

/// What it does wrong.
impl ApiServer {
    /// Lets every connection, and every further request of one, meet this fault, until changed.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.state().faults.set(fault);
    }

    /// Lets the next `count` connections or further requests meet this fault, before the permanent one applies again.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.shared.state().faults.set_next(count, fault);
    }

    /// Lets the next `count` requests whose path and query contain `part` meet this fault. Not for faults before TLS.
    pub fn fail_path(&self, part: &str, count: usize, fault: Fault) {
        self.shared.state().faults.set_path(part, count, fault);
    }

    /// Lets the standing watches of a kind meet this fault.
    pub fn disturb_watches(&self, resource: Resource, fault: WatchFault) {
        self.change(|state| state.watch_faults.push((resource, fault)));
    }

    /// Forgets what happened so far: a watch that does not know it yet gets 410, as does a list that is not at its end.
    pub fn compact(&self) {
        self.change(|state| state.objects.compact());
    }

    /// Everything as it is now.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.state().objects.snapshot()
    }

    /// Serves watches and most lists from what was there earlier, as an API server does whose cache is behind; nothing means from what is there.
    pub fn serve_behind(&self, snapshot: Option<Snapshot>) {
        self.change(|state| state.objects.set_cache(snapshot));
    }

    /// Whether a watch from a forgotten version is refused with status 410; otherwise it begins and gets an `ERROR` event.
    pub fn refuse_gone_by_status(&self, by_status: bool) {
        self.shared.state().gone_by_status = by_status;
    }
}

/// What it says unasked, and what it has seen.
impl ApiServer {
    /// Sends the standing watches a bookmark.
    pub fn send_bookmarks(&self) {
        self.change(|state| state.bookmarks += 1);
    }

    /// Sends a bookmark whenever nothing else was sent for so long.
    pub fn set_bookmark_interval(&self, interval: Option<Duration>) {
        self.change(|state| state.bookmark_interval = interval);
    }

    /// The last requests, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.iter().cloned().collect()
    }

    /// How many objects were read from the store so far, and not from the cache.
    pub fn store_reads(&self) -> usize {
        self.shared.state().objects.reads()
    }

    /// The patches so far, also those that failed.
    pub fn patches(&self) -> Vec<Patch> {
        self.shared.state().patches.clone()
    }

    /// The Events that were created.
    pub fn events(&self) -> Vec<Value> {
        self.objects(Resource::Events)
    }

    /// Number of connections accepted so far, whether or not a request came.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Number of watches that stand.
    pub fn watches(&self) -> usize {
        self.shared.state().watches
    }
}
