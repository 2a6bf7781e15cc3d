//! What the threads of one migration share.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_dataplane::lifecycle::DiskLifecycle;

use super::{SourceError, SourcePhase};
use crate::extents::Extents;
use crate::ids::DaemonId;
use crate::report::HandoverReport;
use crate::sync::lock;

/// Bytes of the bulk copy that may be under way without an acknowledgement.
pub(super) const BULK_BYTES_MAX: u64 = 4 << 20;

/// What the destination said about the handover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted,
    Activated,
    Returned(String),
}

pub(super) struct Live {
    pub phase: SourcePhase,
    pub reason: Option<String>,
    /// Set once: why the mirror or its link is over.
    pub lost: Option<String>,
    /// Costs of bulk pieces that were queued and not yet acknowledged, in order.
    pub bulk: VecDeque<u64>,
    pub bulk_bytes: u64,
    pub bulk_acked: u64,
    pub flush_tag: u64,
    pub flushed: u64,
    pub verdict: Option<Verdict>,
    pub cancel: bool,
    pub detach: bool,
    /// Until when the release that was asked for must be through.
    pub release: Option<Instant>,
    pub release_result: Option<Result<HandoverReport, SourceError>>,
    /// Where the rings at the destination begin, which asks for the disk, and when it asked.
    pub pull: Option<(Vec<u16>, Instant)>,
    /// The VMM started the rings of the quiesced disk.
    pub restarted: bool,
    pub writer_done: bool,
    /// For cutting a blocking read short.
    pub stream: Option<TcpStream>,
    pub ended: bool,
    /// The disk was given up to this daemon.
    pub given_to: Option<DaemonId>,
}

pub(super) struct Shared {
    pub disk: Arc<dyn DiskLifecycle>,
    live: Mutex<Live>,
    wake: Condvar,
    /// Whether acknowledgements still mean our tap. A lock of its own, because the disk is called
    /// under it, and the disk calls back into `live`.
    tapped: Mutex<bool>,
    plan: Mutex<Extents>,
    pub bytes_total: u64,
    pub bytes_sent: AtomicU64,
    /// The destination kept a copy, and the cursor is on its way: digests go before data.
    pub by_digest: AtomicBool,
    /// The newest tap event that was written to the link.
    pub guest_sent: AtomicU64,
    pub began: Instant,
}

impl Shared {
    pub fn new(disk: Arc<dyn DiskLifecycle>, phase: SourcePhase) -> Arc<Shared> {
        let bytes_total = disk.geometry().capacity_bytes;
        let live = Live {
            phase,
            reason: None,
            lost: None,
            bulk: VecDeque::new(),
            bulk_bytes: 0,
            bulk_acked: 0,
            flush_tag: 0,
            flushed: 0,
            verdict: None,
            cancel: false,
            detach: false,
            release: None,
            release_result: None,
            pull: None,
            restarted: false,
            writer_done: false,
            stream: None,
            ended: false,
            given_to: None,
        };
        Arc::new(Shared {
            disk,
            live: Mutex::new(live),
            wake: Condvar::new(),
            tapped: Mutex::new(false),
            plan: Mutex::new(Extents::new(bytes_total)),
            bytes_total,
            bytes_sent: AtomicU64::new(0),
            by_digest: AtomicBool::new(false),
            guest_sent: AtomicU64::new(0),
            began: Instant::now(),
        })
    }

    pub fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    pub fn plan(&self) -> MutexGuard<'_, Extents> {
        lock(&self.plan)
    }

    /// Changes something and wakes whoever waits for it.
    pub fn tell(&self, change: impl FnOnce(&mut Live)) {
        change(&mut self.live());
        self.wake.notify_all();
    }

    /// The mirror or its link is over; the first reason is kept.
    pub fn lose(&self, why: impl Into<String>) {
        let why = why.into();
        self.tell(|live| {
            live.lost.get_or_insert(why);
        });
    }

    /// Waits until `look` sees something, or until `deadline`.
    pub fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut look: impl FnMut(&mut Live) -> Option<T>,
    ) -> Option<T> {
        let mut live = self.live();
        loop {
            if let Some(seen) = look(&mut live) {
                return Some(seen);
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return None;
            }
            live = self
                .wake
                .wait_timeout(live, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Ends or begins the time in which acknowledgements are passed on.
    pub fn set_tapped(&self, tapped: bool) {
        *lock(&self.tapped) = tapped;
    }

    /// Passes an acknowledgement on, unless the tap it is for is gone: the next one may be another
    /// migration's.
    pub fn acknowledge(&self, seq: u64) {
        let tapped = lock(&self.tapped);
        if *tapped {
            self.disk.acknowledge(seq);
        }
    }

    pub fn enter(&self, phase: SourcePhase) {
        self.tell(|live| live.phase = phase);
    }

    pub fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
