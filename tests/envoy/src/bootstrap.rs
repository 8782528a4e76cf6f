//! Envoy's configuration: what Istio's control plane sends to a sidecar, reduced to what capture needs.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};
use testkit::Families;

/// Header that each listener adds to the answers that go through it; its value is `outbound` or `inbound`.
pub const LISTENER_HEADER: &str = "x-envoy-listener";
/// A request with this `host` goes from the outbound listener to the pod's own application, as when a service's address
/// leads back to the pod that calls it.
pub const OWN_SERVICE: &str = "own.test";

/// Where captured outbound connections arrive.
const OUTBOUND_PORT: u16 = 15001;
/// Where captured inbound connections arrive.
const INBOUND_PORT: u16 = 15006;
/// Mark of connections to the application that keep the client's address: Istio's TPROXY mark.
const TPROXY_MARK: u32 = 1337;

/// How inbound connections reach Envoy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By address translation. The application sees 127.0.0.6 or ::6.
    Redirect,
    /// By a transparent socket. The application sees the client's address.
    Tproxy,
}

/// What the configuration is made from.
#[derive(Debug)]
pub(crate) struct Bootstrap<'a> {
    pub(crate) mode: Mode,
    pub(crate) families: Families,
    /// Where the pod's application listens, see [`OWN_SERVICE`].
    pub(crate) own_service: SocketAddr,
    /// Unix socket of the admin interface.
    pub(crate) admin: &'a Path,
    pub(crate) access_log: &'a Path,
}

/// One of the two listeners.
#[derive(Clone, Copy)]
enum Side {
    Outbound,
    Inbound,
}

impl Mode {
    /// The value of annotation `sidecar.istio.io/interceptionMode`.
    #[must_use]
    pub fn annotation(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::Tproxy => "TPROXY",
        }
    }
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Outbound => OUTBOUND_PORT,
            Self::Inbound => INBOUND_PORT,
        }
    }
}

impl Bootstrap<'_> {
    /// The whole configuration.
    pub(crate) fn to_json(&self) -> Value {
        let mut clusters = vec![self.original_destination("outbound", None)];
        clusters.extend(
            self.passthrough_sources().map(|(name, source)| self.original_destination(name, Some(source))),
        );
        clusters.push(self.own_service());
        json!({
            "node": {"id": "sidecar", "cluster": "test"},
            "admin": {"address": {"pipe": {"path": self.admin}}},
            // Nothing is looked up and nothing is reported to anybody.
            "static_resources": {
                "listeners": [self.listener(Side::Outbound), self.listener(Side::Inbound)],
                "clusters": clusters,
            },
        })
    }

    /// The source addresses that the inbound clusters bind to, which the rules know as the proxy's own.
    fn passthrough_sources(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let v4 = self.families.v4().then_some(("inbound-v4", "127.0.0.6"));
        let v6 = self.families.v6().then_some(("inbound-v6", "::6"));
        v4.into_iter().chain(v6)
    }

    fn listener(&self, side: Side) -> Value {
        let mut filters = vec![json!({
            "name": "envoy.filters.listener.original_dst",
            "typed_config": {"@type": extension("filters.listener.original_dst.v3.OriginalDst")},
        })];
        let transparent = self.mode == Mode::Tproxy && matches!(side, Side::Inbound);
        if transparent {
            filters.push(json!({
                "name": "envoy.filters.listener.original_src",
                "typed_config": {
                    "@type": extension("filters.listener.original_src.v3.OriginalSrc"),
                    "mark": TPROXY_MARK,
                },
            }));
        }
        let wildcards = [(self.families.v4(), "0.0.0.0"), (self.families.v6(), "::")];
        let mut addresses: Vec<Value> = wildcards
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, ip)| json!({"socket_address": {"address": ip, "port_value": side.port()}}))
            .collect();
        let first = addresses.remove(0);
        let more: Vec<Value> = addresses.into_iter().map(|address| json!({"address": address})).collect();
        json!({
            "name": side.name(),
            "address": first,
            "additional_addresses": more,
            // On the outbound side Istio hands connections over to listeners of single services; here it has none.
            "use_original_dst": matches!(side, Side::Outbound),
            "transparent": transparent,
            "listener_filters": filters,
            "filter_chains": self.chains(side),
        })
    }

    fn chains(&self, side: Side) -> Vec<Value> {
        match side {
            Side::Outbound => vec![json!({"filters": [self.http(side, "outbound")]})],
            Side::Inbound => self
                .passthrough_sources()
                .map(|(cluster, source)| {
                    let all = if source.contains(':') { "::" } else { "0.0.0.0" };
                    json!({
                        "filter_chain_match": {"prefix_ranges": [{"address_prefix": all, "prefix_len": 0}]},
                        "filters": [self.http(side, cluster)],
                    })
                })
                .collect(),
        }
    }

    fn http(&self, side: Side, cluster: &str) -> Value {
        let to = |cluster: &str| json!([{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "2s"}}]);
        let mut hosts = vec![json!({"name": "any", "domains": ["*"], "routes": to(cluster)})];
        if matches!(side, Side::Outbound) {
            hosts.push(json!({"name": "own", "domains": [OWN_SERVICE], "routes": to("own")}));
        }
        json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": extension("filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": side.name(),
                "route_config": {
                    "virtual_hosts": hosts,
                    "response_headers_to_add": [{
                        "header": {"key": LISTENER_HEADER, "value": side.name()},
                        "append_action": "APPEND_IF_EXISTS_OR_ADD",
                    }],
                },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": extension("filters.http.router.v3.Router")},
                }],
                "access_log": [self.access_log(side)],
            },
        })
    }

    fn access_log(&self, side: Side) -> Value {
        let format = format!(
            "{} %REQ(:METHOD)% %RESPONSE_CODE% %RESPONSE_FLAGS% client %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% \
             wanted %DOWNSTREAM_LOCAL_ADDRESS% forwarded from %UPSTREAM_LOCAL_ADDRESS% to %UPSTREAM_HOST%\n",
            side.name()
        );
        json!({
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": extension("access_loggers.file.v3.FileAccessLog"),
                "path": self.access_log,
                "log_format": {"text_format_source": {"inline_string": format}},
            },
        })
    }

    /// A cluster whose only endpoint is the address that the client wanted.
    fn original_destination(&self, name: &str, source: Option<&str>) -> Value {
        let mut cluster = json!({
            "name": name,
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "1s",
        });
        if let Some(source) = source {
            cluster["upstream_bind_config"] = json!({"source_address": {"address": source, "port_value": 0}});
        }
        cluster
    }

    fn own_service(&self) -> Value {
        let (ip, port): (IpAddr, u16) = (self.own_service.ip(), self.own_service.port());
        let endpoint = json!({"address": {"socket_address": {"address": ip, "port_value": port}}});
        json!({
            "name": "own",
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": "own",
                "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
            },
        })
    }
}

fn extension(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{name}")
}
