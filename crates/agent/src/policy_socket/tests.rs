use std::sync::Mutex;

use facts::networkpolicy::Isolation;
use http_body_util::BodyExt as _;
use rundir::policy::ReleasedPod;

use super::*;

/// Answers after a pause, and notes what it was told.
pub(crate) struct FakePolicies {
    pub(crate) pause: Duration,
    pub(crate) answer: Result<PrepareAnswer, String>,
    pub(crate) released: Mutex<Vec<ReleasedPod>>,
    pub(crate) known: watch::Sender<u64>,
    pub(crate) snapshot: Mutex<Option<PolicySnapshot>>,
    pub(crate) known_at: Mutex<Option<SystemTime>>,
}

impl FakePolicies {
    pub(crate) fn new(pause: Duration, answer: Result<PrepareAnswer, String>) -> Arc<Self> {
        Arc::new(Self {
            pause,
            answer,
            released: Mutex::default(),
            known: watch::Sender::default(),
            snapshot: Mutex::default(),
            known_at: Mutex::default(),
        })
    }
}

impl PolicyHandle for FakePolicies {
    fn prepare(
        &self,
        _: PrepareRequest,
        _: Option<Arc<OwnedFd>>,
    ) -> PolicyFuture<Result<PrepareAnswer, String>> {
        let (pause, answer) = (self.pause, self.answer.clone());
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            answer
        })
    }

    fn release(&self, request: ReleaseRequest) -> PolicyFuture<Result<(), String>> {
        self.released.lock().unwrap().extend(request.pods);
        Box::pin(async { Ok(()) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.known.subscribe()
    }

    fn state(&self) -> PolicyFuture<PolicyStateReport> {
        Box::pin(async { PolicyStateReport::default() })
    }

    fn known_at(&self) -> Option<SystemTime> {
        *self.known_at.lock().unwrap()
    }

    fn snapshot(&self) -> PolicyFuture<Option<PolicySnapshot>> {
        let snapshot = self.snapshot.lock().unwrap().clone();
        Box::pin(async { snapshot })
    }
}

async fn said(answer: ServedAnswer) -> (StatusCode, String) {
    let (head, body) = answer.into_parts();
    (head.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

fn isolated() -> PrepareAnswer {
    PrepareAnswer { isolation: Isolation::BOTH, in_force: true, ..PrepareAnswer::default() }
}

async fn prepared(socket: &PolicySocket, body: &str) -> (StatusCode, String) {
    said(socket.prepare(body.as_bytes(), None).await).await
}

#[tokio::test(start_paused = true)]
async fn a_plugin_hears_in_time_whether_the_pod_may_start() {
    let socket = |pause, answer| PolicySocket(Some(FakePolicies::new(pause, answer)), None);
    let body = serde_json::to_string(&PrepareRequest { name: "web".into(), ..Default::default() }).unwrap();
    let (status, text) = prepared(&socket(Duration::ZERO, Ok(isolated())), &body).await;
    assert_eq!((status, serde_json::from_str(&text).ok()), (StatusCode::OK, Some(isolated())));
    let (status, text) =
        prepared(&socket(Duration::ZERO, Err("policies are not listed yet".into())), &body).await;
    assert_eq!((status, &*text), (StatusCode::SERVICE_UNAVAILABLE, "policies are not listed yet\n"));
    let began = tokio::time::Instant::now();
    let (status, text) = prepared(&socket(Duration::from_secs(60), Ok(isolated())), &body).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(began.elapsed() < Duration::from_secs(1));
    let (status, _) = prepared(&socket(Duration::ZERO, Ok(isolated())), "{").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_agent_that_enforces_nothing_isolates_nobody() {
    let (status, text) = prepared(&PolicySocket(None, None), "{}").await;
    let answer: PrepareAnswer = serde_json::from_str(&text).unwrap();
    assert_eq!((status, answer.isolation, answer.in_force), (StatusCode::OK, Isolation::default(), true));
    assert_eq!(said(PolicySocket(None, None).release(b"{}").await).await.0, StatusCode::OK);
}

#[tokio::test]
async fn pods_that_are_gone_are_released() {
    let policies = FakePolicies::new(Duration::ZERO, Ok(isolated()));
    let socket = PolicySocket(Some(policies.clone()), None);
    let gone = ReleasedPod { name: "web".into(), ..ReleasedPod::default() };
    let request = ReleaseRequest { pods: vec![gone.clone()] };
    let answer = socket.release(&serde_json::to_vec(&request).unwrap()).await;
    assert_eq!(said(answer).await, (StatusCode::OK, String::new()));
    assert_eq!(*policies.released.lock().unwrap(), [gone]);
}
