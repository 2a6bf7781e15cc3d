//! A heap of clients, each at most once, that any of them can be taken out of. Takes no memory but
//! when room is made for more clients.

/// Clients by a key, the least first; equal keys in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Heap {
    entries: Vec<(u64, u32)>,
    /// Where each client is in `entries`.
    places: Vec<u32>,
}

const NOWHERE: u32 = u32::MAX;

impl Heap {
    /// Makes room for clients below `count`.
    pub fn reserve(&mut self, count: usize) {
        if self.places.len() < count {
            self.places.resize(count, NOWHERE);
        }
        self.entries
            .reserve(count.saturating_sub(self.entries.len()));
    }

    pub fn first(&self) -> Option<(u64, u32)> {
        self.entries.first().copied()
    }

    /// Puts a client in, or gives it another key.
    pub fn put(&mut self, client: u32, key: u64) {
        let place = self.places[client as usize];
        let at = if place == NOWHERE {
            self.entries.push((key, client));
            self.entries.len() - 1
        } else {
            self.entries[place as usize].0 = key;
            place as usize
        };
        let at = self.rise(at);
        self.sink(at);
    }

    /// Takes a client out, if it is in.
    pub fn take(&mut self, client: u32) {
        let place = self.places[client as usize];
        if place == NOWHERE {
            return;
        }
        let at = place as usize;
        self.entries.swap_remove(at);
        self.places[client as usize] = NOWHERE;
        if at < self.entries.len() {
            let at = self.rise(at);
            self.sink(at);
        }
    }

    /// Changes all keys by a function that keeps their order.
    pub fn shift(&mut self, change: impl Fn(u64) -> u64) {
        for (key, _) in &mut self.entries {
            *key = change(*key);
        }
    }

    fn place(&mut self, at: usize) {
        let client = self.entries[at].1;
        self.places[client as usize] = u32::try_from(at).expect("fewer entries than clients");
    }

    fn rise(&mut self, mut at: usize) -> usize {
        while at > 0 && self.entries[at] < self.entries[(at - 1) / 2] {
            self.entries.swap(at, (at - 1) / 2);
            self.place(at);
            at = (at - 1) / 2;
        }
        self.place(at);
        at
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.entries.len() && self.entries[child] < self.entries[least] {
                    least = child;
                }
            }
            if least == at {
                return self.place(at);
            }
            self.entries.swap(at, least);
            self.place(at);
            at = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_what_a_sorted_map_is(steps in prop::collection::vec((0u32..20, 0u64..50, any::<bool>()), 1..300)) {
            let mut heap = Heap::default();
            heap.reserve(20);
            let mut model = BTreeMap::new();
            for (client, key, put) in steps {
                if put {
                    heap.put(client, key);
                    model.insert(client, key);
                } else {
                    heap.take(client);
                    model.remove(&client);
                }
                let least = model.iter().map(|(&client, &key)| (key, client)).min();
                prop_assert_eq!(heap.first(), least);
            }
        }
    }
}
