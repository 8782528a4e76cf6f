use super::*;

fn element(last: u8, comment: &str) -> Element {
    Element { comment: comment.to_owned(), ..key(last).into() }
}

fn key(last: u8) -> Key {
    Key::Address([10, 0, 0, last].into())
}

fn delta(add: &[Element], remove: &[Key]) -> SetDelta {
    let mut delta = SetDelta::default();
    remove.iter().for_each(|key| delta.remove(*key));
    add.iter().for_each(|element| delta.add(element.clone()));
    delta
}

#[test]
fn the_last_word_on_a_key_counts() {
    let mut both = SetDelta::default();
    both.add(element(1, "a"));
    both.remove(key(1));
    assert_eq!(both, delta(&[], &[key(1)]));
    both.add(element(1, "b"));
    assert_eq!(both, delta(&[element(1, "b")], &[]));
}

#[test]
fn one_after_another_is_one() {
    let first = delta(&[element(1, "a"), element(2, "a")], &[key(3), key(4)]);
    let second = delta(&[element(2, "b"), element(3, "b")], &[key(1), key(5)]);
    let wanted = delta(&[element(2, "b"), element(3, "b")], &[key(1), key(4), key(5)]);
    assert_eq!(first.clone().then(second), wanted);
    assert_eq!(first.clone().then(SetDelta::default()), first);
    assert_eq!(SetDelta::default().then(first.clone()), first);
}

#[test]
fn what_is_the_same_in_both_is_not_changed() {
    let old = [element(1, "a"), element(2, "a"), element(3, "a")];
    let new = [element(2, "b"), element(3, "a"), element(4, "a")];
    assert_eq!(SetDelta::between(&old, &new), delta(&[element(2, "b"), element(4, "a")], &[key(1)]));
    assert!(SetDelta::between(&old, &old).is_empty());
    let chain =
        |name: &'static str| vec![Element { verdict: Some(MapVerdict::Jump(name.into())), ..key(1).into() }];
    assert_eq!(SetDelta::between(&chain("a"), &chain("b")).added().next(), chain("b").pop());
}
