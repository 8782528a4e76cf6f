//! A pod from nothing but the annotations that the runtime hands over.
//!
//! The injector notes in [`STATUS`] what it added to a pod, so that for a usual sidecar the decision can be made without the object. This is
//! the last resort: what only the object says, such as the proxy's variables, is assumed to be as usual.

use std::collections::BTreeMap;

use capture::annotations::STATUS;
use capture::decide::PROXY_CONTAINER;
use capture::settings::PROXY_ID;
use capture::{Container, Pod, PodId};
use serde::Deserialize;

use crate::error::{Cause, Error};
use crate::{PodSource, json};

/// Names the injector's templates that were used; only a sidecar's gives a pod to capture.
const TEMPLATES: &str = "inject.istio.io/templates";
/// With TPROXY the injector runs the proxy as root, whose capabilities it needs.
const MODE: &str = "sidecar.istio.io/interceptionMode";

/// What the runtime hands over in `runtimeConfig`.
#[derive(Debug, Clone, Copy)]
pub struct Annotations<'a>(&'a BTreeMap<String, String>);

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    init_containers: Option<Vec<String>>,
    containers: Option<Vec<String>>,
}

impl<'a> Annotations<'a> {
    /// What is assumed of every pod that comes from here, for the log.
    pub const ASSUMED: &'static str = "only annotations were at hand, so a sidecar with its usual user, without DNS capture and dual stack, was \
         assumed; if the pod's proxy is set up otherwise, delete the pod once the node agent or the API server answers";

    /// All annotations of the pod.
    pub fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self(annotations)
    }

    fn infer(self, id: &PodId) -> Result<Pod, Cause> {
        let pod = |init_containers, containers| Pod {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            uid: id.uid.clone(),
            annotations: self.0.clone(),
            init_containers,
            containers,
            ..Pod::default()
        };
        let proxy = vec![container(PROXY_CONTAINER.to_owned(), self.0)];
        // Without the injector's note a pod is not captured, whatever its containers are.
        let Some(status) = self.0.get(STATUS) else { return Ok(pod(Vec::new(), proxy)) };
        if self.0.get(TEMPLATES).is_some_and(|names| names.trim() != "sidecar") {
            return Err(Cause::Annotations("inject.istio.io/templates names more than a sidecar"));
        }
        let status: Status = json::from_slice(status.as_bytes())
            .map_err(|_| Cause::Annotations("sidecar.istio.io/status is not the injector's JSON"))?;
        let named = |names: Option<Vec<String>>| -> Vec<Container> {
            names.into_iter().flatten().map(|name| container(name, self.0)).collect()
        };
        let (mut init, regular) = (named(status.init_containers), named(status.containers));
        if init.is_empty() && regular.is_empty() {
            return Err(Cause::Annotations("sidecar.istio.io/status lists no containers"));
        }
        for container in &mut init {
            container.restarts_always = container.name == PROXY_CONTAINER;
        }
        Ok(pod(init, regular))
    }
}

impl PodSource for Annotations<'_> {
    fn pod(&self, id: &PodId) -> Result<Pod, Error> {
        let failed = |cause| {
            Error::new(
                format!("get pod {}/{}", id.namespace, id.name),
                "the annotations in runtimeConfig",
                cause,
            )
        };
        self.infer(id).map_err(failed)
    }

    fn ready(&self) -> Result<(), Error> {
        Ok(())
    }
}

fn container(name: String, annotations: &BTreeMap<String, String>) -> Container {
    if name != PROXY_CONTAINER {
        return Container { name, ..Container::default() };
    }
    let tproxy = annotations.get(MODE).is_some_and(|mode| mode == "TPROXY");
    Container {
        name,
        args: ["proxy", "sidecar"].map(String::from).to_vec(),
        run_as_user: tproxy.then_some(0),
        run_as_group: tproxy.then_some(PROXY_ID.into()),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use capture::annotations::NodeSettings;
    use capture::{Decision, Reason};

    use super::*;

    fn decide(annotations: &[(&str, &str)]) -> Result<Decision, String> {
        let map = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let id = PodId { namespace: "shop".into(), name: "web".into(), uid: Some("u".into()) };
        let pod = Annotations::new(&map).pod(&id).map_err(|error| error.to_string())?;
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()),
            ("shop", "web", Some("u"))
        );
        capture::decide(&pod, &NodeSettings::default()).map_err(|error| error.to_string())
    }

    fn skipped(annotations: &[(&str, &str)]) -> Option<Reason> {
        match decide(annotations).unwrap() {
            Decision::Skip(skip) => Some(skip.reason),
            Decision::Sidecar { .. } => None,
        }
    }

    #[test]
    fn what_the_injector_noted_decides() {
        let usual =
            r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"revision":"default"}"#;
        let native =
            r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null,"volumes":["v"]}"#;
        let own_init = r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#;
        assert_eq!(skipped(&[(STATUS, usual)]), None);
        assert_eq!(skipped(&[(STATUS, usual), (TEMPLATES, "sidecar")]), None);
        assert_eq!(skipped(&[(STATUS, own_init)]), Some(Reason::IstioInitPresent));
        assert_eq!(skipped(&[("app", "web")]), Some(Reason::NoStatus));
        match decide(&[(STATUS, native), ("traffic.sidecar.istio.io/excludeInboundPorts", "81")]).unwrap() {
            Decision::Sidecar { native_sidecar, settings, warnings, gaps } => {
                assert!(native_sidecar && warnings.is_empty() && gaps.is_empty(), "{warnings:?} {gaps:?}");
                assert!(format!("{settings:?}").contains("81"), "{settings:?}");
            }
            Decision::Skip(skip) => panic!("{skip}"),
        }
    }

    #[test]
    fn what_they_do_not_tell_is_an_error() {
        let usual = r#"{"containers":["istio-proxy"]}"#;
        for (annotations, part) in [
            (vec![(STATUS, "{}")], "lists no containers"),
            (vec![(STATUS, "injected")], "is not the injector's JSON"),
            (vec![(STATUS, r#"{"containers":"istio-proxy"}"#)], "is not the injector's JSON"),
            (vec![(STATUS, usual), (TEMPLATES, "gateway")], "names more than a sidecar"),
            (vec![(STATUS, usual), (TEMPLATES, "sidecar,custom")], "names more than a sidecar"),
        ] {
            let error = decide(&annotations).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
