//! One cycle: a disk's whole life.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_dataplane::backend::thin::{Format, LinkedClone};
use serde_json::json;

use super::ChurnPlan;
use super::base::{BASE_OP, Base, CLUSTER, CLUSTER_BYTES, CLUSTER_SECTORS};
use super::daemon::{Client, Daemon};
use super::report::{Stage, Took};
use crate::error::BenchError;
use crate::frontend::{
    BlkQueue, GuestDevice, GuestMemory, Op, PeerWatch, QueueOptions, Segment, Status, Vmm,
    VmmOptions,
};
use crate::rng::Rng;
use crate::stamp::{SECTOR, Seen};

/// Clusters that a cycle reads, and writes a part of.
pub(super) const PLACES: u64 = 4;
/// Bytes that it writes in each.
const WRITTEN: usize = 4096;
const WRITTEN_SECTORS: u64 = (WRITTEN / SECTOR) as u64;
const RING_SIZE: u16 = 128;
const SEGMENTS_MAX: u16 = 8;
/// Rings, headers and the clusters.
const MEMORY_BYTES: u64 = 1 << 20;

/// What one thread cycles with.
pub(super) struct Cycler<'a> {
    plan: &'a ChurnPlan,
    base: &'a Base,
    control: Client<'a>,
}

/// Where a cycle writes: sectors of one cluster.
#[derive(Debug, Clone, Copy)]
struct Place {
    cluster_sector: u64,
    written_sector: u64,
}

impl<'a> Cycler<'a> {
    pub fn new(
        plan: &'a ChurnPlan,
        daemon: &'a Daemon,
        base: &'a Base,
    ) -> Result<Self, BenchError> {
        Ok(Self {
            plan,
            base,
            control: daemon.connect()?,
        })
    }

    /// The life of disk `number`; how long each stage of it took.
    pub fn cycle(&mut self, number: u64) -> Result<Took, BenchError> {
        // Two runs on one daemon do not meet.
        let id = format!("churn-{}-{number}", std::process::id());
        let overlay = self.base.path.with_file_name(format!("{id}.qcow2"));
        let mut took = Took::default();
        took.time(Stage::Clone, || self.make(&overlay))?;
        let socket = took.time(Stage::Add, || self.add(&id, &overlay))?;
        let used = self.utilise(&id, &socket, number, &mut took);
        let removed = took.time(Stage::Remove, || {
            self.control.call("disk.remove", &json!({ "id": id }))
        });
        used?;
        removed?;
        took.time(Stage::Delete, || delete(&overlay))?;
        Ok(took)
    }

    fn make(&self, overlay: &Path) -> Result<(), BenchError> {
        let clone = LinkedClone {
            base: &self.base.path,
            base_format: Format::Raw,
            overlay,
            size_bytes: None,
        };
        clone.make()?;
        Ok(())
    }

    fn add(&mut self, id: &str, overlay: &Path) -> Result<PathBuf, BenchError> {
        let path = format!("qcow2:{}", overlay.display());
        let line = self
            .control
            .call("disk.add", &json!({ "id": id, "path": path }))?;
        let socket = line["socket"].as_str().ok_or(BenchError::Refused {
            method: "disk.add",
            message: "its answer names no socket".into(),
        })?;
        Ok(socket.into())
    }

    /// From the connection to its end.
    fn utilise(
        &self,
        id: &str,
        socket: &Path,
        number: u64,
        took: &mut Took,
    ) -> Result<(), BenchError> {
        let mut guest = took.time(Stage::Attach, || Guest::new(id, socket, self.plan.timeout))?;
        let mut rng = Rng::new(crate::rng::mix(self.plan.seed ^ number));
        let places: Vec<Place> = (0..PLACES).map(|i| self.place(i, &mut rng)).collect();
        let op = number + 1;
        took.time(Stage::Use, || {
            guest.transfer(Op::Read, &places)?;
            self.judge(&guest, &places, BASE_OP)?;
            guest.fill(self.base, op, &places)?;
            guest.transfer(Op::Write, &places)?;
            guest.transfer(Op::Flush, &places[..1])?;
            guest.transfer(Op::Read, &places)?;
            self.judge(&guest, &places, op)
        })?;
        took.time(Stage::Detach, || {
            guest.vmm.stop().map(drop).map_err(BenchError::from)
        })
    }

    /// The `i`th place, in a part of the disk of its own.
    fn place(&self, i: u64, rng: &mut Rng) -> Place {
        let share = self.base.clusters / PLACES;
        let cluster_sector = (i * share + rng.below(share)) * CLUSTER_SECTORS;
        let within = rng.below(CLUSTER_SECTORS / WRITTEN_SECTORS) * WRITTEN_SECTORS;
        Place {
            cluster_sector,
            written_sector: cluster_sector + within,
        }
    }

    /// Whole clusters were read; what was written in them bears `op`, all else is the base's.
    fn judge(&self, guest: &Guest, places: &[Place], op: u64) -> Result<(), BenchError> {
        let mut cluster = vec![0; CLUSTER];
        for (i, place) in places.iter().enumerate() {
            guest.memory.read(guest.buffer(i), &mut cluster)?;
            let seen = self.base.stamper.look_all(&cluster);
            for (sector, found) in (place.cluster_sector..).zip(seen) {
                let written = (place.written_sector..place.written_sector + WRITTEN_SECTORS)
                    .contains(&sector);
                let expected = Seen::Stamp {
                    op: if written { op } else { BASE_OP },
                    sector,
                };
                if found != expected {
                    return Err(BenchError::Mismatch {
                        disk: guest.disk.clone(),
                        sector,
                        found: format!("{found:?}"),
                        expected: format!("{expected:?}"),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The clone, and the record that the daemon keeps beside it.
fn delete(overlay: &Path) -> Result<(), BenchError> {
    let mut record = overlay.as_os_str().to_owned();
    record.push(".ferry");
    for path in [overlay.to_owned(), record.into()] {
        std::fs::remove_file(&path).map_err(|source| BenchError::Target {
            what: "remove",
            path,
            source,
            mend: "a disk that was served leaves its image and its record",
        })?;
    }
    Ok(())
}

/// A machine with one disk and one queue.
struct Guest {
    disk: String,
    memory: GuestMemory,
    queue: BlkQueue,
    buffers: u64,
    segment_bytes_max: u32,
    watch: PeerWatch,
    timeout: Duration,
    vmm: Vmm,
}

impl Guest {
    fn new(disk: &str, socket: &Path, timeout: Duration) -> Result<Self, BenchError> {
        let options = VmmOptions {
            reply_timeout: timeout,
            ..VmmOptions::default()
        };
        let mut vmm = Vmm::connect(socket, options)?;
        let memory = GuestMemory::new(MEMORY_BYTES)?;
        let device = GuestDevice::new(&memory, 1, RING_SIZE)?;
        let options = QueueOptions {
            segments_max: SEGMENTS_MAX,
            ..QueueOptions::default().with_depth(8)
        };
        let queue = device.blk_queue(0, vmm.features(), options)?;
        let buffers = memory.alloc(PLACES * CLUSTER_BYTES, 4096)?;
        vmm.start(&device)?;
        Ok(Self {
            disk: disk.to_owned(),
            memory,
            queue,
            buffers,
            segment_bytes_max: vmm.config().segment_bytes_max(vmm.features()),
            watch: vmm.watch()?,
            timeout,
            vmm,
        })
    }

    fn buffer(&self, place: usize) -> u64 {
        self.buffers + place as u64 * CLUSTER_BYTES
    }

    /// Stamps what is to be written, at the head of each place's buffer.
    fn fill(&self, base: &Base, op: u64, places: &[Place]) -> Result<(), BenchError> {
        let mut data = vec![0; WRITTEN];
        for (i, place) in places.iter().enumerate() {
            base.stamper.fill(op, place.written_sector, &mut data);
            self.memory.write(self.buffer(i), &data)?;
        }
        Ok(())
    }

    /// One request for each place, all at once, awaited.
    fn transfer(&mut self, op: Op, places: &[Place]) -> Result<(), BenchError> {
        let mut sector_of = [0; RING_SIZE as usize];
        for (i, place) in places.iter().enumerate() {
            let (sector, sectors) = match op {
                Op::Read => (place.cluster_sector, CLUSTER_SECTORS),
                Op::Write => (place.written_sector, WRITTEN_SECTORS),
                _ => (0, 0),
            };
            let bytes = u32::try_from(sectors * SECTOR as u64).unwrap_or(0);
            let data = Segment::cut(self.buffer(i), bytes, self.segment_bytes_max);
            let token = self.queue.submit(op, sector, &data)?;
            sector_of[token.slot()] = sector;
        }
        self.queue.commit()?;
        let until = Instant::now() + self.timeout;
        while self.queue.in_flight() > 0 {
            if let Some(done) = self.queue.pop()? {
                if done.status != Status::Ok {
                    return Err(BenchError::Request {
                        disk: self.disk.clone(),
                        sector: sector_of[done.token.slot()],
                        status: done.status,
                    });
                }
                continue;
            }
            self.check_peer(until)?;
            self.queue.wait(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn check_peer(&self, until: Instant) -> Result<(), BenchError> {
        let in_flight = self.queue.in_flight();
        if self.watch.gone() {
            return Err(BenchError::Gone { in_flight });
        }
        if Instant::now() >= until {
            let after = self.timeout;
            return Err(BenchError::Stuck { after, in_flight });
        }
        Ok(())
    }
}
