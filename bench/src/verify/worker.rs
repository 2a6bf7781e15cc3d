//! One queue's thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::shared::Shared;
use super::{Outcome, Port};
use crate::error::BenchError;
use crate::stamp::{Generator, Kind, Mix, OpId, Planned, Shape, Span};

/// How long a worker sleeps in its port before it looks at the stop flag.
const NAP: Duration = Duration::from_millis(100);

/// A histogram of nanoseconds up to an hour, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("constant bounds are sound")
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    kind: Kind,
    span: Span,
    /// None for a flush, of which the oracle knows nothing.
    op: Option<OpId>,
    began: Instant,
}

pub(super) struct Worker<P> {
    port: P,
    shared: Arc<Shared>,
    generator: Generator,
    align: u64,
    flights: Vec<Option<Flight>>,
    in_flight: usize,
    done: Vec<(usize, Outcome)>,
    latency_ns: Histogram<u64>,
    sweeping: bool,
}

impl<P: Port> Worker<P> {
    pub fn new(
        port: P,
        shared: Arc<Shared>,
        seed: u64,
        spots: u64,
        shape: Shape,
        mut mix: Mix,
    ) -> Self {
        for kind in [Kind::Write, Kind::Discard, Kind::WriteZeroes, Kind::Flush] {
            if port.sectors_max(kind) < shape.align {
                mix.drop_kind(kind);
            }
        }
        Self {
            flights: vec![None; port.slots().len()],
            port,
            shared,
            generator: Generator::new(seed, spots, shape, mix),
            align: shape.align,
            in_flight: 0,
            done: Vec::new(),
            latency_ns: histogram(),
            sweeping: false,
        }
    }

    pub fn port(&self) -> &P {
        &self.port
    }

    pub fn latency_ns(&self) -> &Histogram<u64> {
        &self.latency_ns
    }

    /// Runs the drawn load until told to stop and everything is back.
    pub fn load(&mut self) -> Result<(), BenchError> {
        loop {
            let stop = self.shared.stop.load(Ordering::Relaxed);
            if stop && self.in_flight == 0 {
                return Ok(());
            }
            while !stop && self.in_flight < self.flights.len() {
                let planned = self.generator.draw();
                self.launch(planned)?;
            }
            self.collect()?;
        }
    }

    /// Reads its share of everything that was written.
    pub fn sweep(&mut self) -> Result<(), BenchError> {
        self.sweeping = true;
        loop {
            while self.in_flight < self.flights.len() {
                let Some(span) = self.shared.next_sweep() else {
                    break;
                };
                self.launch(Planned {
                    kind: Kind::Read,
                    span,
                })?;
            }
            if self.in_flight == 0 {
                return Ok(());
            }
            self.collect()?;
        }
    }

    /// Ends the run for the other workers too.
    pub fn give_up(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.give_up_sweep();
    }

    fn launch(&mut self, planned: Planned) -> Result<(), BenchError> {
        let Planned { kind, mut span } = planned;
        let Some(slot) = self.choose_slot(kind, &mut span) else {
            return Ok(());
        };
        let op = self.begin(kind, span);
        if let (Kind::Write, Some(op)) = (kind, op) {
            let stamper = self.shared.stamper;
            self.port.fill(slot, span.bytes(), &mut |out| {
                stamper.fill(op.0, span.start, out);
            });
        }
        self.flights[slot] = Some(Flight {
            kind,
            span,
            op,
            began: Instant::now(),
        });
        self.in_flight += 1;
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        self.port.start(slot, kind, span)
    }

    /// The smallest free slot that the span fits, or the largest free one with
    /// the span cut to it.
    fn choose_slot(&self, kind: Kind, span: &mut Span) -> Option<usize> {
        let limit = self.port.sectors_max(kind) / self.align * self.align;
        span.sectors = span.sectors.min(limit);
        if span.sectors == 0 && kind != Kind::Flush {
            // Drawn before the port found out that it is not served.
            return None;
        }
        let moves_data = matches!(kind, Kind::Read | Kind::Write);
        let need = if moves_data { span.bytes() } else { 0 };
        let sizes = self.port.slots();
        let free = || (0..sizes.len()).filter(|i| self.flights[*i].is_none());
        if let Some(slot) = free()
            .filter(|i| sizes[*i] >= need)
            .min_by_key(|i| sizes[*i])
        {
            return Some(slot);
        }
        let slot = free().max_by_key(|i| sizes[*i])?;
        let fits = (sizes[slot] / 512) as u64 / self.align * self.align;
        span.sectors = span.sectors.min(fits);
        (span.sectors > 0).then_some(slot)
    }

    fn begin(&self, kind: Kind, span: Span) -> Option<OpId> {
        let mut oracle = self.shared.oracle();
        match kind {
            Kind::Read => Some(oracle.begin_read(span)),
            Kind::Write => Some(oracle.begin_write(span)),
            Kind::Discard => Some(oracle.begin_discard(span)),
            Kind::WriteZeroes => Some(oracle.begin_write_zeroes(span)),
            Kind::Flush => None,
        }
    }

    fn collect(&mut self) -> Result<(), BenchError> {
        let mut done = std::mem::take(&mut self.done);
        let result = self.port.reap(NAP, &mut done);
        for (slot, outcome) in done.drain(..) {
            self.finish(slot, outcome);
        }
        self.done = done;
        result
    }

    fn finish(&mut self, slot: usize, outcome: Outcome) {
        let Some(flight) = self.flights[slot].take() else {
            debug_assert!(false, "slot {slot} came back twice");
            return;
        };
        self.in_flight -= 1;
        self.count(&flight, outcome);
        match (flight.kind, flight.op) {
            (Kind::Read, Some(op)) => self.judge(slot, &flight, op, outcome),
            (_, Some(op)) => self.shared.oracle().complete(op, outcome == Outcome::Ok),
            (_, None) => {}
        }
        if outcome == Outcome::Refused && self.port.sectors_max(flight.kind) == 0 {
            self.generator.drop_kind(flight.kind);
        }
    }

    fn judge(&mut self, slot: usize, flight: &Flight, op: OpId, outcome: Outcome) {
        if outcome != Outcome::Ok {
            return self.shared.oracle().fail_read(op);
        }
        let stamper = self.shared.stamper;
        let mut seen = Vec::new();
        self.port.show(slot, flight.span.bytes(), &mut |data| {
            seen = stamper.look_all(data);
        });
        let wrong = self.shared.oracle().finish_read(op, &seen);
        self.shared.report(wrong);
        if self.sweeping {
            self.shared.add_checked(flight.span.sectors);
        }
    }

    fn count(&mut self, flight: &Flight, outcome: Outcome) {
        let shared = &self.shared;
        shared.saw_completion();
        shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        shared.ops.fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Failed {
            shared.errors.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(flight.kind, Kind::Read | Kind::Write) {
            shared
                .bytes
                .fetch_add(flight.span.bytes() as u64, Ordering::Relaxed);
        }
        if !self.sweeping {
            let ns = u64::try_from(flight.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latency_ns.saturating_record(ns);
        }
    }
}
