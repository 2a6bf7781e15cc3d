//! Heartbeats on a shared datastore, and what may be concluded from them.
//!
//! A host that serves disks from a datastore renews its lease there by writing a counter. It counts
//! the lease from when it *began* to write; others count from when they first *saw* the counter, on
//! their own clock, so the holder's lease ends first whatever the wall clocks say. Nothing in a beat
//! is a time of day. Both sides use a clock that goes on while the machine is suspended
//! (CLOCK_BOOTTIME), in nanoseconds, and take it as an argument.
//!
//! A lease fences daemons, not the writes that a suspended process or a slow path still holds: what
//! to do about those is the fence's matter.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::chain::DIR;
use crate::ids::DaemonId;

/// A beat is one sector, so that it is never half old and half new.
const BEAT_BYTES: usize = 512;
/// Room for the address in it.
const ADDRESS_BYTES_MAX: usize = 256;

/// A host's sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The daemon.
    pub daemon: DaemonId,
    /// Where its peers reach it.
    pub address: String,
    /// Counts up with each renewal.
    pub counter: u64,
    /// How long it goes on without renewing, in milliseconds.
    pub lease_ms: u64,
}

/// A lease as its holder sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    lease_ns: u64,
    /// When the last renewal that succeeded was begun.
    renewed_ns: Option<u64>,
}

impl Holder {
    /// A lease that is not held yet.
    pub fn new(lease_ns: u64) -> Holder {
        Holder {
            lease_ns,
            renewed_ns: None,
        }
    }

    /// A renewal that was begun at `began_ns` is durable.
    pub fn renewed(&mut self, began_ns: u64) {
        self.renewed_ns = Some(began_ns);
    }

    /// When it runs out; 0 when it was never held.
    pub fn ends_ns(&self) -> u64 {
        self.renewed_ns
            .map_or(0, |began| began.saturating_add(self.lease_ns))
    }

    /// Whether disks may be served on the strength of it.
    pub fn holds(&self, now_ns: u64) -> bool {
        now_ns < self.ends_ns()
    }
}

/// Another host's lease, as far as its beats tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Observer {
    counter: Option<u64>,
    looked_ns: Option<u64>,
    silent_ns: u64,
}

impl Observer {
    /// A look at the beat; `None` when there is none to be read. Time counts only as far as it was
    /// watched: `gap_ns_max` at most between two looks, for who was asleep has not seen the silence.
    pub fn look(&mut self, counter: Option<u64>, now_ns: u64, gap_ns_max: u64) {
        let gap = self
            .looked_ns
            .map_or(0, |looked| now_ns.saturating_sub(looked).min(gap_ns_max));
        self.looked_ns = Some(now_ns);
        if counter.is_some() && counter != self.counter {
            self.counter = counter;
            self.silent_ns = 0;
        } else {
            self.silent_ns = self.silent_ns.saturating_add(gap);
        }
    }

    /// The newest counter that was seen.
    pub fn counter(&self) -> Option<u64> {
        self.counter
    }

    /// How long it has been silent, as far as that was watched.
    pub fn silent_ns(&self) -> u64 {
        self.silent_ns
    }

    /// Whether its holder has stopped serving: the lease and the longest I/O besides are over, with
    /// a sixteenth for clocks that run at different rates.
    pub fn expired(&self, lease_ns: u64, io_ns_max: u64) -> bool {
        let wait = lease_ns.saturating_add(io_ns_max);
        self.silent_ns >= wait.saturating_add(wait / 16)
    }
}

/// The file of a daemon's beats.
fn path(datastore: &Path, daemon: DaemonId) -> PathBuf {
    datastore.join(DIR).join(format!("{daemon}.beat"))
}

/// Reads a daemon's newest beat. Opened anew, which is what makes a network file system look.
pub fn read(datastore: &Path, daemon: DaemonId) -> io::Result<Option<Beat>> {
    let file = match File::open(path(datastore, daemon)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut sector = [0; BEAT_BYTES];
    file.read_exact_at(&mut sector, 0)?;
    let end = sector.iter().position(|&byte| byte == 0).unwrap_or(0);
    Ok(serde_json::from_slice(&sector[..end]).ok())
}

/// A daemon's own beat.
#[derive(Debug)]
pub struct Heart {
    path: PathBuf,
    beat: Beat,
}

impl Heart {
    /// Goes on counting where an earlier run of the daemon stopped.
    pub fn open(
        datastore: &Path,
        daemon: DaemonId,
        address: &str,
        lease_ms: u64,
    ) -> io::Result<Heart> {
        if address.len() > ADDRESS_BYTES_MAX {
            return Err(io::Error::other("the address is too long for a heartbeat"));
        }
        std::fs::create_dir_all(datastore.join(DIR))?;
        let counter = read(datastore, daemon)
            .ok()
            .flatten()
            .map_or(0, |beat| beat.counter);
        Ok(Heart {
            path: path(datastore, daemon),
            beat: Beat {
                daemon,
                address: address.to_owned(),
                counter,
                lease_ms,
            },
        })
    }

    /// Renews: durable when it returns.
    pub fn renew(&mut self) -> io::Result<()> {
        self.beat.counter += 1;
        let mut sector = serde_json::to_vec(&self.beat)?;
        sector.resize(BEAT_BYTES, 0);
        // Opened anew: a datastore that was unmounted is no place to keep a lease.
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(&self.path)?;
        file.write_all_at(&sector, 0)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn beats_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = DaemonId::random();
        assert_eq!(read(dir.path(), daemon).unwrap(), None);
        let mut heart = Heart::open(dir.path(), daemon, "a:1", 500).unwrap();
        heart.renew().unwrap();
        heart.renew().unwrap();
        assert_eq!(read(dir.path(), daemon).unwrap().unwrap().counter, 2);
        let mut again = Heart::open(dir.path(), daemon, "a:2", 500).unwrap();
        again.renew().unwrap();
        let beat = read(dir.path(), daemon).unwrap().unwrap();
        assert_eq!((beat.counter, beat.address.as_str()), (3, "a:2"));
        assert!(Heart::open(dir.path(), daemon, &"x".repeat(300), 1).is_err());
    }

    #[test]
    fn who_was_asleep_has_not_seen_the_silence() {
        let mut observer = Observer::default();
        observer.look(Some(7), 0, 100 * MS);
        // Suspended for an hour.
        observer.look(Some(7), 3_600_000 * MS, 100 * MS);
        assert!(!observer.expired(500 * MS, 0));
        observer.look(None, 3_600_050 * MS, 100 * MS);
        assert_eq!(observer.silent_ns(), 150 * MS);
    }

    proptest! {
        /// Clocks that run up to 5 % apart and began anywhere, beats that are seen late, lost or
        /// begun long before they are durable: who looks never sees a lease expired that holds.
        #[test]
        fn a_lease_is_never_seen_expired_while_it_holds(
            steps in prop::collection::vec((1u64..400, any::<bool>(), 0u64..300, any::<bool>()), 1..200),
            offset in 0u64..1_000_000,
            rate in 95u64..=105,
        ) {
            let lease = 1000 * MS;
            let (mut holder, mut observer) = (Holder::new(lease), Observer::default());
            let (mut now, mut counter, mut seen) = (0u64, 0u64, None);
            let theirs = |now: u64| offset * MS + now / 100 * rate;
            for (pause, renews, takes, looks) in steps {
                now += pause * MS;
                if renews {
                    let began = now;
                    now += takes * MS;
                    counter += 1;
                    holder.renewed(began);
                    seen = Some(counter);
                }
                if looks {
                    observer.look(seen, theirs(now), 10_000 * MS);
                    let expired = observer.expired(lease, 0);
                    prop_assert!(!(expired && holder.holds(now)), "at {now}");
                }
            }
        }
    }
}
