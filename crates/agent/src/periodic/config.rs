//! The options of the checks as types.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use options::agent::{BadOption, Options, Setting};

use crate::config::duration;

/// Shortest time between two checks.
const SHORTEST: Duration = Duration::from_secs(1);
const DNS_PORT: u16 = 53;

/// How often the node is checked, and what else the checks need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckConfig {
    /// `HEALTH_CONFIG_INTERVAL`; zero is never.
    pub(crate) node_interval: Duration,
    /// `HEALTH_CONNECTIVITY_INTERVAL`; zero is never.
    pub(crate) connectivity_interval: Duration,
    /// `HEALTH_DNS_SERVERS`.
    pub(crate) dns_servers: Vec<SocketAddr>,
}

impl CheckConfig {
    /// # Errors
    /// The first option that means nothing.
    pub(crate) fn new(options: &Options) -> Result<Self, BadOption> {
        let interval = |setting, name: &'static str| {
            let text = options.text(setting);
            let interval = duration(name, text)?;
            let good = interval.is_zero() || interval >= SHORTEST;
            if good { Ok(interval) } else { Err(BadOption::new(name, text, "is neither 0 nor 1s or more")) }
        };
        Ok(Self {
            node_interval: interval(Setting::HealthConfigInterval, "health-config-interval")?,
            connectivity_interval: interval(
                Setting::HealthConnectivityInterval,
                "health-connectivity-interval",
            )?,
            dns_servers: servers(options)?,
        })
    }
}

fn servers(options: &Options) -> Result<Vec<SocketAddr>, BadOption> {
    let bad = |text: &str| {
        BadOption::new("health-dns-servers", text, "is not an IP address, with or without a port")
    };
    let parse = |text: &str| {
        let bare = || text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT));
        text.parse::<SocketAddr>().or_else(|_| bare()).map_err(|_| bad(text))
    };
    options.list(Setting::HealthDnsServers).iter().map(|text| parse(text)).collect()
}
