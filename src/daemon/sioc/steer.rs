//! The thread that steers a datastore.
//!
//! ```text
//!   idle ──a disk takes a request──► watching ──every 10 ms──► readings ─► governor ─► windows, weights
//!    ▲                                  │  ▲                                │ every period
//!    └── nothing for some periods ──────┘  └── others' blocks ◄─ exchange ◄─┘ (a thread of its own)
//! ```
//!
//! Idle, it sleeps without a clock, until a worker that takes requests wakes it. It never waits for the
//! datastore itself: the statistics file is another thread's (`exchange.rs`), and so is what a threshold
//! is found by (`probe.rs`). One whose file hangs goes on with what it last knew.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferry_dataplane::clock::now_ns;
use ferry_dataplane::qos::controller::{self, Division, HostReport, UnmanagedPolicy};
use ferry_dataplane::qos::governor::Governor;

use super::Datastore;
use super::exchange::{Exchange, Heard};
use super::probe::Probe;
use super::readings::Reader;
use super::status::Told;
use crate::error::Done;
use crate::qos::datastore::{Divide, Settings, Sioc, Unmanaged};

/// Between two readings.
const TICK: Duration = Duration::from_millis(10);

/// Periods without a request after which it sleeps. The window has opened by then.
const IDLE_PERIODS: u64 = 5;

/// Periods after which what was heard of others is not news any more.
const DEAD_PERIODS: u64 = 3;

/// A disk's queues move rarely: where they are is looked at every so many readings.
const PLACES_EVERY: u64 = 25;

impl Datastore {
    /// Begins to steer it, if it is to be and is not yet.
    pub(super) fn steer(self: &Arc<Self>) -> Done {
        let wanted = self.steering().settings.sioc != Sioc::Off;
        if !wanted || self.path.as_os_str().is_empty() || self.steered.swap(true, Ordering::AcqRel)
        {
            return Ok(());
        }
        let own = self.clone();
        let spawned = std::thread::Builder::new()
            .name("ferry-sioc".into())
            .spawn(move || run(&own));
        match spawned {
            Ok(thread) => *super::lock(&self.thread) = Some(thread),
            Err(error) => {
                self.steered.store(false, Ordering::Release);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Settings were changed that the thread has to see. What its disks are to get it reads by itself.
    pub(super) fn look_now(&self) {
        self.changed.store(true, Ordering::Release);
        self.rouse();
    }

    fn rouse(&self) {
        self.domain.rouse();
        if let Some(thread) = &*super::lock(&self.thread) {
            thread.thread().unpark();
        }
    }

    /// Ends the thread, and waits for it.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.rouse();
        let thread = super::lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// How the governor is to go about it. Where it only measures, no latency is too high.
fn governed(settings: &Settings, threshold_ns: u64) -> controller::Settings {
    let threshold_ns = match settings.sioc {
        Sioc::On => threshold_ns,
        Sioc::Stats | Sioc::Off => u64::MAX,
    };
    controller::Settings {
        unmanaged: match settings.unmanaged {
            Unmanaged::Stop => UnmanagedPolicy::Stop,
            Unmanaged::Keep => UnmanagedPolicy::Keep,
        },
        division: match settings.divide {
            Divide::Disks => Division::Disks,
            Divide::Hosts => Division::Hosts,
        },
        ..controller::Settings::new(threshold_ns, settings.period_ns)
    }
}

fn run(datastore: &Arc<Datastore>) {
    let exchange = Exchange::start(&datastore.path);
    let mut probe = Probe::default();
    while !datastore.is_over() {
        let end = watch(datastore, &exchange);
        datastore.open();
        exchange.leave();
        datastore.status().rest();
        match end {
            End::Idle { alone } => sleep(datastore, &mut probe, alone),
            End::Off => rest(datastore),
        }
    }
}

/// Why it is not watched any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing happens here; and `alone`: nor at others.
    Idle { alone: bool },
    /// It is to be left alone, or the daemon ends.
    Off,
}

/// Sleeps until a disk is used, or something is changed. Meanwhile a threshold may be looked for.
fn sleep(datastore: &Arc<Datastore>, probe: &mut Probe, alone: bool) {
    datastore.domain.doze();
    let used = Reader::new(datastore).is_busy();
    if used || datastore.is_changed() || datastore.is_over() {
        datastore.domain.rouse();
        return;
    }
    if alone {
        probe.start(datastore);
    }
    while datastore.domain.is_dozing() {
        std::thread::park();
    }
    probe.stop();
}

/// Sleeps until something is changed, whatever its disks do.
fn rest(datastore: &Datastore) {
    while !datastore.is_changed() && !datastore.is_over() {
        std::thread::park();
    }
}

/// Steers, until nothing happens any more.
fn watch(datastore: &Datastore, exchange: &Exchange) -> End {
    datastore.changed.store(false, Ordering::Release);
    let (mut settings, mut threshold_ns) = datastore.settings();
    let governed = governed(&settings, threshold_ns);
    let mut governor = Governor::new(governed, datastore.domain.workers());
    let mut reader = Reader::new(datastore);
    let mut told = Told::new(threshold_ns);
    let mut own: Option<HostReport> = None;
    let mut heard = Heard::default();
    let mut busy_ns = now_ns();
    let mut ticks = 0;
    while settings.sioc != Sioc::Off && !datastore.is_over() {
        std::thread::park_timeout(TICK);
        let now_ns = now_ns();
        if datastore.changed.swap(false, Ordering::AcqRel) {
            (settings, threshold_ns) = datastore.settings();
            governor.configure(self::governed(&settings, threshold_ns));
            told.set_threshold(threshold_ns);
        }
        reader.read(datastore, ticks % PLACES_EVERY == 0);
        ticks += 1;
        let allotment = governor.tick(now_ns, reader.readings());
        match settings.sioc {
            Sioc::On => reader.apply(datastore, allotment),
            Sioc::Stats | Sioc::Off => reader.open(datastore),
        }
        if now_ns.saturating_sub(heard.at_ns) > DEAD_PERIODS * settings.period_ns {
            // The file hangs: whoever was there may be gone.
            heard.others.clear();
        }
        if governor.due(now_ns) {
            let report = governor.report(now_ns);
            // What was not answered yet is late; it is decided with what is known.
            if let Some(own) = own.replace(report.clone()) {
                decide(datastore, &mut governor, &mut told, now_ns, &own, &heard);
            }
            exchange.tell(now_ns, &report, settings.period_ns);
        }
        if let Some(news) = exchange.heard() {
            heard = news;
            datastore.note_ignored(&heard);
            if let Some(own) = own.take() {
                decide(datastore, &mut governor, &mut told, now_ns, &own, &heard);
            }
        }
        if reader.is_busy() {
            busy_ns = now_ns;
        } else if now_ns.saturating_sub(busy_ns) > IDLE_PERIODS * settings.period_ns {
            let alone = heard.others.iter().all(|it| it.ios == 0);
            return End::Idle { alone };
        }
    }
    End::Off
}

fn decide(
    datastore: &Datastore,
    governor: &mut Governor,
    told: &mut Told,
    now_ns: u64,
    own: &HostReport,
    heard: &Heard,
) {
    let decision = governor.decide(now_ns, own, &heard.others);
    datastore.status().decided(own, &decision, heard);
    datastore.tell(told.look(own, &decision));
}
