//! An outage of more than a minute with the limits of a real agent: all watches are back within five seconds of the server's return, and
//! meanwhile one question at a time is asked, however many watches there are.

use std::time::{Duration, Instant};

use cluster::{Limits, Source, WatchName};
use testkit::TestNetns;
use testkit::apiserver::{ApiServer, Fault, Resource, WatchFault};

use crate::agent::{Agent, NODE, Setup};

/// How long the server is away.
const OUTAGE: Duration = Duration::from_secs(65);
/// What is promised of its return.
const BACK: Duration = Duration::from_secs(5);
/// What is promised of a connection whose packets are dropped.
const NOTICED: Duration = Duration::from_secs(30);
/// In an outage of this length so many questions are asked at most: some soon, then one in every 1.75 s.
const QUESTIONS: usize = 42;

/// Where the server is, and where the agent.
struct Ways {
    setup: Setup,
    agent: TestNetns,
    /// Keeps the server's side.
    _server: TestNetns,
}

impl Ways {
    fn new() -> Self {
        let (server, agent) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
        let path = agent.path().display();
        let add = format!("link add way0 type veth peer name way0 netns {path}");
        server.ip(&[add.as_str(), "address add 10.99.0.1/24 dev way0", "link set way0 up"]).unwrap();
        agent.ip(&["address add 10.99.0.2/24 dev way0", "link set way0 up"]).unwrap();
        let api = server.enter(|_| ApiServer::start_on("10.99.0.1:0".parse().unwrap()).unwrap()).unwrap();
        Self { setup: Setup::of(api), agent, _server: server }
    }

    /// Lets packets of the agent vanish, as a firewall does that has forgotten a connection, or a node that is gone.
    fn cut(&self) {
        let chain = |hook: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority 0; iifname way0 drop; oifname way0 drop; }}"
            )
        };
        self.agent.nft(&format!("table inet cut {{\n{}\n{}\n}}", chain("input"), chain("output"))).unwrap();
    }

    fn mend(&self) {
        self.agent.nft("delete table inet cut").unwrap();
    }

    /// Runs inside the agent's namespace with a server beyond it.
    fn run(&self, test: impl AsyncFnOnce(&Setup) + Send) {
        self.agent.enter(|_| runtime().block_on(test(&self.setup))).unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// An agent with its real limits, whose watches stand.
async fn real_agent(setup: &Setup) -> Agent {
    setup.set_pod("before", "1");
    let limits = Limits::default();
    let agent = Agent::start(Source::Kubernetes {
        connection: setup.connection(),
        node: NODE.into(),
        own: None,
        limits,
    });
    agent.synced().await;
    setup.watched(&agent).await;
    tokio::time::sleep(limits.settle * 2).await;
    agent.forget();
    agent
}

/// Waits for the end of the outage; while it lasts the agent asks no more than questions.
async fn last(how: &str, setup: &Setup, began: Instant) {
    let first = setup.requests("").len();
    tokio::time::sleep(OUTAGE.saturating_sub(began.elapsed())).await;
    let asked: Vec<_> = setup.requests("").split_off(first);
    let others: Vec<_> = asked.iter().filter(|path| *path != "/readyz").collect();
    assert!(others.len() <= 2, "{how}: each watch fails once, and then waits: {others:?}");
    assert!(asked.len() - others.len() <= QUESTIONS, "{} questions", asked.len());
}

/// All watches are back in time, and a pod that came at the return is known.
async fn is_back(how: &str, setup: &Setup, agent: &Agent) {
    let start = Instant::now();
    setup.set_pod("after", "1");
    agent
        .until("all watches", |agent| {
            let restored = agent.restored(WatchName::PODS) && agent.restored(WatchName::NAMESPACES);
            restored && setup.server.watches() >= 2 && agent.pods().contains(&"shop/after".into())
        })
        .await;
    let (took, outages) = (start.elapsed(), agent.outages());
    println!("{how}: away for {outages:?}, all watches back after {took:?}; told: {:?}", agent.away());
    assert!(took <= BACK, "{how}: {took:?}");
    assert_eq!(outages.len(), 1, "{how}: {outages:?}");
    assert_eq!(
        agent.relists(WatchName::PODS) + agent.relists(WatchName::NAMESPACES),
        0,
        "{how}: they go on from their version"
    );
}

fn refused() {
    runtime().block_on(async {
        let setup = Setup::new();
        let agent = real_agent(&setup).await;
        setup.server.stop();
        last("connections refused", &setup, Instant::now()).await;
        setup.server.restart().unwrap();
        is_back("connections refused", &setup, &agent).await;
    });
}

/// The server is there and does not serve.
fn answered_with(how: &str, fault: Fault) {
    runtime().block_on(async {
        let setup = Setup::new();
        let agent = real_agent(&setup).await;
        setup.server.set_fault(Some(fault));
        for resource in [Resource::Pods, Resource::Namespaces] {
            setup.server.disturb_watches(resource, WatchFault::Reset);
        }
        last(how, &setup, Instant::now()).await;
        setup.server.set_fault(None);
        is_back(how, &setup, &agent).await;
    });
}

fn token_ended() {
    runtime().block_on(async {
        let setup = Setup::new();
        let agent = real_agent(&setup).await;
        setup.server.set_token("the-next-one");
        for resource in [Resource::Pods, Resource::Namespaces] {
            setup.server.disturb_watches(resource, WatchFault::Close);
        }
        last("token ended", &setup, Instant::now()).await;
        setup.server.write_service_account(setup.account.path()).unwrap();
        is_back("token ended", &setup, &agent).await;
        assert!(agent.away()[0].contains("401"), "{:?}", agent.away());
    });
}

fn dropped() {
    let ways = Ways::new();
    ways.run(async |setup| {
        let agent = real_agent(setup).await;
        let cut = Instant::now();
        ways.cut();
        while agent.failures(WatchName::PODS).is_empty()
            || agent.failures(WatchName::NAMESPACES).is_empty()
            || agent.away().is_empty()
        {
            assert!(cut.elapsed() <= NOTICED, "{:?}", agent.events());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("packets dropped: noticed after {:?}", cut.elapsed());
        let (text, _) = &agent.failures(WatchName::PODS)[0];
        assert!(text.contains("nothing on it is acknowledged"), "{text}");
        assert!(agent.away()[0].contains("no answer within 2.0 s"), "{:?}", agent.away());
        last("packets dropped", setup, cut).await;
        ways.mend();
        is_back("packets dropped", setup, &agent).await;
    });
}

/// An API server that answers before it has loaded its roles refuses everything, the question whether it is ready included.
fn roles_loaded_late() {
    runtime().block_on(async {
        let setup = Setup::new();
        let agent = real_agent(&setup).await;
        setup.server.forbid_everyone();
        for resource in [Resource::Pods, Resource::Namespaces] {
            setup.server.disturb_watches(resource, WatchFault::Reset);
        }
        let before = setup.requests("").len();
        tokio::time::sleep(Duration::from_secs(25)).await;
        let asked = setup.requests("").len() - before;
        // Each of two watches some times soon and then every 3.5 s, with a question each time.
        assert!((20..=60).contains(&asked), "{asked} requests");
        assert_eq!(agent.away(), [""; 0], "it answers");
        let start = Instant::now();
        setup.server.check_credentials();
        setup.set_pod("after", "1");
        let back = |agent: &Agent| agent.restored(WatchName::PODS) && agent.restored(WatchName::NAMESPACES);
        agent.until("both watches", |agent| back(agent) && agent.pods().contains(&"shop/after".into())).await;
        println!("roles loaded late: all watches back after {:?}", start.elapsed());
        assert!(start.elapsed() <= BACK, "{:?}", start.elapsed());
    });
}

#[test]
fn after_more_than_a_minute_all_watches_are_back_within_five_seconds() {
    std::thread::scope(|scope| {
        scope.spawn(refused);
        scope.spawn(dropped);
        scope.spawn(token_ended);
        scope.spawn(|| answered_with("503", Fault::Status { code: 503, retry_after: Some(1) }));
        scope.spawn(|| answered_with("503 for a minute", Fault::Status { code: 503, retry_after: Some(60) }));
        scope.spawn(|| answered_with("requests hang", Fault::Hang));
        scope.spawn(|| answered_with("connections hang", Fault::HangBeforeTls));
        scope.spawn(roles_loaded_late);
    });
}
