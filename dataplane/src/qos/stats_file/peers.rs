//! Who else is on the datastore, from what is read of the statistics file time and again.

use std::collections::BTreeMap;

use super::block::{BLOCK_BYTES, Block, Fault, Id, decode};
use super::{BLOCKS_MAX, HostReport};

/// What was not believed; each of it counted once, however often it was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Read while it was written, or with a wrong checksum.
    pub torn: u64,
    /// Of a later version.
    pub version: u64,
    /// With a counter that went backwards.
    pub stale: u64,
    /// With numbers that cannot be.
    pub absurd: u64,
}

/// Periods without a word, after which a host is dead; a little less, for periods are not exact.
const DEAD_PERIODS: f64 = 2.75;

/// Periods in which nothing has changed in a block, after which its place may be taken.
const LONG_DEAD_PERIODS: f64 = 60.0;

/// See the module.
#[derive(Debug)]
pub struct Peers {
    own: Id,
    period_ns: u64,
    /// When the file was read last.
    looked_ns: Option<u64>,
    hosts: BTreeMap<Id, Host>,
    places: Vec<Place>,
    ignored: Ignored,
}

#[derive(Debug)]
struct Host {
    counter: u64,
    /// The earliest time at which it may have written its last block: it was not there yet then.
    heard_ns: u64,
    report: HostReport,
    /// It was in the file the last time.
    present: bool,
    /// It had something new to say the last time.
    fresh: bool,
}

/// A block of the file, by what is in it.
#[derive(Debug, Clone, Copy)]
struct Place {
    fingerprint: u32,
    changed_ns: u64,
    free: bool,
    own: bool,
}

impl Peers {
    /// Of a process with this id.
    pub fn new(own: Id, period_ns: u64) -> Peers {
        Peers {
            own,
            period_ns,
            looked_ns: None,
            hosts: BTreeMap::new(),
            places: Vec::new(),
            ignored: Ignored::default(),
        }
    }

    /// Changes the length of a period.
    pub fn set_period(&mut self, period_ns: u64) {
        self.period_ns = period_ns;
    }

    /// What was not believed so far.
    pub fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// Takes what was read of the file.
    pub fn observe(&mut self, now_ns: u64, blocks: &[[u8; BLOCK_BYTES]]) {
        for host in self.hosts.values_mut() {
            (host.present, host.fresh) = (false, false);
        }
        let blocks = &blocks[..blocks.len().min(BLOCKS_MAX)];
        self.places.truncate(blocks.len());
        for (index, bytes) in blocks.iter().enumerate() {
            let fingerprint = crc32c::crc32c(bytes);
            let last = self.places.get(index).copied();
            let news = last.is_none_or(|it| it.fingerprint != fingerprint);
            let block = decode(bytes);
            let place = Place {
                fingerprint,
                changed_ns: last.filter(|_| !news).map_or(now_ns, |it| it.changed_ns),
                free: match &block {
                    Ok(Some(block)) => block.left,
                    Ok(None) => true,
                    Err(_) => false,
                },
                own: matches!(&block, Ok(Some(it)) if it.id == self.own && !it.left),
            };
            match last {
                Some(_) => self.places[index] = place,
                None => self.places.push(place),
            }
            self.hear(now_ns, block, news);
        }
        // Who is neither there nor alive is forgotten. Who is dead but there is not: it would be new again.
        let alive = |host: &Host| is_alive(host, now_ns, self.period_ns);
        self.hosts.retain(|_, host| host.present || alive(host));
        self.looked_ns = Some(now_ns);
    }

    fn hear(&mut self, now_ns: u64, block: Result<Option<Block>, Fault>, news: bool) {
        let count = |counter: &mut u64| *counter += u64::from(news);
        let block = match block {
            Ok(Some(block)) if block.id != self.own => block,
            Ok(_) => return,
            Err(Fault::Torn) => return count(&mut self.ignored.torn),
            Err(Fault::Version) => return count(&mut self.ignored.version),
            Err(Fault::Absurd) => return count(&mut self.ignored.absurd),
        };
        if block.left {
            self.hosts.remove(&block.id);
            return;
        }
        // Some time after the last look; but not before the last period, if that was long ago.
        let last_ns = self.looked_ns.unwrap_or(now_ns);
        let heard_ns = last_ns.max(now_ns.saturating_sub(self.period_ns));
        let fresh = Host {
            counter: block.counter,
            heard_ns,
            report: block.report,
            present: true,
            fresh: true,
        };
        let Some(host) = self.hosts.get_mut(&block.id) else {
            self.hosts.insert(block.id, fresh);
            return;
        };
        host.present = true;
        if block.counter > host.counter {
            *host = fresh;
        } else if block.counter < host.counter {
            // Of one that is dead, it is a new life: a file that was put back, for instance.
            if is_alive(host, now_ns, self.period_ns) {
                count(&mut self.ignored.stale);
            } else {
                *host = fresh;
            }
        }
    }

    /// The reports of those that are alive; late is whoever had nothing new to say at the last look.
    pub fn alive(&self, now_ns: u64) -> Vec<HostReport> {
        let alive = self
            .hosts
            .values()
            .filter(|it| is_alive(it, now_ns, self.period_ns));
        let looked = self.looked_ns == Some(now_ns);
        let report = |it: &Host| HostReport {
            late: !(looked && it.fresh),
            ..it.report.clone()
        };
        alive.map(report).collect()
    }

    /// Which block to write to: one's own, the first free one, or the one that has been dead for longest.
    /// `None` if all are somebody's.
    pub fn choose(&self, now_ns: u64, last: Option<usize>) -> Option<usize> {
        let is =
            |place: &usize, what: fn(&Place) -> bool| self.places.get(*place).is_some_and(what);
        let find = |what: fn(&Place) -> bool| self.places.iter().position(what);
        let append = || Some(self.places.len()).filter(|&it| it < BLOCKS_MAX);
        last.filter(|place| is(place, |it| it.own))
            .or_else(|| find(|it| it.own))
            .or_else(|| last.filter(|place| is(place, |it| it.free)))
            .or_else(|| find(|it| it.free))
            .or_else(|| self.long_dead(now_ns))
            .or_else(append)
    }

    fn long_dead(&self, now_ns: u64) -> Option<usize> {
        let places = self.places.iter().enumerate();
        let (place, dead) = places.min_by_key(|it| it.1.changed_ns)?;
        let silent = older(dead.changed_ns, now_ns, self.period_ns, LONG_DEAD_PERIODS);
        silent.then_some(place)
    }
}

fn is_alive(host: &Host, now_ns: u64, period_ns: u64) -> bool {
    !older(host.heard_ns, now_ns, period_ns, DEAD_PERIODS)
}

#[allow(clippy::cast_precision_loss)] // digits, not magnitude
fn older(then_ns: u64, now_ns: u64, period_ns: u64, periods: f64) -> bool {
    now_ns.saturating_sub(then_ns) as f64 >= periods * period_ns as f64
}
