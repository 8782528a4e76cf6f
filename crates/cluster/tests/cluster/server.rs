//! A server that is written to through its API, so that it may be a real one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Access, ApiConnection, Source};
use kube::client::Client;
use kube::core::Request;
use kube::core::params::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::PodObject;
use testkit::apiserver::{ApiServer, Credentials};

use crate::agent::{Agent, LIMITS};

pub(crate) struct Server {
    client: Client,
    kubeconfig: PathBuf,
    /// A node that does not exist, so that nothing runs and nobody else writes.
    pub(crate) node: String,
    /// A namespace of this test's own.
    pub(crate) namespace: String,
    _double: Option<(ApiServer, TempDir)>,
}

impl Server {
    pub(crate) async fn double() -> Self {
        let (server, dir) = (ApiServer::start().unwrap(), tempfile::tempdir().unwrap());
        let kubeconfig = server.write_kubeconfig(dir.path(), Credentials::ClientCertificateData).unwrap();
        Self::new(kubeconfig, Some((server, dir))).await
    }

    /// The cluster of `E2E_KUBECONFIG`, if that is set.
    pub(crate) async fn real() -> Option<Self> {
        let kubeconfig = std::env::var_os("E2E_KUBECONFIG").filter(|path| !path.is_empty())?;
        Some(Self::new(kubeconfig.into(), None).await)
    }

    async fn new(kubeconfig: PathBuf, double: Option<(ApiServer, TempDir)>) -> Self {
        let read = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let current_context = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(read, &current_context).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let (node, namespace) = (format!("no-node-{now}"), format!("cni-test-{now}"));
        let server = Self { client, kubeconfig, node, namespace, _double: double };
        let body = json!({"metadata": {"name": server.namespace, "labels": {"team": "red"}}});
        server
            .send(Request::new("/api/v1/namespaces").create(&PostParams::default(), bytes(&body)))
            .await
            .unwrap();
        server
    }

    pub(crate) fn connection(&self) -> Arc<ApiConnection> {
        Arc::new(ApiConnection::new(Access::Kubeconfig(self.kubeconfig.clone()), "1.2.3"))
    }

    pub(crate) async fn agent(&self) -> Agent {
        let (connection, node) = (self.connection(), self.node.clone());
        let agent = Agent::start(Source::Kubernetes { connection, node, own: None, limits: LIMITS });
        agent.synced().await;
        agent
    }

    /// A pod on the node, or on none.
    pub(crate) async fn create_pod(&self, name: &str, on_node: bool) {
        let pod = PodObject::named(name).in_namespace(&self.namespace).label("v", "1");
        let pod = if on_node { pod.on_node(&self.node) } else { pod };
        let pod = pod
            .annotations(&[("sidecar.istio.io/status", "{}"), ("example.com/other", "x")])
            .with("/spec/schedulerName", "nobody")
            .with("/spec/automountServiceAccountToken", false)
            .with("/spec/terminationGracePeriodSeconds", 0)
            .with("/spec/containers/0/image", "registry.invalid/app")
            .with("/spec/containers/0/env", json!([{"name": "A", "value": "b"}]))
            .json();
        // the service account of a new namespace takes a moment to appear
        for tried in 0.. {
            match self.send(self.pods().create(&PostParams::default(), bytes(&pod))).await {
                Ok(_) => return,
                Err(error) => assert!(tried < 50, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) async fn label_pod(&self, name: &str, value: &str) {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"v": value}}}));
        self.send(self.pods().patch(name, &PatchParams::default(), &patch)).await.unwrap();
    }

    pub(crate) async fn label_namespace(&self, team: &str) {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"team": team}}}));
        let namespaces = Request::new("/api/v1/namespaces");
        self.send(namespaces.patch(&self.namespace, &PatchParams::default(), &patch)).await.unwrap();
    }

    pub(crate) async fn delete_pod(&self, name: &str) {
        self.send(self.pods().delete(name, &DeleteParams::default().grace_period(0))).await.unwrap();
    }

    pub(crate) async fn pod(&self, name: &str) -> Value {
        self.send(self.pods().get(name, &Default::default())).await.unwrap()
    }

    pub(crate) async fn events(&self) -> Vec<Value> {
        let events = Request::new(format!("/api/v1/namespaces/{}/events", self.namespace));
        let list = self.send(events.list(&Default::default())).await.unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Nothing is left behind.
    pub(crate) async fn remove(self) {
        let namespaces = Request::new("/api/v1/namespaces");
        self.send(namespaces.delete(&self.namespace, &DeleteParams::default())).await.unwrap();
    }

    fn pods(&self) -> Request {
        Request::new(format!("/api/v1/namespaces/{}/pods", self.namespace))
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, kube::Error> {
        self.client.request(request.unwrap()).await
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
