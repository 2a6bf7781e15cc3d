//! What a correct disk may answer, sector by sector.
//!
//! A sector at rest is one value. One with a history still open is a list of
//! entries, each with the time its writer began and ended and the time it was
//! ruled out. Ruled-out entries stay while a read is in flight that began before.

use std::collections::HashMap;

use super::{SECTOR, Seen, Span, Stamper};

const NEVER: u64 = u64::MAX;

/// Names an operation; a write's number is in its stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// What stood on the disk before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// Zeroes: a fresh image.
    Zero,
    /// Anything, but it must not change by itself.
    Unknown,
}

/// A value that a sector may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Zero.
    Zero,
    /// The stamp of this operation.
    Stamp(u64),
    /// Contents from before the run, known by their hash.
    Before(u64),
    /// Contents from before the run that nobody has read yet.
    Unknown,
}

impl Value {
    fn of(seen: Seen) -> Self {
        match seen {
            Seen::Zero => Value::Zero,
            Seen::Stamp { op, .. } => Value::Stamp(op),
            Seen::Foreign { hash, .. } => Value::Before(hash),
        }
    }

    fn matches(self, seen: Seen, at: u64) -> bool {
        match (self, seen) {
            (Value::Zero, Seen::Zero) => true,
            (Value::Stamp(op), Seen::Stamp { op: found, sector }) => op == found && sector == at,
            (Value::Before(hash), Seen::Foreign { hash: found, .. }) => hash == found,
            // This run's stamps cannot have been here before the run.
            (Value::Unknown, seen) => !matches!(seen, Seen::Stamp { .. }),
            _ => false,
        }
    }
}

/// What is wrong with a sector that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MismatchKind {
    /// An older write of this sector, or one ruled out: lost, stale or flipped.
    Stale,
    /// A write of another sector.
    WrongSector,
    /// Part of one value and part of another, with no write in flight.
    Torn,
    /// Zero where something was written.
    Zeroed,
    /// Contents that nobody here wrote.
    Foreign,
}

/// One sector that a correct disk would not have returned.
#[derive(Debug, Clone)]
pub struct Mismatch {
    /// Where.
    pub sector: u64,
    /// Which read found it.
    pub read: OpId,
    /// What is wrong.
    pub kind: MismatchKind,
    /// What was found.
    pub seen: Seen,
    /// What would have been right.
    pub allowed: Vec<Value>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    value: Value,
    op: u64,
    end: u64,
    /// When it was ruled out.
    died: u64,
}

#[derive(Debug, Clone)]
struct Sector {
    /// The value, while the history is empty.
    value: Value,
    history: Vec<Entry>,
    readers: u32,
    touched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Live {
    Read,
    Write,
    Zeroes,
    Discard,
}

#[derive(Debug)]
struct Record {
    live: Live,
    span: Span,
    start: u64,
}

/// Knows every operation in flight and every value that may be read.
///
/// Calls must come in the order of the events: `begin_*` before the operation is
/// submitted, `complete` or `finish_read` after it came back. Spans lie within
/// the disk and each operation ends once; anything else is the caller's mistake
/// and panics.
#[derive(Debug)]
pub struct Oracle {
    stamper: Stamper,
    sectors: Vec<Sector>,
    live: HashMap<u64, Record>,
    now: u64,
    next_op: u64,
}

impl Oracle {
    /// For a disk of so many sectors; `run` goes into every stamp.
    pub fn new(sectors: u64, initial: Initial, run: u64) -> Self {
        let value = match initial {
            Initial::Zero => Value::Zero,
            Initial::Unknown => Value::Unknown,
        };
        let blank = Sector {
            value,
            history: Vec::new(),
            readers: 0,
            touched: false,
        };
        let count = usize::try_from(sectors).expect("a disk larger than the address space");
        Self {
            stamper: Stamper::new(run),
            sectors: vec![blank; count],
            live: HashMap::new(),
            now: 0,
            next_op: 1,
        }
    }

    /// Writes and reads the stamps; a copy works without the oracle's lock.
    pub fn stamper(&self) -> Stamper {
        self.stamper
    }

    /// A write is about to be submitted.
    pub fn begin_write(&mut self, span: Span) -> OpId {
        self.begin_change(Live::Write, span)
    }

    /// A write-zeroes is about to be submitted.
    pub fn begin_write_zeroes(&mut self, span: Span) -> OpId {
        self.begin_change(Live::Zeroes, span)
    }

    /// A discard is about to be submitted.
    pub fn begin_discard(&mut self, span: Span) -> OpId {
        self.begin_change(Live::Discard, span)
    }

    /// A read is about to be submitted.
    pub fn begin_read(&mut self, span: Span) -> OpId {
        for sector in self.range(span) {
            sector.readers += 1;
        }
        self.begin(Live::Read, span)
    }

    /// Stamps the buffer of a write.
    pub fn fill(&self, op: OpId, out: &mut [u8]) {
        let record = &self.live[&op.0];
        assert_eq!(
            out.len(),
            record.span.bytes(),
            "a buffer of another size than its write"
        );
        self.stamper.fill(op.0, record.span.start, out);
    }

    /// A write, write-zeroes or discard came back. One that failed may or may
    /// not have landed.
    pub fn complete(&mut self, op: OpId, ok: bool) {
        let record = self.end(op);
        assert_ne!(
            record.live,
            Live::Read,
            "reads end with finish_read or fail_read"
        );
        let (now, oldest) = (self.now, self.oldest_read());
        let kills = ok && record.live != Live::Discard;
        for sector in self.range(record.span) {
            settle(sector, op.0, record.start, now, kills);
            tidy(sector, oldest);
        }
    }

    /// A read failed: it says nothing.
    pub fn fail_read(&mut self, op: OpId) {
        let record = self.end(op);
        let oldest = self.oldest_read();
        for sector in self.range(record.span) {
            sector.readers -= 1;
            tidy(sector, oldest);
        }
    }

    /// A read came back with this data.
    pub fn check_read(&mut self, op: OpId, data: &[u8]) -> Vec<Mismatch> {
        let seen = self.stamper.look_all(data);
        self.finish_read(op, &seen)
    }

    /// A read came back and this was found in its sectors, by
    /// [`Stamper::look_all`], which needs no lock.
    pub fn finish_read(&mut self, op: OpId, seen: &[Seen]) -> Vec<Mismatch> {
        let record = self.end(op);
        assert_eq!(
            seen.len() as u64,
            record.span.sectors,
            "a read of another size than its span"
        );
        let oldest = self.oldest_read();
        let mut wrong = Vec::new();
        for ((at, sector), seen) in (record.span.start..).zip(self.range(record.span)).zip(seen) {
            if let Err(allowed) = judge(sector, record.start, at, *seen) {
                let kind = kind_of(*seen, at);
                wrong.push(Mismatch {
                    sector: at,
                    read: op,
                    kind,
                    seen: *seen,
                    allowed,
                });
            }
            sector.readers -= 1;
            tidy(sector, oldest);
        }
        wrong
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.live.len()
    }

    /// Everything that was written, discarded or zeroed, in pieces of at most
    /// `sectors_max`, for a last reading.
    pub fn sweep(&self, sectors_max: u64) -> Vec<Span> {
        let mut out: Vec<Span> = Vec::new();
        for (at, _) in (0u64..).zip(&self.sectors).filter(|(_, s)| s.touched) {
            match out.last_mut() {
                Some(s) if s.end() == at && s.sectors < sectors_max => s.sectors += 1,
                _ => out.push(Span {
                    start: at,
                    sectors: 1,
                }),
            }
        }
        out
    }

    /// Sectors that may still have more than one value.
    pub fn sectors_open(&self) -> usize {
        self.sectors
            .iter()
            .filter(|s| !s.history.is_empty())
            .count()
    }

    fn begin(&mut self, live: Live, span: Span) -> OpId {
        self.now += 1;
        let id = self.next_op;
        self.next_op += 1;
        self.live.insert(
            id,
            Record {
                live,
                span,
                start: self.now,
            },
        );
        OpId(id)
    }

    fn begin_change(&mut self, live: Live, span: Span) -> OpId {
        let op = self.begin(live, span);
        let value = if live == Live::Write {
            Value::Stamp(op.0)
        } else {
            Value::Zero
        };
        let entry = Entry {
            value,
            op: op.0,
            end: NEVER,
            died: NEVER,
        };
        for sector in self.range(span) {
            sector.touched = true;
            let rest = Entry {
                value: sector.value,
                op: 0,
                end: 0,
                died: NEVER,
            };
            if sector.history.is_empty() {
                sector.history.push(rest);
            }
            sector.history.push(entry);
        }
        op
    }

    fn end(&mut self, op: OpId) -> Record {
        self.now += 1;
        self.live
            .remove(&op.0)
            .expect("an operation that is not in flight")
    }

    fn oldest_read(&self) -> u64 {
        let reads = self.live.values().filter(|r| r.live == Live::Read);
        reads.map(|r| r.start).min().unwrap_or(self.now)
    }

    fn range(&mut self, span: Span) -> std::slice::IterMut<'_, Sector> {
        let at = |sector: u64| usize::try_from(sector).unwrap_or(usize::MAX);
        self.sectors[at(span.start)..at(span.end())].iter_mut()
    }
}

/// Ends an operation's entry; if it surely landed, rules out all that ended
/// before it began.
fn settle(sector: &mut Sector, op: u64, start: u64, now: u64, kills: bool) {
    for entry in &mut sector.history {
        if entry.op == op && op != 0 {
            entry.end = now;
        } else if kills && entry.end < start && entry.died == NEVER {
            entry.died = now;
        }
    }
}

/// Whether a read that began at `start` may have found this; if nothing was in
/// flight since, the sector is that value from now on.
fn judge(sector: &mut Sector, start: u64, at: u64, seen: Seen) -> Result<(), Vec<Value>> {
    let history = &mut sector.history;
    if history.is_empty() {
        if !sector.value.matches(seen, at) {
            return Err(vec![sector.value]);
        }
        sector.value = Value::of(seen);
        return Ok(());
    }
    let busy = history.iter().any(|e| e.end > start);
    let torn = matches!(seen, Seen::Foreign { claim, .. } if claim.is_none_or(|c| !c.intact));
    let legal = history
        .iter()
        .any(|e| e.died > start && e.value.matches(seen, at));
    let excused = busy && torn;
    if !legal && !excused {
        return Err(history
            .iter()
            .filter(|e| e.died > start)
            .map(|e| e.value)
            .collect());
    }
    if legal && !busy {
        // The value has stood since the last operation ended, so it was already
        // the only one for reads that began after that.
        let since = history.iter().map(|e| e.end).max().unwrap_or(0);
        let mut learned = None;
        for entry in history.iter_mut() {
            let matches = entry.value.matches(seen, at);
            if matches && entry.value == Value::Unknown {
                // What an older read saw of it, and has not told yet, may have been something else.
                learned = Some(Entry {
                    value: Value::of(seen),
                    ..*entry
                });
            }
            if matches && entry.value != Value::Unknown {
                entry.value = Value::of(seen);
            } else {
                entry.died = entry.died.min(since);
            }
        }
        history.extend(learned);
    }
    Ok(())
}

/// Forgets what no read can see any more, and closes the history when one value
/// is left.
fn tidy(sector: &mut Sector, oldest_read: u64) {
    let history = &mut sector.history;
    let quiet = sector.readers == 0;
    let floor = if quiet { NEVER - 1 } else { oldest_read };
    history.retain(|e| e.died > floor);
    merge(history);
    if let [only] = history[..]
        && only.end <= floor
    {
        sector.value = only.value;
        sector.history = Vec::new();
    }
}

/// Ended entries of the same value are one: what rules out the last to end
/// rules out all of them.
fn merge(history: &mut Vec<Entry>) {
    let mut i = 0;
    while i < history.len() {
        let entry = history[i];
        let ended = |e: &Entry| e.end != NEVER && e.died == NEVER;
        let twin = history[..i]
            .iter_mut()
            .find(|e| ended(e) && e.value == entry.value);
        match twin {
            Some(twin) if ended(&entry) => {
                twin.end = twin.end.max(entry.end);
                history.remove(i);
            }
            _ => i += 1,
        }
    }
}

fn kind_of(seen: Seen, at: u64) -> MismatchKind {
    match seen {
        Seen::Zero => MismatchKind::Zeroed,
        Seen::Stamp { sector, .. } if sector != at => MismatchKind::WrongSector,
        Seen::Stamp { .. } => MismatchKind::Stale,
        Seen::Foreign { claim: Some(c), .. } if !c.intact => MismatchKind::Torn,
        Seen::Foreign { .. } => MismatchKind::Foreign,
    }
}

const _: () = assert!(SECTOR.is_multiple_of(8));
