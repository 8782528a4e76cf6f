//! The store as lists and watches fill it.

use facts::peer::Peer;

use super::{Effect, Peers, Slot};
use crate::news::{Hold, Item, News, ObjectKey};
use crate::rounds::{RoundMark, Rounds};

impl Hold<Peer> for Peers {
    type Held = Peer;

    fn take(&mut self, news: News<Peer>) -> Vec<Effect> {
        let effect = match news {
            News::ListBegins => {
                self.rounds.begin();
                None
            }
            News::Listed(item) | News::Watched(_, item) | News::Fetched(item) => {
                let Item { key, uid, object, .. } = item;
                self.apply(key, uid, object)
            }
            News::Gone(item) => self.delete(item.key, item.uid),
            News::Unreadable(key) => {
                if let Some(number) = self.find(&key)
                    && let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut)
                {
                    self.rounds.see(&mut slot.mark);
                }
                None
            }
            News::Reached(_) => None,
            News::ListEnds(_) => {
                self.rounds.commit();
                return self.remove_all(|rounds, mark| !rounds.has(mark));
            }
            News::ListFails { most } => {
                let is_new = |slot: &&Slot| self.rounds.is_new(slot.mark);
                if most.is_some_and(|most| self.slots.iter().flatten().filter(is_new).count() <= most) {
                    return Vec::new();
                }
                return self.remove_all(Rounds::is_new);
            }
        };
        effect.into_iter().collect()
    }
}

impl Peers {
    fn remove_all(&mut self, goes: impl Fn(&Rounds, RoundMark) -> bool) -> Vec<Effect> {
        let slots = (0..).zip(&self.slots).filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
        let gone = slots.filter(|(_, slot)| goes(&self.rounds, slot.mark)).map(|(number, slot)| {
            let key = ObjectKey::new(self.texts.get(slot.namespace), self.texts.get(slot.name));
            (number, key)
        });
        let gone: Vec<(u32, ObjectKey)> = gone.collect();
        let effect = |(number, key)| Some(Effect { key, before: Some(self.remove(number)?), after: None });
        gone.into_iter().filter_map(effect).collect()
    }
}
