//! Who is next on one worker, of the disks of one datastore: mClock (Gulati, Merchant, Varman, OSDI
//! 2010), by the oldest waiting request of each.
//!
//! - **R**: reservations, in real time. A client whose tag has come goes first, whatever the window.
//! - **L**: limits, in real time. Until its time, which a [`Pacer`](super::pacer::Pacer) has given out
//!   for it, a request is not looked at.
//! - **P**: shares, in virtual time. Of the rest the smallest tag goes, when the window allows it.
//!
//! A client that wakes up starts at the smallest active P, or a little before: what it did not use is
//! not saved up beyond [`IDLE_CREDIT`]. Service by R moves P on as well, service by P leaves R where
//! it is; so who has a reservation gets it, and its shares beyond that only if they come to more.
//!
//! A request that may not go is not passed by a smaller one behind it in the order: large requests
//! would never find a window that is empty enough.

use super::cost::{COST_ONE, Cost};
use super::heap::Heap;
use super::window::Window;

/// A client of the scheduler: a disk on this worker.
pub type Client = u32;

/// What a client that was idle may be ahead of the others, in I/Os.
pub const IDLE_CREDIT: f64 = 4.0;

/// How far a reservation that the device could not serve is owed, in nanoseconds.
const OWED_NS: u64 = 100_000_000;

/// What of a reservation an idle client may make up for, in nanoseconds.
const LATE_NS: u64 = super::pacer::BURST_NS;

/// Virtual time at which all tags are set back: below, a double tells the smallest steps apart.
const REBASE: f64 = 1e6;

/// A client's oldest waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What it counts for.
    pub cost: Cost,
    /// Not before this: its limit's word.
    pub eligible_ns: u64,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This client's head goes to the device now, and is counted there.
    Go(Client),
    /// Nothing before this time, unless something ends or comes.
    At(u64),
    /// Nothing until something ends or comes.
    Idle,
}

#[derive(Debug, Default)]
struct State {
    weight: f64,
    /// Between two I/Os of the reservation, in nanoseconds; 0 for none.
    reserved_ns: f64,
    p: f64,
    r_ns: u64,
    head: Option<Head>,
    known: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Scheduler {
    clients: Vec<State>,
    free: Vec<Client>,
    /// Limited heads, by when they are eligible.
    limited: Heap,
    /// The others, by P; those with a reservation also by R.
    ready: Heap,
    reserved: Heap,
    window: Window,
    /// P of what went last by shares.
    virtual_now: f64,
}

/// Tags are never negative: their bits order as they do.
fn key(tag: f64) -> u64 {
    tag.to_bits()
}

impl Scheduler {
    /// One without clients, with an open window.
    pub fn new() -> Scheduler {
        Scheduler::default()
    }

    /// Adds a client, with the weight of one share. Makes all the room that it will need.
    pub fn add(&mut self) -> Client {
        let client = self.free.pop().unwrap_or_else(|| {
            self.clients.push(State::default());
            Client::try_from(self.clients.len() - 1).expect("few disks")
        });
        let count = self.clients.len();
        for heap in [&mut self.limited, &mut self.ready, &mut self.reserved] {
            heap.reserve(count);
        }
        self.free.reserve(count.saturating_sub(self.free.len()));
        self.clients[client as usize] = State {
            weight: 1.0,
            known: true,
            ..State::default()
        };
        client
    }

    /// Takes a client away, with what it offered.
    pub fn remove(&mut self, client: Client) {
        self.withdraw(client);
        if std::mem::take(&mut self.clients[client as usize].known) {
            self.free.push(client);
        }
    }

    /// What a client gets: a weight above 0, and I/Os a second whatever the window, 0 for none.
    pub fn set_share(&mut self, client: Client, weight: f64, reservation: f64) {
        let state = &mut self.clients[client as usize];
        if weight.is_finite() && weight > 0.0 {
            state.weight = weight;
        }
        let reserved = reservation.is_finite() && reservation > 0.0;
        state.reserved_ns = if reserved { 1e9 / reservation } else { 0.0 };
        if !reserved {
            self.reserved.take(client);
        }
    }

    /// The window, in slots; infinity opens it.
    pub fn set_window(&mut self, now_ns: u64, slots: f64) {
        self.window.set(now_ns, slots);
    }

    /// The window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Whether nothing waits, neither for the window nor for a limit.
    pub fn is_empty(&self) -> bool {
        self.ready.first().is_none() && self.limited.first().is_none()
    }

    /// Whether something waits for the window.
    pub fn is_short(&self) -> bool {
        self.ready.first().is_some()
    }

    /// Says what a client's oldest waiting request is: when it comes to be that, or when its limit
    /// has changed.
    pub fn offer(&mut self, now_ns: u64, client: Client, head: Head) {
        let least = self.ready.first().map(|(bits, _)| f64::from_bits(bits));
        let floor = least.map_or(self.virtual_now, |p| p.min(self.virtual_now));
        let state = &mut self.clients[client as usize];
        if state.head.replace(head).is_none() {
            let credit = IDLE_CREDIT / state.weight;
            state.p = state.p.max(floor - credit).max(0.0);
            state.r_ns = state.r_ns.max(now_ns.saturating_sub(LATE_NS));
        }
        if head.eligible_ns > now_ns {
            self.ready.take(client);
            self.reserved.take(client);
            self.limited.put(client, head.eligible_ns);
        } else {
            self.limited.take(client);
            self.make_ready(client);
        }
    }

    /// Whether a request of a client that offers nothing may go without being offered: nobody waits for
    /// the window, and it has room. It is counted then as one that was.
    pub fn goes_at_once(&mut self, now_ns: u64, client: Client, cost: Cost) -> bool {
        if self.is_short() || !self.window.allows(now_ns, cost) {
            return false;
        }
        if !self.window.is_open() {
            let virtual_now = self.virtual_now;
            let state = &mut self.clients[client as usize];
            let credit = IDLE_CREDIT / state.weight;
            state.p = state.p.max(virtual_now - credit).max(0.0);
            self.virtual_now = virtual_now.max(state.p);
            state.p += f64::from(cost) / f64::from(COST_ONE) / state.weight;
        }
        self.window.begin(now_ns, cost);
        if self.virtual_now > REBASE {
            self.rebase();
        }
        true
    }

    fn make_ready(&mut self, client: Client) {
        let state = &self.clients[client as usize];
        self.ready.put(client, key(state.p));
        if state.reserved_ns > 0.0 {
            self.reserved.put(client, state.r_ns);
        }
    }

    /// Takes back what a client offered: it goes without being asked for, or not at all.
    pub fn withdraw(&mut self, client: Client) {
        self.clients[client as usize].head = None;
        self.limited.take(client);
        self.ready.take(client);
        self.reserved.take(client);
    }

    /// What to do now. After a [`Next::Go`] the client's next request, if it has one, is to be offered
    /// before this is asked again.
    pub fn next(&mut self, now_ns: u64) -> Next {
        while let Some((eligible_ns, client)) = self.limited.first()
            && eligible_ns <= now_ns
        {
            self.limited.take(client);
            self.make_ready(client);
        }
        if let Some((r_ns, client)) = self.reserved.first()
            && r_ns <= now_ns
        {
            return self.go_by_reservation(now_ns, client);
        }
        if let Some((_, client)) = self.ready.first()
            && let Some(head) = self.clients[client as usize].head
            && self.window.allows(now_ns, head.cost)
        {
            return self.go_by_share(now_ns, client, head.cost);
        }
        let limited = self.limited.first().map(|(at, _)| at);
        let reserved = self.reserved.first().map(|(at, _)| at);
        let ready = self.ready.first().and_then(|_| self.window.next_ns(now_ns));
        let next = limited.into_iter().chain(reserved).chain(ready).min();
        next.map_or(Next::Idle, |at| Next::At(at.max(now_ns + 1)))
    }

    fn go_by_reservation(&mut self, now_ns: u64, client: Client) -> Next {
        let state = &mut self.clients[client as usize];
        let cost = state.head.map_or(COST_ONE, |head| head.cost);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let step_ns = (f64::from(cost) / f64::from(COST_ONE) * state.reserved_ns) as u64;
        let owed = now_ns.saturating_sub(OWED_NS);
        state.r_ns = state.r_ns.max(owed).saturating_add(step_ns);
        self.go(now_ns, client, cost)
    }

    fn go_by_share(&mut self, now_ns: u64, client: Client, cost: Cost) -> Next {
        let p = self.clients[client as usize].p;
        self.virtual_now = self.virtual_now.max(p);
        self.go(now_ns, client, cost)
    }

    fn go(&mut self, now_ns: u64, client: Client, cost: Cost) -> Next {
        self.withdraw(client);
        let state = &mut self.clients[client as usize];
        state.p += f64::from(cost) / f64::from(COST_ONE) / state.weight;
        self.window.begin(now_ns, cost);
        if self.virtual_now > REBASE {
            self.rebase();
        }
        Next::Go(client)
    }

    fn rebase(&mut self) {
        let by = self.virtual_now;
        for state in &mut self.clients {
            state.p = (state.p - by).max(0.0);
        }
        self.ready
            .shift(|bits| key((f64::from_bits(bits) - by).max(0.0)));
        self.virtual_now = 0.0;
    }

    /// A request went to the device that nothing held back.
    pub fn pass(&mut self, now_ns: u64, cost: Cost) {
        self.window.begin(now_ns, cost);
    }

    /// The device ended a request.
    pub fn done(&mut self, now_ns: u64, cost: Cost) {
        self.window.end(now_ns, cost);
    }
}

#[cfg(test)]
mod tests;
