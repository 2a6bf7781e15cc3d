//! The guest behind one socket: its memory, its rings, its MAC.

use std::path::{Path, PathBuf};

use super::NetPlan;
use super::frame::Ends;
use super::sender::{Marks, Sender};
use super::sink::{Eye, Sink};
use crate::error::BenchError;
use crate::frontend::net::{RxOptions, RxQueue, TxOptions, TxQueue, feature};
use crate::frontend::{GuestDevice, GuestMemory, PeerWatch, Vmm, VmmError, VmmOptions};

/// What others send is taken too, up to a full frame with a tag.
const FRAME_BYTES_MIN: u32 = 1518;
/// The largest frame that was not cut, with a tag.
const GSO_FRAME_BYTES: u32 = 65535 + 18;

/// One connection, and what is behind it.
#[derive(Debug)]
pub(super) struct Port {
    pub socket: PathBuf,
    pub mac: [u8; 6],
    vmm: Vmm,
    device: GuestDevice,
    tx: TxOptions,
    rx: RxOptions,
}

impl Port {
    /// Connects and lays the rings out. `id` makes the MAC, unless the server
    /// tells one.
    pub fn open(plan: &NetPlan, socket: &Path, id: [u8; 4]) -> Result<Self, BenchError> {
        let vmm = Vmm::connect(socket, options(plan))?;
        let features = vmm.features();
        let offload = feature::CSUM | feature::HOST_TSO4;
        if plan.tso && features & offload != offload {
            return Err(BenchError::Vmm(VmmError::Missing {
                what: "to cut TCP frames into segments (CSUM and HOST_TSO4), which --tso needs",
            }));
        }
        let has = vmm.queues_max() / 2;
        if plan.queue_pairs > has {
            return Err(BenchError::Usage(format!(
                "--queue-pairs {}: the server at {} has {has}; use that or fewer",
                plan.queue_pairs,
                socket.display()
            )));
        }
        let bytes = u32::try_from(plan.bytes).unwrap_or(u32::MAX);
        let tx = TxOptions {
            frame_bytes: bytes,
            indirect: plan.indirect,
        };
        let whole = features & feature::GUEST_TSO4 != 0;
        let rx = RxOptions {
            frame_bytes_max: if whole {
                GSO_FRAME_BYTES
            } else {
                // A tag may be put on underway.
                (bytes + 4).max(FRAME_BYTES_MIN)
            },
            mergeable: features & feature::MRG_RXBUF != 0,
            indirect: plan.indirect,
        };
        let per_pair = tx.memory_bytes(plan.queue_size) + rx.memory_bytes(plan.queue_size);
        let memory = GuestMemory::new(per_pair * u64::from(plan.queue_pairs))?;
        let device = GuestDevice::new(&memory, plan.queue_pairs * 2, plan.queue_size)?;
        let [a, b, c, d] = id;
        let told = vmm.net_config().and_then(|config| config.mac);
        Ok(Self {
            socket: socket.to_owned(),
            mac: told.unwrap_or([2, 0xfe, a, b, c, d]),
            vmm,
            device,
            tx,
            rx,
        })
    }

    /// The sending end of a direction; once.
    pub fn sender(&self, plan: &NetPlan, ends: Ends, marks: Marks) -> Result<Sender, BenchError> {
        let form = plan.form();
        let header = form.header().to_bytes();
        let mut queues = Vec::new();
        for flow in 0..plan.queue_pairs {
            let frame = form.template(&ends, u8::try_from(flow).unwrap_or(u8::MAX));
            let (device, features) = (&self.device, self.vmm.features());
            let ring = usize::from(flow) * 2 + 1;
            let queue = TxQueue::new(device, ring, features, self.tx, &header, &frame)?;
            queues.push(queue);
        }
        let stamps = form.stamps();
        Ok(Sender::new(
            queues,
            stamps,
            marks,
            plan.burst,
            plan.rate_pps,
        ))
    }

    /// The receiving end of a direction; once.
    pub fn sink(&self, plan: &NetPlan, ends: Ends, run: u8) -> Result<Sink, BenchError> {
        let mut queues = Vec::new();
        for pair in 0..usize::from(plan.queue_pairs) {
            let (device, features) = (&self.device, self.vmm.features());
            queues.push(RxQueue::new(device, pair * 2, features, self.rx)?);
        }
        let flows = usize::from(plan.queue_pairs);
        let eye = Eye::new(plan.form(), ends, run, flows, plan.every_byte);
        Ok(Sink::new(queues, eye))
    }

    pub fn start(&mut self) -> Result<(), BenchError> {
        Ok(self.vmm.start(&self.device)?)
    }

    pub fn stop(&mut self) -> Result<(), BenchError> {
        self.vmm.stop()?;
        Ok(())
    }

    pub fn watch(&self) -> Result<PeerWatch, BenchError> {
        Ok(self.vmm.watch()?)
    }

    pub fn features(&self) -> u64 {
        self.vmm.features()
    }
}

fn options(plan: &NetPlan) -> VmmOptions {
    let mut options = VmmOptions::net();
    let choices = [
        (plan.mrg_rxbuf, feature::MRG_RXBUF),
        (plan.indirect, feature::INDIRECT),
        (plan.event_idx, feature::EVENT_IDX),
        (plan.queue_pairs > 1, feature::MQ),
    ];
    for (_, bit) in choices.iter().filter(|(wanted, _)| !wanted) {
        options.features &= !bit;
    }
    if plan.tso {
        options.features |= feature::CSUM | feature::HOST_TSO4;
        options.features |= feature::GUEST_CSUM | feature::GUEST_TSO4;
    }
    options
}
