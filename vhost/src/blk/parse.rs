//! From a chain of buffers to a request, checked against the disk.
//!
//! Layout by the specification: a header of 16 readable bytes, the data, one writable status byte
//! at the very end. How the bytes are cut into buffers means nothing.

use ferry_dataplane::limits::SECTOR_BYTES;
use ferry_dataplane::request::{Op, Request};
use ferry_dataplane::segments::Segments;

use super::config::{DISCARD_SECTORS_MAX, REQUEST_BYTES_MAX, WRITE_ZEROES_SECTORS_MAX};
use crate::memory::MemoryMap;
use crate::vring::{Buffer, Chain, copy_bytes, length, push_bytes};

/// Status byte: done.
pub const STATUS_OK: u8 = 0;
/// Status byte: failed.
pub const STATUS_IO_ERROR: u8 = 1;
/// Status byte: no such request.
pub const STATUS_UNSUPPORTED: u8 = 2;

/// Bytes that GET_ID answers.
pub const ID_BYTES: usize = 20;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// The only flag of a range.
const RANGE_UNMAP: u32 = 1;

/// What a disk allows.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Size in bytes.
    pub capacity_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Writes must be durable at completion.
    pub through: bool,
}

/// What a chain asks.
#[derive(Debug, Clone, Copy)]
pub enum Asked {
    /// A request for the backend; its data is in the segments.
    Request(Request),
    /// The disk's name, into the segments.
    Id,
    /// Refused, with this status.
    Refused(u8),
}

/// A chain that has a place for its status.
#[derive(Debug, Clone, Copy)]
pub struct Parsed {
    /// What it asks.
    pub asked: Asked,
    /// Guest address of the status byte.
    pub status_at: u64,
}

/// Reads a chain. An error means that not even a status can be written.
pub fn parse(
    chain: &Chain,
    map: &MemoryMap,
    rules: &Rules,
    tag: u32,
    segments: &mut Segments,
) -> Result<Parsed, &'static str> {
    let last = chain
        .writable()
        .iter()
        .rev()
        .find(|b| b.len > 0)
        .ok_or("no room for a status")?;
    let status_at = last
        .guest
        .checked_add(u64::from(last.len) - 1)
        .ok_or("a buffer that wraps")?;
    if !map.contains(status_at) {
        return Err("a status outside guest memory");
    }
    let asked = ask(chain, map, rules, tag, segments).unwrap_or_else(Asked::Refused);
    Ok(Parsed { asked, status_at })
}

fn ask(
    chain: &Chain,
    map: &MemoryMap,
    rules: &Rules,
    tag: u32,
    segments: &mut Segments,
) -> Result<Asked, u8> {
    let mut header = [0; HEADER_BYTES];
    gather(chain.readable(), 0, &mut header, map)?;
    let kind = u32::from_le_bytes(header[0..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    let readable = length(chain.readable()) - HEADER_BYTES as u64;
    let writable = length(chain.writable()) - 1; // the status byte is there
    let request = match kind {
        TYPE_IN | TYPE_OUT => {
            let (op, buffers, skip, len) = if kind == TYPE_IN {
                (Op::Read, chain.writable(), 0, writable)
            } else {
                (Op::Write, chain.readable(), HEADER_BYTES as u64, readable)
            };
            if !len.is_multiple_of(SECTOR_BYTES) || len == 0 || len > REQUEST_BYTES_MAX {
                return Err(STATUS_IO_ERROR);
            }
            push(buffers, skip, len, map, segments)?;
            range(op, sector, len, rules, tag)?
        }
        TYPE_FLUSH => Request {
            op: Op::Flush,
            offset_bytes: 0,
            len_bytes: 0,
            through: false,
            tag,
        },
        TYPE_GET_ID => {
            let room = writable.min(ID_BYTES as u64);
            push(chain.writable(), 0, room, map, segments)?;
            return Ok(Asked::Id);
        }
        TYPE_DISCARD | TYPE_WRITE_ZEROES => {
            if readable != RANGE_BYTES as u64 {
                return Err(STATUS_UNSUPPORTED); // one range is what the configuration allows
            }
            zeroing(kind, chain, map, rules, tag)?
        }
        _ => return Err(STATUS_UNSUPPORTED),
    };
    if request.op.changes() && rules.read_only {
        return Err(STATUS_IO_ERROR);
    }
    Ok(Asked::Request(request))
}

fn zeroing(
    kind: u32,
    chain: &Chain,
    map: &MemoryMap,
    rules: &Rules,
    tag: u32,
) -> Result<Request, u8> {
    let mut raw = [0; RANGE_BYTES];
    gather(chain.readable(), HEADER_BYTES as u64, &mut raw, map)?;
    let sector = u64::from_le_bytes(raw[0..8].try_into().expect("eight bytes"));
    let count = u32::from_le_bytes(raw[8..12].try_into().expect("four bytes"));
    let flags = u32::from_le_bytes(raw[12..16].try_into().expect("four bytes"));
    let (op, allowed, most) = if kind == TYPE_DISCARD {
        (Op::Discard, 0, DISCARD_SECTORS_MAX)
    } else {
        let unmap = flags & RANGE_UNMAP != 0;
        (
            Op::WriteZeroes { unmap },
            RANGE_UNMAP,
            WRITE_ZEROES_SECTORS_MAX,
        )
    };
    if flags & !allowed != 0 {
        return Err(STATUS_UNSUPPORTED);
    }
    if count == 0 || count > most {
        return Err(STATUS_IO_ERROR);
    }
    range(op, sector, u64::from(count) * SECTOR_BYTES, rules, tag)
}

/// A request over a range inside the disk.
fn range(op: Op, sector: u64, len_bytes: u64, rules: &Rules, tag: u32) -> Result<Request, u8> {
    let offset = sector.checked_mul(SECTOR_BYTES);
    let end = offset.and_then(|offset| offset.checked_add(len_bytes));
    match (offset, end) {
        (Some(offset_bytes), Some(end)) if end <= rules.capacity_bytes => Ok(Request {
            op,
            offset_bytes,
            len_bytes,
            through: rules.through,
            tag,
        }),
        _ => Err(STATUS_IO_ERROR),
    }
}

/// Copies `into.len()` bytes from byte `skip` of the buffers.
fn gather(buffers: &[Buffer], skip: u64, into: &mut [u8], map: &MemoryMap) -> Result<(), u8> {
    let copied = copy_bytes(buffers, skip, into, map);
    copied.then_some(()).ok_or(STATUS_IO_ERROR)
}

/// Adds `len` bytes from byte `skip` of the buffers to the segments.
fn push(
    buffers: &[Buffer],
    skip: u64,
    len: u64,
    map: &MemoryMap,
    segments: &mut Segments,
) -> Result<(), u8> {
    let pushed = push_bytes(buffers, skip, len, map, segments);
    pushed.then_some(()).ok_or(STATUS_IO_ERROR)
}

#[cfg(test)]
mod tests;
