//! The ports of health and metrics. One that another process has is told once, with who that is, and tried until it is free: nothing else waits for
//! it.

mod holder;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::health::Notice;
use crate::run::Agent;
use serve::Handler;

/// How long to wait before another try.
const RETRY: Duration = Duration::from_secs(2);
/// `reason` of the event about this agent's own pod.
const PORT_TAKEN: &str = "PortTaken";

/// Ports that cannot be had, and why.
#[derive(Debug, Default)]
pub(crate) struct Missing(Mutex<BTreeMap<u16, String>>);

/// Serves a port, as soon as it can be had. `option` is by which it is chosen.
pub(crate) async fn serve(
    agent: Arc<Agent>,
    option: &'static str,
    address: SocketAddr,
    handler: Arc<impl Handler>,
) {
    // What was told, and for which socket: whose that is costs a look at every process.
    let mut told: Option<(Option<u64>, String)> = None;
    loop {
        let error = match serve::bind_port(address) {
            Ok(listener) => {
                if told.is_some() {
                    agent.log.info("the port is free now, and serves", &[("address", &address)]);
                    agent.has_port(address.port(), None);
                }
                return serve::port(listener, handler, agent.metrics.clone()).await;
            }
            Err(error) => error,
        };
        let roots = vec![PathBuf::from("/proc"), agent.config.proc_root.clone()];
        let known = told.as_ref().map(|(socket, _)| *socket);
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        let look = move || taken.then(|| holder::socket(address)).flatten();
        let socket = tokio::task::spawn_blocking(look).await.ok().flatten();
        if known != Some(socket.map(|socket| socket.inode)) {
            let look = move || socket.map(|socket| holder::of(&roots, socket));
            let holder = tokio::task::spawn_blocking(look).await.ok().flatten();
            let text = match holder {
                Some(holder) => {
                    format!("listen on {address}: {holder}; end it, or choose another port with {option}")
                }
                None => error.to_string(),
            };
            if told.as_ref().is_none_or(|(_, before)| *before != text) {
                agent.log.error(&text, &[]);
                agent.has_port(address.port(), Some(&text));
                let (agent, text) = (agent.clone(), text.clone());
                tokio::spawn(async move { agent.events.warn_own(PORT_TAKEN, &text).await });
            }
            told = Some((socket.map(|socket| socket.inode), text));
        }
        tokio::time::sleep(RETRY).await;
    }
}

impl Agent {
    /// Shows whether a port is missing, and why.
    fn has_port(&self, port: u16, missing: Option<&str>) {
        let mut all = self.missing_ports.0.lock().unwrap_or_else(PoisonError::into_inner);
        match missing {
            Some(text) => {
                all.insert(port, text.to_owned());
            }
            None => {
                all.remove(&port);
            }
        }
        if all.is_empty() {
            self.health.settled(Notice::Port);
        } else {
            let texts: Vec<&str> = all.values().map(String::as_str).collect();
            self.health.notice(Notice::Port, &texts.join("; "));
        }
    }
}
