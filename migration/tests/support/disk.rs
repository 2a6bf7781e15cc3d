//! A disk in memory that keeps the lifecycle's contract, for guests that are threads.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use ferry_dataplane::buffer::AlignedBuf;
use ferry_dataplane::lifecycle::{
    ActivationHook, DiskLifecycle, Geometry, LifecycleError, RestartHook, RingView, TapEvent,
    WriteTap,
};
use ferry_migration::schema::{BlkState, blk_v1::BlkV1, qos::Qos, queue_v1::QueueV1};

use super::Rng;

/// Where its one ring is, whatever was asked of it.
const RING_AT: u16 = 7;

const BLOCK: u64 = 512;

struct Tap {
    events: Sender<TapEvent>,
    patience: Duration,
    seq: u64,
    acked: u64,
    below: u64,
    generation: u64,
}

struct State {
    bytes: Vec<u8>,
    tap: Option<Tap>,
    generations: u64,
    locked: Option<Range<u64>>,
    flying: Vec<Range<u64>>,
    rings: bool,
    quiesced: bool,
    on_restart: Option<Arc<RestartHook>>,
    hook: Option<ActivationHook>,
    next_avail: u16,
}

pub struct FakeDisk {
    state: Mutex<State>,
    wake: Condvar,
    capacity: u64,
    /// One write in this many fails half-way; 0 for none.
    pub fail_one_in: AtomicU64,
    /// Guest writes that completed.
    pub completed: AtomicU64,
    /// The longest that a guest waited, in microseconds.
    pub longest_us: AtomicU64,
    /// Reads fail from now on.
    pub broken: AtomicBool,
    /// What it is to get of its datastore.
    pub qos: Mutex<Option<Qos>>,
}

impl FakeDisk {
    pub fn new(capacity: u64) -> Arc<FakeDisk> {
        Arc::new(FakeDisk {
            state: Mutex::new(State {
                bytes: vec![0; usize::try_from(capacity).unwrap()],
                tap: None,
                generations: 0,
                locked: None,
                flying: Vec::new(),
                rings: true,
                quiesced: false,
                on_restart: None,
                hook: None,
                next_avail: 0,
            }),
            wake: Condvar::new(),
            capacity,
            fail_one_in: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            qos: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.wake
            .wait_timeout(state, Duration::from_millis(20))
            .unwrap()
            .0
    }

    /// Random data on three quarters of the extents.
    pub fn fill(&self, seed: u64) {
        let mut rng = Rng(seed);
        for extent in self.lock().bytes.chunks_mut(65_536) {
            if rng.below(4) > 0 {
                extent
                    .chunks_mut(8)
                    .for_each(|c| c.copy_from_slice(&rng.next().to_le_bytes()[..c.len()]));
            }
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    pub fn set_bytes(&self, bytes: Vec<u8>) {
        self.lock().bytes = bytes;
    }

    pub fn tapped(&self) -> bool {
        self.lock().tap.is_some()
    }

    pub fn shape(&self) -> BlkV1 {
        BlkV1 {
            capacity_bytes: self.capacity,
            block_bytes: 512,
            num_queues: 1,
            read_only: false,
            acked_features: 1 << 32,
            writeback: true,
            serial: *b"ferry-test----------",
        }
    }

    /// The VMM stops the rings: drained when this returns, whatever the network does.
    pub fn stop_rings(&self) {
        let mut state = self.lock();
        state.rings = false;
        while !state.flying.is_empty() {
            state = self.wait(state);
        }
        self.wake.notify_all();
    }

    /// The VMM starts the rings.
    pub fn start_rings(&self) {
        let hook = {
            let mut state = self.lock();
            state.rings = true;
            if state.quiesced {
                state.on_restart.clone()
            } else {
                None
            }
        };
        if let Some(hook) = hook {
            hook();
        }
        self.wake.notify_all();
    }

    /// The guest's first request after a move; says whether the disk serves.
    pub fn first_descriptor(&self) -> bool {
        let hook = self.lock().hook.take();
        let serves = hook.is_some_and(|hook| hook());
        if serves {
            self.resume();
            self.start_rings();
        }
        serves
    }

    /// Makes the disk give its mirror up.
    pub fn fail_tap(&self, why: &str) {
        let tap = self.lock().tap.take();
        if let Some(tap) = tap {
            let _ = tap
                .events
                .send_timeout(TapEvent::Failed(why.into()), Duration::from_secs(1));
        }
        self.wake.notify_all();
    }

    /// A guest's write, to its completion. False when the disk is out of service.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        self.change(offset, data.len() as u64, Some(data), false)
    }

    /// A guest's write-zeroes.
    pub fn zero(&self, offset: u64, len: u64) -> bool {
        self.change(offset, len, None, false)
    }

    fn change(&self, offset: u64, len: u64, data: Option<&[u8]>, fails: bool) -> bool {
        let began = Instant::now();
        let range = offset..offset + len;
        let meets = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        let mut state = self.lock();
        let mut mirrored = None;
        loop {
            if state.quiesced || !state.rings {
                return false;
            }
            if state.locked.as_ref().is_some_and(meets) || state.flying.iter().any(meets) {
                state = self.wait(state);
                continue;
            }
            let Some(tap) = state.tap.as_mut().filter(|tap| offset < tap.below) else {
                break;
            };
            let seq = tap.seq + 1;
            let event = match data {
                Some(data) => {
                    let mut stable = AlignedBuf::new(data.len());
                    stable[..data.len()].copy_from_slice(data);
                    let data = Arc::new(stable);
                    TapEvent::Write {
                        seq,
                        offset_bytes: offset,
                        data,
                        len: usize::try_from(len).unwrap(),
                    }
                }
                None => TapEvent::Zero {
                    seq,
                    offset_bytes: offset,
                    len_bytes: len,
                },
            };
            match tap.events.try_send(event) {
                Ok(()) => {
                    tap.seq = seq;
                    mirrored = Some((seq, tap.generation, tap.patience));
                    break;
                }
                Err(TrySendError::Full(_)) if began.elapsed() < tap.patience => {
                    state = self.wait(state);
                }
                Err(_) => state.tap = None,
            }
        }
        state.flying.push(range.clone());
        state.next_avail = state.next_avail.wrapping_add(1);
        drop(state);
        if (offset / 512).is_multiple_of(7) {
            std::thread::sleep(Duration::from_micros(offset / 512 % 150));
        }
        let mut state = self.lock();
        let (from, to) = (
            usize::try_from(offset).unwrap(),
            usize::try_from(offset + len).unwrap(),
        );
        // A failed write leaves half of it.
        let landed = if fails { from + (to - from) / 2 } else { to };
        match data {
            Some(data) => state.bytes[from..landed].copy_from_slice(&data[..landed - from]),
            None => state.bytes[from..landed].fill(0),
        }
        let at = state
            .flying
            .iter()
            .position(|other| *other == range)
            .unwrap();
        if fails
            && mirrored.is_some()
            && let Some(tap) = &state.tap
        {
            let dirty = TapEvent::Dirty {
                offset_bytes: offset,
                len_bytes: len,
            };
            if tap.events.try_send(dirty).is_err() {
                state.tap = None;
            }
        }
        state.flying.swap_remove(at);
        self.wake.notify_all();
        if let Some((seq, generation, patience)) = mirrored {
            state = self.wait_acknowledged(state, seq, generation, patience);
        }
        drop(state);
        self.completed.fetch_add(1, Ordering::Relaxed);
        let waited = u64::try_from(began.elapsed().as_micros()).unwrap();
        self.longest_us.fetch_max(waited, Ordering::Relaxed);
        true
    }

    fn wait_acknowledged<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        seq: u64,
        generation: u64,
        patience: Duration,
    ) -> MutexGuard<'a, State> {
        let began = Instant::now();
        loop {
            // A stopped ring does not wait for the network.
            let Some(tap) = state.tap.as_ref() else {
                return state;
            };
            if tap.generation != generation || tap.acked >= seq || !state.rings {
                return state;
            }
            if began.elapsed() >= patience {
                let tap = state.tap.take().unwrap();
                let why = "a mirrored write waited too long";
                let _ = tap.events.try_send(TapEvent::Failed(why.into()));
                self.wake.notify_all();
                return state;
            }
            state = self.wait(state);
        }
    }

    /// Threads that write until told to stop; refused writes (rings stopped) are waited out.
    pub fn load(self: &Arc<Self>, threads: u64, seed: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..threads)
            .map(|number| {
                let (disk, stop) = (self.clone(), stop.clone());
                let mut rng = Rng(seed * 1000 + number);
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        disk.one(&mut rng);
                    }
                })
            })
            .collect();
        Load { stop, threads }
    }

    fn one(&self, rng: &mut Rng) {
        let blocks = self.capacity / BLOCK;
        let at = rng.below(blocks);
        let most = if rng.below(20) == 0 { 600 } else { 32 };
        let len = (1 + rng.below(most)).min(blocks - at) * BLOCK;
        let one_in = self.fail_one_in.load(Ordering::Relaxed);
        let fails = one_in > 0 && rng.below(one_in) == 0;
        let served = if rng.below(10) == 0 {
            self.change(at * BLOCK, len, None, fails)
        } else {
            let byte = rng.next().to_le_bytes();
            let data: Vec<u8> = (0..len)
                .map(|i| byte[(i % 8) as usize] ^ (i / 512).to_le_bytes()[0])
                .collect();
            self.change(at * BLOCK, len, Some(&data), fails)
        };
        if !served {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl DiskLifecycle for FakeDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            capacity_bytes: self.capacity,
            block_bytes: 512,
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn attach_tap(&self, tap: WriteTap) -> Result<(), LifecycleError> {
        let mut state = self.lock();
        if state.tap.is_some() {
            return Err(LifecycleError::Refused("mirrored already".into()));
        }
        state.generations += 1;
        state.tap = Some(Tap {
            events: tap.events,
            patience: Duration::from_nanos(tap.patience_ns),
            seq: 0,
            acked: 0,
            below: 0,
            generation: state.generations,
        });
        Ok(())
    }

    fn detach_tap(&self) {
        let mut state = self.lock();
        state.tap = None;
        state.locked = None;
        self.wake.notify_all();
    }

    fn lock_range(&self, range: Range<u64>) -> Result<(), LifecycleError> {
        let mut state = self.lock();
        if state.tap.is_none() {
            return Err(LifecycleError::Refused("the tap is gone".into()));
        }
        assert!(state.locked.is_none(), "two locks at once");
        state.locked = Some(range.clone());
        while state
            .flying
            .iter()
            .any(|f| f.start < range.end && range.start < f.end)
        {
            state = self.wait(state);
        }
        Ok(())
    }

    fn unlock_range(&self, mirrored_below: u64) -> Result<(), LifecycleError> {
        let mut state = self.lock();
        state.locked = None;
        self.wake.notify_all();
        match &mut state.tap {
            Some(tap) => {
                assert!(tap.below <= mirrored_below, "the cursor went back");
                tap.below = mirrored_below;
                Ok(())
            }
            None => Err(LifecycleError::Refused("the tap is gone".into())),
        }
    }

    fn acknowledge(&self, seq: u64) {
        let mut state = self.lock();
        if let Some(tap) = &mut state.tap {
            assert!(seq <= tap.seq, "acknowledged what was never mirrored");
            tap.acked = tap.acked.max(seq);
        }
        self.wake.notify_all();
    }

    fn read_at(&self, offset: u64, buf: &mut AlignedBuf, len: usize) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("medium error"));
        }
        let from = usize::try_from(offset).unwrap();
        buf[..len].copy_from_slice(&self.lock().bytes[from..from + len]);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let state = self.lock();
        let zero = |at: u64| {
            let from = usize::try_from(at).unwrap();
            let to = (from + 4096).min(state.bytes.len());
            state.bytes[from..to].iter().all(|b| *b == 0)
        };
        let mut at = offset;
        while at < self.capacity && zero(at) {
            at += 4096;
        }
        if at >= self.capacity {
            return Ok(None);
        }
        let start = at;
        while at < self.capacity && !zero(at) && at - start < (1 << 20) {
            at += 4096;
        }
        Ok(Some(start..at.min(self.capacity)))
    }

    fn rings_running(&self) -> bool {
        self.lock().rings
    }

    fn forget_departed(&self) {}

    fn rings(&self) -> Vec<RingView> {
        let running = self.lock().rings;
        vec![RingView {
            next_avail: RING_AT,
            running,
        }]
    }

    fn quiesce(&self, on_restart: RestartHook) -> Result<(), LifecycleError> {
        let mut state = self.lock();
        state.quiesced = true;
        state.on_restart = Some(Arc::new(on_restart));
        while !state.flying.is_empty() {
            state = self.wait(state);
        }
        Ok(())
    }

    fn resume(&self) {
        let mut state = self.lock();
        state.quiesced = false;
        state.on_restart = None;
        state.hook = None;
        self.wake.notify_all();
    }

    fn await_activation(&self, hook: ActivationHook) -> Result<(), LifecycleError> {
        let mut state = self.lock();
        state.quiesced = true;
        state.hook = Some(hook);
        Ok(())
    }

    fn export(&self) -> Result<Vec<u8>, LifecycleError> {
        let next_avail = self.lock().next_avail;
        let queue = QueueV1 {
            index: 0,
            size: 256,
            next_avail,
            used_idx: next_avail,
            enabled: true,
            event_idx: false,
        };
        let state = BlkState::new(self.shape(), vec![queue]);
        let qos = self.qos.lock().unwrap().clone();
        state
            .and_then(|s| s.with_qos(qos))
            .and_then(|s| s.encode())
            .map_err(|e| LifecycleError::BadState(e.to_string()))
    }

    fn import(&self, envelope: &[u8]) -> Result<(), LifecycleError> {
        let state =
            BlkState::decode(envelope).map_err(|e| LifecycleError::BadState(e.to_string()))?;
        self.lock().next_avail = state.queues[0].next_avail;
        if state.qos.is_some() {
            *self.qos.lock().unwrap() = state.qos;
        }
        Ok(())
    }
}
