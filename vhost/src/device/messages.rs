//! The vhost-user messages of a device's front-end, each turned into one call on the device.
//! Offsets, sizes and indexes come from outside: whatever makes no sense is refused, and logged.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::io::{FdFlags, fcntl_setfd};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::{CONFIG_READ_MAX, Device, Kind, Refusal};
use crate::inflight::Region;
use crate::memory::{DirtyLog, MemoryMap, REGIONS_MAX, RegionSpec};
use crate::session::Conversation;
use crate::vring::RingAddress;

/// The messages of one connection.
pub struct Messages<K: Kind>(Arc<Device<K>>);

impl<K: Kind> Conversation for Device<K> {
    type Handler = Mutex<Messages<K>>;

    fn open(self: &Arc<Self>) -> Arc<Mutex<Messages<K>>> {
        self.state().connected = true;
        Arc::new(Mutex::new(Messages(self.clone())))
    }

    fn close(&self) {
        self.disconnect();
    }

    fn channel(&self, channel: OwnedFd) {
        self.state().channel = Some(channel);
    }

    fn name(&self) -> &str {
        self.kind.name()
    }
}

/// A file of the front-end's, as this process's own: they come open for the programs that it runs,
/// and one of those would keep a guest's memory after the guest.
fn own(file: File) -> File {
    if let Err(error) = fcntl_setfd(&file, FdFlags::CLOEXEC) {
        tracing::warn!(%error, "a file of the front-end stays open for programs that are run");
    }
    file
}

/// What the front-end is told; the log has the reason.
fn answer<T>(result: std::result::Result<T, Refusal>) -> Result<T> {
    result.map_err(|refusal| Error::ReqHandlerError(io::Error::other(refusal.to_string())))
}

/// For a message whose reply cannot say no: the front-end waits for it, so a failure ends the
/// connection.
fn must<T>(result: std::result::Result<T, Refusal>) -> Result<T> {
    result.map_err(|refusal| {
        tracing::warn!(%refusal, "a message that wants an answer has none");
        Error::InvalidParam
    })
}

fn refuse<T>(what: &str) -> Result<T> {
    Err(Error::ReqHandlerError(io::Error::other(what.to_owned())))
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    // The message's struct is packed: its fields are copied out.
    RegionSpec {
        guest_start: region.guest_phys_addr,
        len: region.memory_size,
        user_start: region.user_addr,
        file_offset: region.mmap_offset,
    }
}

impl<K: Kind> VhostUserBackendReqHandlerMut for Messages<K> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.0.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.0.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.0.kind.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        answer(self.0.set_features(features))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let inflight = if self.0.kind.tracking().offered {
            VhostUserProtocolFeatures::INFLIGHT_SHMFD
        } else {
            VhostUserProtocolFeatures::empty()
        };
        Ok(inflight | self.0.kind.protocol_features())
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(()) // the crate enforces them
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let table = regions
            .iter()
            .map(spec)
            .zip(files.into_iter().map(own))
            .collect();
        answer(self.0.change_memory(|_| MemoryMap::new(table)))?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let spec = spec(region);
        answer(self.0.change_memory(|map| map.with(spec, own(file))))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let spec = spec(region);
        answer(self.0.change_memory(|map| map.without(spec)))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        answer(self.0.set_ring(index, |ring| {
            ring.size = u16::try_from(num)
                .ok()
                .filter(|size| size.is_power_of_two() && *size <= crate::vring::RING_SIZE_MAX)
                .ok_or_else(|| {
                    Refusal::Invalid(format!("ring size {num} is not a power of two"))
                })?;
            Ok(())
        }))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        let logged = flags
            .contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG)
            .then_some(log);
        answer(
            self.0
                .set_address(index, RingAddress { desc, avail, used }, logged),
        )
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        answer(self.0.set_ring(index, |ring| {
            ring.base = u16::try_from(base)
                .map_err(|_| Refusal::Invalid(format!("ring base {base} is more than 16 bits")))?;
            Ok(())
        }))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = must(self.0.take_base(index))?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        answer(self.0.set_kick(index.into(), file.map(own)))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        answer(self.0.set_call(index.into(), file.map(own)))
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        answer(self.0.set_err(index.into(), file.map(own)))
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.0.kind.queue_num())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        answer(self.0.set_enabled(index, enable))
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // Front-ends read more than there is; what is not there reads as zeroes.
        let mut space = self.0.kind.config(&self.0.state());
        space.resize(CONFIG_READ_MAX, 0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        match space.get(start..end) {
            Some(wanted) => Ok(wanted.to_vec()),
            None => refuse("the configuration space is read past its end"),
        }
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], flags: VhostUserConfigFlags) -> Result<()> {
        if flags.contains(VhostUserConfigFlags::LIVE_MIGRATION) {
            return Ok(()); // a copy of what this device said itself
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        answer(self.0.kind.set_config(&mut self.0.state(), offset, bytes))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let mapped = DirtyLog::new(own(file), log.mmap_offset, log.mmap_size)
            .map_err(|error| Refusal::Invalid(error.to_string()));
        must(mapped.and_then(|log| self.0.set_log(log)))
    }

    fn set_gpu_socket(&mut self, _socket: GpuBackend) -> Result<()> {
        refuse("the device has no GPU socket")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        refuse("the device shares no objects")
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, entries) = (asked.num_queues, asked.queue_size);
        if queues > self.0.num_queues() {
            return must(Err(Refusal::Invalid(format!(
                "an in-flight region for {queues} queues, and there are {}",
                self.0.num_queues()
            ))));
        }
        let created =
            Region::create(queues, entries).map_err(|error| Refusal::Invalid(error.to_string()));
        let (file, bytes) = must(created)?;
        Ok((VhostUserInflight::new(bytes, 0, queues, entries), file))
    }

    fn set_inflight_fd(&mut self, said: &VhostUserInflight, file: File) -> Result<()> {
        if !self.0.kind.tracking().offered {
            return refuse("in-flight regions were not offered");
        }
        let place = (said.mmap_offset, said.mmap_size);
        let region = Region::map(own(file), place, said.num_queues, said.queue_size);
        answer(
            region
                .map(|region| self.0.set_inflight(region))
                .map_err(|error| Refusal::Invalid(error.to_string())),
        )
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        let (kind, mut state) = (&self.0.kind, self.0.state());
        answer(kind.set_device_state(&mut state, direction, phase, own(file)))
    }

    fn check_device_state(&mut self) -> Result<()> {
        answer(self.0.kind.check_device_state(&mut self.0.state()))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refuse("the device shares no memory of its own")
    }
}
