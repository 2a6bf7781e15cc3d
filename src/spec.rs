//! What a user calls a disk: a path, or one of the words for disks that are no file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use ferry_dataplane::backend::delay::Bottleneck;
use ferry_dataplane::backend::delay::bottleneck::SERVERS_MAX;
use ferry_dataplane::backend::file::{Cache, Image};
use ferry_dataplane::backend::memory::MemoryDisk;
use ferry_dataplane::backend::thin::ThinImage;
use ferry_dataplane::backend::{Backend, Store};
use ferry_dataplane::lifecycle::Geometry;
use serde::{Deserialize, Serialize};

use crate::error::{Done, Failure};

/// `PATH`, `qcow2:PATH`, `memory:SIZE`, `null:SIZE`, or `delay:MILLISECONDS:` before one of these;
/// `delay:MILLISECONDSxSERVERS:` before one of the first two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskSpec {
    /// Where the bytes are.
    pub kind: DiskKind,
    /// Service time added to each request, in nanoseconds; for tests.
    pub delay_ns: u64,
    /// How many requests of the images in one directory are served at a time; for tests. All of
    /// them, where it is not given.
    pub servers: Option<u16>,
}

/// See [`DiskSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskKind {
    /// A raw file or block device.
    Path(PathBuf),
    /// A qcow2 image: a thin disk.
    Thin(PathBuf),
    /// Memory of the daemon, in bytes.
    Memory(u64),
    /// Nothing, of so many bytes.
    Null(u64),
}

/// How a disk is used.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Usage {
    /// Refuse writes.
    #[arg(long)]
    pub read_only: bool,
    /// Whether the host's page cache stands before an image: none is direct I/O.
    #[arg(long, value_enum, default_value_t)]
    pub cache: CacheMode,
    /// Pin the guest's memory, for less work with each request. Not for a guest with a balloon or
    /// free page reporting: it would lose data.
    #[arg(long)]
    pub pin_guest_memory: bool,
}

/// See [`Cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Direct I/O.
    #[default]
    None,
    /// The page cache; what the guest has not flushed is lost with the host.
    Writeback,
}

impl From<CacheMode> for Cache {
    fn from(mode: CacheMode) -> Cache {
        match mode {
            CacheMode::None => Cache::None,
            CacheMode::Writeback => Cache::Writeback,
        }
    }
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskSpec, String> {
        let (delay_ns, servers, rest) = match text.strip_prefix("delay:") {
            None => (0, None, text),
            Some(rest) => {
                let (delay, rest) = rest
                    .split_once(':')
                    .ok_or("use delay:MILLISECONDS:DISK or delay:MILLISECONDSxSERVERS:DISK")?;
                let (delay_ns, servers) = parse_delay(delay)?;
                (delay_ns, servers, rest)
            }
        };
        let kind = if let Some(size) = rest.strip_prefix("memory:") {
            DiskKind::Memory(whole_sectors(size)?)
        } else if let Some(size) = rest.strip_prefix("null:") {
            DiskKind::Null(whole_sectors(size)?)
        } else if let Some(path) = rest.strip_prefix("qcow2:") {
            if path.is_empty() {
                return Err("no image is named: use qcow2:PATH".into());
            }
            DiskKind::Thin(path.into())
        } else if rest.is_empty() {
            return Err("no disk is named: use PATH, qcow2:PATH, memory:SIZE or null:SIZE".into());
        } else {
            DiskKind::Path(rest.into())
        };
        if servers.is_some() && matches!(kind, DiskKind::Memory(_) | DiskKind::Null(_)) {
            return Err(format!(
                "{rest} is in no directory, whose disks share the servers: use delay:MILLISECONDS:{rest}"
            ));
        }
        Ok(DiskSpec {
            kind,
            delay_ns,
            servers,
        })
    }
}

impl TryFrom<String> for DiskSpec {
    type Error = String;

    fn try_from(text: String) -> Result<DiskSpec, String> {
        text.parse()
    }
}

impl From<DiskSpec> for String {
    fn from(spec: DiskSpec) -> String {
        spec.to_string()
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delay_ms = self.delay_ns as f64 / 1e6;
        match self.servers {
            Some(servers) => write!(f, "delay:{delay_ms}x{servers}:")?,
            None if self.delay_ns > 0 => write!(f, "delay:{delay_ms}:")?,
            None => {}
        }
        match &self.kind {
            DiskKind::Path(path) => path.display().fmt(f),
            DiskKind::Thin(path) => write!(f, "qcow2:{}", path.display()),
            DiskKind::Memory(bytes) => write!(f, "memory:{bytes}"),
            DiskKind::Null(bytes) => write!(f, "null:{bytes}"),
        }
    }
}

impl DiskSpec {
    /// The path, where there is one.
    pub fn path(&self) -> Option<&PathBuf> {
        match &self.kind {
            DiskKind::Path(path) | DiskKind::Thin(path) => Some(path),
            DiskKind::Memory(_) | DiskKind::Null(_) => None,
        }
    }

    /// The same disk, at another path, where it has one.
    pub fn at(self, path: PathBuf) -> DiskSpec {
        let kind = match self.kind {
            DiskKind::Path(_) => DiskKind::Path(path),
            DiskKind::Thin(_) => DiskKind::Thin(path),
            other => other,
        };
        DiskSpec { kind, ..self }
    }

    /// Opens what it names.
    pub fn open(&self, usage: Usage) -> Done<Backend> {
        let store = match &self.kind {
            DiskKind::Path(path) => {
                let cache = usage.cache.into();
                Store::Image(Arc::new(Image::open_with(path, usage.read_only, cache)?))
            }
            DiskKind::Thin(path) => Store::Thin(Arc::new(ThinImage::open(path, usage.read_only)?)),
            DiskKind::Memory(bytes) => {
                Store::Memory(Arc::new(MemoryDisk::new(*bytes).map_err(|error| {
                    Failure::Failed(format!("cannot take {bytes} bytes of memory: {error}"))
                })?))
            }
            DiskKind::Null(bytes) => Store::Null {
                capacity_bytes: *bytes,
            },
        };
        self.backend(store, usage)
    }

    /// A store of bytes used as this spec says.
    pub fn backend(&self, store: Store, usage: Usage) -> Done<Backend> {
        let bottleneck = match (self.servers, self.path()) {
            (Some(servers), Some(path)) => Some(Arc::new(bottleneck(path, servers)?)),
            _ => None,
        };
        Ok(Backend {
            bottleneck,
            ..self.without(store, usage)
        })
    }

    /// The disk before its bytes are there, or after: nothing is served of it.
    pub fn pending(&self, geometry: Geometry, usage: Usage) -> Backend {
        let store = Store::Pending {
            capacity_bytes: geometry.capacity_bytes,
            block_bytes: geometry.block_bytes,
        };
        self.without(store, usage)
    }

    /// Without a bottleneck.
    fn without(&self, store: Store, usage: Usage) -> Backend {
        Backend {
            delay_ns: self.delay_ns,
            pin_guest_memory: usage.pin_guest_memory,
            ..Backend::new(store, usage.read_only)
        }
    }
}

/// Milliseconds, or milliseconds and servers.
fn parse_delay(text: &str) -> Result<(u64, Option<u16>), String> {
    let (ms, servers) = match text.split_once('x') {
        None => (text, None),
        Some((ms, servers)) => (ms, Some(servers)),
    };
    let ms: f64 = ms.parse().map_err(|_| format!("{ms:?} is not a number"))?;
    #[expect(clippy::cast_possible_truncation, reason = "bounded just below")]
    #[expect(clippy::cast_sign_loss, reason = "bounded just below")]
    let delay_ns = (ms * 1e6) as u64;
    let Some(servers) = servers else {
        if !(0.0..=60_000.0).contains(&ms) {
            return Err("a delay is 0 to 60000 milliseconds".into());
        }
        return Ok((delay_ns, None));
    };
    if !(0.001..=1000.0).contains(&ms) {
        return Err("a server takes 0.001 to 1000 milliseconds".into());
    }
    match servers.parse() {
        Ok(servers @ 1..=SERVERS_MAX) => Ok((delay_ns, Some(servers))),
        _ => Err(format!(
            "{servers:?} is not a number of servers; use 1 to {SERVERS_MAX}"
        )),
    }
}

/// That of the directory that an image is in.
fn bottleneck(image: &Path, servers: u16) -> Done<Bottleneck> {
    let failed = |why: String| {
        let image = image.display();
        Failure::Failed(format!("the servers of {image} cannot be shared: {why}"))
    };
    let path = fs::canonicalize(image).map_err(|error| failed(error.to_string()))?;
    let dir = path.parent().filter(|_| path.is_file());
    let dir = dir.ok_or_else(|| failed("it is no file".into()))?;
    Bottleneck::open(dir, servers).map_err(|error| failed(error.to_string()))
}

fn whole_sectors(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes == 0 || bytes % 512 != 0 {
        return Err(format!("{text} is not a multiple of 512 bytes above 0"));
    }
    Ok(bytes)
}

/// A size in bytes: a number, with k, M, G or T for powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size; use a number of bytes, or one with k, M, G or T");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
    if i64::try_from(bytes).is_err() {
        Err(bad())
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_paths() {
        let kind = |text: &str| text.parse::<DiskSpec>().unwrap().kind;
        assert_eq!(kind("memory:1G"), DiskKind::Memory(1 << 30));
        assert_eq!(kind("null:512"), DiskKind::Null(512));
        assert_eq!(kind("qcow2:/a/b"), DiskKind::Thin("/a/b".into()));
        assert_eq!(kind("/a/b.qcow2"), DiskKind::Path("/a/b.qcow2".into()));
        assert_eq!(kind("/a/b.raw"), DiskKind::Path("/a/b.raw".into()));
        let slow: DiskSpec = "delay:2.5:/a".parse().unwrap();
        assert_eq!(
            (slow.delay_ns, slow.to_string()),
            (2_500_000, "delay:2.5:/a".into())
        );
        let narrow: DiskSpec = "delay:0.5x8:qcow2:/a:x".parse().unwrap();
        assert_eq!((narrow.delay_ns, narrow.servers), (500_000, Some(8)));
        assert_eq!(narrow.to_string(), "delay:0.5x8:qcow2:/a:x");
        assert_eq!(slow.servers, None);
        for bad in [
            "",
            "memory:",
            "memory:100",
            "null:-1",
            "qcow2:",
            "delay:x:/a",
            "delay:5",
            "delay:nan:/a",
            "delay:-1:/a",
            "delay:2x:/a",
            "delay:2x0:/a",
            "delay:2x257:/a",
            "delay:2x8x8:/a",
            "delay:0x8:/a",
            "delay:1001x8:/a",
            "delay:nanx8:/a",
            "delay:2x8:",
            "delay:2x8:memory:1M",
            "delay:2x8:null:1M",
            "null:99999999T",
        ] {
            assert!(bad.parse::<DiskSpec>().is_err(), "{bad}");
        }
    }
}
