//! What a pod is to be, as far as it concerns its capture.

use capture::Container;
use capture::annotations::PROXY_VARIABLES;
use capture::decide::PROXY_CONTAINER;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_network: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_users: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) restart_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service_account_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) runtime_class_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) security_context: Option<SecurityContext>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) init_containers: Option<Vec<ContainerSpec>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) containers: Option<Vec<ContainerSpec>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ContainerSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<EnvVar>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    security_context: Option<SecurityContext>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_policy: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EnvVar {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

/// Of a pod, or of a container, whose own values come first, each by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecurityContext {
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as_user: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as_group: Option<i64>,
}

impl ContainerSpec {
    pub(super) fn trim(&mut self) {
        SecurityContext::trim(&mut self.security_context);
        if self.name.as_deref() != Some(PROXY_CONTAINER) {
            (self.args, self.env) = (None, None);
            return;
        }
        if let Some(args) = &mut self.args {
            // `proxy <type>`; the rest are the proxy's own affairs.
            args.truncate(2);
        }
        if let Some(env) = &mut self.env {
            env.retain(|var| PROXY_VARIABLES.contains(&var.name.as_str()));
        }
    }
}

impl SecurityContext {
    /// Drops one that says nothing that is read.
    pub(super) fn trim(context: &mut Option<Self>) {
        let _ = context.take_if(|context| *context == Self::default());
    }

    /// `runAsUser` and `runAsGroup`.
    pub(super) fn ids(context: Option<Self>) -> (Option<i64>, Option<i64>) {
        context.map_or((None, None), |context| (context.run_as_user, context.run_as_group))
    }
}

pub(super) fn containers(specs: Option<Vec<ContainerSpec>>) -> Vec<Container> {
    specs.into_iter().flatten().map(Container::from).collect()
}

impl From<ContainerSpec> for Container {
    fn from(spec: ContainerSpec) -> Self {
        let (run_as_user, run_as_group) = SecurityContext::ids(spec.security_context);
        Container {
            name: spec.name.unwrap_or_default(),
            args: spec.args.unwrap_or_default(),
            env: spec
                .env
                .into_iter()
                .flatten()
                .map(|var| (var.name, var.value.unwrap_or_default()))
                .collect(),
            run_as_user,
            run_as_group,
            restarts_always: spec.restart_policy.as_deref() == Some("Always"),
        }
    }
}
