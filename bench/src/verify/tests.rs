//! The verifier on a disk in memory, right and wrong.

use super::*;

/// A disk in memory, one queue. Completes in the order of `start`.
struct MemoryPort {
    disk: Arc<std::sync::Mutex<Vec<u8>>>,
    buffers: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    ready: Vec<(usize, Outcome)>,
    writes: u32,
    /// Loses every so many-th write.
    loses: Option<u32>,
    fails_after: Option<u32>,
}

fn ports(n: usize, loses: Option<u32>, fails_after: Option<u32>) -> Vec<MemoryPort> {
    let disk = Arc::new(std::sync::Mutex::new(vec![0; 512 * 512]));
    let sizes = vec![16384, 4096, 4096, 4096];
    let port = |_| MemoryPort {
        disk: disk.clone(),
        buffers: sizes.iter().map(|s| vec![0; *s]).collect(),
        sizes: sizes.clone(),
        ready: Vec::new(),
        writes: 0,
        loses,
        fails_after,
    };
    (0..n).map(port).collect()
}

impl Port for MemoryPort {
    fn slots(&self) -> &[usize] {
        &self.sizes
    }

    fn sectors_max(&self, kind: Kind) -> u64 {
        if kind == Kind::Discard { 0 } else { 2048 }
    }

    fn fill(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&mut [u8])) {
        with(&mut self.buffers[slot][..bytes]);
    }

    fn show(&mut self, slot: usize, bytes: usize, with: &mut dyn FnMut(&[u8])) {
        with(&self.buffers[slot][..bytes]);
    }

    fn start(&mut self, slot: usize, kind: Kind, span: Span) -> Result<(), BenchError> {
        assert_ne!(kind, Kind::Discard, "not served, so not drawn");
        let mut disk = self.disk.lock().unwrap();
        let at = usize::try_from(span.start).unwrap() * 512;
        let range = at..at + span.bytes();
        self.writes += u32::from(kind == Kind::Write);
        let lost = self.loses.is_some_and(|n| self.writes.is_multiple_of(n));
        match kind {
            Kind::Read => {
                self.buffers[slot][..span.bytes()].copy_from_slice(&disk[range]);
            }
            Kind::Write if !lost => {
                disk[range].copy_from_slice(&self.buffers[slot][..span.bytes()]);
            }
            Kind::WriteZeroes => disk[range].fill(0),
            _ => {}
        }
        self.ready.push((slot, Outcome::Ok));
        Ok(())
    }

    fn reap(&mut self, _: Duration, done: &mut Vec<(usize, Outcome)>) -> Result<(), BenchError> {
        done.append(&mut self.ready);
        if self.fails_after.is_some_and(|n| self.writes > n) {
            return Err(BenchError::Gone { in_flight: 1 });
        }
        Ok(())
    }
}

fn plan() -> VerifyPlan {
    VerifyPlan {
        sectors: 512,
        align: 1,
        sectors_max: 64,
        initial: Initial::Zero,
        mix: Mix::default(),
        seed: 1,
        run: 2,
    }
}

fn run_until(verifier: Verifier<MemoryPort>, ops: u64) -> Verdict {
    while verifier.progress().ops < ops {
        std::thread::sleep(Duration::from_millis(1));
    }
    verifier.finish(|_, _| {}).unwrap()
}

#[test]
fn a_good_disk_passes() {
    let verdict = run_until(
        Verifier::start(ports(2, None, None), &plan()).unwrap(),
        5000,
    );
    assert!(verdict.is_clean(), "{:?}", verdict.findings);
    assert!(verdict.sectors_checked > 400, "{}", verdict.sectors_checked);
    assert!(verdict.latency_ns.len() >= 5000);
    assert_eq!(verdict.progress.in_flight, 0);
}

#[test]
fn a_disk_that_loses_writes_is_found_out() {
    let verdict = run_until(
        Verifier::start(ports(2, Some(50), None), &plan()).unwrap(),
        5000,
    );
    assert!(verdict.progress.mismatches > 0);
    assert!(!verdict.findings.is_empty() && verdict.findings.len() <= 16);
}

#[test]
fn one_failing_queue_ends_the_run() {
    let verifier = Verifier::start(ports(2, None, Some(100)), &plan()).unwrap();
    while !verifier.has_failed() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(
        verifier.finish(|_, _| {}),
        Err(BenchError::Gone { .. })
    ));
}
