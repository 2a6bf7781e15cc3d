//! A guest with one queue, for one request at a time.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::frontend::{
    BlkQueue, GuestDevice, GuestMemory, Op, QueueOptions, Segment, Vmm, VmmOptions,
};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An attached guest, whose ring runs.
pub(super) struct Client {
    _vmm: Vmm,
    queue: BlkQueue,
    data: Segment,
}

impl Client {
    pub fn attach(socket: &Path) -> Result<Client, BenchError> {
        let mut vmm = Vmm::connect(socket, VmmOptions::default())?;
        let memory = GuestMemory::new(256 << 10)?;
        let device = GuestDevice::new(&memory, 1, 16)?;
        let options = QueueOptions {
            depth: 1,
            segments_max: 1,
            indirect: false,
        };
        let queue = device.blk_queue(0, vmm.features(), options)?;
        let data = Segment {
            addr: memory.alloc(4096, 4096)?,
            len: 4096,
        };
        vmm.start(&device)?;
        Ok(Client {
            _vmm: vmm,
            queue,
            data,
        })
    }

    /// Reads a block, polling for the end; how long it took.
    pub fn read(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        self.queue.submit(Op::Read, 0, &[self.data])?;
        self.queue.commit()?;
        while !self.queue.has_completion() {
            if began.elapsed() > PATIENCE {
                return Err(BenchError::Stuck {
                    after: PATIENCE,
                    in_flight: 1,
                });
            }
            std::hint::spin_loop();
        }
        let took = began.elapsed();
        self.queue.pop()?;
        Ok(took)
    }
}

/// Passes the time without giving up the core, which would add a wake-up of its own.
pub(super) fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}
