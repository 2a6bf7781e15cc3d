//! The statistics file, on a thread of its own: whoever steers must not wait for a datastore that hangs.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender, bounded};
use ferry_dataplane::qos::controller::HostReport;
use ferry_dataplane::qos::stats_file::{Ignored, StatsFile};
use uuid::Uuid;

/// What the others say, and how it went.
#[derive(Debug, Default)]
pub struct Heard {
    /// When, on the clock of [`ferry_dataplane::clock::now_ns`].
    pub at_ns: u64,
    /// Reports of those that are alive.
    pub others: Vec<HostReport>,
    /// Blocks that were not believed, since the start, and of what kind.
    pub ignored: u64,
    pub why_ignored: String,
    /// Why the file cannot be used.
    pub trouble: Option<String>,
}

enum Order {
    /// Say this, and hear the others.
    Tell {
        now_ns: u64,
        report: Box<HostReport>,
        period_ns: u64,
    },
    /// Nothing will be said for a while.
    Leave,
}

/// The way to the thread, which ends when this is dropped. It is not waited for.
pub struct Exchange {
    orders: Sender<Order>,
    answers: Receiver<Heard>,
}

impl Exchange {
    /// At a datastore. What is no directory has no file, and no others are heard of.
    pub fn start(path: &Path) -> Exchange {
        let (orders, taken) = bounded(1);
        let (answer, answers) = bounded(1);
        if path.is_dir() {
            let path = path.to_owned();
            let spawned = std::thread::Builder::new()
                .name("ferry-stats".into())
                .spawn(move || serve(&path, &taken, &answer));
            if let Err(error) = spawned {
                tracing::error!(%error, "hosts do not hear of this one, nor it of them");
            }
        }
        Exchange { orders, answers }
    }

    /// Says what was done. Not if what was said before is still being written.
    pub fn tell(&self, now_ns: u64, report: &HostReport, period_ns: u64) {
        let _ = self.orders.try_send(Order::Tell {
            now_ns,
            report: Box::new(report.clone()),
            period_ns,
        });
    }

    /// Nothing will be said for a while: the others need not wait for it.
    pub fn leave(&self) {
        let _ = self.orders.try_send(Order::Leave);
    }

    /// What the others said, if there is an answer. Where there is nobody to be heard, at once.
    pub fn heard(&self) -> Option<Heard> {
        match self.answers.try_recv() {
            Ok(heard) => Some(heard),
            Err(crossbeam_channel::TryRecvError::Empty) => None,
            Err(crossbeam_channel::TryRecvError::Disconnected) => Some(Heard::default()),
        }
    }
}

fn serve(path: &Path, orders: &Receiver<Order>, answer: &Sender<Heard>) {
    let id = *Uuid::new_v4().as_bytes();
    let mut file: Option<StatsFile> = None;
    let mut trouble: Option<String> = None;
    for order in orders {
        let Order::Tell {
            now_ns,
            report,
            period_ns,
        } = order
        else {
            if let Some(Err(error)) = file.as_mut().map(StatsFile::withdraw) {
                tracing::debug!(%error, "the block is left to grow old");
            }
            continue;
        };
        let file = file.get_or_insert_with(|| StatsFile::new(path, id, period_ns));
        file.set_period(period_ns);
        let (others, error) = match file.exchange(now_ns, &report) {
            Ok(others) => (others, None),
            Err(error) => (file.others(now_ns), Some(error.to_string())),
        };
        let full = (error.is_none() && file.place().is_none())
            .then(|| "all its blocks are taken".to_owned());
        let error = error.or(full);
        if error != trouble {
            match &error {
                Some(error) => tracing::warn!(file = %file.path().display(), error,
                    "the statistics file cannot be used: other hosts do not hear of this one"),
                None => tracing::info!(file = %file.path().display(),
                    "the statistics file can be used again"),
            }
            trouble.clone_from(&error);
        }
        let (ignored, why_ignored) = ignored(file.ignored());
        let heard = Heard {
            at_ns: now_ns,
            others,
            ignored,
            why_ignored,
            trouble: error,
        };
        // Nobody has taken the last one yet: that one is older.
        if answer.try_send(heard).is_err() {
            continue;
        }
    }
}

/// How many, and of what kinds.
fn ignored(ignored: Ignored) -> (u64, String) {
    let kinds = [
        (ignored.torn, "torn"),
        (ignored.version, "of another version"),
        (ignored.stale, "stale"),
        (ignored.absurd, "absurd"),
    ];
    let some = kinds.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = some
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect();
    (kinds.iter().map(|(count, _)| count).sum(), words.join(", "))
}
