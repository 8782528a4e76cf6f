//! Values that many pods share, each kept once and named by a number.

use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;

use hashbrown::HashTable;

/// The number of a value. Those of different values are different as long as the values are in use.
#[derive(Debug)]
pub(super) struct Id<T: ?Sized>(u32, PhantomData<fn(&T)>);

/// Values that are in use, and how often.
#[derive(Debug)]
pub(super) struct Interned<T: ?Sized> {
    entries: Vec<Entry<T>>,
    /// Numbers by the hash of their values.
    table: HashTable<u32>,
    /// Numbers that are free.
    free: Vec<u32>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Entry<T: ?Sized> {
    value: Box<T>,
    uses: u32,
}

// === impl Interned ===

impl<T: ?Sized + Hash + Eq> Interned<T>
where
    Box<T>: Default,
{
    /// The number of a value, which is used once more.
    pub(super) fn take<B: AsRef<T> + Into<Box<T>>>(&mut self, value: B) -> Id<T> {
        if let Some(id) = self.find(value.as_ref()) {
            self.entries[id.0 as usize].uses += 1;
            return id;
        }
        let hash = self.hasher.hash_one(value.as_ref());
        let entry = Entry { value: value.into(), uses: 1 };
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                // There are never as many values as that: each takes more than a byte.
                u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.table.insert_unique(hash, number, |other| hasher.hash_one(&*entries[*other as usize].value));
        Id(number, PhantomData)
    }

    /// The number of a value that is in use.
    pub(super) fn find(&self, value: &T) -> Option<Id<T>> {
        let hash = self.hasher.hash_one(value);
        let number = self.table.find(hash, |number| *self.entries[*number as usize].value == *value)?;
        Some(Id(*number, PhantomData))
    }

    pub(super) fn get(&self, id: Id<T>) -> &T {
        &self.entries[id.0 as usize].value
    }

    /// A value is used once less. Gives it back when that was the last time.
    pub(super) fn release(&mut self, id: Id<T>) -> Option<Box<T>> {
        let Self { entries, table, free, hasher } = self;
        let entry = entries.get_mut(id.0 as usize)?;
        entry.uses -= 1;
        if entry.uses > 0 {
            return None;
        }
        let value = std::mem::take(&mut entry.value);
        if let Ok(found) = table.find_entry(hasher.hash_one(&*value), |number| *number == id.0) {
            found.remove();
        }
        free.push(id.0);
        Some(value)
    }

    /// Number of values.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

impl<T: ?Sized> Default for Interned<T> {
    fn default() -> Self {
        let (entries, table, free) = (Vec::new(), HashTable::new(), Vec::new());
        Self { entries, table, free, hasher: RandomState::new() }
    }
}

// === impl Id ===

impl<T: ?Sized> Id<T> {
    /// The smallest and the largest, for ranges.
    pub(super) const FIRST: Self = Self(0, PhantomData);
    pub(super) const LAST: Self = Self(u32::MAX, PhantomData);
}

impl<T: ?Sized> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Id<T> {}

impl<T: ?Sized> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: ?Sized> Eq for Id<T> {}

impl<T: ?Sized> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: ?Sized> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T: ?Sized> Hash for Id<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
