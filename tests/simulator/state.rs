//! The device's state that goes with a grant, in the production envelope.

use ferry_migration::schema::BlkState;
use ferry_migration::schema::blk_v1::BlkV1;
use ferry_migration::schema::queue_v1::QueueV1;

use super::device::Expected;
use super::host::Host;
use super::image::byte_of;

pub fn shape(blocks: usize, features: u64) -> BlkV1 {
    BlkV1 {
        capacity_bytes: byte_of(blocks),
        block_bytes: 4096,
        num_queues: 1,
        read_only: false,
        acked_features: features,
        writeback: true,
        serial: [0; 20],
    }
}

/// The device's state for a grant; nothing while its rings run.
pub fn export(blocks: usize, host: &Host) -> Option<Vec<u8>> {
    let device = &host.device;
    let queue = QueueV1 {
        index: 0,
        size: 256,
        next_avail: device.base,
        used_idx: device.base,
        enabled: true,
        event_idx: false,
    };
    let state = BlkState::new(shape(blocks, device.features), vec![queue]);
    let state = state.and_then(|state| state.encode()).ok();
    state.filter(|_| !device.rings_run)
}

/// The device takes over a state, if its VM is not another one already.
pub fn import(host: &mut Host, device_state: &[u8]) -> Result<(), String> {
    let state = BlkState::decode(device_state).map_err(|error| error.to_string())?;
    let base = state.queues[0].next_avail;
    let or_boots = state.blk.acked_features == 0;
    let device = &mut host.device;
    if device.rings_run && device.base != base && !(or_boots && device.base == 0) {
        return Err("another machine is attached".into());
    }
    device.expected = Some(Expected { base, or_boots });
    Ok(())
}
