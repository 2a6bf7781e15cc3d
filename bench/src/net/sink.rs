//! One direction's receiving end: what came is judged and counted.

use hdrhistogram::Histogram;

use super::clock_ns;
use super::frame::{
    Ends, Form, HEAD_BYTES, HELLO, Judged, SEGMENT_BYTES, STAMP_BYTES, Stamp, judge, pattern,
};
use super::track::Track;
use crate::frontend::QueueError;
use crate::frontend::net::{Frame, RxQueue};

/// Frames taken from a queue at once.
const TURN: usize = 64;

/// The queues that a direction arrives at.
#[derive(Debug)]
pub(super) struct Sink {
    queues: Vec<RxQueue>,
    pub eye: Eye,
}

impl Sink {
    pub fn new(queues: Vec<RxQueue>, eye: Eye) -> Self {
        Self { queues, eye }
    }

    /// Takes what has arrived; how many frames that were.
    #[inline]
    pub fn turn(&mut self) -> Result<usize, QueueError> {
        let mut frames = 0;
        self.eye.now_ns = 0;
        for queue in &mut self.queues {
            frames += queue.poll(TURN, |frame| self.eye.see(frame))?;
        }
        Ok(frames)
    }
}

/// What a direction's frames must look like, and what came.
#[derive(Debug)]
pub(super) struct Eye {
    form: Form,
    ends: Ends,
    run: u8,
    /// By flow.
    tracks: Vec<Track>,
    /// The payload of a segment, where every byte is to be compared.
    pattern: Option<Vec<u8>>,
    scratch: Vec<u8>,
    /// Read when the first frame of a turn is seen.
    now_ns: u64,
    /// A latency, and how many segments had it: those of a burst are alike.
    alike: (u64, u64),
    latency_ns: Histogram<u64>,
    /// A frame to be learnt from came.
    pub heard: bool,
    /// Frames of this load.
    pub frames: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Frames that were not as they were sent.
    pub corrupted: u64,
    /// Frames of others.
    pub other: u64,
}

impl Eye {
    pub fn new(form: Form, ends: Ends, run: u8, flows: usize, every_byte: bool) -> Self {
        let segment = if form.tso { SEGMENT_BYTES } else { form.bytes };
        Self {
            form,
            ends,
            run,
            tracks: vec![Track::new(); flows],
            pattern: every_byte.then(|| (0..segment).map(pattern).collect()),
            scratch: vec![0; segment],
            now_ns: 0,
            alike: (0, 0),
            latency_ns: histogram(),
            heard: false,
            frames: 0,
            bytes: 0,
            corrupted: 0,
            other: 0,
        }
    }

    /// The sum over all flows.
    pub fn sum(&self, of: impl Fn(&Track) -> u64) -> u64 {
        self.tracks.iter().map(of).sum()
    }

    /// The latencies, when all is over.
    pub fn latency_ns(&mut self) -> &Histogram<u64> {
        self.settle();
        &self.latency_ns
    }

    #[inline]
    fn see(&mut self, frame: &Frame<'_>) {
        let mut head = [0; HEAD_BYTES];
        let head = &mut head[..frame.bytes().min(HEAD_BYTES)];
        frame.read(0, head);
        match judge(self.form, &self.ends, head, frame.bytes()) {
            Judged::Other => self.other += 1,
            Judged::Corrupt => self.corrupted += 1,
            Judged::Ours { payload_at, flow } => self.open(frame, head, payload_at, flow),
        }
    }

    #[inline]
    fn open(&mut self, frame: &Frame<'_>, head: &[u8], payload_at: usize, flow: u16) {
        let first = head[payload_at..].first_chunk().and_then(Stamp::parse);
        let Some(first) = first else {
            self.corrupted += 1;
            return;
        };
        if first.run != self.run || first.lane != self.ends.lane {
            self.other += 1;
            return;
        }
        if first.flow == HELLO {
            self.heard = true;
            return;
        }
        if u16::from(first.flow) != flow
            || usize::from(flow) >= self.tracks.len()
            || !self.is_whole(frame, payload_at)
        {
            self.corrupted += 1;
            return;
        }
        self.frames += 1;
        self.bytes += frame.bytes() as u64;
        self.count(first);
        if self.form.tso {
            self.later_segments(frame, payload_at + SEGMENT_BYTES, first.flow);
        }
    }

    fn later_segments(&mut self, frame: &Frame<'_>, mut at: usize, flow: u8) {
        while at + STAMP_BYTES <= frame.bytes() {
            let mut raw = [0; STAMP_BYTES];
            frame.read(at, &mut raw);
            match Stamp::parse(&raw).filter(|s| s.run == self.run && s.flow == flow) {
                Some(stamp) => self.count(stamp),
                None => self.corrupted += 1,
            }
            at += SEGMENT_BYTES;
        }
    }

    /// Whether the payload besides the stamps is as it was sent, if that is asked.
    fn is_whole(&mut self, frame: &Frame<'_>, payload_at: usize) -> bool {
        let Some(pattern) = &self.pattern else {
            return true;
        };
        let mut at = payload_at;
        while at + STAMP_BYTES < frame.bytes() {
            let here = (frame.bytes() - at).min(pattern.len());
            let scratch = &mut self.scratch[..here];
            frame.read(at, scratch);
            if scratch[STAMP_BYTES..] != pattern[STAMP_BYTES..here] {
                return false;
            }
            at += here;
        }
        true
    }

    #[inline]
    fn count(&mut self, stamp: Stamp) {
        if !self.tracks[usize::from(stamp.flow)].note(stamp.seq) {
            return;
        }
        if self.now_ns == 0 {
            self.now_ns = clock_ns();
        }
        let latency = self.now_ns.saturating_sub(stamp.sent_ns);
        if latency != self.alike.0 {
            self.settle();
            self.alike.0 = latency;
        }
        self.alike.1 += 1;
    }

    fn settle(&mut self) {
        let (latency, count) = self.alike;
        self.latency_ns.saturating_record_n(latency, count);
        self.alike.1 = 0;
    }
}

/// Nanoseconds up to a minute, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds are sound")
}
