//! What the configuration says of the decision about pods.

use capture::decide::{Enrolment, Exclusions};
use capture::select::{EnablementSelectorError, Selectors};

use super::PluginConf;

impl PluginConf {
    /// Which pods are left alone by their names.
    #[must_use]
    pub fn scope(&self) -> Exclusions {
        Exclusions {
            agent_namespace: self.pod_namespace.clone(),
            agent_pod_prefix: self.agent_pod_prefix.clone(),
            excluded_namespaces: self.exclude_namespaces.clone(),
            capture_disabled: !self.capture,
        }
    }

    /// Which pods are of ambient mode. Where ztunnel runs, the configuration does not say.
    ///
    /// # Errors
    /// A selector means nothing.
    pub fn enrolment(&self) -> Result<Enrolment, EnablementSelectorError> {
        if !self.ambient_enabled {
            return Ok(Enrolment::default());
        }
        let selectors = Selectors::new(&self.enablement_selectors)?;
        Ok(Enrolment { selectors, ztunnel_namespace: String::new() })
    }
}
