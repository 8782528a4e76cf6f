#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::mpsc;

use facts::PodRef;

use super::*;

fn key(namespace: &str, name: &str) -> PodRef {
    PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid: format!("{namespace}/{name}") }
}

/// An act that waits as a kernel does that is busy: until the sender is dropped.
fn hang(
    slots: &Arc<Slots>,
    key: &PodRef,
) -> (mpsc::Sender<()>, tokio::task::JoinHandle<Result<(), UnfinishedAct>>) {
    let (hold, held) = mpsc::channel::<()>();
    let (slots, key) = (slots.clone(), key.clone());
    let act = tokio::spawn(async move { slots.run(&key, Task::Program, move || _ = held.recv()).await });
    (hold, act)
}

/// More acts hang than run at once; the others are done meanwhile, each in its time, and on one thread for each pod.
#[tokio::test]
async fn acts_that_hang_delay_no_other_pod() {
    let slots = Arc::new(Slots::default());
    let (told, news) = mpsc::channel();
    slots.on_overdue(move |key, overdue| told.send((key.name.clone(), overdue)).unwrap());
    let bad: Vec<PodRef> = (0..3 * AT_ONCE).map(|number| key("bad", &format!("pod-{number:02}"))).collect();
    let hanging: Vec<_> = bad.iter().map(|key| hang(&slots, key)).collect();
    let began = Instant::now();
    for act in [Task::Program, Task::Verify, Task::Clear] {
        assert_eq!(slots.run(&key("good", "web"), act, || 7).await.unwrap(), 7);
    }
    // Those before it in the queue give way one after the other; none takes its whole time.
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    assert!(slots.overdue().is_empty());
    let mut holds = Vec::new();
    for (hold, act) in hanging {
        let error = act.await.unwrap().unwrap_err();
        assert!(matches!(error, UnfinishedAct::Overdue { task: Task::Program }), "{error}");
        holds.push(hold);
    }
    assert_eq!(slots.overdue().into_iter().map(|(key, _)| key).collect::<Vec<_>>(), bad);
    assert!(slots.is_overdue(&bad[0].uid) && !slots.is_overdue(&key("good", "web").uid));
    assert_eq!(slots.slow(), bad.len());
    // Nothing more is begun there.
    let again = slots.run(&bad[0], Task::Verify, || panic!("a second thread")).await;
    assert!(matches!(again, Err(UnfinishedAct::Overdue { task: Task::Program })));
    // What is overdue is not waited for at the end.
    let began = Instant::now();
    slots.settle(Duration::from_secs(60)).await;
    assert!(began.elapsed() < Duration::from_secs(30));
    drop(holds);
    let mut news: Vec<_> =
        std::iter::from_fn(|| news.recv_timeout(Duration::from_secs(30)).ok()).take(2 * bad.len()).collect();
    news.sort_unstable();
    let each = bad.iter().flat_map(|key| [(key.name.clone(), false), (key.name.clone(), true)]);
    assert_eq!(news, each.collect::<Vec<_>>());
    assert!(slots.overdue().is_empty());
    slots.run(&bad[0], Task::Verify, || ()).await.unwrap();
}

/// One waits for what is under way in the same namespace, and a panic takes no slot with it.
#[tokio::test]
async fn acts_of_one_pod_come_one_after_the_other() {
    let slots = Arc::new(Slots::default());
    let pod = key("a", "web");
    let (hold, first) = hang(&slots, &pod);
    loop {
        let changed = slots.changed();
        if slots.slow() > 0 {
            break;
        }
        changed.await;
    }
    let second = tokio::spawn({
        let (slots, pod) = (slots.clone(), pod.clone());
        async move { slots.run(&pod, Task::Clear, || 2).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!second.is_finished());
    drop(hold);
    first.await.unwrap().unwrap();
    assert_eq!(second.await.unwrap().unwrap(), 2);
    let panicked = slots.run(&pod, Task::Verify, || panic!("on purpose")).await;
    assert!(matches!(panicked, Err(UnfinishedAct::Panicked(Task::Verify))));
    assert_eq!(slots.run(&pod, Task::Verify, || 3).await.unwrap(), 3);
}

/// The threads that one Kubernetes namespace can let hang are bounded, and those of others are not counted to it.
#[test]
fn a_namespace_cannot_take_all_the_room() {
    let past = Instant::now().checked_sub(LIMIT).unwrap();
    let slot = |key: &PodRef| Slot { key: key.clone(), task: Task::Program, began: Some(past) };
    let all = |namespaces: usize, pods: usize| -> HashMap<String, Slot> {
        let keys =
            (0..namespaces).flat_map(|n| (0..pods).map(move |pod| key(&format!("n{n}"), &pod.to_string())));
        keys.map(|key| (key.uid.clone(), slot(&key))).collect()
    };
    let taken = all(1, MOST_OF_A_NAMESPACE);
    assert!(matches!(crowded(&taken, &key("n0", "new")), Err(UnfinishedAct::Crowded(MOST_OF_A_NAMESPACE))));
    assert!(crowded(&taken, &key("other", "new")).is_ok());
    assert!(crowded(&all(1, MOST_OF_A_NAMESPACE - 1), &key("n0", "new")).is_ok());
    let taken = all(MOST / MOST_OF_A_NAMESPACE, MOST_OF_A_NAMESPACE);
    assert!(matches!(crowded(&taken, &key("other", "new")), Err(UnfinishedAct::Crowded(MOST))));
}
