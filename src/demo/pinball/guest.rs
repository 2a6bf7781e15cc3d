//! The guest: it plays the game, and each frame goes out by its NIC and to its disk.
//!
//! It knows nothing of moves. While its rings stand still, what it puts into them waits there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{
    BlkQueue, BufferPool, GuestDevice, GuestMemory, Op, QueueOptions, Segment, Status,
};

use super::cable::Card;
use super::record::{KEY_BYTES, RECORD_BYTES, Record, SECTOR_BYTES, key_of, sector};
use super::stack::{End, Stack};
use super::table::{FRAMES_PER_S, Table};
use super::{SECTORS, Shared};
use crate::error::{Done, Failure};

/// How often a thread of the game looks up from its sleep.
pub const NAP: Duration = Duration::from_micros(200);
const RING_SIZE: u16 = 128;
/// Frames on their way to the disk. More have to wait for the next frame: the game does.
const DEPTH: u16 = 64;
const READ_BYTES: u32 = 32 * 1024;
/// Frames that it makes up for when it was kept from playing; the rest is skipped.
const LATE_MAX: u32 = 6;
/// A request that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest's disk, frame by frame.
pub struct Disk {
    queue: BlkQueue,
    buffers: BufferPool,
    /// By the token's slot.
    held: Vec<Option<Segment>>,
    errors: u64,
}

impl Disk {
    /// Guest memory that it takes.
    pub fn memory_bytes() -> u64 {
        u64::from(DEPTH) * 4096 + u64::from(READ_BYTES) + (1 << 18)
    }

    /// Its ring, laid out in that memory, and its driver.
    pub fn new(memory: &GuestMemory, features: u64) -> Done<(GuestDevice, Disk)> {
        let device = GuestDevice::new(memory, 1, RING_SIZE)?;
        let options = QueueOptions {
            depth: DEPTH,
            segments_max: 1,
            indirect: true,
        };
        let disk = Disk {
            queue: device.blk_queue(0, features, options)?,
            buffers: BufferPool::new(memory, DEPTH.into(), 512)?,
            held: vec![None; DEPTH.into()],
            errors: 0,
        };
        Ok((device, disk))
    }

    fn has_room(&self) -> bool {
        self.queue.has_room(1)
    }

    /// Writes a frame's sector; there must be room.
    fn write(&mut self, record: &[u8; RECORD_BYTES], frame: u64) -> Done {
        let Some(buffer) = self.buffers.take() else {
            return Err(Failure::Failed("the guest's disk has no buffer".into()));
        };
        self.buffers.memory().write(buffer.addr, &sector(record))?;
        let token = self.queue.submit(Op::Write, frame % SECTORS, &[buffer])?;
        self.held[token.slot()] = Some(buffer);
        self.queue.commit()?;
        Ok(())
    }

    fn reap(&mut self) -> Done {
        while let Some(done) = self.queue.pop()? {
            self.errors += u64::from(done.status != Status::Ok);
            if let Some(buffer) = self.held[done.token.slot()].take() {
                self.buffers.give(buffer);
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Done {
        let began = Instant::now();
        while self.queue.in_flight() > 0 {
            self.reap()?;
            if began.elapsed() > PATIENCE {
                return Err(Failure::Failed("the guest's disk does not answer".into()));
            }
            thread::sleep(NAP);
        }
        Ok(())
    }

    /// Reads the sectors of so many frames, from the first on.
    fn read_back(&mut self, frames: u64) -> Done<Vec<u8>> {
        self.drain()?;
        let memory = self.buffers.memory().clone();
        let buffer = memory.alloc(READ_BYTES.into(), 4096)?;
        let mut all = Vec::new();
        let mut left = frames.min(SECTORS) * SECTOR_BYTES as u64;
        while left > 0 {
            let len = READ_BYTES.min(u32::try_from(left).unwrap_or(READ_BYTES));
            let from = (all.len() / SECTOR_BYTES) as u64;
            // Not what the last read left there.
            memory.write(buffer, &vec![0; len as usize])?;
            let segment = Segment { addr: buffer, len };
            self.queue.submit(Op::Read, from, &[segment])?;
            self.queue.commit()?;
            self.drain()?;
            let mut bytes = vec![0; len as usize];
            memory.read(buffer, &mut bytes)?;
            all.extend(bytes);
            left -= u64::from(len);
        }
        Ok(all)
    }
}

/// What the guest has to tell at the end.
pub struct Account {
    /// Frames that it sent and wrote.
    pub frames: u64,
    /// Keys that did not come whole and in order.
    pub bad_keys: u64,
    /// Requests of its disk that failed.
    pub disk_errors: u64,
    pub reset: bool,
    /// The sectors of its frames, as they are on the disk.
    pub sectors: Vec<u8>,
}

/// The guest and its drivers.
pub struct Guest {
    table: Table,
    run: u32,
    frames: u64,
    /// Records for which the stream had no room.
    waiting: VecDeque<[u8; RECORD_BYTES]>,
    heard: u32,
    bad_keys: u64,
    /// Pressed since the last frame.
    keys: u8,
    inbox: Vec<u8>,
    card: Card,
    disk: Disk,
    stack: Stack,
    shared: Arc<Shared>,
}

impl Guest {
    pub fn new(seed: u64, run: u32, card: Card, disk: Disk, shared: Arc<Shared>) -> Done<Guest> {
        Ok(Guest {
            table: Table::new(seed),
            run,
            frames: 0,
            waiting: VecDeque::new(),
            heard: 0,
            bad_keys: 0,
            keys: 0,
            inbox: Vec::new(),
            card,
            disk,
            stack: Stack::new(End::Guest)?,
            shared,
        })
    }

    /// Plays until it is told to end; then reads back what is on the disk.
    pub fn play(mut self) -> Done<Account> {
        let period = Duration::from_secs(1) / FRAMES_PER_S;
        let mut due = Instant::now();
        let (mut closed, mut reset) = (false, false);
        while !self.shared.over.load(Ordering::Acquire) {
            self.network()?;
            self.disk.reap()?;
            let ending = self.shared.ending.load(Ordering::Acquire);
            if closed || !self.stack.is_open() {
                // Before the screen is there, or after all was said.
                due = Instant::now();
                reset |= !closed && self.frames > 0 && self.stack.is_reset();
            } else if ending && self.waiting.is_empty() {
                self.stack.close();
                closed = true;
            } else if !ending && Instant::now() >= due && self.disk.has_room() {
                self.frame()?;
                due = (due + period).max(Instant::now() - period * LATE_MAX);
            }
            thread::sleep(NAP);
        }
        let sectors = self.disk.read_back(self.frames)?;
        Ok(Account {
            frames: self.frames,
            bad_keys: self.bad_keys,
            disk_errors: self.disk.errors,
            reset,
            sectors,
        })
    }

    fn frame(&mut self) -> Done {
        let keys = std::mem::take(&mut self.keys);
        self.table.frame(keys);
        let told = (self.heard, self.run);
        let record = Record::of(&self.table, self.frames, keys, told).to_bytes();
        self.waiting.push_back(record);
        self.disk.write(&record, self.frames)?;
        self.frames += 1;
        Ok(())
    }

    /// Lets the stack hear and speak.
    fn network(&mut self) -> Done {
        let stack = &mut self.stack;
        self.card.receive(|frame| stack.arrived(frame))?;
        stack.poll();
        stack.receive(&mut self.inbox);
        while let Some((key, rest)) = self.inbox.split_first_chunk::<KEY_BYTES>() {
            match key_of(key, self.heard) {
                Some(keys) => self.keys |= keys,
                None => self.bad_keys += 1,
            }
            self.heard = self.heard.wrapping_add(1);
            self.inbox = rest.to_vec();
        }
        while let Some(record) = self.waiting.front() {
            if !stack.send(record) {
                break;
            }
            self.waiting.pop_front();
        }
        stack.poll();
        // What finds no room waits in the stack, as in a driver.
        for _ in 0..self.card.room()? {
            let Some(frame) = stack.next_frame() else {
                break;
            };
            self.card.send(&frame);
        }
        self.card.commit()
    }
}
