use super::*;

fn take(places: &ConnectionPlaces<&'static str>, key: &'static str) -> Option<ConnectionPlace<&'static str>> {
    places.try_take(key, &silent())
}

/// One that says nothing.
fn silent() -> Arc<dyn AsFd + Send + Sync> {
    Arc::new(std::os::unix::net::UnixDatagram::unbound().unwrap())
}

fn has_lost(place: &mut ConnectionPlace<&'static str>) -> bool {
    matches!(place.evicted.try_recv(), Err(oneshot::error::TryRecvError::Closed))
}

#[test]
fn the_oldest_makes_room() {
    let places = ConnectionPlaces::new(3);
    let mut held: Vec<_> = (0..3).map(|_| take(&places, "a").unwrap()).collect();
    for new in 3..6 {
        assert!(!has_lost(&mut held[new - 3]));
        held.push(take(&places, "a").unwrap());
        assert!(has_lost(&mut held[new - 3]) && !has_lost(&mut held[new - 2]));
        assert_eq!(places.state().held.len(), 3);
    }
    drop(held);
    assert!(places.state().held.is_empty() && places.state().counts.is_empty());
}

#[test]
fn who_has_the_most_makes_room() {
    let places = ConnectionPlaces::new(4);
    let mut other = take(&places, "other").unwrap();
    let mut many: Vec<_> = (0..3).map(|_| take(&places, "many").unwrap()).collect();
    for _ in 0..10 {
        many.push(take(&places, "many").unwrap());
    }
    assert!(!has_lost(&mut other), "it is the oldest of all, and has one place only");
    let mut others: Vec<_> = (0..3).map(|_| take(&places, "other").unwrap()).collect();
    assert!(has_lost(&mut other), "as many as the one who has the most: the oldest of both");
    let kept = many.iter_mut().filter_map(|place| (!has_lost(place)).then_some(())).count();
    let kept_others = others.iter_mut().filter_map(|place| (!has_lost(place)).then_some(())).count();
    assert_eq!(kept + kept_others, 4);
    assert!(kept >= 1 && kept_others >= 2, "{kept} {kept_others}");
}

#[test]
fn what_is_being_answered_keeps_its_place() {
    let places = ConnectionPlaces::new(2);
    let (mut one, mut two) = (take(&places, "a").unwrap(), take(&places, "a").unwrap());
    one.progress.begin();
    let mut three = take(&places, "a").unwrap();
    assert!(!has_lost(&mut one) && has_lost(&mut two));
    three.progress.begin();
    assert!(take(&places, "b").is_none(), "nobody can make room");
    assert_eq!(places.state().counts.len(), 1);
    one.progress.end();
    let four = take(&places, "b").unwrap();
    assert!(has_lost(&mut one) && !has_lost(&mut three));
    drop((one, two, three, four));
    assert!(places.state().held.is_empty() && places.state().counts.is_empty());
}

#[test]
fn what_was_said_and_is_not_read_yet_keeps_its_place() {
    use std::io::Write;
    let places = ConnectionPlaces::new(1);
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket: Arc<dyn AsFd + Send + Sync> = Arc::new(server);
    let mut one = places.try_take("a", &socket).unwrap();
    client.write_all(b"G").unwrap();
    assert!(take(&places, "b").is_none() && !has_lost(&mut one));
    one.progress.was_heard();
    let _two = take(&places, "b").unwrap();
    assert!(has_lost(&mut one), "it has had its turn");
}

#[tokio::test]
async fn a_place_is_waited_for_where_all_are_being_answered() {
    let places = ConnectionPlaces::new(1);
    let one = places.take("a", silent()).await;
    one.progress.begin();
    let waiting = tokio::spawn({
        let places = places.clone();
        async move { places.take("b", silent()).await.number }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(one);
    let limit = Duration::from_secs(20);
    assert_eq!(tokio::time::timeout(limit, waiting).await.unwrap().unwrap(), 2);
}

#[tokio::test]
async fn a_connection_ends_with_its_place() {
    let places = ConnectionPlaces::new(1);
    let one = places.take("a", silent()).await;
    let work = tokio::spawn(one.hold(std::future::pending()));
    let _two = places.take("a", silent()).await;
    let limit = Duration::from_secs(20);
    assert_eq!(tokio::time::timeout(limit, work).await.unwrap().unwrap(), Ending::Evicted);
}

#[tokio::test]
async fn an_end_waits_for_answers_and_not_for_who_asks_nothing() {
    let places = ConnectionPlaces::new(4);
    let limit = Duration::from_secs(30);
    places.emptied(limit).await;
    let silent = take(&places, "silent").unwrap();
    silent.progress.was_heard();
    places.emptied(limit).await;
    let asking = take(&places, "asking").unwrap();
    asking.progress.begin();
    let waits = tokio::spawn({
        let places = places.clone();
        async move { places.emptied(limit).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waits.is_finished(), "it is being answered");
    asking.progress.end();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waits.is_finished(), "the answer is on its way");
    drop(asking);
    waits.await.unwrap();
    // And for nobody without end.
    let stuck = take(&places, "stuck").unwrap();
    stuck.progress.begin();
    places.emptied(Duration::from_millis(50)).await;
    drop((silent, stuck));
}
