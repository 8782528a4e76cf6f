//! A pod from nothing but the annotations that the runtime hands over.
//!
//! The injector notes in [`STATUS`] what it added to a pod, so that for a usual sidecar the decision can be made without the object. This is
//! the last resort: what only the object says is assumed to be as usual. A pod without that note is captured by no sidecar, whatever else the
//! object says; whether it belongs to the ambient mesh is a matter of labels, which annotations do not tell.

use std::collections::BTreeMap;

use capture::annotations::STATUS;
use capture::decide::PROXY_CONTAINER;
use capture::settings::PROXY_ID;
use capture::{Container, Pod};
use facts::PodRef;
use serde::Deserialize;

use crate::error::{Cause, Error};
use crate::{PodSource, json, yaml};

/// Names the injector's templates that were used; only a sidecar's gives a pod to capture.
const TEMPLATES: &str = "inject.istio.io/templates";
/// With TPROXY the injector runs the proxy as root, whose capabilities it needs.
const MODE: &str = "sidecar.istio.io/interceptionMode";
/// YAML of the proxy's configuration, whose `proxyMetadata` become variables of the proxy's container.
const CONFIG: &str = "proxy.istio.io/config";

/// What the runtime hands over in `runtimeConfig`.
#[derive(Debug, Clone, Copy)]
pub struct Annotations<'a> {
    map: &'a BTreeMap<String, String>,
    labels_decide: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    init_containers: Option<Vec<String>>,
    containers: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ProxyConfig {
    proxy_metadata: BTreeMap<String, String>,
}

impl<'a> Annotations<'a> {
    /// What is assumed of a pod with a sidecar that comes from here, for the log.
    pub const ASSUMED: &'static str = "only annotations were at hand, so a sidecar with its usual user, without DNS capture and dual stack unless \
         proxy.istio.io/config says so, and an application that does not run as the proxy's user were assumed; if this pod is set up \
         otherwise, delete it once the node agent or the API server answers";

    /// All annotations of the pod.
    pub fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self { map: annotations, labels_decide: false }
    }

    /// Whether labels decide over pods without a sidecar, as in ambient mode: these cannot be told from annotations.
    #[must_use]
    pub fn labels_decide(self, labels_decide: bool) -> Self {
        Self { labels_decide, ..self }
    }

    /// Whether the pod has a sidecar, of which a part is assumed. What is said of the other pods holds whatever their objects say.
    pub fn assumes(&self) -> bool {
        self.map.contains_key(STATUS)
    }

    fn infer(self, id: &PodRef) -> Result<Pod, Cause> {
        let pod = |init_containers, containers| Pod {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            uid: id.known_uid().map(str::to_owned),
            annotations: self.map.clone(),
            init_containers,
            containers,
            ..Pod::default()
        };
        let proxy = vec![container(PROXY_CONTAINER.to_owned(), self.map)];
        // Without the injector's note a pod is not captured, whatever its containers are.
        let Some(status) = self.map.get(STATUS) else {
            return match self.labels_decide {
                false => Ok(pod(Vec::new(), proxy)),
                true => Err(Cause::Annotations(
                    "whether the pod belongs to the ambient mesh depends on labels, and these are annotations only",
                )),
            };
        };
        if self.map.get(TEMPLATES).is_some_and(|names| names.trim() != "sidecar") {
            return Err(Cause::Annotations("inject.istio.io/templates names more than a sidecar"));
        }
        let status: Status = json::from_slice(status.as_bytes())
            .map_err(|_| Cause::Annotations("sidecar.istio.io/status is not the injector's JSON"))?;
        let named = |names: Option<Vec<String>>| -> Vec<Container> {
            names.into_iter().flatten().map(|name| container(name, self.map)).collect()
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
    fn pod(&self, id: &PodRef) -> Result<Pod, Error> {
        let failed = |cause| Error::new(format!("get pod {id}"), "the annotations in runtimeConfig", cause);
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
        env: variables(annotations),
        run_as_user: tproxy.then_some(0),
        run_as_group: tproxy.then_some(PROXY_ID.into()),
        ..Container::default()
    }
}

/// The variables that the pod's own configuration gives to its proxy. Those of the mesh's configuration are not known here.
fn variables(annotations: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let config = annotations.get(CONFIG).and_then(|text| yaml::to_json(text).ok());
    let config = config.and_then(|config| json::from_slice::<ProxyConfig>(&config).ok());
    config.unwrap_or_default().proxy_metadata.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use capture::annotations::NodeSettings;
    use capture::settings::DnsCapture;
    use capture::{Decision, Enrolment, Exclusions, Reason};

    use super::*;

    fn decide(annotations: &[(&str, &str)]) -> Result<Decision, String> {
        let map = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let id = PodRef { namespace: "shop".into(), name: "web".into(), uid: "u".into() };
        let pod = Annotations::new(&map).pod(&id).map_err(|error| error.to_string())?;
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()),
            ("shop", "web", Some("u"))
        );
        capture::decide(&pod, &Exclusions::default(), &Enrolment::default(), &NodeSettings::default())
            .map_err(|error| error.to_string())
    }

    fn skipped(annotations: &[(&str, &str)]) -> Option<Reason> {
        match decide(annotations).unwrap() {
            Decision::Skip(skip) => Some(skip.reason),
            Decision::Sidecar { .. } => None,
            other => panic!("{other:?}"),
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
            other => panic!("{other:?}"),
        }
    }

    /// The injector makes variables of the pod's own configuration, so with them the rules are those of full facts.
    #[test]
    fn the_proxys_own_configuration_decides_as_well() {
        let usual = r#"{"containers":["istio-proxy"]}"#;
        let settings = |config: &str| match decide(&[(STATUS, usual), (CONFIG, config)]).unwrap() {
            Decision::Sidecar { settings, .. } => {
                Some((settings.dns != DnsCapture::Off, settings.dual_stack))
            }
            _ => None,
        };
        for (config, wanted) in [
            ("", Some((false, false))),
            ("concurrency: 2", Some((false, false))),
            ("proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n", Some((true, false))),
            (r#"{"proxyMetadata": {"ISTIO_DUAL_STACK": "1", "X": "y"}}"#, Some((false, true))),
            (r#"{"proxyMetadata": {"DISABLE_ENVOY": "true"}}"#, None),
            // The injector would not have taken these.
            ("proxyMetadata: [", Some((false, false))),
            ("proxyMetadata: {ISTIO_META_DNS_CAPTURE: [true]}", Some((false, false))),
        ] {
            assert_eq!(settings(config), wanted, "{config}");
        }
    }

    #[test]
    fn where_labels_decide_they_tell_of_sidecars_only() {
        let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let id = PodRef::named("shop", "web");
        let plain = map("app", "web");
        let error = Annotations::new(&plain).labels_decide(true).pod(&id).unwrap_err().to_string();
        assert!(error.contains("depends on labels"), "{error}");
        let sidecar = map(STATUS, r#"{"containers":["istio-proxy"]}"#);
        let sidecar = Annotations::new(&sidecar).labels_decide(true);
        assert!(sidecar.pod(&id).is_ok() && sidecar.assumes());
        assert!(!Annotations::new(&plain).assumes());
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
