//! The daemon's configuration file, and the places it uses without one.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ferry_migration::ids::DiskId;
use ferry_vhost::device::Tracking;
use ferry_vhost::inflight::OwnRegions;
use serde::{Deserialize, Serialize};

use crate::daemon::kept;
use crate::error::{Done, Failure};
use crate::escalation::hook;
use crate::escalation::settings::{self, EscalationConfig, VmConfig};
use crate::name::Name;
use crate::nic::{NicConfig, SwitchConfig};
use crate::qos::datastore::{CostBy, DatastoreQos, Divide, MediumName, Sioc, Threshold, Unmanaged};
use crate::qos::disk::DiskQos;
use crate::qos::group::GroupConfig;
use crate::qos::shares::Shares;
use crate::spec::{CacheMode, DiskKind, DiskSpec, Usage};
use crate::workers::Spin;

/// `/etc/ferry/ferry.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Records and the daemon's id.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Sockets.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Polling threads.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// How long a queue without requests is polled, in microseconds, or "max".
    #[serde(default)]
    pub spin_us: Spin,
    /// Owner group of the devices' sockets; the group `kvm`, where it exists, unless set.
    pub group: Option<String>,
    /// Moving disks between hosts.
    #[serde(default)]
    pub migration: MigrationConfig,
    /// Where disks live, and what is done there.
    #[serde(default, rename = "datastore")]
    pub datastores: Vec<DatastoreConfig>,
    /// Limits that several disks are under together. Not `[[group]]`, as `group` is the sockets'.
    #[serde(default, rename = "disk_group")]
    pub groups: Vec<GroupConfig>,
    /// What is done about machines that make no progress.
    #[serde(default)]
    pub escalation: EscalationConfig,
    /// Machines, each with its disks.
    #[serde(default, rename = "vm")]
    pub vms: Vec<VmConfig>,
    /// Switches, made at the start.
    #[serde(default, rename = "switch")]
    pub switches: Vec<SwitchConfig>,
    /// NICs served from the start.
    #[serde(default, rename = "nic")]
    pub nics: Vec<NicConfig>,
    /// Disks served from the start.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskConfig>,
}

/// `[migration]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationConfig {
    /// Address to listen on.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// Monitors of VMMs that a peer may drive, for `ferry migrate vm`.
    #[serde(default)]
    pub qmp: Vec<PathBuf>,
    /// Where disks that nobody has announced may arrive; without it they are refused.
    pub incoming_dir: Option<PathBuf>,
    /// How long a guest's write may wait for the other side, in milliseconds, before the copy is
    /// given up.
    #[serde(default = "default_patience_ms")]
    pub patience_ms: u64,
}

impl Default for MigrationConfig {
    fn default() -> MigrationConfig {
        MigrationConfig {
            listen: default_listen(),
            qmp: Vec::new(),
            incoming_dir: None,
            patience_ms: default_patience_ms(),
        }
    }
}

/// `[[datastore]]`: where disks live, shared between hosts or not. The lease's keys are for disks that
/// hosts share, all others for Storage I/O Control.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatastoreConfig {
    /// Its directory, or a block device. Where it is shared, all hosts see the same files there.
    pub path: PathBuf,
    /// What makes sure that a host whose lease is over writes no more.
    #[serde(default)]
    pub fence: Fence,
    /// How long this host goes on serving without renewing its lease, in milliseconds.
    #[serde(default = "default_lease_ms")]
    pub lease_ms: u64,
    /// The longest that a write may be on its way to the storage, in milliseconds: nobody takes
    /// over before that is over as well.
    #[serde(default = "default_io_ms")]
    pub io_ms: u64,
    /// See [`DatastoreQos`], as all that follow.
    pub sioc: Option<Sioc>,
    pub medium: Option<MediumName>,
    pub threshold_ms: Option<Threshold>,
    pub stats_period_ms: Option<u64>,
    pub unmanaged: Option<Unmanaged>,
    pub cost: Option<CostBy>,
    pub divide: Option<Divide>,
}

/// A lease's bounds, in milliseconds.
pub const LEASE_MS: (u64, u64) = (200, 3_600_000);

impl DatastoreConfig {
    /// One that the configuration does not name: no disk is taken over by itself.
    pub fn plain(path: &Path) -> DatastoreConfig {
        DatastoreConfig {
            path: path.to_owned(),
            fence: Fence::None,
            lease_ms: default_lease_ms(),
            io_ms: default_io_ms(),
            sioc: None,
            medium: None,
            threshold_ms: None,
            stats_period_ms: None,
            unmanaged: None,
            cost: None,
            divide: None,
        }
    }

    /// What it says of I/O control.
    pub fn qos(&self) -> DatastoreQos {
        DatastoreQos {
            sioc: self.sioc,
            medium: self.medium,
            threshold_ms: self.threshold_ms,
            stats_period_ms: self.stats_period_ms,
            unmanaged: self.unmanaged,
            cost: self.cost,
            divide: self.divide,
        }
    }

    fn check(&mut self) -> Done {
        let wrong = |path: &Path, what: String| {
            Err(Failure::Usage(format!(
                "datastore {}: {what}",
                path.display()
            )))
        };
        if !(LEASE_MS.0..=LEASE_MS.1).contains(&self.lease_ms) || self.io_ms > LEASE_MS.1 {
            let (least, most) = LEASE_MS;
            let what = format!("lease_ms must be {least} to {most}, and io_ms at most {most}");
            return wrong(&self.path, what);
        }
        if let Err(what) = self.qos().check() {
            return wrong(&self.path, what);
        }
        match std::fs::canonicalize(&self.path) {
            Ok(path) => self.path = path,
            Err(error) => return wrong(&self.path, error.to_string()),
        }
        if !self.path.is_dir() {
            let is_device =
                std::fs::metadata(&self.path).is_ok_and(|it| it.file_type().is_block_device());
            if !is_device {
                let what = "it is neither a directory nor a block device".to_owned();
                return wrong(&self.path, what);
            }
            if self.fence != Fence::None {
                let what = "hosts lease what is in a directory; leave fence out for a block device";
                return wrong(&self.path, what.to_owned());
            }
        }
        if let Fence::Command(command) = &self.fence {
            hook::check(command)?;
        }
        Ok(())
    }
}

/// What makes sure that a host whose lease is over writes no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Fence {
    /// Nothing: a person does, and says so.
    #[default]
    None,
    /// The lock of an image, which holds between hosts and outlasts the requests of a dead process.
    LockCoherent,
    /// A program that turns the host off.
    Command(PathBuf),
}

impl TryFrom<String> for Fence {
    type Error = String;

    fn try_from(text: String) -> Result<Fence, String> {
        match (text.as_str(), text.strip_prefix("command:")) {
            ("none", _) => Ok(Fence::None),
            ("lock-coherent", _) => Ok(Fence::LockCoherent),
            (_, Some(path)) if path.starts_with('/') => Ok(Fence::Command(path.into())),
            _ => Err("a fence is none, lock-coherent, or command:/PATH".into()),
        }
    }
}

impl From<Fence> for String {
    fn from(fence: Fence) -> String {
        match fence {
            Fence::None => "none".into(),
            Fence::LockCoherent => "lock-coherent".into(),
            Fence::Command(path) => format!("command:{}", path.display()),
        }
    }
}

/// `[[disk]]`, and what `ferry disk add` sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name, the same on every host.
    pub id: DiskId,
    /// Path, `qcow2:PATH`, `memory:SIZE` or `null:SIZE`.
    pub path: DiskSpec,
    /// Its socket; `ID.sock` under the run directory unless set.
    pub socket_path: Option<PathBuf>,
    /// Virtqueues offered.
    #[serde(default = "default_queues")]
    pub num_queues: u16,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the host's page cache stands before its image.
    #[serde(default)]
    pub cache: CacheMode,
    /// Pin the guest's memory. Not for a guest that gives memory back.
    #[serde(default)]
    pub pin_guest_memory: bool,
    /// The disk is elsewhere, and will arrive.
    #[serde(default)]
    pub incoming: bool,
    /// Other hosts serve disks from its datastore too, and see the same image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Size in bytes of a disk that will arrive.
    pub size: Option<u64>,
    /// How its requests in flight outlive a daemon that dies.
    #[serde(default)]
    pub inflight: InflightMode,
    /// What is at its path is a copy of a disk, and a disk of its own from now on. Of one addition
    /// only: it is not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_identity: bool,
    /// See [`DiskQos`], as all that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_iops: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_mbps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
}

/// Where requests in flight are written down, so that a successor can finish them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum InflightMode {
    /// With the VMM, if it offers to keep them; in a file under the run directory otherwise.
    #[default]
    Auto,
    /// In a file under the run directory, whatever the VMM offers.
    Own,
    /// Nowhere: what is in flight when the daemon dies hangs in the guest.
    Off,
}

impl InflightMode {
    /// The device's tracking; its own files, if any, are called `name` in `dir`.
    pub fn tracking(self, dir: &Path, name: &str) -> Tracking {
        Tracking {
            offered: self == InflightMode::Auto,
            own: (self != InflightMode::Off).then(|| OwnRegions::new(dir, name)),
        }
    }
}

/// Queues of a disk for which nothing else was said.
pub const fn default_queues() -> u16 {
    1
}

fn default_workers() -> usize {
    1
}

/// Where a daemon listens for its peers.
pub fn default_listen() -> String {
    "127.0.0.1:7077".into()
}

fn default_lease_ms() -> u64 {
    10_000
}

fn default_io_ms() -> u64 {
    30_000
}

fn default_patience_ms() -> u64 {
    1000
}

/// `/run/ferry`, or a user's own.
pub fn default_run_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !is_root() => Path::new(&dir).join("ferry"),
        _ if is_root() => "/run/ferry".into(),
        _ => std::env::temp_dir().join("ferry"),
    }
}

/// `/var/lib/ferry`, or a user's own.
pub fn default_state_dir() -> PathBuf {
    if is_root() {
        return "/var/lib/ferry".into();
    }
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("ferry")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

impl Config {
    /// Reads and checks a configuration.
    pub fn load(path: &Path) -> Done<Config> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Failed(format!("cannot read {}: {error}", path.display())))?;
        let mut config: Config = toml::from_str(&text)
            .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
        if config.workers == 0 || config.workers > 256 {
            return Err(Failure::Usage(format!(
                "{}: workers must be 1 to 256",
                path.display()
            )));
        }
        for datastore in &mut config.datastores {
            datastore.check()?;
        }
        config.check_names()?;
        for disk in &config.disks {
            disk.check()?;
        }
        for nic in &config.nics {
            nic.check()?;
            if nic.tap_fds > 0 {
                return Err(Failure::Usage(format!(
                    "nic {}: descriptors cannot stand in a file; name the tap, or hand it with \
                     ferry nic add --tap-fd",
                    nic.id
                )));
            }
            if nic.mac.is_none() {
                return Err(Failure::Usage(format!(
                    "nic {}: set mac; a guest keeps its address when the daemon starts again",
                    nic.id
                )));
            }
        }
        settings::check(&config.escalation, &config.vms)?;
        Ok(config)
    }

    /// Datastores and groups are there once, and groups that disks name are there.
    fn check_names(&self) -> Done {
        let wrong = |what: String| Err(Failure::Usage(what));
        let mut paths = BTreeSet::new();
        for DatastoreConfig { path, .. } in &self.datastores {
            if !paths.insert(path) {
                let path = path.display();
                return wrong(format!(
                    "datastore {path} is there twice; make one section of both"
                ));
            }
        }
        let mut names = BTreeSet::new();
        for group in &self.groups {
            group.check()?;
            if !names.insert(&group.name) {
                return wrong(format!(
                    "group {} is there twice; names must differ",
                    group.name
                ));
            }
        }
        for DiskConfig { id, group, .. } in &self.disks {
            if let Some(group) = group
                && !names.contains(group)
                && !kept::is_kept::<GroupConfig>(&self.state_dir, group)
            {
                return wrong(format!(
                    "disk {id}: there is no group {group}; add a section [[disk_group]] with that \
                     name and its limits, or correct the disk's"
                ));
            }
        }
        Ok(())
    }

    /// The section of the datastore that an image is on: of several that its path leads through, the
    /// innermost.
    pub fn datastore_of(&self, image: &Path) -> Option<&DatastoreConfig> {
        let around = self.datastores.iter().filter(|it| {
            let root = std::fs::canonicalize(&it.path).unwrap_or_else(|_| it.path.clone());
            image.starts_with(root)
        });
        around.max_by_key(|it| it.path.components().count())
    }

    /// A machine by its name.
    pub fn vm(&self, name: &Name) -> Option<&VmConfig> {
        self.vms.iter().find(|vm| vm.name == *name)
    }

    /// The machine that lists a disk.
    pub fn vm_of(&self, disk: &DiskId) -> Option<&VmConfig> {
        self.vms.iter().find(|vm| vm.disks.contains(disk))
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }
}

impl DiskConfig {
    /// A disk of which nothing is said but its name and its place.
    pub fn plain(id: DiskId, path: DiskSpec) -> DiskConfig {
        DiskConfig {
            id,
            path,
            socket_path: None,
            num_queues: default_queues(),
            read_only: false,
            cache: CacheMode::default(),
            pin_guest_memory: false,
            incoming: false,
            shared: false,
            size: None,
            inflight: InflightMode::default(),
            new_identity: false,
            shares: None,
            limit_iops: None,
            limit_mbps: None,
            reservation: None,
            group: None,
        }
    }

    /// How the disk is used.
    pub fn usage(&self) -> Usage {
        Usage {
            read_only: self.read_only,
            cache: self.cache,
            pin_guest_memory: self.pin_guest_memory,
        }
    }

    /// What it is to get of its datastore.
    pub fn qos(&self) -> DiskQos {
        DiskQos {
            shares: self.shares,
            limit_iops: self.limit_iops,
            limit_mbps: self.limit_mbps,
            reservation: self.reservation,
            group: self.group.clone(),
        }
    }

    /// The same disk, that is to get something else.
    #[must_use]
    pub fn with_qos(&self, qos: DiskQos) -> DiskConfig {
        DiskConfig {
            shares: qos.shares,
            limit_iops: qos.limit_iops,
            limit_mbps: qos.limit_mbps,
            reservation: qos.reservation,
            group: qos.group,
            ..self.clone()
        }
    }

    /// Checks what types cannot say.
    pub fn check(&self) -> Done {
        let wrong = |what: &str| Err(Failure::Usage(format!("disk {}: {what}", self.id)));
        if let Err(what) = self.qos().check() {
            return wrong(&what);
        }
        if self.num_queues == 0 || self.num_queues > 128 {
            return wrong("num_queues must be 1 to 128");
        }
        if self.shared && self.size.is_some() {
            return wrong("a shared disk has the size of its image: leave --size out");
        }
        if self.shared && (self.read_only || !matches!(self.path.kind, DiskKind::Path(_))) {
            return wrong("only raw images that are written to are shared between hosts");
        }
        if self.incoming && !self.shared && self.size.is_none() {
            return wrong(
                "a disk that will arrive needs its size (--size), which its VM sees before it comes",
            );
        }
        if !self.incoming && self.size.is_some() {
            return wrong(
                "size is for disks that will arrive (--incoming); others have the size of their image",
            );
        }
        if self.incoming && self.path.path().is_none() {
            return wrong("a disk that will arrive needs a path to be written to");
        }
        if self.incoming && matches!(self.path.kind, DiskKind::Thin(_)) {
            return wrong("a disk arrives whole, as a raw image: give a path without qcow2:");
        }
        if self.incoming && self.read_only {
            return wrong(
                "a disk that will arrive is written to, and cannot be read-only; leave one of the \
                 two out (--incoming, --read-only)",
            );
        }
        if self.size.is_some_and(|size| size == 0 || size % 512 != 0) {
            return wrong("size must be a multiple of 512 bytes above 0");
        }
        Ok(())
    }
}
