//! The status of a NetworkTenant.

use kube::core::Request;
use kube::core::params::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::error::{Error, place};
use crate::kind::{Kind as _, NetworkTenants};
use crate::write::{EventText, LIMIT, MAX_ANSWER, Writer, segment};

/// As whom server-side apply knows the writer.
const MANAGER: &str = "istio-cni-tenants";

impl Writer {
    /// The status that a tenant has; null where there is none.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn tenant_status(&self, name: &str) -> Result<Value, Error> {
        let operation = format!("look at NetworkTenant {name}");
        let request = Request::new(path()).get_subresource("status", &segment(name));
        let body = self.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await?;
        let tenant: Result<Value, _> = serde_json::from_slice(&body);
        let mut tenant = tenant.map_err(|error| Error::NotUnderstood { operation, reason: place(&error) })?;
        Ok(tenant["status"].take())
    }

    /// Makes the status of a tenant this, by server-side apply, whoever else has written it.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn apply_tenant_status(&self, name: &str, status: &Value) -> Result<(), Error> {
        let operation = format!("write the status of NetworkTenant {name}");
        let object = json!({
            "apiVersion": "tenancy.istio-cni.io/v1alpha1", "kind": NetworkTenants::RESOURCE.kind,
            "metadata": {"name": name}, "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let tenants = Request::new(path());
        let request = tenants.patch_subresource("status", &segment(name), &params, &Patch::Apply(object));
        self.connection().ask(&operation, request, LIMIT, MAX_ANSWER).await.map(drop)
    }

    /// Creates an Event about a tenant, in namespace `default`, where those about objects of the cluster are.
    ///
    /// # Errors
    /// From the API server, or when it cannot be asked.
    pub async fn create_tenant_event(&self, name: &str, text: EventText<'_>) -> Result<(), Error> {
        let operation = format!("create an Event about NetworkTenant {name}");
        let about = json!({
            "apiVersion": "tenancy.istio-cni.io/v1alpha1", "kind": NetworkTenants::RESOURCE.kind, "name": name,
        });
        self.event(&operation, ("default", name), about, text).await
    }
}

fn path() -> String {
    format!("{}/{}", NetworkTenants::RESOURCE.api, NetworkTenants::RESOURCE.plural)
}
