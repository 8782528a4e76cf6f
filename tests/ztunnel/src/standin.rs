//! A ztunnel that stands in for the real one: testkit's speaks to the agent, and each pod that it serves gets a proxy.

mod proxy;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use proxy::Proxy;
use testkit::ztunnel::{Script, Ztunnel};
use testkit::{PATIENCE, eventually};

use crate::peer::Proxies;

/// How soon a proxy follows what the agent said.
const FOLLOW: Duration = Duration::from_millis(5);

/// A running one; it is gone, with its connections, when dropped.
pub struct StandIn {
    ztunnel: Option<Arc<Ztunnel>>,
    proxies: Arc<Mutex<BTreeMap<String, Running>>>,
    ending: Arc<AtomicBool>,
    follower: Option<JoinHandle<()>>,
}

struct Running {
    netns: (u64, u64),
    /// Tried again as long as it is absent.
    proxy: Option<Proxy>,
}

// === impl StandIn ===

impl StandIn {
    pub(crate) fn start(socket: &Path) -> Result<Self> {
        let connect = || Ztunnel::connect(socket, Script::default().reconnecting());
        let ztunnel = Arc::new(eventually("the agent's socket", PATIENCE, connect)?);
        let (proxies, ending) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(AtomicBool::new(false)));
        let (from, to, end) = (ztunnel.clone(), proxies.clone(), ending.clone());
        let follower = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                follow(&from, &mut to.lock().unwrap_or_else(PoisonError::into_inner));
                std::thread::sleep(FOLLOW);
            }
        });
        Ok(Self { ztunnel: Some(ztunnel), proxies, ending, follower: Some(follower) })
    }

    pub(crate) fn is_ready(&self) -> bool {
        let Some(ztunnel) = &self.ztunnel else { return false };
        let served = ztunnel.workloads();
        let proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        let up = |uid| proxies.get(uid).is_some_and(|running: &Running| running.proxy.is_some());
        ztunnel.is_connected() && ztunnel.wait_snapshot(Duration::ZERO).is_ok() && served.keys().all(up)
    }

    pub(crate) fn proxies(&self) -> Proxies {
        let (started, stopped) = self.ztunnel.as_ref().map_or((0, 0), |ztunnel| ztunnel.proxies());
        Proxies { started, stopped }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.ztunnel.as_ref().map(|ztunnel| ztunnel.violations()).unwrap_or_default()
    }

    /// Leaves the agent and closes what listens; connections go on.
    pub(crate) fn drain(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(follower) = self.follower.take() {
            let _ = follower.join();
        }
        // The last reference, as the follower is gone: this closes the connection.
        drop(self.ztunnel.take());
        let mut proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        for proxy in proxies.values_mut().filter_map(|running| running.proxy.as_mut()) {
            proxy.close();
        }
    }

    /// Ends the connections that are left.
    pub(crate) fn cut(&self) {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Starts and stops proxies as ztunnel does.
fn follow(ztunnel: &Ztunnel, proxies: &mut BTreeMap<String, Running>) {
    let served = ztunnel.workloads();
    proxies.retain(|uid, running| served.get(uid).is_some_and(|now| now.netns == running.netns));
    for (uid, workload) in &served {
        let running =
            proxies.entry(uid.clone()).or_insert_with(|| Running { netns: workload.netns, proxy: None });
        if running.proxy.is_none() {
            // The pod may be gone again, or the ports taken: the next round is soon.
            running.proxy = ztunnel.namespace(uid).and_then(|fd| Proxy::start(&fd)).ok();
        }
    }
}
