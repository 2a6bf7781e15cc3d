//! The demo's stand-in for a VM: guest memory with virtqueues in it, drivers that never pause, and
//! the part of a VMM that tells a vhost-user server to start and stop the rings.
//!
//! When the machine moves, the rings stop at one server and start at the other, in the same memory
//! and with the same kicks and calls, as they would after a VM's memory has been moved. What the
//! drivers submit meanwhile waits in the rings.

use std::path::Path;
use std::time::{Duration, Instant};

use ferry_bench::blk::{BlkPort, run_id, slot_sizes};
use ferry_bench::frontend::{GuestDevice, GuestMemory, QueueOptions, Vmm, VmmOptions};
use ferry_bench::stamp::{Initial, Mix};
use ferry_bench::verify::{Verdict, Verifier, VerifyPlan};

use super::DemoArguments;
use crate::error::{Done, Failure};

const RING_SIZE: u16 = 256;
const SEGMENTS_MAX: u16 = 4;
const LARGEST_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Machine {
    device: GuestDevice,
    here: Vmm,
    there: Option<Vmm>,
    bases: Vec<u16>,
    verifier: Verifier<BlkPort>,
    ops_at_stop: u64,
}

impl Machine {
    /// Attaches to a server and starts the load.
    pub fn start(socket: &Path, arguments: &DemoArguments) -> Done<Machine> {
        let mut vmm = Vmm::connect(socket, VmmOptions::default())?;
        let (features, config) = (vmm.features(), vmm.config());
        let sizes = slot_sizes(arguments.depth.into(), LARGEST_BYTES);
        let buffers: u64 = sizes.iter().map(|size| *size as u64).sum();
        let per_queue = buffers + (1 << 20);
        let memory = GuestMemory::new(per_queue * u64::from(arguments.queues))?;
        let device = GuestDevice::new(&memory, arguments.queues, RING_SIZE)?;
        let options = QueueOptions {
            depth: arguments.depth,
            segments_max: SEGMENTS_MAX,
            indirect: true,
        };
        let mut ports = Vec::new();
        for at in 0..usize::from(arguments.queues) {
            let queue = device.blk_queue(at, features, options)?;
            let seed = arguments.seed ^ at as u64;
            ports.push(BlkPort::new(
                queue, &memory, &sizes, features, config, seed,
            )?);
        }
        vmm.start(&device)?;
        let plan = VerifyPlan {
            sectors: arguments.size / 512,
            align: 1,
            sectors_max: (LARGEST_BYTES / 512) as u64,
            initial: Initial::Zero,
            mix: Mix::default(),
            seed: arguments.seed,
            run: run_id(arguments.seed),
        };
        let verifier = Verifier::start(ports, &plan)?;
        Ok(Machine {
            device,
            here: vmm,
            there: None,
            bases: Vec::new(),
            verifier,
            ops_at_stop: 0,
        })
    }

    /// Lets the load run.
    pub fn run_for(&mut self, time: Duration) -> Done {
        let began = Instant::now();
        while began.elapsed() < time {
            self.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Fails as soon as the load has.
    pub fn check(&self) -> Done {
        if let Some(finding) = self.verifier.new_findings().first() {
            return Err(Failure::Failed(format!("mismatch: {finding}")));
        }
        if self.verifier.has_failed() {
            return Err(Failure::Failed("the load ended before its time".into()));
        }
        Ok(())
    }

    /// Attaches to the server that the disk is to move to, as a waiting VMM does.
    pub fn connect_next(&mut self, socket: &Path) -> Done {
        let options = VmmOptions {
            required: self.here.features(),
            ..VmmOptions::default()
        };
        self.there = Some(Vmm::connect(socket, options)?);
        Ok(())
    }

    /// Stops the rings; returns how many requests the drivers had in flight just before.
    pub fn stop_rings(&mut self) -> Done<u64> {
        let in_flight = self.verifier.progress().in_flight;
        self.verifier.take_gap(); // what was longest before does not count
        self.bases = self.here.stop()?;
        self.ops_at_stop = self.verifier.progress().ops;
        Ok(in_flight)
    }

    /// Starts the rings at the other server.
    pub fn start_rings(&mut self) -> Done {
        let Some(mut there) = self.there.take() else {
            return Err(Failure::Failed("there is no other server".into()));
        };
        there.start_at(&self.device, &self.bases)?;
        self.here = there; // the old connection closes
        Ok(())
    }

    /// From the last completion there to the first one here.
    pub fn blackout(&mut self) -> Done<Duration> {
        let began = Instant::now();
        // The drivers count what they have seen a little later than it completes.
        while self.verifier.progress().ops < self.ops_at_stop + 64 {
            self.check()?;
            if began.elapsed() > PATIENCE {
                return Err(Failure::Failed(
                    "no request completes after the handover".into(),
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.verifier.take_gap())
    }

    /// Ends the load, and reads everything once more.
    pub fn finish(mut self) -> Done<Verdict> {
        let verdict = self.verifier.finish(|_, _| {})?;
        self.here.stop()?;
        Ok(verdict)
    }
}
