//! One direction's sending end.

use super::frame::{HELLO, Stamp};
use crate::frontend::QueueError;
use crate::frontend::net::{TxFrame, TxQueue};

/// The queues that a direction sends on, each with a flow of its own.
#[derive(Debug)]
pub(super) struct Sender {
    queues: Vec<TxQueue>,
    /// The next segment's number, by queue.
    seqs: Vec<u32>,
    /// Where a frame's stamps go.
    stamps: Vec<usize>,
    run: u8,
    lane: u8,
    /// Most frames published at once.
    burst: usize,
    /// Frames a second; as fast as the ring takes them if not given.
    rate_pps: Option<u64>,
    /// The queue whose turn it is.
    turn: usize,
    /// Frames sent.
    pub frames: u64,
    /// Segments in them.
    pub segments: u64,
}

/// What tells a sender's frames from others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub run: u8,
    pub lane: u8,
}

impl Sender {
    pub fn new(
        queues: Vec<TxQueue>,
        stamps: Vec<usize>,
        marks: Marks,
        burst: usize,
        rate_pps: Option<u64>,
    ) -> Self {
        Self {
            seqs: vec![0; queues.len()],
            queues,
            stamps,
            run: marks.run,
            lane: marks.lane,
            burst,
            rate_pps,
            turn: 0,
            frames: 0,
            segments: 0,
        }
    }

    /// Sends a frame on each queue that is to be learnt from and not counted.
    pub fn hello(&mut self, now_ns: u64) -> Result<(), QueueError> {
        let stamp = Stamp {
            run: self.run,
            lane: self.lane,
            flow: HELLO,
            seq: 0,
            sent_ns: now_ns,
        };
        for queue in &mut self.queues {
            queue.reclaim()?;
            // Every segment says so: the frame may be cut on its way.
            let stamps = &self.stamps;
            queue.put(|frame| put_stamps(frame, stamps, &mut { stamp }));
            queue.commit()?;
        }
        Ok(())
    }

    /// How many segments a frame is cut into, at least one.
    pub fn segments_each(&self) -> u64 {
        self.stamps.len().max(1) as u64
    }

    /// Sends a burst of at most so many frames on one queue, if it is due and fits.
    #[inline]
    pub fn go(&mut self, now_ns: u64, elapsed_ns: u64, most: usize) -> Result<(), QueueError> {
        let due = self.due(elapsed_ns).min(most);
        if due == 0 {
            return Ok(());
        }
        let turn = self.turn;
        self.turn = if turn + 1 == self.queues.len() {
            0
        } else {
            turn + 1
        };
        let queue = &mut self.queues[turn];
        let mut room = queue.room();
        if room < due {
            room = queue.reclaim()?;
        }
        // Without a rate a part of a burst would only cost more for each frame.
        let least = match self.rate_pps {
            Some(_) => 1,
            None => due.min(queue.slots()),
        };
        if room < least {
            return Ok(());
        }
        let mut stamp = Stamp {
            run: self.run,
            lane: self.lane,
            flow: u8::try_from(turn).unwrap_or(HELLO),
            seq: self.seqs[turn],
            sent_ns: now_ns,
        };
        let frames = due.min(room);
        let stamps = &self.stamps;
        for _ in 0..frames {
            queue.put(|frame| put_stamps(frame, stamps, &mut stamp));
        }
        queue.commit()?;
        self.seqs[turn] = stamp.seq;
        self.frames += frames as u64;
        self.segments += (frames * self.stamps.len()) as u64;
        Ok(())
    }

    /// How many frames to send now, at most a burst.
    #[inline]
    fn due(&self, elapsed_ns: u64) -> usize {
        let Some(rate) = self.rate_pps else {
            return self.burst;
        };
        let by_now = u128::from(elapsed_ns) * u128::from(rate) / 1_000_000_000;
        let due = by_now.saturating_sub(u128::from(self.frames));
        usize::try_from(due).unwrap_or(usize::MAX).min(self.burst)
    }

    /// Takes back what was sent; frames that the device still has.
    pub fn in_flight(&mut self) -> Result<usize, QueueError> {
        for queue in &mut self.queues {
            queue.reclaim()?;
        }
        Ok(self.queued())
    }

    /// Frames that were not taken back yet.
    pub fn queued(&self) -> usize {
        let each = self.queues.iter().map(|q| usize::from(q.in_flight()));
        each.sum()
    }
}

#[inline]
fn put_stamps(frame: &TxFrame<'_>, stamps: &[usize], stamp: &mut Stamp) {
    for at in stamps {
        frame.write(*at, &stamp.to_bytes());
        stamp.seq = stamp.seq.wrapping_add(1);
    }
}
