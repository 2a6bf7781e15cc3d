//! A block of the statistics file, byte for byte. Numbers are little-endian.
//!
//! ```text
//!    0  magic, 8 bytes               40  flags: 1 limited, 2 unmanaged, 4 open, 8 left
//!    8  version, u32                 44  classes of wants, u32
//!   12  checksum, u32                48  I/Os, u64          56  latency in ns, u64
//!   16  id, 16 bytes                 64  units, f64         72  outstanding, f64
//!   32  counter, u64                 80  window, f64
//!                                   128  shares by class, f32    1152  slots by class, f32
//! ```
//!
//! The checksum (CRC-32C) is over all 4096 bytes, with zeros in its own place. Magic and checksum stay
//! where they are in every version, so that a block of a later Ferry is told from a torn one. What says
//! something that cannot be is refused as a whole: its writer is not one of us, or is broken.

use crate::qos::controller::HostReport;
use crate::qos::division::{Bins, CLASSES};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// A process, for as long as it runs.
pub type Id = [u8; 16];

const MAGIC: [u8; 8] = *b"FERRYSIO";
const VERSION: u32 = 1;

const CHECKSUM_AT: usize = 12;
const SHARES_AT: usize = 128;
const SLOTS_AT: usize = SHARES_AT + 4 * CLASSES;
const _: () = assert!(SLOTS_AT + 4 * CLASSES <= BLOCK_BYTES);

const LIMITED: u32 = 1;
const UNMANAGED: u32 = 2;
const OPEN: u32 = 4;
const LEFT: u32 = 8;

/// The most that can be: an hour; a billion I/Os in a period, and at a time; the shares of a thousand disks
/// that all have the most.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
const IOS_MAX: u64 = 1_000_000_000;
const SLOTS_MAX: f64 = 1e9;
const WANTS_MAX: f32 = 1e9;

/// What a block says.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Whose it is.
    pub id: Id,
    /// Goes up with every write.
    pub counter: u64,
    /// It has gone, and its place is free.
    pub left: bool,
    /// What it reports.
    pub report: HostReport,
}

/// Why a block is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It was read while it was written, or is not one at all.
    Torn,
    /// A later version wrote it.
    Version,
    /// It says what cannot be.
    Absurd,
}

/// The bytes of a block. What is beyond what a reader would believe is written as the most that it would.
pub fn encode(block: &Block) -> [u8; BLOCK_BYTES] {
    let report = &block.report;
    let mut bytes = [0; BLOCK_BYTES];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    let open = report.window_total.is_infinite();
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let of_report = flag(report.limited, LIMITED) | flag(report.unmanaged, UNMANAGED);
    let flags = of_report | flag(open, OPEN) | flag(block.left, LEFT);
    put(0, &MAGIC);
    put(8, &VERSION.to_le_bytes());
    put(16, &block.id);
    put(32, &block.counter.to_le_bytes());
    put(40, &flags.to_le_bytes());
    put(44, &u32::try_from(CLASSES).unwrap_or(0).to_le_bytes());
    put(48, &report.ios.min(IOS_MAX).to_le_bytes());
    put(56, &report.latency_ns.min(LATENCY_MAX_NS).to_le_bytes());
    put(64, &within(report.units).to_le_bytes());
    put(72, &within(report.outstanding).to_le_bytes());
    put(
        80,
        &within(if open { 0.0 } else { report.window_total }).to_le_bytes(),
    );
    for class in 0..CLASSES {
        let write = |number: f32| number.clamp(0.0, WANTS_MAX).to_le_bytes();
        put(SHARES_AT + 4 * class, &write(report.demand.shares()[class]));
        put(SLOTS_AT + 4 * class, &write(report.demand.slots()[class]));
    }
    let checksum = checksum(&bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What a block says. `None` if nobody has written to it.
pub fn decode(bytes: &[u8; BLOCK_BYTES]) -> Result<Option<Block>, Fault> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    if bytes[..8] != MAGIC || word(bytes, CHECKSUM_AT) != checksum(bytes) {
        return Err(Fault::Torn);
    }
    if word(bytes, 8) != VERSION {
        return Err(Fault::Version);
    }
    let report = report(bytes).ok_or(Fault::Absurd)?;
    Ok(Some(Block {
        id: field(bytes, 16),
        counter: long(bytes, 32),
        left: word(bytes, 40) & LEFT != 0,
        report,
    }))
}

fn report(bytes: &[u8; BLOCK_BYTES]) -> Option<HostReport> {
    let flags = word(bytes, 40);
    let (ios, latency_ns) = (long(bytes, 48), long(bytes, 56));
    let known = usize::try_from(word(bytes, 44)) == Ok(CLASSES);
    if !known || ios > IOS_MAX || latency_ns > LATENCY_MAX_NS {
        return None;
    }
    let float = |at: usize| {
        let number = f64::from_le_bytes(field(bytes, at));
        (0.0..=SLOTS_MAX).contains(&number).then_some(number)
    };
    let window = float(80)?;
    let open = flags & OPEN != 0;
    if !open && window <= 0.0 {
        return None;
    }
    let classes = |from: usize| {
        let class = |class: usize| f32::from_le_bytes(field(bytes, from + 4 * class));
        std::array::from_fn(class)
    };
    Some(HostReport {
        ios,
        latency_ns,
        units: float(64)?,
        outstanding: float(72)?,
        limited: flags & LIMITED != 0,
        demand: Bins::from_classes(classes(SHARES_AT), classes(SLOTS_AT), WANTS_MAX)?,
        window_total: if open { f64::INFINITY } else { window },
        unmanaged: flags & UNMANAGED != 0,
        late: false,
    })
}

fn within(number: f64) -> f64 {
    if number > 0.0 {
        number.min(SLOTS_MAX)
    } else {
        0.0
    }
}

fn checksum(bytes: &[u8; BLOCK_BYTES]) -> u32 {
    let before = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
    let place = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(place, &bytes[CHECKSUM_AT + 4..])
}

fn field<const N: usize>(bytes: &[u8; BLOCK_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn word(bytes: &[u8; BLOCK_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn long(bytes: &[u8; BLOCK_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}
