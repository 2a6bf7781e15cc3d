//! Which port an address is behind, learnt from where its frames come from.
//!
//! Buckets of eight entries each; an address has its place in one bucket, and nowhere else, so that
//! finding, learning and replacing look at eight keys. Which bucket it is, a keyed hash says
//! (SipHash-1-3): guests choose their addresses, and one that could foresee which of them meet would
//! push its neighbours' out. A guest that sends from ever new addresses can fill the table; that is
//! for the check of source addresses to prevent. Frames to who was pushed out go to all ports until
//! it sends again, as in any switch.

use super::frame::Mac;

/// Addresses that the table has room for.
pub const TABLE_ENTRIES: usize = 4096;

/// How long an address is known without a frame from it, in nanoseconds: 802.1D's 300 s.
pub const AGE_NS: u64 = 300_000_000_000;

/// An entry's time is only written again when it is older than this, in nanoseconds: a busy address
/// costs a look, not a store, and ages out that much early at most.
pub const REFRESH_NS: u64 = 1_000_000_000;

/// Entries that one look goes through: their keys fill a cache line.
const WAYS: usize = 8;

const BUCKETS: usize = TABLE_ENTRIES / WAYS;

/// The key of no entry; its address never sends.
const EMPTY: u64 = 0;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    keys: [u64; WAYS],
    seen_ns: [u64; WAYS],
    ports: [u16; WAYS],
}

const EMPTY_BUCKET: Bucket = Bucket {
    keys: [EMPTY; WAYS],
    seen_ns: [0; WAYS],
    ports: [0; WAYS],
};

/// The addresses of one switch. Has one owner; all times are of one clock, in nanoseconds.
pub struct Table {
    buckets: Box<[Bucket]>,
    hash_keys: [u64; 2],
    moves: u64,
    replaced: u64,
}

impl Table {
    /// An empty table. `seed` is random, and no guest learns it.
    pub fn new(seed: u64) -> Table {
        Table {
            buckets: vec![EMPTY_BUCKET; BUCKETS].into_boxed_slice(),
            hash_keys: [seed, siphash([seed, !seed], seed)],
            moves: 0,
            replaced: 0,
        }
    }

    /// Notes that a frame came from `mac` in `vlan` (0 for none) by `port`. Addresses that are not
    /// one station's are never learnt. One that is known elsewhere moves at once. If there is no
    /// room, the entry that was not heard of for longest gives way.
    pub fn learn(&mut self, mac: Mac, vlan: u16, port: u16, now_ns: u64) {
        if !mac.is_station() {
            return;
        }
        let key = key(mac, vlan);
        let index = self.bucket_of(key);
        let bucket = &mut self.buckets[index];
        let Some(way) = bucket.way_of(key) else {
            let way = bucket.way_for_new();
            let old = bucket.keys[way] != EMPTY && !bucket.is_over(way, now_ns);
            self.replaced += u64::from(old);
            bucket.keys[way] = key;
            bucket.set(way, port, now_ns);
            return;
        };
        let moved = bucket.ports[way] != port;
        if moved || now_ns.saturating_sub(bucket.seen_ns[way]) > REFRESH_NS {
            self.moves += u64::from(moved && !bucket.is_over(way, now_ns));
            bucket.set(way, port, now_ns);
        }
    }

    /// The port that `mac` in `vlan` was last heard from, in the last [`AGE_NS`].
    pub fn find(&self, mac: Mac, vlan: u16, now_ns: u64) -> Option<u16> {
        if !mac.is_station() {
            return None;
        }
        let key = key(mac, vlan);
        let bucket = &self.buckets[self.bucket_of(key)];
        let way = bucket.way_of(key)?;
        (!bucket.is_over(way, now_ns)).then_some(bucket.ports[way])
    }

    /// Forgets all addresses behind a port. Goes through the whole table: for a port that goes away.
    pub fn forget_port(&mut self, port: u16) {
        for bucket in &mut self.buckets {
            for (key, at) in bucket.keys.iter_mut().zip(bucket.ports) {
                if at == port {
                    *key = EMPTY;
                }
            }
        }
    }

    /// How many addresses are known at `now_ns`. Goes through the whole table.
    pub fn known(&self, now_ns: u64) -> usize {
        let buckets = self.buckets.iter();
        buckets.map(|bucket| bucket.known(now_ns)).sum()
    }

    /// How often an address went from one port to another.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// How often an address gave way that was still known.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    fn bucket_of(&self, key: u64) -> usize {
        let hash = siphash(self.hash_keys, key);
        usize::try_from(hash % BUCKETS as u64).expect("below BUCKETS")
    }
}

impl Bucket {
    fn way_of(&self, key: u64) -> Option<usize> {
        self.keys.iter().position(|&it| it == key)
    }

    /// An empty place, or else the one that was not heard of for longest.
    fn way_for_new(&self) -> usize {
        self.way_of(EMPTY).unwrap_or_else(|| {
            let ways = 0..WAYS;
            ways.min_by_key(|&way| self.seen_ns[way])
                .expect("a bucket has ways")
        })
    }

    fn is_over(&self, way: usize, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.seen_ns[way]) > AGE_NS
    }

    fn known(&self, now_ns: u64) -> usize {
        let used = |way: &usize| self.keys[*way] != EMPTY && !self.is_over(*way, now_ns);
        (0..WAYS).filter(used).count()
    }

    fn set(&mut self, way: usize, port: u16, now_ns: u64) {
        self.ports[way] = port;
        self.seen_ns[way] = now_ns;
    }
}

/// Address and VLAN in one number; not [`EMPTY`] for an address that sends.
fn key(mac: Mac, vlan: u16) -> u64 {
    mac.bits() | u64::from(vlan) << 48
}

/// SipHash-1-3 of one 64-bit number (Aumasson and Bernstein, "SipHash: a fast short-input PRF"; the
/// rounds are those of Rust's own hash tables).
fn siphash(keys: [u64; 2], message: u64) -> u64 {
    let mut state = [
        keys[0] ^ 0x736f_6d65_7073_6575,
        keys[1] ^ 0x646f_7261_6e64_6f6d,
        keys[0] ^ 0x6c79_6765_6e65_7261,
        keys[1] ^ 0x7465_6462_7974_6573,
    ];
    // The second word holds the message's length, in its top byte.
    for word in [message, 8 << 56] {
        state[3] ^= word;
        sip_round(&mut state);
        state[0] ^= word;
    }
    state[2] ^= 0xff;
    for _ in 0..3 {
        sip_round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn sip_round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests;
