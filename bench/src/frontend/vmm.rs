//! The control side: one connection to one server.
//!
//! ```text
//!   connect --start/start_at--> running --stop--> connected --start_at--> running ...
//!                               running --enable/disable_dirty_log--> running
//! ```
//!
//! The messages come in QEMU's order: features, in-flight region, memory; then
//! per ring NUM, BASE, ADDR, CALL, KICK; then ENABLE. CALL comes before KICK: the
//! kick starts a ring, and servers built on libvhost-user that find requests in it
//! serve them at once, before ENABLE, and die if they cannot call. A stop disables
//! every ring and then asks each for its base.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VringConfigData};

use super::blk::{BlkConfig, feature};
use super::device::GuestDevice;
use super::error::{VmmError, sort};
use super::log::DirtyLog;
use super::memory::GuestMemory;
use super::net::{self, NetConfig};
use super::options::{DeviceKind, InflightRegion, VmmOptions};
use super::raw::{self, RawReply};
use super::watch::{PeerWatch, Watchdog};

const LOG_FLAG: u32 = 1;

/// A connection to a vhost-user server. Dropping it closes the connection.
pub struct Vmm {
    frontend: Frontend,
    stream: UnixStream,
    watchdog: Watchdog,
    options: VmmOptions,
    offered: u64,
    acked: u64,
    protocol: VhostUserProtocolFeatures,
    /// What GET_QUEUE_NUM said.
    queues_told: u16,
    /// The configuration space; empty if the server has none to read.
    config: Vec<u8>,
    /// What the server was shown last.
    shown: Option<GuestMemory>,
    running: Option<GuestDevice>,
    log: Option<Arc<DirtyLog>>,
    inflight: Option<InflightRegion>,
}

impl std::fmt::Debug for Vmm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vmm")
            .field("acked", &self.acked)
            .field("kind", &self.options.kind)
            .field("running", &self.running.is_some())
            .finish_non_exhaustive()
    }
}

impl Vmm {
    /// Connects, negotiates, reads the configuration.
    pub fn connect(path: &Path, options: VmmOptions) -> Result<Self, VmmError> {
        let stream = UnixStream::connect(path).map_err(|source| VmmError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::from_stream(stream, options)
    }

    /// As [`connect`](Self::connect), on a connected socket.
    pub fn from_stream(stream: UnixStream, options: VmmOptions) -> Result<Self, VmmError> {
        let clone = || stream.try_clone().map_err(host("a copy of the socket"));
        let mut vmm = Self {
            frontend: Frontend::from_stream(clone()?, 256),
            watchdog: Watchdog::start(clone()?).map_err(host("a thread"))?,
            stream,
            options,
            offered: 0,
            acked: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            queues_told: 1,
            config: Vec::new(),
            shown: None,
            running: None,
            log: None,
            inflight: None,
        };
        vmm.negotiate()?;
        Ok(vmm)
    }

    fn negotiate(&mut self) -> Result<(), VmmError> {
        self.call("SET_OWNER", |f| f.set_owner())?;
        self.offered = self.call("GET_FEATURES", |f| f.get_features())?;
        for (bit, what) in [
            (feature::PROTOCOL, "vhost-user protocol features"),
            (feature::VERSION_1, "virtio 1 (VIRTIO_F_VERSION_1)"),
            (
                self.options.required,
                "a virtio feature that the running driver uses",
            ),
        ] {
            if self.offered & bit != bit {
                return Err(VmmError::Missing { what });
            }
        }
        self.acked = self.offered & self.options.features | feature::PROTOCOL;
        let offered = self.call("GET_PROTOCOL_FEATURES", |f| f.get_protocol_features())?;
        self.protocol = offered & self.options.protocol;
        let protocol = self.protocol;
        let has_config = protocol.contains(VhostUserProtocolFeatures::CONFIG);
        if !has_config && self.options.kind == DeviceKind::Blk {
            return Err(VmmError::Missing {
                what: "the CONFIG protocol feature",
            });
        }
        self.call("SET_PROTOCOL_FEATURES", |f| {
            f.set_protocol_features(protocol)
        })?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            self.queues_told = self.ask_queues()?;
        }
        if has_config {
            self.read_config()?;
        }
        Ok(())
    }

    /// GET_QUEUE_NUM. A network server answers in pairs, and the crate takes the
    /// answer for the number of rings: it would then refuse to name the second
    /// ring of the last pair. So that question goes past the crate.
    fn ask_queues(&mut self) -> Result<u16, VmmError> {
        let num = match self.options.kind {
            DeviceKind::Blk => self.call("GET_QUEUE_NUM", |f| f.get_queue_num())?,
            DeviceKind::Net => {
                let code = u32::from(FrontendReq::GET_QUEUE_NUM);
                let reply = self.raw_request(code, 0, &[], &[], true)?;
                let body = reply.and_then(|r| r.body.try_into().ok());
                u64::from_ne_bytes(body.ok_or(VmmError::Misuse(
                    "the server's answer to GET_QUEUE_NUM is not 8 bytes; it does not speak vhost-user",
                ))?)
            }
        };
        Ok(u16::try_from(num).unwrap_or(u16::MAX))
    }

    fn read_config(&mut self) -> Result<(), VmmError> {
        let blank = vec![0; self.options.kind.config_bytes() as usize];
        let bytes = self.options.kind.config_bytes();
        let (_, raw) = self.call("GET_CONFIG", |f| {
            f.get_config(0, bytes, VhostUserConfigFlags::empty(), &blank)
        })?;
        self.config = raw;
        Ok(())
    }

    /// Reads a disk's configuration space again.
    pub fn reload_config(&mut self) -> Result<BlkConfig, VmmError> {
        self.read_config()?;
        Ok(self.config())
    }

    /// A disk's configuration as last read.
    pub fn config(&self) -> BlkConfig {
        BlkConfig::parse(&self.config)
    }

    /// A NIC's configuration, if the server lets it be read.
    pub fn net_config(&self) -> Option<NetConfig> {
        NetConfig::parse(&self.config, self.acked)
    }

    /// Virtio features in force, LOG_ALL aside. A [`GuestDevice`]'s queues are
    /// driven with these.
    pub fn features(&self) -> u64 {
        self.acked
    }

    /// Virtio features the server offers.
    pub fn offered_features(&self) -> u64 {
        self.offered
    }

    /// Protocol features in force.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// Most rings: the lesser of what the server and the configuration say. Of a
    /// NIC both speak of pairs; its control queue comes after them.
    pub fn queues_max(&self) -> u16 {
        match self.options.kind {
            DeviceKind::Blk if self.acked & feature::MQ == 0 => 1,
            DeviceKind::Blk => self.queues_told.min(self.config().num_queues).max(1),
            DeviceKind::Net => {
                let config = self.net_config().and_then(|c| c.pairs_max);
                let pairs = self.queues_told.min(config.unwrap_or(u16::MAX)).max(1);
                let several = self.acked & net::feature::MQ != 0;
                let control = self.acked & net::feature::CTRL_VQ != 0;
                let rings = if several { pairs.saturating_mul(2) } else { 2 };
                rings.saturating_add(control.into())
            }
        }
    }

    /// Whether rings run.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Shows the server a device whose rings nobody has served yet.
    pub fn start(&mut self, device: &GuestDevice) -> Result<(), VmmError> {
        self.start_at(device, &vec![0; device.queues().len()])
    }

    /// Shows the server a device whose rings stand at these indices, with a
    /// fresh in-flight region: after a stop, here or at another server.
    pub fn start_at(&mut self, device: &GuestDevice, bases: &[u16]) -> Result<(), VmmError> {
        self.start_with(device, bases, None)
    }

    /// As [`start_at`](Self::start_at) with the in-flight region of a server
    /// that died. The bases are then the used indices, as QEMU has it.
    pub fn recover(
        &mut self,
        device: &GuestDevice,
        bases: &[u16],
        region: InflightRegion,
    ) -> Result<(), VmmError> {
        self.start_with(device, bases, Some(region))
    }

    fn start_with(
        &mut self,
        device: &GuestDevice,
        bases: &[u16],
        region: Option<InflightRegion>,
    ) -> Result<(), VmmError> {
        let wanted = u16::try_from(device.queues().len()).unwrap_or(u16::MAX);
        if self.running.is_some() || bases.len() != device.queues().len() || wanted == 0 {
            return Err(VmmError::Misuse(
                "start wants stopped rings and a base for each",
            ));
        }
        if wanted > self.queues_max() {
            return Err(VmmError::Queues {
                has: self.queues_max(),
                wanted,
            });
        }
        let features = self.acked
            | if self.log.is_some() {
                feature::LOG_ALL
            } else {
                0
            };
        self.call("SET_FEATURES", |f| f.set_features(features))?;
        self.set_inflight(device, region)?;
        self.show_memory(device.memory())?;
        for (i, base) in bases.iter().enumerate() {
            self.set_ring(device, i, *base)?;
        }
        // From here the server may touch the rings, so a stop is owed even if
        // a later message fails.
        self.running = Some(device.clone());
        for i in 0..bases.len() {
            self.call("SET_VRING_ENABLE", |f| f.set_vring_enable(i, true))?;
        }
        if self.options.kick_on_start {
            for part in device.queues() {
                part.kick.write(1).map_err(host("a kick"))?;
            }
        }
        Ok(())
    }

    fn set_inflight(
        &mut self,
        device: &GuestDevice,
        region: Option<InflightRegion>,
    ) -> Result<(), VmmError> {
        if !self
            .protocol
            .contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
        {
            return Ok(());
        }
        let region = match region {
            Some(region) => region,
            None => self.fresh_inflight(device)?,
        };
        let (shape, fd) = (region.shape, region.file.as_raw_fd());
        self.call("SET_INFLIGHT_FD", |f| f.set_inflight_fd(&shape, fd))?;
        self.inflight = Some(region);
        Ok(())
    }

    fn fresh_inflight(&mut self, device: &GuestDevice) -> Result<InflightRegion, VmmError> {
        let queues = u16::try_from(device.queues().len()).unwrap_or(u16::MAX);
        let size = device
            .queues()
            .iter()
            .map(|q| q.layout.size)
            .max()
            .unwrap_or(0);
        let ask = VhostUserInflight::new(0, 0, queues, size);
        let (shape, file) = self.call("GET_INFLIGHT_FD", |f| f.get_inflight_fd(&ask))?;
        Ok(InflightRegion {
            shape,
            file: Arc::new(file),
        })
    }

    fn show_memory(&mut self, memory: &GuestMemory) -> Result<(), VmmError> {
        if self.shown.as_ref().is_some_and(|shown| shown.same(memory)) {
            return Ok(());
        }
        let regions = memory.region_infos();
        let slots = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if self.options.memory_by_slots && self.protocol.contains(slots) {
            for region in self.shown.take().iter().flat_map(GuestMemory::region_infos) {
                self.call("REM_MEM_REG", |f| f.remove_mem_region(&region))?;
            }
            for region in &regions {
                self.call("ADD_MEM_REG", |f| f.add_mem_region(region))?;
            }
        } else {
            self.call("SET_MEM_TABLE", |f| f.set_mem_table(&regions))?;
        }
        self.shown = Some(memory.clone());
        Ok(())
    }

    fn set_ring(&mut self, device: &GuestDevice, i: usize, base: u16) -> Result<(), VmmError> {
        let part = &device.queues()[i];
        self.call("SET_VRING_NUM", |f| f.set_vring_num(i, part.layout.size))?;
        self.call("SET_VRING_BASE", |f| f.set_vring_base(i, base))?;
        self.set_ring_addr(device, i)?;
        self.call("SET_VRING_CALL", |f| f.set_vring_call(i, &part.call))?;
        self.call("SET_VRING_KICK", |f| f.set_vring_kick(i, &part.kick))
    }

    fn set_ring_addr(&mut self, device: &GuestDevice, i: usize) -> Result<(), VmmError> {
        let layout = device.queues()[i].layout;
        let memory = device.memory();
        let logged = self.log.is_some();
        let config = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: if logged { LOG_FLAG } else { 0 },
            desc_table_addr: memory.user_addr(layout.desc)?,
            used_ring_addr: memory.user_addr(layout.used)?,
            avail_ring_addr: memory.user_addr(layout.avail)?,
            log_addr: logged.then_some(layout.used),
        };
        self.call("SET_VRING_ADDR", |f| f.set_vring_addr(i, &config))
    }

    /// Stops all rings, as QEMU stops a block device: ENABLE 0 for each, then
    /// GET_VRING_BASE for each. Returns where they stopped.
    pub fn stop(&mut self) -> Result<Vec<u16>, VmmError> {
        let Some(device) = self.running.take() else {
            return Err(VmmError::Misuse("stop wants running rings"));
        };
        let queues = device.queues().len();
        for i in 0..queues {
            self.call("SET_VRING_ENABLE", |f| f.set_vring_enable(i, false))?;
        }
        (0..queues).map(|i| self.ring_base(i)).collect()
    }

    /// GET_VRING_BASE for one ring, which stops it.
    pub fn ring_base(&mut self, queue: usize) -> Result<u16, VmmError> {
        let base = self.call("GET_VRING_BASE", |f| f.get_vring_base(queue))?;
        u16::try_from(base)
            .map_err(|_| VmmError::Misuse("the server returned a ring index over 65,535"))
    }

    /// Turns logging on, with the rings running or not: SET_LOG_BASE,
    /// SET_FEATURES with LOG_ALL, SET_VRING_ADDR with the log flag.
    pub fn enable_dirty_log(&mut self) -> Result<Arc<DirtyLog>, VmmError> {
        if self.offered & feature::LOG_ALL == 0 {
            return Err(VmmError::Missing {
                what: "dirty logging (VHOST_F_LOG_ALL)",
            });
        }
        if !self.protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD) {
            return Err(VmmError::Missing {
                what: "the LOG_SHMFD protocol feature",
            });
        }
        let Some(memory) = self.shown.clone() else {
            return Err(VmmError::Misuse("a dirty log wants a started device"));
        };
        let log = Arc::new(DirtyLog::new(memory.end()).map_err(host("a dirty log"))?);
        self.set_log_base(&log)?;
        self.log = Some(log.clone());
        self.apply_log()?;
        Ok(log)
    }

    /// Turns logging off; the log keeps what it has.
    pub fn disable_dirty_log(&mut self) -> Result<(), VmmError> {
        self.log = None;
        self.apply_log()
    }

    fn set_log_base(&mut self, log: &DirtyLog) -> Result<(), VmmError> {
        let region = log.region();
        let mut body = region.mmap_size.to_ne_bytes().to_vec();
        body.extend_from_slice(&region.mmap_offset.to_ne_bytes());
        let code = u32::from(FrontendReq::SET_LOG_BASE);
        self.raw_request(code, 0, &body, &[region.mmap_handle], true)?;
        Ok(())
    }

    fn apply_log(&mut self) -> Result<(), VmmError> {
        let features = self.acked
            | if self.log.is_some() {
                feature::LOG_ALL
            } else {
                0
            };
        self.call("SET_FEATURES", |f| f.set_features(features))?;
        let Some(device) = self.running.clone() else {
            return Ok(());
        };
        (0..device.queues().len()).try_for_each(|i| self.set_ring_addr(&device, i))
    }

    /// The in-flight region given to the server, if that was negotiated.
    pub fn inflight(&self) -> Option<&InflightRegion> {
        self.inflight.as_ref()
    }

    /// An eye on the connection, for threads that wait for completions.
    pub fn watch(&self) -> Result<PeerWatch, VmmError> {
        PeerWatch::new(&self.stream).map_err(host("a watch on the socket"))
    }

    /// The protocol crate's front-end, for messages that this type does not
    /// send. The time limit does not apply to what is called on it.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Sends a message with any request number, flags, body and descriptors,
    /// and waits for a reply if told to.
    pub fn raw_request(
        &mut self,
        request: u32,
        flags: u32,
        body: &[u8],
        fds: &[i32],
        wants_reply: bool,
    ) -> Result<Option<RawReply>, VmmError> {
        self.raw("a raw message", |stream| {
            raw::send(stream, request, flags, body, fds)?;
            if wants_reply {
                raw::receive(stream).map(Some)
            } else {
                Ok(None)
            }
        })
    }

    /// Sends bytes as they are: half a message, or a header that lies.
    pub fn raw_bytes(&mut self, bytes: &[u8], fds: &[i32]) -> Result<(), VmmError> {
        self.raw("raw bytes", |stream| raw::send_bytes(stream, bytes, fds))
    }

    fn raw<T>(
        &mut self,
        during: &'static str,
        run: impl FnOnce(&UnixStream) -> std::io::Result<T>,
    ) -> Result<T, VmmError> {
        self.watchdog.arm(self.options.reply_timeout);
        let result = run(&self.stream);
        let timed_out = self
            .watchdog
            .disarm()
            .then_some(self.options.reply_timeout.as_secs());
        result.map_err(|e| {
            let broken = vhost::vhost_user::Error::SocketBroken(e);
            sort(during, timed_out, vhost::Error::VhostUserProtocol(broken))
        })
    }

    pub(super) fn call<T>(
        &mut self,
        during: &'static str,
        run: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, VmmError> {
        self.watchdog.arm(self.options.reply_timeout);
        let result = run(&mut self.frontend);
        let timed_out = self
            .watchdog
            .disarm()
            .then_some(self.options.reply_timeout.as_secs());
        result.map_err(|e| sort(during, timed_out, e))
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Copies of the descriptor live in the watchdog and in watches; only a
        // shutdown closes the connection for all of them.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

pub(super) fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> VmmError {
    move |source| VmmError::Host { what, source }
}
